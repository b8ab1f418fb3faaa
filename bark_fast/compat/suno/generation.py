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
from bark_fast.compat.suno.session import current
from bark_fast.compat.suno.stages import Stages
from bark_fast.types import FloatArray, IntArray
from bark_fast.voices import VoiceLike

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


def preload_models(
    text_use_gpu: bool = True,
    text_use_small: bool = False,
    coarse_use_gpu: bool = True,
    coarse_use_small: bool = False,
    fine_use_gpu: bool = True,
    fine_use_small: bool = False,
    codec_use_gpu: bool = True,
    force_reload: bool = False,
) -> None:
    """Call `SunoAPI.preload_models` of the one in use."""
    current().preload_models(
        text_use_gpu=text_use_gpu,
        text_use_small=text_use_small,
        coarse_use_gpu=coarse_use_gpu,
        coarse_use_small=coarse_use_small,
        fine_use_gpu=fine_use_gpu,
        fine_use_small=fine_use_small,
        codec_use_gpu=codec_use_gpu,
        force_reload=force_reload,
    )


def load_model(
    use_gpu: bool = True,
    use_small: bool = False,
    force_reload: bool = False,
    model_type: str = "text",
) -> Stages:
    """Call `SunoAPI.load_model` of the one in use."""
    return current().load_model(use_gpu, use_small, force_reload, model_type)


def load_codec_model(use_gpu: bool = True, force_reload: bool = False) -> Stages:
    """Call `SunoAPI.load_codec_model` of the one in use."""
    return current().load_codec_model(use_gpu, force_reload)


def clean_models(model_key: str | None = None) -> None:
    """Call `SunoAPI.clean_models` of the one in use."""
    current().clean_models(model_key)


def generate_text_semantic(
    text: str,
    history_prompt: VoiceLike | None = None,
    temp: float = 0.7,
    top_k: int | None = None,
    top_p: float | None = None,
    silent: bool = False,
    min_eos_p: float | None = 0.2,
    max_gen_duration_s: float | None = None,
    allow_early_stop: bool = True,
    use_kv_caching: bool = False,
) -> IntArray:
    """Call `SunoAPI.generate_text_semantic` of the one in use."""
    return current().generate_text_semantic(
        text,
        history_prompt,
        temp,
        top_k,
        top_p,
        silent,
        min_eos_p,
        max_gen_duration_s,
        allow_early_stop,
        use_kv_caching,
    )


def generate_coarse(
    x_semantic: IntArray,
    history_prompt: VoiceLike | None = None,
    temp: float = 0.7,
    top_k: int | None = None,
    top_p: float | None = None,
    silent: bool = False,
    max_coarse_history: int = 630,
    sliding_window_len: int = 60,
    use_kv_caching: bool = False,
) -> IntArray:
    """Call `SunoAPI.generate_coarse` of the one in use."""
    return current().generate_coarse(
        x_semantic,
        history_prompt,
        temp,
        top_k,
        top_p,
        silent,
        max_coarse_history,
        sliding_window_len,
        use_kv_caching,
    )


def generate_fine(
    x_coarse_gen: IntArray,
    history_prompt: VoiceLike | None = None,
    temp: float | None = 0.5,
    silent: bool = True,
) -> IntArray:
    """Call `SunoAPI.generate_fine` of the one in use."""
    return current().generate_fine(x_coarse_gen, history_prompt, temp, silent)


def codec_decode(fine_tokens: IntArray) -> FloatArray:
    """Call `SunoAPI.codec_decode` of the one in use."""
    return current().codec_decode(fine_tokens)
