"""What whoever runs the server can choose."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from bark_fast.errors import InputError
from bark_fast.validation import check_integer, check_number, check_pause


@dataclass(frozen=True)
class ServerOptions:
    """Options of the server.

    Attributes:
        model: the name that clients see; OpenAI's own names of speech models mean it too.
        api_key: what clients must send as "Authorization: Bearer ..."; None asks for none.
        max_input: characters of a request's text.
        max_body_bytes: of a request.
        max_audio_s: seconds of speech a request; one whose text would take longer is refused, and
            one that does take longer is broken off.
        max_requests: that wait or are being spoken; beyond it, clients are told when to try again.
        max_queued_audio_s: seconds of speech that those are estimated to take.
        pause_s: silence between sentences.
        buffer_bytes: of audio that is made ahead of a slow reader.
        stall_s: a reader that takes nothing for so long is given up.
        drain_s: at the end, requests under way have so long to finish.
        cors_origins: web pages from there may use the server; "*" is all.

    Raises:
        InputError: a value is out of its range.
    """

    model: str = "demo"
    api_key: str | None = None
    max_input: int = 4096
    max_body_bytes: int = 64 * 1024
    max_audio_s: float = 600.0
    max_requests: int = 256
    max_queued_audio_s: float = 1800.0
    pause_s: float = 0.25
    buffer_bytes: int = 1024 * 1024
    stall_s: float = 120.0
    drain_s: float = 30.0
    cors_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_input", "max_body_bytes", "max_requests", "buffer_bytes"):
            check_integer(name, getattr(self, name), "an integer >= 1", 1, 2**31 - 1)
        for name in ("max_audio_s", "max_queued_audio_s", "stall_s"):
            check_number(
                name, getattr(self, name), "a number of seconds above 0", 0, math.inf, low_open=True
            )
        check_number("drain_s", self.drain_s, "a number of seconds >= 0", 0, math.inf)
        check_pause("pause_s", self.pause_s)
        if not self.model:
            raise InputError("model must be a name, got ''")
        if self.api_key == "":
            raise InputError("api_key must not be empty; None asks for none")


def shown_name(model: str) -> str:
    """Return what clients see a model as: a folder's own name, and a hub id as it is."""
    folder = Path(model).resolve()
    return folder.name if folder.is_dir() else model
