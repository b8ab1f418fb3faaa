"""Who may wait: bounds on requests and on audio, and when those turned away should come again."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from bark_fast.server.errors import overloaded

_WINDOW_S = 60.0  # of the recent rate
_RETRY_AFTER_S = (1, 120)


class Admission:
    """Counts the requests that wait for speech or are being spoken.

    Args:
        max_requests: of them at a time.
        max_audio_s: that they are estimated to take, unless a request is alone.
        clock: the time in seconds.
    """

    def __init__(
        self,
        *,
        max_requests: int,
        max_audio_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_requests = max_requests
        self._max_audio_s = max_audio_s
        self._clock = clock
        self._recent: deque[tuple[float, float]] = deque()
        self._counted: set[Ticket] = set()

    @property
    def n_requests(self) -> int:
        """Requests that are counted now."""
        return len(self._counted)

    @property
    def audio_s(self) -> float:
        """Seconds of audio that those still need, by estimate."""
        return sum((ticket.left_s for ticket in list(self._counted)), 0.0)

    def admit(self, audio_s: float) -> Ticket:
        """Let a request in that is estimated to take `audio_s` seconds of audio.

        Raises:
            ApiError: there is no room for it; it says when to try again.
        """
        if self.n_requests >= self._max_requests:
            raise overloaded(f"{self.n_requests} requests are waiting", self.retry_after_s())
        if self.n_requests and self.audio_s + audio_s > self._max_audio_s:
            raise overloaded(
                f"requests for {self.audio_s:.0f} s of speech are waiting", self.retry_after_s()
            )
        return Ticket(self._counted, audio_s, self._made)

    def retry_after_s(self) -> int:
        """Return when what waits now will have been said, at the recent rate; in seconds."""
        low, high = _RETRY_AFTER_S
        return max(low, min(high, math.ceil(self.audio_s / self.rate())))

    def rate(self) -> float:
        """Return the seconds of audio that were lately made in a second; 1 before any were."""
        now = self._clock()
        self._forget(now)
        if not self._recent:
            return 1.0
        made = sum(audio_s for _, audio_s in self._recent)
        return max(made, 1e-3) / max(now - self._recent[0][0], 1.0)

    def _made(self, audio_s: float) -> None:
        now = self._clock()
        self._forget(now)
        self._recent.append((now, audio_s))

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] < now - _WINDOW_S:
            self._recent.popleft()


class Ticket:
    """A request that was let in, counted until it is set aside.

    Args:
        counted: all that are counted.
        audio_s: estimated for it.
        on_made: told of audio that was made.

    Attributes:
        left_s: seconds of audio that it still needs, by estimate.
    """

    def __init__(
        self, counted: set[Ticket], audio_s: float, on_made: Callable[[float], None]
    ) -> None:
        self.left_s = audio_s
        self._counted = counted
        self._on_made = on_made
        self.take_up()

    def made(self, audio_s: float) -> None:
        """Take note that so much of its audio is there."""
        self._on_made(audio_s)
        self.left_s = max(0.0, self.left_s - audio_s)

    def set_aside(self) -> None:
        """Count it no more: it is over, or waits for its reader and keeps nobody else waiting."""
        self._counted.discard(self)

    def take_up(self) -> None:
        """Count it again; a request that has begun is not turned away."""
        self._counted.add(self)
