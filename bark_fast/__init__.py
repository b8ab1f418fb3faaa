"""bark-fast: a fast, exact engine for the Bark text-to-speech model.

>>> from bark_fast import Bark, GenerationParams
>>> bark = Bark.from_pretrained("demo")
>>> speech = bark.generate("Hello, my dog is cute", params=GenerationParams(seed=7))
>>> speech.save("hello.wav")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bark_fast.types import (
    BarkFastError,
    BarkFastWarning,
    CheckpointError,
    ClosedError,
    GenerationError,
    GenerationParams,
    InputError,
    QueueFullError,
    Speech,
    Voice,
)

if TYPE_CHECKING:
    from bark_fast.aio import AsyncBark
    from bark_fast.bark import Bark
    from bark_fast.engine.options import EngineOptions

__version__ = "0.1.0"

_LAZY = {
    "AsyncBark": "bark_fast.aio",
    "Bark": "bark_fast.bark",
    "EngineOptions": "bark_fast.engine.options",
}

__all__ = [
    "AsyncBark",
    "Bark",
    "BarkFastError",
    "BarkFastWarning",
    "CheckpointError",
    "ClosedError",
    "EngineOptions",
    "GenerationError",
    "GenerationParams",
    "InputError",
    "QueueFullError",
    "Speech",
    "Voice",
    "__version__",
]


def __getattr__(name: str) -> Any:
    # These pull in torch; programs that only want the plain data types should not wait for it.
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
