"""Names of files to be written, and files that appear only when they are whole."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from bark_fast.errors import InputError


def check_path(
    path: str | os.PathLike[str], endings: Collection[str], *, name: str = "path"
) -> Path:
    """`path` as a Path if a file of that name, with one of `endings`, can be written.

    Raises:
        InputError: the ending or the folder is wrong; `name` is what the message calls it.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"{name} must be a file name, got {path!r}")
    target = Path(path)
    if target.suffix.lower() not in endings:
        raise InputError(f"{name} must end in {' or '.join(endings)}, got {str(path)!r}")
    if target.is_dir():
        raise InputError(f"{name} must name a file, got the folder {str(path)!r}")
    if not target.parent.is_dir():
        raise InputError(f"{name} must be in a folder that exists, got {str(path)!r}")
    return target


class replacing:  # noqa: N801 - a context manager, named as a verb
    """`with replacing(target) as partial`: what is written to `partial` becomes `target` if all
    went well and vanishes if not, so that no reader ever meets half a file."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.partial = target.with_name(f".{target.name}.{os.getpid()}.partial")

    def __enter__(self) -> Path:
        return self.partial

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.partial.replace(self.target)
        finally:
            self.partial.unlink(missing_ok=True)
