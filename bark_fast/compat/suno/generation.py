"""The functions of suno's bark/generation.py, on the `SunoAPI` in use, and its constants."""

from __future__ import annotations

from bark_fast.compat.suno.constants import (
    ALLOWED_PROMPTS,
    COARSE_INFER_TOKEN,
    COARSE_RATE_HZ,
    COARSE_SEMANTIC_PAD_TOKEN,
    CODEBOOK_SIZE,
    CONTEXT_WINDOW_SIZE,
    N_COARSE_CODEBOOKS,
    N_FINE_CODEBOOKS,
    SAMPLE_RATE,
    SEMANTIC_INFER_TOKEN,
    SEMANTIC_PAD_TOKEN,
    SEMANTIC_RATE_HZ,
    SEMANTIC_VOCAB_SIZE,
    SUPPORTED_LANGS,
    TEXT_ENCODING_OFFSET,
    TEXT_PAD_TOKEN,
)
from bark_fast.compat.suno.environment import cache_folder
from bark_fast.compat.suno.session import SunoAPI, on_current

__all__ = [
    "ALLOWED_PROMPTS",
    "CACHE_DIR",
    "COARSE_INFER_TOKEN",
    "COARSE_RATE_HZ",
    "COARSE_SEMANTIC_PAD_TOKEN",
    "CODEBOOK_SIZE",
    "CONTEXT_WINDOW_SIZE",
    "N_COARSE_CODEBOOKS",
    "N_FINE_CODEBOOKS",
    "SAMPLE_RATE",
    "SEMANTIC_INFER_TOKEN",
    "SEMANTIC_PAD_TOKEN",
    "SEMANTIC_RATE_HZ",
    "SEMANTIC_VOCAB_SIZE",
    "SUPPORTED_LANGS",
    "TEXT_ENCODING_OFFSET",
    "TEXT_PAD_TOKEN",
    "clean_models",
    "codec_decode",
    "generate_coarse",
    "generate_fine",
    "generate_text_semantic",
    "load_codec_model",
    "load_model",
    "preload_models",
]

CACHE_DIR = str(cache_folder())
"""The folder of suno's downloaded files when this module was imported."""

preload_models = on_current(SunoAPI.preload_models, __name__)
load_model = on_current(SunoAPI.load_model, __name__)
load_codec_model = on_current(SunoAPI.load_codec_model, __name__)
clean_models = on_current(SunoAPI.clean_models, __name__)
generate_text_semantic = on_current(SunoAPI.generate_text_semantic, __name__)
generate_coarse = on_current(SunoAPI.generate_coarse, __name__)
generate_fine = on_current(SunoAPI.generate_fine, __name__)
codec_decode = on_current(SunoAPI.codec_decode, __name__)
