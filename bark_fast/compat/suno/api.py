"""The functions of suno's bark/api.py, on the `SunoAPI` that is in use."""

from __future__ import annotations

from bark_fast.compat.suno.session import SunoAPI, on_current, save_as_prompt

__all__ = ["generate_audio", "save_as_prompt", "semantic_to_waveform", "text_to_semantic"]

generate_audio = on_current(SunoAPI.generate_audio, __name__)
text_to_semantic = on_current(SunoAPI.text_to_semantic, __name__)
semantic_to_waveform = on_current(SunoAPI.semantic_to_waveform, __name__)
