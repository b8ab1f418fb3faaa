"""The transformers-compatible face: change the import and keep the program.

>>> from bark_fast import BarkModel, BarkProcessor
>>> processor = BarkProcessor.from_pretrained("suno/bark-small")
>>> model = BarkModel.from_pretrained("suno/bark-small")
>>> inputs = processor("Hello, my dog is cute", voice_preset="v2/en_speaker_6")
>>> audio = model.generate(**inputs, do_sample=True, seed=7)  # [1, T]

Configuration, loading, saving and the forward of the three transformers are those of transformers:
`BarkModel` is a subclass of its `BarkModel`, whose `generate` runs on this library's engine with
the same weights. Its docstring lists the differences. `AutoModel` and `AutoProcessor` are for
programs that import these names; they load nothing but Bark.
"""

from transformers import (
    BarkCausalModel,
    BarkCoarseConfig,
    BarkCoarseModel,
    BarkConfig,
    BarkFineConfig,
    BarkFineModel,
    BarkSemanticConfig,
    BarkSemanticModel,
)

from bark_fast.hf.model import AutoModel, BarkModel
from bark_fast.hf.processor import AutoProcessor, BarkProcessor

__all__ = [
    "AutoModel",
    "AutoProcessor",
    "BarkCausalModel",
    "BarkCoarseConfig",
    "BarkCoarseModel",
    "BarkConfig",
    "BarkFineConfig",
    "BarkFineModel",
    "BarkModel",
    "BarkProcessor",
    "BarkSemanticConfig",
    "BarkSemanticModel",
]
