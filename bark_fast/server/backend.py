"""What the server needs of whatever speaks; `AsyncBark` has it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Protocol

from bark_fast.engine.stats import EngineStats
from bark_fast.types import GenerationParams, Speech
from bark_fast.voices import VoiceLike

if TYPE_CHECKING:
    from bark_fast.aio import AsyncBark


class Backend(Protocol):
    """Speaks for any number of tasks at once.

    A stream whose iteration ends early (its task is cancelled, or `aclose` is called) gives up what
    it has begun.
    """

    def stream(
        self,
        text: str,
        *,
        voice: VoiceLike | None = None,
        params: GenerationParams | None = None,
        language: str = "en",
        pause_s: float = 0.0,
    ) -> AsyncIterator[Speech]:
        """Say a text, a Speech a sentence, as `Bark.stream` does."""

    def stats(self) -> EngineStats | None:
        """Return what has been done so far and what waits; cheap. None where that is not known."""

    async def close(self, *, cancel: bool = False) -> None:
        """Take no more work; finish what is there, or give it up."""


def load_backend(model: str, **options: Any) -> AsyncBark:
    """Load a checkpoint and make it ready for its first request.

    Args:
        options: those of `Bark.from_pretrained`.

    Raises:
        InputError, CheckpointError: as `Bark.from_pretrained`.
    """
    from bark_fast.aio import AsyncBark  # torch, which a server that listens already can wait for

    # Whole requests are counted elsewhere, and turned away there.
    bark = AsyncBark.from_pretrained(model, max_pending=2**30, **options)
    bark.bark.warm_up()
    return bark
