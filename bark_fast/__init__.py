"""bark-fast: a fast, exact engine for the Bark text-to-speech model.

>>> from bark_fast import Bark, GenerationParams
>>> bark = Bark.from_pretrained("demo")
>>> speech = bark.generate("Hello, my dog is cute", params=GenerationParams(seed=7))
>>> speech.save("hello.wav")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bark_fast.audio import AudioWriter
from bark_fast.errors import (
    BarkFastError,
    BarkFastWarning,
    CheckpointError,
    ClosedError,
    GenerationError,
    InputError,
    ModelError,
    ProcessError,
    QueueFullError,
)
from bark_fast.types import GenerationParams, Speech, Voice

if TYPE_CHECKING:
    from bark_fast.aio import AsyncBark
    from bark_fast.bark import Bark
    from bark_fast.engine.options import EngineOptions
    from bark_fast.hf import (
        AutoModel,
        AutoProcessor,
        BarkCausalModel,
        BarkCoarseConfig,
        BarkCoarseModel,
        BarkConfig,
        BarkFineConfig,
        BarkFineModel,
        BarkModel,
        BarkProcessor,
        BarkSemanticConfig,
        BarkSemanticModel,
    )

__version__ = "0.1.0"

_LAZY = {
    "AsyncBark": "bark_fast.aio",
    "AutoModel": "bark_fast.hf",
    "AutoProcessor": "bark_fast.hf",
    "Bark": "bark_fast.bark",
    "BarkCausalModel": "bark_fast.hf",
    "BarkCoarseConfig": "bark_fast.hf",
    "BarkCoarseModel": "bark_fast.hf",
    "BarkConfig": "bark_fast.hf",
    "BarkFineConfig": "bark_fast.hf",
    "BarkFineModel": "bark_fast.hf",
    "BarkModel": "bark_fast.hf",
    "BarkProcessor": "bark_fast.hf",
    "BarkSemanticConfig": "bark_fast.hf",
    "BarkSemanticModel": "bark_fast.hf",
    "EngineOptions": "bark_fast.engine.options",
}

__all__ = [
    "AsyncBark",
    "AudioWriter",
    "AutoModel",
    "AutoProcessor",
    "Bark",
    "BarkCausalModel",
    "BarkCoarseConfig",
    "BarkCoarseModel",
    "BarkConfig",
    "BarkFastError",
    "BarkFastWarning",
    "BarkFineConfig",
    "BarkFineModel",
    "BarkModel",
    "BarkProcessor",
    "BarkSemanticConfig",
    "BarkSemanticModel",
    "CheckpointError",
    "ClosedError",
    "EngineOptions",
    "GenerationError",
    "GenerationParams",
    "InputError",
    "ModelError",
    "ProcessError",
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
