"""A long text, one sentence after another: which may begin when, and in which voice."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace

from bark_fast.process import HomeProcess
from bark_fast.progress import ProgressBar
from bark_fast.request import Request, RequestBuilder, checked_params
from bark_fast.text import normalise, warn_of_silence
from bark_fast.types import GenerationParams, Speech, Voice
from bark_fast.validation import SEED_LIMIT
from bark_fast.voices import VoiceLike, long_enough


class StreamPlan:
    """The sentences of a long text, all in one voice, and which of them may be begun.

    Without a voice the first utterance that is long enough becomes the voice of those after it, so
    until then they are said one by one.

    Args:
        requests: makes a sentence's request.
        text, voice, params, language: as in `Bark.stream`; sentence i takes the i-th seed after
            that of `params`.

    Raises:
        InputError: an argument is wrong.
    """

    _AHEAD = 4  # sentences under way at a time: the first must not wait for too many others

    def __init__(
        self,
        requests: RequestBuilder,
        text: str,
        voice: VoiceLike | None,
        params: GenerationParams | None,
        language: str,
    ) -> None:
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
        self._requests = requests
        self._voice: Voice | None = first.voice
        self._params = replace(checked, normalize_text=False)  # the pieces are
        self._first_seed = first.seed

    def peek(self, n_waiting: int) -> Request | None:
        """Return the next sentence if it may begin while `n_waiting` others are under way."""
        ahead = 1 if self._voice is None else self._AHEAD
        if self.n_begun == len(self.pieces) or n_waiting >= ahead:
            return None
        seed = (self._first_seed + self.n_begun) % SEED_LIMIT
        params = replace(self._params, seed=seed)
        return self._requests.from_text(self.pieces[self.n_begun], self._voice, params)

    def advance(self) -> None:
        """Take note that the sentence has begun."""
        self.n_begun += 1

    def heard(self, speech: Speech) -> None:
        """Take the oldest sentence under way, which is there now."""
        warn_of_silence(speech.text, len(speech.samples))
        if self._voice is None and long_enough(
            speech.semantic_tokens, speech.coarse_tokens, self._requests.config
        ):
            self._voice = speech.to_voice()


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
                speech = waiting[0].result()
                waiting.popleft()
                plan.heard(speech)
                begin(bar)  # the next ones are under way while this one is listened to
                yield speech
        finally:
            for future in waiting:
                future.cancel()
