"""A long text, one sentence after another: which may begin when, in which voice, how they join."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace

import numpy as np

from bark_fast.process import HomeProcess
from bark_fast.progress import ProgressBar
from bark_fast.request import Request, RequestBuilder, checked_params
from bark_fast.text import normalise, warn_of_silence
from bark_fast.types import GenerationParams, Speech, Voice
from bark_fast.validation import SEED_LIMIT, check_pause
from bark_fast.voices import VoiceLike, long_enough

_FADE_S = 0.005  # long enough that no edge clicks, too short to be heard itself
# Sentences that may be under way, see `StreamPlan`. They share a CPU, on which the first would come
# later for the others' sake; a GPU has room for some more.
AHEAD_ON_CPU, AHEAD_ON_GPU = (1, 2, 4), (4,)


class StreamPlan:
    """The sentences of a long text, all in one voice, and which of them may be begun.

    Without a voice the first utterance that is long enough becomes the voice of those after it, so
    until then they are said one by one.

    Args:
        requests: makes a sentence's request.
        text, voice, params, language, pause_s: as in `Bark.stream`; sentence i takes the i-th seed
            after that of `params`.
        ahead: sentences that may be under way before one has been heard, after the first, and so
            on; the last stands for all after it.

    Raises:
        InputError: an argument is wrong.
    """

    def __init__(
        self,
        requests: RequestBuilder,
        text: str,
        voice: VoiceLike | None,
        params: GenerationParams | None,
        language: str,
        *,
        pause_s: float = 0.0,
        ahead: Sequence[int] = AHEAD_ON_GPU,
    ) -> None:
        check_pause("pause_s", pause_s)
        clean, checked = normalise(text), checked_params(params)
        loaded = requests.voices.get(voice)
        first = Request.resolve(clean, [], loaded, checked, requests.config)
        self.pieces = requests.split(
            text,
            language=language,
            max_tokens=first.max_semantic_tokens,
            normalize_text=checked.normalize_text,
        )
        self.n_begun = 0
        self._n_heard = 0
        self._ahead = ahead
        self._pause_s = pause_s
        self._requests = requests
        self._voice: Voice | None = first.voice
        self._params = replace(checked, normalize_text=False)  # the pieces are
        self._first_seed = first.seed

    def peek(self, n_waiting: int) -> Request | None:
        """Return the next sentence if it may begin while `n_waiting` others are under way."""
        ahead = 1
        if self._voice is not None:
            ahead = self._ahead[min(self._n_heard, len(self._ahead) - 1)]
        if self.n_begun == len(self.pieces) or n_waiting >= ahead:
            return None
        seed = (self._first_seed + self.n_begun) % SEED_LIMIT
        params = replace(self._params, seed=seed)
        return self._requests.from_text(self.pieces[self.n_begun], self._voice, params)

    def advance(self) -> None:
        """Take note that the sentence has begun."""
        self.n_begun += 1

    def heard(self, speech: Speech) -> Speech:
        """Take the oldest sentence under way, which is there now; return it ready to be joined."""
        warn_of_silence(speech.text, len(speech.samples))
        self._n_heard += 1
        if self._voice is None and long_enough(
            speech.semantic_tokens, speech.coarse_tokens, self._requests.config
        ):
            self._voice = speech.to_voice()
        return self._joinable(speech)

    def _joinable(self, speech: Speech) -> Speech:
        """Return the sentence heard last with a fade where it meets others, and the pause."""
        is_first, is_last = self._n_heard == 1, self._n_heard == len(self.pieces)
        rate = speech.sample_rate_hz
        samples = speech.samples.copy()
        n = min(round(_FADE_S * rate), len(samples) // 2)
        ramp = (np.arange(n) / max(n, 1)).astype(np.float32)
        if not is_first:
            samples[:n] *= ramp
        if not is_last:
            samples[len(samples) - n :] *= ramp[::-1]
            pause = np.zeros(round(self._pause_s * rate), dtype=np.float32)
            samples = np.concatenate([samples, pause])
        return replace(speech, samples=samples)


def speak(
    plan: StreamPlan, submit: Callable[..., Future[Speech]], *, progress: bool
) -> Iterator[Speech]:
    """Yield the speech of each sentence of a plan, while the next ones are being made.

    Args:
        submit: as `Bark.submit`.
        progress: show a progress bar on standard error.
    """
    waiting: deque[Future[Speech]] = deque()
    home = HomeProcess("a stream of speech")

    def begin(bar: ProgressBar) -> None:
        while (request := plan.peek(len(waiting))) is not None:
            reporter = bar.reporter(plan.n_begun)
            waiting.append(submit(request, progress=reporter, urgent=True))
            plan.advance()

    with ProgressBar(len(plan.pieces), enabled=progress) as bar:
        try:
            begin(bar)
            while waiting:
                home.check()
                speech = plan.heard(waiting[0].result())
                waiting.popleft()
                begin(bar)  # the next ones are under way while this one is listened to
                yield speech
        finally:
            for future in waiting:
                future.cancel()
