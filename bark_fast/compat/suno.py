"""suno's own API: a program written for suno-ai/bark changes its import and nothing else.

>>> from bark_fast.compat.suno import SAMPLE_RATE, generate_audio, preload_models
>>> preload_models()
>>> audio = generate_audio("Hello, my dog is cute", history_prompt="v2/en_speaker_6")

Names, arguments, defaults and results are those of suno's bark/api.py and of `preload_models` in
bark/generation.py. These cannot say which model and which seed. A `SunoAPI` can, and has the same
functions as methods:

>>> api = SunoAPI("path/to/bark_v0", seed=7, dtype="bfloat16")
>>> audio = api.generate_audio("Hello")

suno's functions work on models that its module holds, so these work on a `SunoAPI` that this module
holds: the only thing in the library that a call changes for other callers. Nothing is loaded before
the first use. `use` puts another one in its place.
"""

from __future__ import annotations

import inspect
import math
import os
import threading
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bark_fast.bark import Bark
from bark_fast.checkpoint.source import Source, folder_as_absolute
from bark_fast.checkpoint.suno import Size, SunoFiles, has_suno_files
from bark_fast.errors import BarkFastWarning, InputError
from bark_fast.files import check_path
from bark_fast.process import HomeProcess
from bark_fast.text import normalise
from bark_fast.types import GenerationParams, IntArray, Speech, Voice
from bark_fast.validation import check_number, check_tokens
from bark_fast.voices import VoiceLike

__all__ = [
    "SAMPLE_RATE",
    "SunoAPI",
    "SunoFiles",
    "generate_audio",
    "preload_models",
    "save_as_prompt",
    "semantic_to_waveform",
    "text_to_semantic",
    "use",
]

SAMPLE_RATE = 24_000
"""Samples a second of suno's models; those of another model are `SunoAPI.bark.sample_rate_hz`."""

FullGeneration = dict[str, IntArray]
"""An utterance's tokens: "semantic_prompt" [S], "coarse_prompt" [2, F], "fine_prompt" [8, F]."""

_Model = str | os.PathLike[str] | SunoFiles
_HUB_MODEL, _HUB_SMALL = "suno/bark", "suno/bark-small"
# Settings that suno's api.py leaves at generation.py's defaults, whatever the checkpoint says.
_SUNO = GenerationParams(top_k=0, top_p=1.0, min_eos_p=0.2, fine_temperature=0.5)


