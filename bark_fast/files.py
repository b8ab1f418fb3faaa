"""Write files wherever `open(path, "wb")` would, and let them appear only when they are whole.

A file is made under a temporary name in its folder and then renamed, so that no reader meets half
of it. Where that cannot be, or would not be what `open` does, it is written in place: what is no
regular file (a pipe, a device, a descriptor such as /dev/stdout), a file that has other names, and
a folder that takes no new files.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from bark_fast.errors import InputError

_MAX_LINKS = 40  # as Linux follows them


def check_path(
    path: str | bytes | os.PathLike[Any], endings: Collection[str], *, name: str = "path"
) -> Path:
    """Return `path` as a Path, if a file may have that name.

    Args:
        endings: those that the name may have, in lower case with the dot; empty allows any. Pipes
            and devices may have any name.
        name: the argument in error messages.

    Raises:
        InputError: it is no file name, or its ending or folder is wrong.
    """
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise InputError(f"{name} must be a file name, got {path!r}")
    text = os.fsdecode(path)
    _check_name(text, name)
    target = Path(text)
    if endings and target.suffix.lower() not in endings and not is_special(text):
        *others, last = endings
        allowed = f"{', '.join(others)} or {last}" if others else last
        raise InputError(f"{name} must end in {allowed}, got {text!r}")
    if os.path.basename(text) in ("", os.curdir, os.pardir) or os.path.isdir(text):
        raise InputError(f"{name} must name a file, got the folder {text!r}")
    if not os.path.isdir(target.parent):
        raise InputError(f"{name} must be in a folder that exists, got {text!r}")
    return target


def _check_name(text: str, name: str) -> None:
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError as error:
        raise InputError(f"{name} must be a file name, got {text!r}: {error}") from error
    if b"\0" in encoded:
        raise InputError(f"{name} must be a file name without a null character, got {text!r}")


def check_writable(path: str | os.PathLike[str], *, name: str = "path") -> None:
    """Check that `path` can be written, by trying; it is left as it was.

    Raises:
        InputError: it cannot be written.
    """
    try:
        output = _open_path(os.fspath(path), streamed=False)
        output.discard()
        if isinstance(output, _InPlace):
            output.check()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{name} must be a file that can be written, got {os.fspath(path)!r}: {reason}"
        ) from error


def is_special(path: str) -> bool:
    """Return True for what is there and no regular file or folder: a pipe, a device, a socket, or
    a descriptor of this process."""
    try:
        if _resolve(path) is None:
            return os.path.exists(path)
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


class Output(ABC):
    """A file that is being written.

    Attributes:
        file: takes the bytes. After `write` and a `seek` back, what was written may be overwritten
            if `seekable`.
    """

    file: BinaryIO
    seekable: bool = True

    @abstractmethod
    def commit(self) -> None:
        """End the file, which then holds what was written."""

    @abstractmethod
    def discard(self) -> None:
        """Leave what was there before, where that is possible."""


@contextlib.contextmanager
def writing(target: Any) -> Iterator[BinaryIO]:
    """Write a whole file: what the block writes is there after it, or nothing if it raised.

    Args:
        target: a path that `check_path` has seen, or a binary file, which is written where it
            stands and stays open.

    Yields:
        A binary file.

    Raises:
        OSError: it cannot be written.
    """
    output = open_output(target)
    try:
        yield output.file
    except BaseException:
        output.discard()
        raise
    output.commit()


def open_output(target: Any, *, streamed: bool = False) -> Output:
    """Begin a file; see `writing`.

    Args:
        streamed: where no temporary file is made, write piece by piece and not all at the end.

    Raises:
        OSError: it cannot be written.
    """
    if is_file(target):
        return _Given(target) if streamed else _InMemory(target)
    return _open_path(os.fspath(target), streamed=streamed)


def is_file(target: object) -> bool:
    """Return True for an object that can be written to."""
    return callable(getattr(target, "write", None))


def check_file(file: Any, *, name: str = "path") -> None:
    """Check that bytes can be written to a file object.

    Raises:
        InputError: it is for text, for reading only, or closed.
    """
    closed = getattr(file, "closed", False)
    if isinstance(file, io.TextIOBase) or closed is True:
        problem = "closed one" if closed is True else "text file"
        raise InputError(f"{name} must be an open binary file, got a {problem}: {file!r}")
    writable = getattr(file, "writable", None)
    if callable(writable) and not writable():
        raise InputError(f"{name} must be a file that is open for writing, got {file!r}")


def write_all(file: Any, content: bytes) -> None:
    """Write all of `content`, in as many calls as a raw file or a socket needs."""
    while content:
        n = file.write(content)
        if n is None and isinstance(file, io.RawIOBase):
            raise BlockingIOError(f"{file!r} takes no more without blocking")
        if n is None:  # some file-like objects do not tell
            return
        content = content[n:]


def _open_path(path: str, *, streamed: bool) -> Output:
    real = _resolve(path)
    if real is not None:
        try:
            there: os.stat_result | None = os.stat(real)
        except FileNotFoundError:
            there = None
        if there is None or (stat.S_ISREG(there.st_mode) and there.st_nlink == 1):
            if there is not None:
                os.close(os.open(real, os.O_WRONLY))  # may it be written at all?
            try:
                return _Replacing(real, there)
            except OSError:
                pass  # then `open` has the last word
    return _InPlaceStream(path) if streamed else _InPlace(path)


def _resolve(path: str) -> str | None:
    """Follow symbolic links to the name under which a new file would appear.

    The name stays relative, because it could be too long as an absolute one.

    Returns:
        The name, or None for a descriptor of a process (/dev/stdout, /dev/fd/3), whose link only
        looks like a name.
    """
    for _ in range(_MAX_LINKS):
        folder = os.path.dirname(path) or os.curdir
        if _is_in_proc(folder):
            return None
        try:
            link = os.readlink(path)
        except OSError:  # there is nothing, or no link
            return path
        path = os.path.join(folder, link)
    return path


def _is_in_proc(folder: str) -> bool:
    try:
        return os.stat(folder).st_dev == os.stat("/proc/self").st_dev
    except OSError:
        return False


class _Replacing(Output):
    """Writes a temporary file beside its target, which then takes the target's place.

    Names are relative to the opened folder and short, so that none is longer than the target's.

    Raises:
        OSError: the folder takes no new file, or this one could not have the target's owner.
    """

    def __init__(self, target: str, there: os.stat_result | None) -> None:
        self._target = target
        folder, self._name = os.path.split(target)
        flags = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0)
        self._folder = os.open(folder or os.curdir, flags)
        self._partial = f".{secrets.token_hex(6)}.partial"
        try:
            descriptor = os.open(
                self._partial,
                os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0),
                0o666,  # less what the umask takes away
                dir_fd=self._folder,
            )
        except BaseException:
            os.close(self._folder)
            raise
        self.file = os.fdopen(descriptor, "w+b")
        try:
            if there is not None:
                _take_after(descriptor, target, there)
        except BaseException:
            self.discard()
            raise

    def commit(self) -> None:
        try:
            self.file.close()
            try:
                os.replace(
                    self._partial, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder
                )
            except OSError:  # a mount point, or another user's file in a folder such as /tmp
                self._copy()
        finally:
            self.discard()

    def _copy(self) -> None:
        descriptor = os.open(self._partial, os.O_RDONLY, dir_fd=self._folder)
        with open(descriptor, "rb") as source, open(self._target, "wb") as target:
            shutil.copyfileobj(source, target)

    def discard(self) -> None:
        if self._folder < 0:
            return
        with contextlib.suppress(OSError):  # what is held back cannot be written, and need not be
            self.file.close()
        try:
            os.unlink(self._partial, dir_fd=self._folder)
        except FileNotFoundError:
            pass  # it was renamed
        finally:
            os.close(self._folder)
            self._folder = -1


def _take_after(descriptor: int, target: str, there: os.stat_result) -> None:
    """Give a new file the permissions and the owner of the one that it will replace.

    Raises:
        OSError: that is not permitted, or the old one has attributes that a new one lacks.
    """
    listed = os.listxattr(target) if hasattr(os, "listxattr") else []
    if any(not name.startswith("security.") for name in listed):  # an access control list, a note
        raise PermissionError(f"{target} has extended attributes")
    own = os.fstat(descriptor)
    if (own.st_uid, own.st_gid) != (there.st_uid, there.st_gid):
        os.fchown(descriptor, there.st_uid, there.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(there.st_mode))


class _InMemory(Output):
    """Keeps the file in memory until it is whole, and then writes it to an open one."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self.file: io.BytesIO = io.BytesIO()

    def commit(self) -> None:
        write_all(self._target, self.file.getvalue())

    def discard(self) -> None:
        self.file.close()


