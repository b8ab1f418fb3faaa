"""bark-fast: a fast, exact engine for the Bark text-to-speech model.

>>> from bark_fast import Bark, GenerationParams
>>> bark = Bark.from_pretrained("demo")
>>> speech = bark.generate("Hello, my dog is cute", params=GenerationParams(seed=7))
>>> speech.save("hello.wav")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bark_fast.types import (
    BarkFastError,
    BarkFastWarning,
    CheckpointError,
    GenerationParams,
    InputError,
    Speech,
    Voice,
)

if TYPE_CHECKING:
    from bark_fast.bark import Bark

__version__ = "0.1.0"

__all__ = [
    "Bark",
    "BarkFastError",
    "BarkFastWarning",
    "CheckpointError",
    "GenerationParams",
    "InputError",
    "Speech",
    "Voice",
    "__version__",
]


def __getattr__(name: str) -> Any:
    # Bark pulls in torch; programs that only want the plain data types should not wait for it.
    if name == "Bark":
        from bark_fast.bark import Bark

        return Bark
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
