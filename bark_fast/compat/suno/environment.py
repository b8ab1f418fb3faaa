"""What suno's code reads from the environment, and where it leaves files.

The rest of the library reads no such variables: here programs that were written for suno's code set
them.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from bark_fast.errors import warn

USE_SMALL_MODELS = "SUNO_USE_SMALL_MODELS"
OFFLOAD_CPU = "SUNO_OFFLOAD_CPU"
ENABLE_MPS = "SUNO_ENABLE_MPS"


def is_set(variable: str) -> bool:
    """Return True if an environment variable is set to anything, "0" too, as suno's code does."""
    return bool(os.environ.get(variable))


def cache_folder() -> Path:
    """Return the folder that suno's code downloads its files into."""
    cache = os.environ.get("XDG_CACHE_HOME")
    if cache is None:
        cache = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache, "suno", "bark_v0")


def installed_preset(name: str) -> Path | None:
    """Return the file of a preset in suno's own package, where that is installed."""
    try:
        spec = importlib.util.find_spec("bark")
    except (ImportError, ValueError):  # another module of that name, half loaded
        return None
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, "assets", "prompts", f"{name}.npz")
        if path.is_file():
            return path
    return None


def warn_of(variable: str, reason: str) -> None:
    """Warn that an environment variable has no effect."""
    warn(f"{variable} has no effect: {reason}", stacklevel=5)
