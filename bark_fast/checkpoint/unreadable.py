"""Say why a file cannot be read: what it is instead, or what its library found.

Clones without Git LFS and downloads of a web page leave files of the right name that are something
else. And libraries advise to read a file unsafely, which would not help with these, and which this
library never does.
"""

from __future__ import annotations

import os
import re

from bark_fast.errors import is_asynchronous

_LOOK_BYTES = 512

_KINDS = (
    (
        re.compile(rb"version https://git-lfs\.github\.com/spec/"),
        "it is a Git LFS pointer that stands for the file; `git lfs pull` in its repository, or "
        "downloading it, gives the file itself",
    ),
    (
        re.compile(rb"/annex/objects/|(\.\./)*\.git/annex/"),
        "it is a git-annex pointer that stands for the file; `git annex get` gives the file itself",
    ),
    (
        re.compile(rb"\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.I | re.S),
        "it is an HTML page, not the file: download it by its own link",
    ),
    (
        re.compile(rb"\s*<\?xml\b", re.I),
        "it is an XML document, such as a server answers with when it refuses a file",
    ),
)

# What other libraries advise is not passed on.
_ADVICE = re.compile(r"weights_only|allow_pickle|trust_remote_code|unsafe|torch\.load|np\.load")
_FOREIGN_OBJECT = re.compile(r"GLOBAL ([\w.]+)|(?:pickled|object) ", re.I)


def what_it_is(path: str | os.PathLike[str]) -> str | None:
    """Return what a file is that is surely not the one of its name; None if nothing shows."""
    try:
        with open(path, "rb") as file:
            start = file.read(_LOOK_BYTES)
    except OSError:  # whoever reads the file meets the same
        return None
    if not start:
        return "it is empty"
    return next((words for kind, words in _KINDS if kind.match(start)), None)


def why_unreadable(path: str | os.PathLike[str], error: Exception) -> str:
    """Return in one line why a library could not read a file.

    Args:
        error: what the library raised; raised again if it says nothing of the file, because it came
            from outside.
    """
    line = in_one_line(error)
    return what_it_is(path) or line


def in_one_line(error: Exception) -> str:
    """Return what an error of another library says, without its advice to trust the file.

    An error that came from outside is none of a library's, and is raised again.
    """
    if is_asynchronous(error):
        raise error
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error) or type(error).__name__
    if not _ADVICE.search(text):
        return text.splitlines()[0]
    if "trust_remote_code" in text:
        return "it needs code of its own, which is not run"
    foreign = _FOREIGN_OBJECT.search(text)
    if foreign is None:
        return "it is damaged, or of another kind"
    name = f" ({foreign[1]})" if foreign[1] else ""
    return f"it holds Python objects{name}, which are not read because they could run code"
