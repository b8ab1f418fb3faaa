"""Write files: check their names first, and let them appear only when they are whole."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from bark_fast.errors import InputError


def check_path(
    path: str | os.PathLike[str], endings: Collection[str], *, name: str = "path"
) -> Path:
    """Return `path` as a Path, if a file of that name can be written.

    Args:
        endings: those that the name may have, in lower case with the dot.
        name: the argument in error messages.

    Raises:
        InputError: it is no file name, or its ending or folder is wrong.
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
    """Replace a file with what is written under another name, so that no reader meets half a file.

    After `with replacing(target) as partial: ...` the file `partial` has become `target`, or it is
    gone if the block raised.
    """

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
