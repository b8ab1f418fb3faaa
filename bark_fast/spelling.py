"""Spell numbers, dates, money, units and abbreviations as they are said, with NeMo's grammars.

NVIDIA's nemo_text_processing is an optional package (the extra `text`). Its grammars are compiled
at first use, which takes up to two minutes, and kept in the user's cache folder.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from bark_fast.errors import InputError, warn

_PACKAGE = "nemo_text_processing"


class Spelling:
    """Spells texts in any of the languages there are; each is loaded when it is first needed."""

    def __init__(self) -> None:
        self._normalizers: dict[str, Any] = {}
        self._lock = threading.Lock()  # NeMo's parser keeps its state in itself

    def load(self, language: str) -> Callable[[str], str]:
        """Return the function that spells a text of this language.

        Raises:
            InputError: the package is not installed, or does not have the language.
        """
        with self._lock:
            if language not in self._normalizers:
                self._normalizers[language] = _load_normalizer(language)
            normalizer = self._normalizers[language]

        def spell(text: str) -> str:
            try:
                with self._lock:
                    spelled = normalizer.normalize(text, punct_post_process=True)
            except Exception as error:  # whatever a grammar stumbles over
                warn(
                    f"text {text!r} could not be spelled in words and is said as it is: {error}",
                    stacklevel=2,
                )
                return text
            return str(spelled) or text

        return spell


def _load_normalizer(language: str) -> Any:
    """Return NeMo's normaliser of a language."""
    if importlib.util.find_spec(_PACKAGE) is None:
        raise InputError(
            f"normalize_text must be False where {_PACKAGE} is not installed (pip install "
            f'"bark-fast[text]"), got {language!r}'
        )
    from nemo_text_processing.text_normalization.normalize import Normalizer

    logging.getLogger("NeMo-text-processing").setLevel(logging.ERROR)  # it tells all that it skips

    def make(folder: str | None) -> Any:
        try:
            return Normalizer(input_case="cased", lang=language, cache_dir=folder)
        except NotImplementedError as error:
            raise InputError(
                f"normalize_text must be a language that {_PACKAGE} spells, got {language!r}"
            ) from error

    cache = _cache_folder()
    if cache is None:
        return make(None)
    version = importlib.metadata.version(_PACKAGE)
    folder = cache / f"spelling-{version}-{language}"
    if folder.is_dir():
        return make(str(folder))
    # Another process that compiles the same must not meet half of it.
    with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as partial:
        made = Path(partial) / "made"
        made.mkdir()
        normalizer = make(str(made))
        with suppress(OSError):  # the other process was quicker
            made.rename(folder)
    return normalizer


def _cache_folder() -> Path | None:
    """Return the folder for what is compiled, or None where there can be none."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bark-fast"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a read-only disk; no home
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None
