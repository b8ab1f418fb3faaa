"""Stage 2: semantic tokens in, coarse acoustic tokens (the first codebooks, alternating) out.

The stage runs in windows. Each has a prompt of 256 semantic tokens around the current time, the
infer token, and the coarse tokens so far; it adds `sliding_window_len` tokens.
(transformers: BarkCoarseModel.generate.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bark_fast.checkpoint.config import Config
from bark_fast.models.gpt import GPT, Chunk, KVPages
from bark_fast.stages.draws import Draw, draw_tokens
from bark_fast.types import IntArray, Voice


def count_tokens(n_semantic: int, config: Config) -> int:
    """How many coarse tokens `n_semantic` semantic tokens make: whole frames, rounded down.

    In float32, because transformers multiplies there: near a whole frame the rounding decides.
    """
    n = config.coarse_rules.n_coarse_codebooks
    frames = np.float32(n_semantic) * np.float32(config.semantic_to_coarse_ratio) / np.float32(n)
    return int(frames) * n


def count_frames(n_semantic: int, config: Config) -> int:
    """How many frames `n_semantic` semantic tokens make."""
    return count_tokens(n_semantic, config) // config.coarse_rules.n_coarse_codebooks


def max_semantic_history(config: Config) -> int:
    """Semantic tokens that last as long as the longest coarse history."""
    return math.floor(config.coarse_rules.max_coarse_history / config.semantic_to_coarse_ratio)


def codes_to_ids(codes: IntArray, config: Config) -> list[int]:
    """Codes [n_coarse, F] as the ids of this stage, frame by frame."""
    offsets = np.arange(len(codes))[:, None] * config.codebook_size
    ids: list[int] = (
        (codes + offsets + config.semantic_rules.semantic_vocab_size).T.flatten().tolist()
    )
    return ids


def ids_to_codes(ids: Sequence[int], config: Config) -> IntArray:
    """Ids of this stage as codes int64 [n_coarse, F]."""
    codes = np.array(ids, dtype=np.int64) - config.semantic_rules.semantic_vocab_size
    frames = codes.reshape(-1, config.coarse_rules.n_coarse_codebooks)
    # Ids past the last codebook wrap around, as in BarkFineModel.generate.
    return np.ascontiguousarray((frames % config.codebook_size).T)


def trim_voice(voice: Voice | None, config: Config) -> tuple[list[int], list[int]]:
    """The voice's last semantic tokens and the coarse ids that go with them.

    The two are cut to the same time; the last two coarse ids are dropped, which suno's code found
    to sound better.
    """
    if voice is None:
        return [], []
    ratio = config.semantic_to_coarse_ratio
    semantic = voice.semantic_prompt.tolist()
    coarse = codes_to_ids(voice.coarse_prompt, config)
    n_semantic = min(
        max_semantic_history(config),
        len(semantic) - len(semantic) % 2,
        math.floor(len(coarse) / ratio),
    )
    n_coarse = round(n_semantic * ratio)
    return semantic[-n_semantic:], coarse[-n_coarse:][:-2]


def window_prompt(
    semantic: Sequence[int],
    n_semantic_history: int,
    coarse: Sequence[int],
    n_generated: int,
    config: Config,
) -> list[int]:
    """The prompt of the window that starts after `n_generated` new coarse tokens.

    Args:
        semantic: the voice's semantic tokens, then the utterance's.
        n_semantic_history: how many of them are the voice's.
        coarse: the voice's coarse ids, then those generated so far.
    """
    rules = config.coarse_rules
    now = n_semantic_history + round(n_generated / config.semantic_to_coarse_ratio)
    start = max(0, now - max_semantic_history(config))
    window = list(semantic[start : start + rules.max_coarse_input_length])
    padding = [rules.coarse_semantic_pad_token] * (rules.max_coarse_input_length - len(window))
    history = coarse[-rules.max_coarse_history :]
    return [*window, *padding, rules.coarse_infer_token, *history]


def sampled_ids(config: Config) -> range:
    """The ids that may be sampled, codebook after codebook: the columns of the stage's logits.

    Codebooks alternate: at each step only one of them is possible. That of the last codebook goes
    to the end of the vocabulary, because transformers leaves the ids past it possible
    (AlternatingCodebooksLogitsProcessor); a trained model gives them no probability.
    """
    return range(config.semantic_rules.semantic_vocab_size, config.coarse.output_vocab_size)


@dataclass
class CoarseTask:
    """One utterance in this stage."""

    semantic: list[int]  # the voice's, then the utterance's
    n_semantic_history: int
    coarse_history: list[int]
    n_tokens: int
    draw: Draw
    config: Config
    tokens: list[int] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    window_start: int = 0  # tokens that were there before this window
    cached: int = 0  # positions of this window whose keys and values are in the pages

    def __post_init__(self) -> None:
        self._open_window()

    @classmethod
    def start(
        cls, semantic_tokens: Sequence[int], voice: Voice | None, draw: Draw, config: Config
    ) -> CoarseTask:
        """The task of turning `semantic_tokens` into coarse ones, in the voice's manner."""
        semantic_history, coarse_history = trim_voice(voice, config)
        return cls(
            semantic=[*semantic_history, *semantic_tokens],
            n_semantic_history=len(semantic_history),
            coarse_history=coarse_history,
            n_tokens=count_tokens(len(semantic_tokens), config),
            draw=draw,
            config=config,
        )

    @property
    def finished(self) -> bool:
        return len(self.tokens) >= self.n_tokens

    @property
    def max_length(self) -> int:
        """Positions that a window can come to need; a window's last token is never fed back."""
        rules = self.config.coarse_rules
        history = min(len(self.coarse_history) + self.n_tokens, rules.max_coarse_history)
        return rules.max_coarse_input_length + 1 + history + rules.sliding_window_len - 1

    @property
    def sequence(self) -> list[int]:
        """This window's prompt and what was generated in it."""
        return self.prompt + self.tokens[self.window_start :]

    def chunk(self, pages: Sequence[int]) -> Chunk:
        """What the model has not seen of this window."""
        return Chunk(ids=[self.sequence[self.cached :]], start=self.cached, pages=pages)

    def add(self, token: int, cached: int) -> None:
        """Take the next token; at the end of a window open the next one."""
        self.tokens.append(token)
        self.cached = cached
        window = self.config.coarse_rules.sliding_window_len
        if len(self.tokens) - self.window_start == window and not self.finished:
            self._open_window()

    def _open_window(self) -> None:
        before = self.sequence
        prompt = window_prompt(
            self.semantic,
            self.n_semantic_history,
            self.coarse_history + self.tokens,
            len(self.tokens),
            self.config,
        )
        # Until the semantic window moves or the history is trimmed, the new prompt is the old one
        # plus what was generated, so its keys and values are still those in the pages.
        if not before or prompt != before:
            self.cached = 0
        self.prompt = prompt
        self.window_start = len(self.tokens)


class CoarseStage:
    """Runs one step of any number of tasks."""

    def __init__(self, model: GPT, config: Config) -> None:
        """`model` must have been built with `head_ids=sampled_ids(config)`."""
        self.model = model
        self._config = config

    def run(
        self, tasks: Sequence[CoarseTask], pages: Sequence[Sequence[int]], cache: KVPages
    ) -> None:
        """Add one token to every task."""
        chunks = [task.chunk(own) for task, own in zip(tasks, pages, strict=True)]
        chosen = draw_tokens(
            self.model.run(chunks, cache),
            [task.draw for task in tasks],
            [len(task.tokens) for task in tasks],
            stage="coarse",
            impl=self.model.impl,
            n_ranges=self._config.coarse_rules.n_coarse_codebooks,
            range_size=self._config.codebook_size,
        )
        first_id = self._config.semantic_rules.semantic_vocab_size
        for task, chunk, column in zip(tasks, chunks, chosen.tolist(), strict=True):
            task.add(first_id + column, chunk.start + len(chunk.ids[0]))
