"""What `BarkModel.generate` takes beyond transformers, made into what transformers' generate takes.

This is for the calls that an engine does not serve. They say a batch as transformers does, except
that rows with seeds or voices of their own are said one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bark_fast.hf.inputs import read_seeds
from bark_fast.types import Voice

Generate = Callable[..., Any]
"""transformers' generate: input_ids, history_prompt, return_output_lengths and keywords."""


def generate_with_transformers(
    generate: Generate,
    input_ids: Any,
    history_prompt: Any,
    return_output_lengths: bool | None,
    seed: int | Sequence[int] | None,
    keywords: Mapping[str, Any],
    *,
    width: int | None,
    device: torch.device | None,
) -> Any:
    """Return what transformers' generate does.

    Args:
        width: the length of the prompt, to which shorter rows are padded; None pads nothing.
        device: where transformers computes, if inputs may be elsewhere.
    """
    keywords = dict(keywords)
    if "max_new_tokens" in keywords:  # which transformers' coarse stage would stumble over
        length = keywords.pop("max_new_tokens")
        keywords.setdefault("semantic_max_new_tokens", length)
    ids = _as_tensor(input_ids, device)
    mask = next((name for name in _MASKS if keywords.get(name) is not None), None)
    if mask is not None:
        keywords[mask] = _as_tensor(keywords[mask], device, whole=True)
    missing = 0 if width is None or not _is_rows(ids) else width - ids.shape[1]
    if missing > 0:
        mask = mask or "attention_mask"
        ones = torch.ones_like(ids) if keywords.get(mask) is None else keywords[mask]
        keywords[mask] = torch.nn.functional.pad(ones, (0, missing))
        ids = torch.nn.functional.pad(ids, (0, missing))

    one_voice = not isinstance(history_prompt, (list, tuple))
    if seed is None and one_voice:
        history = _read_history(history_prompt, device)
        return generate(ids, history, return_output_lengths, **keywords)

    n_rows = len(ids)
    voices = [history_prompt] * n_rows if one_voice else history_prompt
    seeds = None if seed is None else read_seeds(seed, n_rows, random=True)
    waves: list[Tensor] = []
    with torch.random.fork_rng(_cuda_devices(ids), enabled=seeds is not None):
        for i in range(n_rows):
            if seeds is not None:
                torch.manual_seed(seeds[i])
            own = dict(keywords)
            if mask is not None:
                own[mask] = keywords[mask][i : i + 1]
            history = _read_history(voices[i], device)
            waves.extend(generate(ids[i : i + 1], history, None, **own))
    audio = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    return (audio, [len(wave) for wave in waves]) if return_output_lengths else audio


_MASKS = ("semantic_attention_mask", "attention_mask")  # the first one comes first


def _is_rows(ids: Any) -> bool:
    return isinstance(ids, Tensor) and ids.ndim == 2


def _cuda_devices(ids: Tensor) -> list[torch.device]:
    return [ids.device] if ids.device.type == "cuda" else []


def _as_tensor(value: Any, device: torch.device | None, *, whole: bool = False) -> Any:
    """Return arrays and lists as tensors; `whole` makes flags whole numbers."""
    if isinstance(value, (np.ndarray, list, tuple)):
        value = torch.as_tensor(value, dtype=None, device=torch.device("cpu"))
    if not isinstance(value, Tensor):
        return value
    if whole and value.dtype == torch.bool:
        value = value.long()
    return value if device is None else value.to(device)


def _read_history(history: Any, device: torch.device | None) -> Any:
    if isinstance(history, Voice):
        history = history.arrays()
    if not isinstance(history, Mapping):
        return history
    return {key: _as_tensor(value, device) for key, value in history.items()}
