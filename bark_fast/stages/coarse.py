"""Stage 2: semantic tokens in, coarse acoustic tokens (the first codebooks, alternating) out.

The stage runs in windows. Each has a prompt of 256 semantic tokens around the current time, the
infer token, and the coarse tokens so far; it adds `sliding_window_len` tokens.
(transformers: BarkCoarseModel.generate.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bark_fast.checkpoint.config import CoarseRules, Config
from bark_fast.kernels import TokenSpace
from bark_fast.models.gpt import GPT
from bark_fast.stages.causal import CausalStage, CausalTask
from bark_fast.stages.sampling import SamplingParams
from bark_fast.types import STAGES, IntArray, Voice


def longest_window(rules: CoarseRules) -> int:
    """Return the positions of the longest window; its last token is never run."""
    prompt = rules.max_coarse_input_length + 1 + rules.max_coarse_history
    return prompt + rules.sliding_window_len - 1


def count_tokens(n_semantic: int, config: Config) -> int:
    """Return how many coarse tokens `n_semantic` semantic tokens make: whole frames, rounded down.

    In float32, because transformers multiplies there: near a whole frame the rounding decides.
    """
    n = config.coarse_rules.n_coarse_codebooks
    frames = np.float32(n_semantic) * np.float32(config.semantic_to_coarse_ratio) / np.float32(n)
    return int(frames) * n


def count_frames(n_semantic: int, config: Config) -> int:
    """Return how many frames `n_semantic` semantic tokens make."""
    return count_tokens(n_semantic, config) // config.coarse_rules.n_coarse_codebooks


def max_semantic_history(config: Config) -> int:
    """Return how many semantic tokens last as long as the longest coarse history."""
    return math.floor(config.coarse_rules.max_coarse_history / config.semantic_to_coarse_ratio)


def codes_to_ids(codes: IntArray, config: Config) -> list[int]:
    """Return codes [n_coarse, F] as the ids of this stage, frame by frame."""
    offsets = np.arange(len(codes))[:, None] * config.codebook_size
    ids: list[int] = (
        (codes + offsets + config.semantic_rules.semantic_vocab_size).T.flatten().tolist()
    )
    return ids


def ids_to_codes(ids: Sequence[int], config: Config) -> IntArray:
    """Return ids of this stage as codes int64 [n_coarse, F]."""
    codes = np.array(ids, dtype=np.int64) - config.semantic_rules.semantic_vocab_size
    frames = codes.reshape(-1, config.coarse_rules.n_coarse_codebooks)
    # Ids past the last codebook wrap around, as in BarkFineModel.generate.
    return np.ascontiguousarray((frames % config.codebook_size).T)


def trim_voice(voice: Voice | None, config: Config) -> tuple[list[int], list[int]]:
    """Return the voice's last semantic tokens and the coarse ids that go with them.

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


def window_start(n_drawn: int, n_semantic_history: int, config: Config) -> int:
    """Return the first semantic token of the window that starts after `n_drawn` coarse tokens.

    Args:
        n_semantic_history: how many of the semantic tokens are the voice's.
    """
    now = n_semantic_history + round(n_drawn / config.semantic_to_coarse_ratio)
    return max(0, now - max_semantic_history(config))


def window_prompt(semantic: Sequence[int], coarse: Sequence[int], config: Config) -> list[int]:
    """Return the prompt of a window.

    Args:
        semantic: from the window's start on; padded if they are too few.
        coarse: the voice's coarse ids, then those drawn so far.
    """
    rules = config.coarse_rules
    window = list(semantic[: rules.max_coarse_input_length])
    padding = [rules.coarse_semantic_pad_token] * (rules.max_coarse_input_length - len(window))
    return [*window, *padding, rules.coarse_infer_token, *coarse[-rules.max_coarse_history :]]


def sampled_ids(config: Config) -> range:
    """Return the ids that may be sampled, codebook after codebook: the columns of the logits.

    Codebooks alternate: at each step only one of them is possible. That of the last codebook goes
    to the end of the vocabulary, because transformers leaves the ids past it possible
    (AlternatingCodebooksLogitsProcessor); a trained model gives them no probability.
    """
    return range(config.semantic_rules.semantic_vocab_size, config.coarse.output_vocab_size)


@dataclass(kw_only=True)
class CoarseTask(CausalTask):
    """One utterance in this stage; `limit` is the end of the window that is open.

    Semantic tokens may still be coming: a window opens as soon as those that its prompt holds are
    known.

    Attributes:
        semantic: the voice's, then the utterance's.
        complete: there will be no more of them.
    """

    semantic: list[int]
    n_semantic_history: int
    coarse_history: list[int]
    config: Config
    complete: bool = False

    @classmethod
    def start(cls, voice: Voice | None, sampling: SamplingParams, config: Config) -> CoarseTask:
        """Return the task of making coarse tokens in that voice from semantic ones to come."""
        semantic_history, coarse_history = trim_voice(voice, config)
        return cls(
            sampling=sampling,
            semantic=semantic_history,
            n_semantic_history=len(semantic_history),
            coarse_history=coarse_history,
            config=config,
        )

    def extend(self, tokens: Sequence[int], *, complete: bool) -> None:
        """Take the next semantic tokens; `complete` if they are the last."""
        self.semantic.extend(tokens)
        self.complete = complete
        self._open_window()

    @property
    def n_tokens(self) -> int:
        """Coarse tokens that the semantic tokens known so far make."""
        return count_tokens(len(self.semantic) - self.n_semantic_history, self.config)

    @property
    def finished(self) -> bool:
        return self.complete and len(self.tokens) == self.n_tokens

    @property
    def open(self) -> bool:
        """True if it can go on with the semantic tokens that it has."""
        return len(self.tokens) < self.limit

    def accept(self, tokens: Sequence[int], *, ended: bool) -> None:
        super().accept(tokens, ended=ended)
        self._open_window()

    def _open_window(self) -> None:
        """Open the next window if the last is full and all that the next needs is there."""
        if self.open or self.finished:
            return
        rules = self.config.coarse_rules
        end = len(self.tokens) + rules.sliding_window_len
        if self.complete:
            end = min(end, self.n_tokens)
        elif (
            end > self.n_tokens
            or len(self.semantic) < self._window_start() + rules.max_coarse_input_length
        ):
            return
        self.limit = end
        prompt = window_prompt(
            self.semantic[self._window_start() :], self.coarse_history + self.tokens, self.config
        )
        # Until the semantic window moves or the history is trimmed, the new prompt is the old one
        # plus what was drawn, so its keys and values are still those in the pages.
        before = self.prompt[0] + self.tokens[self.prompt_end :]
        if prompt != before:
            self.cached, self.prefilled = 0, False
        self.prompt, self.prompt_end = (prompt,), len(self.tokens)

    def _window_start(self) -> int:
        """Return the semantic token at which the prompt of the next window starts."""
        return window_start(len(self.tokens), self.n_semantic_history, self.config)


def build_stage(model: GPT, config: Config) -> CausalStage:
    """Return the stage on a model that was built with `head_ids=sampled_ids(config)`."""
    return CausalStage(
        "coarse",
        model,
        TokenSpace(
            stage=STAGES.index("coarse"),
            first_id=config.semantic_rules.semantic_vocab_size,
            n_ranges=config.coarse_rules.n_coarse_codebooks,
            range_size=config.codebook_size,
        ),
    )