class SunoAPI:
    """suno's functions on one model.

    Args:
        model: a folder, with suno's own files or in transformers' layout, or a hub id.
        seed: that of every call, so that the same call gives the same speech; None draws one each
            time.
        options: keyword arguments of `Bark.from_pretrained`: device, dtype, engine, offload, ...

    Raises:
        InputError: the seed is out of its range.
        TypeError: `Bark.from_pretrained` has no such argument.
    """

    def __init__(
        self,
        model: _Model = _HUB_MODEL,
        *,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        inspect.signature(Bark.from_pretrained).bind(model, **options)
        if model != "demo":
            model = folder_as_absolute(model)  # it is loaded later, perhaps in another folder
        self._params = replace(_SUNO, seed=seed)
        self._model, self._options = model, options
        self._loading = threading.Lock()
        self._home = HomeProcess("a SunoAPI", self._is_idle)
        self._chosen: tuple[_Model, Any] = model, options.get("device", "auto")
        self._loaded: Bark | None = None

    @property
    def bark(self) -> Bark:
        """The model underneath, which is loaded now if it was not."""
        self._home.check()
        with self._loading:
            return self._load() if self._loaded is None else self._loaded

    def preload_models(
        self,
        text_use_gpu: bool = True,
        text_use_small: bool = False,
        coarse_use_gpu: bool = True,
        coarse_use_small: bool = False,
        fine_use_gpu: bool = True,
        fine_use_small: bool = False,
        codec_use_gpu: bool = True,
        force_reload: bool = False,
    ) -> None:
        """Load the model, unless the one that is asked for is loaded.

        Args:
            text_use_small, coarse_use_small, fine_use_small: take the small model for that stage;
                sizes can be mixed where suno's own files are, in a folder or on the hub.
            text_use_gpu, coarse_use_gpu, fine_use_gpu, codec_use_gpu: all or none. False means the
                CPU; True means what `device` says, else a GPU if there is one.
            force_reload: load it even if it is loaded.

        Raises:
            InputError: the model does not come in these sizes, the stages are on different devices,
                or an argument is not a bool.
            CheckpointError: the model cannot be loaded; the next use tries again.
        """
        on_gpu = {
            "text_use_gpu": text_use_gpu,
            "coarse_use_gpu": coarse_use_gpu,
            "fine_use_gpu": fine_use_gpu,
            "codec_use_gpu": codec_use_gpu,
        }
        small = {
            "text_use_small": text_use_small,
            "coarse_use_small": coarse_use_small,
            "fine_use_small": fine_use_small,
        }
        for name, value in {**on_gpu, **small, "force_reload": force_reload}.items():
            if not isinstance(value, bool):
                raise InputError(f"{name} must be True or False, got {value!r}")
        if len(set(on_gpu.values())) > 1:
            raise InputError(
                "text_use_gpu, coarse_use_gpu, fine_use_gpu and codec_use_gpu must be the same: "
                f"all stages run on one device; got {on_gpu}"
            )
        self._home.check()
        model = self._sized(text=text_use_small, coarse=coarse_use_small, fine=fine_use_small)
        device = self._options.get("device", "auto") if text_use_gpu else "cpu"
        with self._loading:
            if force_reload or self._loaded is None or self._chosen != (model, device):
                self._chosen = model, device
                self._loaded = None  # there may not be memory for two
                self._load()

    def _is_idle(self) -> bool:
        """Return True if a copy in a fork could be used."""
        return not self._loading.locked()

    def _load(self) -> Bark:
        model, device = self._chosen
        bark = Bark.from_pretrained(model, **{**self._options, "device": device})
        if bark.sample_rate_hz != SAMPLE_RATE:
            warnings.warn(
                f"{model} speaks at {bark.sample_rate_hz} Hz, and SAMPLE_RATE is {SAMPLE_RATE}: "
                "take SunoAPI.bark.sample_rate_hz for its samples",
                BarkFastWarning,
                stacklevel=3,
            )
        self._loaded = bark
        return bark

    def _sized(self, **use_small: bool) -> _Model:
        """Return the model with the small network in some stages."""
        model, small = self._model, [stage for stage, use in use_small.items() if use]
        if not small:
            return model
        # For suno, what is not small is large.
        sizes: dict[str, Size] = {
            stage: "small" if use else "large" for stage, use in use_small.items()
        }
        if model != "demo" and not isinstance(model, SunoFiles):
            source = Source.open(model)
            if source.folder is not None:
                if has_suno_files(source):
                    return SunoFiles(model, **sizes)
            elif len(small) == len(sizes) and model in (_HUB_MODEL, _HUB_SMALL):
                return _HUB_SMALL
            elif model == _HUB_MODEL:
                return SunoFiles(model, **sizes)
        raise InputError(
            f"{small[0]}_use_small must be False: the sizes of {str(model)!r} cannot be chosen "
            f"(those of a folder with suno's own files and of {_HUB_MODEL!r} can); got True"
        )

    def generate_audio(
        self,
        text: str,
        history_prompt: VoiceLike | None = None,
        text_temp: float = 0.7,
        waveform_temp: float = 0.7,
        silent: bool = False,
        output_full: bool = False,
    ) -> Any:
        """Say a text.

        Args:
            text: about 13 s of speech at most; beyond 256 tokens it is cut, with a warning.
            history_prompt: the voice: a preset's name, the path of an .npz file, a dictionary as
                `output_full` returns it, or anything else that `Bark.generate` takes as a voice.
            text_temp: the temperature of the semantic tokens; 0 takes the most likely ones.
            waveform_temp: the temperature of the coarse tokens.
            silent: show no progress bar.
            output_full: return the tokens too, for `save_as_prompt` or the next history_prompt.

        Returns:
            float32 [T], 24 kHz; with `output_full` (tokens, samples).

        Raises:
            InputError: an argument is wrong.
        """
        params = replace(
            self._params,
            semantic_temperature=_temperature("text_temp", text_temp),
            coarse_temperature=_temperature("waveform_temp", waveform_temp),
        )
        text = normalise(text)  # `Bark` does so too, but takes lists, which suno does not
        voice = self._voice(history_prompt)
        speech = self.bark.generate(text, voice=voice, params=params, progress=not silent)
        return _result(speech, output_full)

    def text_to_semantic(
        self,
        text: str,
        history_prompt: VoiceLike | None = None,
        temp: float = 0.7,
        silent: bool = False,
    ) -> IntArray:
        """Return the semantic tokens of a text, int64 [S].

        This is the first half of `generate_audio`, and the arguments are the same.
        """
        params = replace(self._params, semantic_temperature=_temperature("temp", temp))
        text = normalise(text)  # as in `generate_audio`
        voice = self._voice(history_prompt)
        return self.bark.semantic(text, voice=voice, params=params, progress=not silent)

    def semantic_to_waveform(
        self,
        semantic_tokens: IntArray,
        history_prompt: VoiceLike | None = None,
        temp: float = 0.7,
        silent: bool = False,
        output_full: bool = False,
    ) -> Any:
        """Say semantic tokens: the second half of `generate_audio`.

        With the same history_prompt, temperatures and seed the two halves together return what
        `generate_audio` returns.

        Args:
            semantic_tokens: integers [S], at least one.
        """
        bark = self.bark
        params = replace(self._params, coarse_temperature=_temperature("temp", temp))
        limit = bark.config.semantic_rules.semantic_vocab_size
        tokens = check_tokens("semantic_tokens", semantic_tokens, (None,), limit)
        voice = self._voice(history_prompt)
        speech = bark.speak_tokens(tokens, voice=voice, params=params, progress=not silent)
        return _result(speech, output_full)

    def _voice(self, history_prompt: VoiceLike | None) -> Voice | None:
        if history_prompt is None:
            return None
        return self.bark.load_voice(history_prompt, name="history_prompt")


def _temperature(name: str, value: float) -> float:
    check_number(name, value, "a finite number >= 0", 0, math.inf)
    return value


def _result(speech: Speech, output_full: bool) -> Any:
    if not output_full:
        return speech.samples
    tokens: FullGeneration = {
        "semantic_prompt": speech.semantic_tokens,
        "coarse_prompt": speech.coarse_tokens,
        "fine_prompt": speech.fine_tokens,
    }
    return tokens, speech.samples


def save_as_prompt(
    filepath: str | os.PathLike[str], full_generation: Mapping[str, IntArray]
) -> None:
    """Write tokens, as `output_full` returns them, to a file that is a history_prompt.

    Raises:
        InputError: `filepath` does not end in .npz, or an array is missing or not of integers.
    """
    check_path(filepath, Voice.ENDINGS, name="filepath")
    if not isinstance(full_generation, Mapping):
        raise InputError(
            f"full_generation must be a dictionary, got {type(full_generation).__name__}"
        )

    def checked(key: str, *shape: None) -> IntArray:
        return check_tokens(f"full_generation: {key}", full_generation.get(key), shape, 2**31)

    Voice(
        checked("semantic_prompt", None),
        checked("coarse_prompt", None, None),
        checked("fine_prompt", None, None),
    ).save(filepath)


_default = SunoAPI()


def use(api: SunoAPI) -> None:
    """Let the functions of this module work on `api` from now on.

    Raises:
        InputError: `api` is something else.
    """
    global _default
    if not isinstance(api, SunoAPI):
        raise InputError(f"api must be a SunoAPI, got {type(api).__name__}")
    _default = api


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
    _default.preload_models(
        text_use_gpu=text_use_gpu,
        text_use_small=text_use_small,
        coarse_use_gpu=coarse_use_gpu,
        coarse_use_small=coarse_use_small,
        fine_use_gpu=fine_use_gpu,
        fine_use_small=fine_use_small,
        codec_use_gpu=codec_use_gpu,
        force_reload=force_reload,
    )


def generate_audio(
    text: str,
    history_prompt: VoiceLike | None = None,
    text_temp: float = 0.7,
    waveform_temp: float = 0.7,
    silent: bool = False,
    output_full: bool = False,
) -> Any:
    """Call `SunoAPI.generate_audio` of the one in use."""
    return _default.generate_audio(
        text, history_prompt, text_temp, waveform_temp, silent, output_full
    )


def text_to_semantic(
    text: str,
    history_prompt: VoiceLike | None = None,
    temp: float = 0.7,
    silent: bool = False,
) -> IntArray:
    """Call `SunoAPI.text_to_semantic` of the one in use."""
    return _default.text_to_semantic(text, history_prompt, temp, silent)


def semantic_to_waveform(
    semantic_tokens: IntArray,
    history_prompt: VoiceLike | None = None,
    temp: float = 0.7,
    silent: bool = False,
    output_full: bool = False,
) -> Any:
    """Call `SunoAPI.semantic_to_waveform` of the one in use."""
    return _default.semantic_to_waveform(semantic_tokens, history_prompt, temp, silent, output_full)