class _InPlace(_InMemory):
    """Keeps the file in memory until it is whole, and then writes it where it belongs."""

    def commit(self) -> None:
        with open(self._target, "wb", buffering=0) as file:
            write_all(file, self.file.getvalue())

    def check(self) -> None:
        """Check that `commit` can open the file; a pipe's reader need not be there yet."""
        if is_special(self._target):
            if not os.access(self._target, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        try:
            os.close(os.open(self._target, os.O_WRONLY))
        except FileNotFoundError:
            os.close(os.open(self._target, os.O_WRONLY | os.O_CREAT))
            os.unlink(_resolve(self._target) or self._target)


class _InPlaceStream(Output):
    """Writes where the file belongs, at once."""

    def __init__(self, path: str) -> None:
        self.file = open(path, "wb", buffering=0)  # noqa: SIM115 - stays open
        self.seekable = self.file.seekable()

    def commit(self) -> None:
        self.file.close()

    def discard(self) -> None:
        self.file.close()


class _Given(Output):
    """Writes to someone else's file at once, which stays open."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.seekable = _can_overwrite(file)

    def commit(self) -> None:
        pass

    def discard(self) -> None:
        pass


def _can_overwrite(file: Any) -> bool:
    """Return True if a file can go back and write over what it has."""
    try:
        if not file.seekable() or "a" in str(getattr(file, "mode", "")):
            return False
    except (AttributeError, ValueError):
        return False
    try:
        import fcntl

        return not fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & os.O_APPEND  # the shell's >>
    except (ImportError, AttributeError, OSError):  # it has no descriptor
        return True
