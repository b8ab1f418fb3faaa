"""The functions of suno's bark/api.py, on the `SunoAPI` that is in use."""

from __future__ import annotations

from typing import Any

from bark_fast.compat.suno.session import current, save_as_prompt
from bark_fast.types import IntArray
from bark_fast.voices import VoiceLike

__all__ = ["generate_audio", "save_as_prompt", "semantic_to_waveform", "text_to_semantic"]


def generate_audio(
    text: str,
    history_prompt: VoiceLike | None = None,
    text_temp: float = 0.7,
    waveform_temp: float = 0.7,
    silent: bool = False,
    output_full: bool = False,
) -> Any:
    """Call `SunoAPI.generate_audio` of the one in use."""
    return current().generate_audio(
        text, history_prompt, text_temp, waveform_temp, silent, output_full
    )


def text_to_semantic(
    text: str,
    history_prompt: VoiceLike | None = None,
    temp: float = 0.7,
    silent: bool = False,
) -> IntArray:
    """Call `SunoAPI.text_to_semantic` of the one in use."""
    return current().text_to_semantic(text, history_prompt, temp, silent)


def semantic_to_waveform(
    semantic_tokens: IntArray,
    history_prompt: VoiceLike | None = None,
    temp: float = 0.7,
    silent: bool = False,
    output_full: bool = False,
) -> Any:
    """Call `SunoAPI.semantic_to_waveform` of the one in use."""
    return current().semantic_to_waveform(
        semantic_tokens, history_prompt, temp, silent, output_full
    )
