"""Read the arguments of `BarkModel.generate`: a row of tokens, a voice and a seed an utterance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bark_fast.checkpoint.config import Config
from bark_fast.errors import InputError, warn
from bark_fast.types import Voice
from bark_fast.validation import SEED_LIMIT, check_integer, check_seed
from bark_fast.voices import check_voice


def read_rows(input_ids: Any, attention_mask: Any, config: Config) -> list[list[int]]:
    """Return the text tokens of each row, -1 for a pad.

    Args:
        input_ids: integers [B, T], the tokenizer's.
        attention_mask: [B, T], 1 for a token and anything else for a pad; without one every id is a
            token, as in transformers, even that of the tokenizer's padding.

    Returns:
        B lists. A row longer than the prompt is cut, with a warning if a token is lost; a shorter
        one is left to be padded.

    Raises:
        InputError: an argument is not that, or an id is not in the text vocabulary.
    """
    if input_ids is None:
        raise InputError("input_ids must be given, integers [B, T], got None")
    ids = _integers("input_ids", input_ids)
    if ids.ndim != 2 or 0 in ids.shape:
        raise InputError(f"input_ids must have shape [B, T], none of them 0, got {list(ids.shape)}")
    real = np.ones(ids.shape, dtype=bool)
    if attention_mask is not None:
        mask = _to_numpy("attention_mask", attention_mask)
        if mask.shape not in (ids.shape, (1, ids.shape[1])):
            raise InputError(
                f"attention_mask must have the shape of input_ids, {list(ids.shape)}, or one row "
                f"for all, got {list(mask.shape)}"
            )
        real = np.broadcast_to(mask == 1, ids.shape)
    width = config.max_text_tokens
    lost = int(real[:, width:].sum(axis=1).max(initial=0))
    ids, real = ids[:, :width], real[:, :width]
    limit = config.semantic.input_vocab_size - config.semantic_rules.text_encoding_offset
    said = ids[real]
    if said.size and not (said.min() >= 0 and said.max() < limit):
        raise InputError(
            f"input_ids must be from 0 to {limit - 1}, got {said.min()} to {said.max()}"
        )
    if lost:
        warn(
            f"the last {lost} tokens of input_ids were cut, because the prompt holds {width}",
            stacklevel=4,
        )
    rows: list[list[int]] = np.where(real, ids, -1).tolist()
    return rows


def read_voices(history_prompt: Any, n_rows: int, config: Config) -> list[Voice | None]:
    """Return the voice of each row.

    Args:
        history_prompt: None, the mapping of a preset's three arrays or a Voice for all rows, or a
            list of these, one a row.

    Raises:
        InputError: history_prompt is not that, or its arrays do not fit the model.
    """
    if history_prompt is None or isinstance(history_prompt, (Mapping, Voice)):
        return [_read_voice("history_prompt", history_prompt, config)] * n_rows
    if not isinstance(history_prompt, (list, tuple)):
        raise InputError(
            "history_prompt must be None, a mapping with semantic_prompt, coarse_prompt and "
            "fine_prompt (BarkProcessor reads presets and files), a Voice, or a list of these, "
            f"got {type(history_prompt).__name__}"
        )
    if len(history_prompt) != n_rows:
        raise InputError(
            f"history_prompt must have an entry for each of the {n_rows} rows of input_ids, "
            f"got {len(history_prompt)}"
        )
    return [
        _read_voice(f"history_prompt[{i}]", history, config)
        for i, history in enumerate(history_prompt)
    ]


def _read_voice(name: str, history: Any, config: Config) -> Voice | None:
    """Return one row's voice."""
    if history is None:
        return None
    if not isinstance(history, (Mapping, Voice)):
        raise InputError(
            f"{name} must be None, a mapping of arrays or a Voice, got {type(history).__name__}"
        )
    arrays: Mapping[str, Any] = history.arrays() if isinstance(history, Voice) else history
    return check_voice(arrays, config, name=None, argument=name)


def read_seeds(seed: Any, n_rows: int, *, random: bool) -> list[int]:
    """Return the seed of each row.

    Args:
        seed: an integer s (row i takes s + i), a sequence of integers, one a row, or None, which
            draws them from torch's global generator.
        random: rows draw random numbers at all; torch's generator is left alone otherwise.

    Raises:
        InputError: seed is not that.
    """
    if seed is None:
        if not random:
            return [0] * n_rows
        drawn = torch.randint(2**63 - 1, (n_rows,), dtype=torch.int64, device="cpu")
        return [int(each) for each in drawn.tolist()]
    requirement = "an integer from 0 to 2**64 - 1, or one a row"
    if isinstance(seed, (Tensor, np.ndarray)):
        seed = seed.tolist()
    if not isinstance(seed, Sequence) or isinstance(seed, str):
        check_integer("seed", seed, requirement, 0, SEED_LIMIT - 1)
        return [(int(seed) + i) % SEED_LIMIT for i in range(n_rows)]
    if len(seed) != n_rows:
        raise InputError(
            f"seed must be an integer, or one for each of the {n_rows} rows of input_ids, "
            f"got {len(seed)}"
        )
    for i, row_seed in enumerate(seed):
        check_seed(f"seed[{i}]", row_seed)
    return [int(row_seed) for row_seed in seed]


def _to_numpy(name: str, value: Any) -> Any:
    try:
        return np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{name} must be an array of numbers: {error}") from error


def _integers(name: str, value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():  # numpy has no bfloat16
        raise InputError(
            f"{name} must hold integers, got {str(value.dtype).removeprefix('torch.')}"
        )
    array = _to_numpy(name, value)
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{name} must hold integers, got {array.dtype}")
    return array
