"""A long text, one sentence after another: which may begin when, and in whose voice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bark_fast.checkpoint.config import Config
from bark_fast.engine.request import Request
from bark_fast.types import GenerationParams, Speech, Voice
from bark_fast.validation import SEED_LIMIT
from bark_fast.voices import long_enough

MakeRequest = Callable[[str, Voice | None, GenerationParams], Request]


class StreamPlan:
    """Which sentences of a long text may be begun, and how: all in one voice.

    Without a voice the first utterance that is long enough becomes the voice of those after it, so
    until then they are said one by one.

    Args:
        params: with a seed; sentence i takes the i-th after it.
        request: makes a sentence's request.
    """

    _AHEAD = 4  # sentences under way at a time: the first must not wait for too many others

    def __init__(
        self,
        pieces: list[str],
        voice: Voice | None,
        params: GenerationParams,
        *,
        request: MakeRequest,
        config: Config,
    ) -> None:
        self.pieces = pieces
        self.n_begun = 0
        self._voice = voice
        self._params = params
        self._request = request
        self._config = config

    def peek(self, n_waiting: int) -> Request | None:
        """The next sentence if it may begin while `n_waiting` others are under way."""
        ahead = 1 if self._voice is None else self._AHEAD
        if self.n_begun == len(self.pieces) or n_waiting >= ahead:
            return None
        assert self._params.seed is not None
        seed = (self._params.seed + self.n_begun) % SEED_LIMIT
        own = replace(self._params, seed=seed)
        return self._request(self.pieces[self.n_begun], self._voice, own)

    def advance(self) -> None:
        """That sentence has begun."""
        self.n_begun += 1

    def heard(self, speech: Speech) -> None:
        """The oldest sentence under way is there."""
        if self._voice is None and long_enough(
            speech.semantic_tokens, speech.coarse_tokens, self._config
        ):
            self._voice = speech.to_voice()
