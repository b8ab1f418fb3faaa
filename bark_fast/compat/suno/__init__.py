"""suno's own package: a program written for suno-ai/bark changes its imports and nothing else.

>>> from bark_fast.compat.suno import SAMPLE_RATE, generate_audio, preload_models
>>> from bark_fast.compat.suno.generation import generate_text_semantic
>>> preload_models()
>>> audio = generate_audio("Hello, my dog is cute", history_prompt="v2/en_speaker_6")

Names, arguments, defaults and results are those of suno's bark/api.py and bark/generation.py, and
so are the rules by which tokens are drawn: top-p, top-k, then temperature, and the end of a text
judged after them. These functions cannot say which model and which seed. A `SunoAPI` can, and has
the same functions as methods:

>>> api = SunoAPI("path/to/bark_v0", seed=7, dtype="bfloat16")
>>> audio = api.generate_audio("Hello")

suno's functions work on models that its module holds, so these work on a `SunoAPI` that this
package holds: the only thing in the library that a call changes for other callers. Nothing is
loaded before the first use. `use` puts another one in its place.
"""

from __future__ import annotations

from bark_fast.checkpoint.suno import SunoFiles
from bark_fast.compat.suno import api, generation
from bark_fast.compat.suno.api import (
    generate_audio,
    save_as_prompt,
    semantic_to_waveform,
    text_to_semantic,
)
from bark_fast.compat.suno.generation import (
    SAMPLE_RATE,
    clean_models,
    codec_decode,
    generate_coarse,
    generate_fine,
    generate_text_semantic,
    load_codec_model,
    load_model,
    preload_models,
)
from bark_fast.compat.suno.session import SunoAPI, use

__all__ = [
    "SAMPLE_RATE",
    "SunoAPI",
    "SunoFiles",
    "api",
    "clean_models",
    "codec_decode",
    "generate_audio",
    "generate_coarse",
    "generate_fine",
    "generate_text_semantic",
    "generation",
    "load_codec_model",
    "load_model",
    "preload_models",
    "save_as_prompt",
    "semantic_to_waveform",
    "text_to_semantic",
    "use",
]
