"""The model under suno's functions: which files, which sizes, loaded once."""

from __future__ import annotations

import gc
import inspect
import os
import threading
from collections.abc import Mapping
from typing import Any

import torch

from bark_fast.bark import Bark
from bark_fast.checkpoint.source import Source, folder_as_absolute
from bark_fast.checkpoint.suno import FILES, Size, SunoFiles, has_suno_files
from bark_fast.compat.suno import environment
from bark_fast.compat.suno.constants import SAMPLE_RATE
from bark_fast.devices import resolve_device
from bark_fast.errors import InputError, warn
from bark_fast.process import HomeProcess

Model = str | os.PathLike[str] | SunoFiles

STAGES = tuple(FILES)
"""What suno calls the stages that have a network of their own and come in two sizes."""

_HUB_MODEL, _HUB_SMALL = "suno/bark", "suno/bark-small"


class Models:
    """Loads the model when it is first used, or when it is asked for.

    suno's code loads four networks one by one. Here they are one engine, so what is chosen for a
    stage counts when all of them are loaded.

    Args:
        model: as in `SunoAPI`.
        options: keyword arguments of `Bark.from_pretrained`.
    """

    def __init__(self, model: Model | None, options: Mapping[str, Any]) -> None:
        inspect.signature(Bark.from_pretrained).bind(model, **options)
        if model is not None and model != "demo":
            model = folder_as_absolute(model)  # it is loaded later, perhaps in another folder
        self._model, self._options = model, dict(options)
        self._lock = threading.Lock()
        self._home = HomeProcess("a SunoAPI", self._is_idle)
        self._small: dict[str, bool] = {}  # of the stages that something was asked for
        self._on_gpu = True
        self._chosen: tuple[Any, Any] | None = None  # the model and device that are loaded
        self._loaded: Bark | None = None

    @property
    def bark(self) -> Bark:
        """The model, which is loaded now if it was not."""
        self._home.check()
        with self._lock:
            return self._load() if self._loaded is None else self._loaded

    @property
    def have_suno_presets(self) -> bool:
        """True for suno's own files, whose code finds its presets elsewhere."""
        model, _ = self._chosen or (self._model, None)
        if isinstance(model, SunoFiles):
            return True
        return model is not None and model != "demo" and has_suno_files(Source.open(model))

    def choose(
        self, small: Mapping[str, bool], *, on_gpu: bool, force_reload: bool, now: bool
    ) -> None:
        """Choose the sizes of some stages; load the model `now`, or as soon as all are chosen.

        Raises:
            InputError: the model does not come in these sizes.
            CheckpointError: it cannot be loaded; the next use tries again.
        """
        self._home.check()
        with self._lock:
            chosen = {**self._small, **small}
            self._sized(chosen)  # says what is wrong before anything changes
            self._small, self._on_gpu = chosen, on_gpu
            if force_reload or self._chosen != (self._sized(chosen), self._device()):
                self._forget()
            if self._loaded is None and (now or len(chosen) == len(STAGES)):
                self._load()

    def clean(self, stage: str | None) -> None:
        """Give the model's memory back; the sizes of `stage`, or of all, are as at first again."""
        with self._lock:
            self._forget()
            if stage is None:
                self._small, self._on_gpu = {}, True
            else:
                self._small.pop(stage, None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _is_idle(self) -> bool:
        """Return True if a copy in a fork could be used."""
        return not self._lock.locked()

    def _forget(self) -> None:
        self._loaded = self._chosen = None  # before another is loaded: there may not be memory

    def _device(self) -> Any:
        return self._options.get("device", "auto") if self._on_gpu else "cpu"

    def _load(self) -> Bark:
        model, device = self._sized(self._small), self._device()
        options = {**self._options, "device": device}
        if environment.is_set(environment.OFFLOAD_CPU) and resolve_device(device).type == "cuda":
            # On a CPU the weights are where suno's code would put them.
            options.setdefault("offload", True)
        if environment.is_set(environment.ENABLE_MPS):
            environment.warn_of(environment.ENABLE_MPS, "Bark runs on CUDA devices and on CPUs")
        bark = Bark.from_pretrained(model, **options)
        if bark.sample_rate_hz != SAMPLE_RATE:
            warn(
                f"{model} speaks at {bark.sample_rate_hz} Hz, and SAMPLE_RATE is {SAMPLE_RATE}: "
                "take SunoAPI.bark.sample_rate_hz for its samples",
                stacklevel=4,
            )
        self._chosen, self._loaded = (model, device), bark
        return bark

    def _sized(self, small: Mapping[str, bool]) -> Model:
        """Return the model with the small network in some stages.

        Raises:
            InputError: its sizes cannot be chosen.
        """
        wanted = {stage: small.get(stage, False) for stage in STAGES}
        if not environment.is_set(environment.USE_SMALL_MODELS):
            return _sized(self._model, wanted)
        try:
            return _sized(self._model, dict.fromkeys(STAGES, True))
        except InputError as error:
            environment.warn_of(environment.USE_SMALL_MODELS, str(error))
            return _sized(self._model, wanted)


def _sized(model: Model | None, use_small: Mapping[str, bool]) -> Model:
    small = [stage for stage in STAGES if use_small[stage]]
    # For suno, what is not small is large.
    sizes: dict[str, Size] = {s: "small" if use else "large" for s, use in use_small.items()}
    if model is None:
        downloaded = environment.cache_folder()
        if all((downloaded / FILES[stage][size]).is_file() for stage, size in sizes.items()):
            return SunoFiles(downloaded, **sizes)
        model = _HUB_MODEL
    if not small:
        return model
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
