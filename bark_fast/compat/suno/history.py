"""History prompts as suno's code takes them: each stage reads its own arrays and no others."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bark_fast.checkpoint.source import Source
from bark_fast.compat.suno.constants import ALLOWED_PROMPTS
from bark_fast.compat.suno.environment import installed_preset
from bark_fast.errors import CheckpointError, InputError
from bark_fast.types import Voice
from bark_fast.voices import VoiceLibrary, VoiceLike, check_voice, read_npz, warn_of_mismatch

_NAME = "history_prompt"
# Their presets are those of suno's package.
_HUB_MODELS = ("suno/bark", "suno/bark-small")


def load_history(
    history_prompt: VoiceLike | None,
    parts: Sequence[str],
    voices: VoiceLibrary,
    *,
    suno_presets: Callable[[], bool],
) -> Voice | None:
    """Return a history prompt as a Voice; arrays that are not among `parts` are empty in it.

    Args:
        history_prompt: as `VoiceLibrary.get` takes it; in a file or a mapping nothing but `parts`
            has to be.
        parts: those of `Voice.ARRAYS` that are read.
        suno_presets: says whether names that the checkpoint lacks may be those of suno's presets,
            wherever these are.

    Raises:
        InputError: there is no such prompt, or a part is missing or does not fit the model.
    """
    if history_prompt is None:
        return None
    arrays, name = _arrays(history_prompt, voices, suno_presets=suno_presets)
    voice = check_voice(arrays, voices.config, name=name, argument=_NAME, parts=parts)
    if "coarse_prompt" in parts:
        warn_of_mismatch(voice, voices.config, _NAME)
    return voice


def _arrays(
    history_prompt: VoiceLike, voices: VoiceLibrary, *, suno_presets: Callable[[], bool]
) -> tuple[Mapping[str, Any], str]:
    if isinstance(history_prompt, str) and history_prompt not in voices.names:
        native = history_prompt.replace("/", os.path.sep)
        if native in ALLOWED_PROMPTS and suno_presets():
            return _suno_preset(history_prompt, voices), history_prompt
    return voices.arrays(history_prompt, name=_NAME)


def _suno_preset(name: str, voices: VoiceLibrary) -> Mapping[str, Any]:
    """Find a preset in suno's package, in what was downloaded from the hub, or on the hub."""
    path = installed_preset(name)
    if path is not None:
        return read_npz(path, _NAME)
    sources = [Source(hub_id, None, local_files_only=True) for hub_id in _HUB_MODELS]
    sources.append(Source(_HUB_MODELS[0], None))
    reason: CheckpointError | None = None
    for source in sources:
        try:
            library = VoiceLibrary(source, voices.config)
            if name in library.names:
                return library.arrays(name, name=_NAME)[0]
        except CheckpointError as error:
            reason = error
    raise InputError(
        f"{_NAME} {name!r} must be in suno's installed package, among the checkpoint's own presets "
        f"or on the hub: {reason or f'{_HUB_MODELS[0]} has no such preset'}"
    ) from reason
