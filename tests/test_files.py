"""Files: whatever open(path, "wb") takes is written, and nobody meets half a file."""

from __future__ import annotations

import io
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bark_fast import InputError
from bark_fast import files as files_module
from bark_fast.files import check_path, check_writable, write_all, writing

posix = pytest.mark.skipif(os.name != "posix", reason="links, pipes and modes of POSIX")


def put(target: Any, content: bytes = b"new") -> None:
    with writing(target) as file:
        file.write(content)


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, type[OSError]], None]:
    """Let one function of os fail from now on: root may do what the tests would forbid."""

    def refuse(name: str, error: type[OSError]) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error(f"{name} is refused")

        monkeypatch.setattr(os, name, fail)

    return refuse


@pytest.fixture
def no_temporary(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that takes no new file."""
    open_ = os.open

    def fail(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_EXCL:
            raise PermissionError(13, "Permission denied", path)
        return open_(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", fail)


@pytest.fixture
def umask() -> Iterator[None]:
    old = os.umask(0o027)
    yield
    os.umask(old)


# Whole or not at all


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with writing(target) as file:
        file.write(b"new")
        assert target.read_text() == "old"
        assert len(os.listdir(tmp_path)) == 2
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [None, "old"])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_failure_leaves_nothing(
    tmp_path: Path,
    error: type[BaseException],
    before: str | None,
    in_place: bool,
    request: pytest.FixtureRequest,
) -> None:
    target = tmp_path / "file"
    if before is not None:
        target.write_text(before)
    if in_place:
        request.getfixturevalue("no_temporary")

    def write() -> None:
        with writing(target) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        write()
    assert os.listdir(tmp_path) == ([] if before is None else ["file"])
    assert before is None or target.read_text() == before


_LIMITED = """
import resource, sys
from bark_fast.files import writing
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with writing(sys.argv[1]) as file:
    for _ in range(int(sys.argv[2])):
        file.write(bytes(600))
"""


@posix
@pytest.mark.parametrize("n", [2, 1000])  # what is held back is written at the end, and fails there
def test_a_full_disk_leaves_nothing(tmp_path: Path, n: int) -> None:
    (tmp_path / "file").write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path / "file"), str(n)],
        capture_output=True,
        text=True,
    )
    assert "OSError: [Errno 27] File too large" in done.stderr.splitlines()[-1]
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError, PermissionError])
def test_what_cannot_be_renamed_is_copied(
    tmp_path: Path, refusing: Callable[[str, type[OSError]], None], error: type[OSError]
) -> None:
    """A file that is a mount point of its own, or another user's in /tmp."""
    target = tmp_path / "file"
    target.write_text("old and longer")
    inode = target.stat().st_ino
    refusing("replace", error)
    put(target)
    assert (target.read_text(), target.stat().st_ino) == ("new", inode)
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_takes_no_new_file(tmp_path: Path, no_temporary: None) -> None:
    target = tmp_path / "file"
    target.write_text("old and longer")
    put(target)
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        put(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]


# Names


@pytest.mark.parametrize(
    "name",
    ["a" * 255, "a" * 250, "你" * 85, "\udcff\udcfe", "a\nb", " ", "-", "..a", "~", "a b'\"", "%s"],
    ids=ascii,
)
def test_names(tmp_path: Path, name: str) -> None:
    put(tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"new"
    put(os.fsencode(tmp_path / name), b"newer") if name != "-" else put(tmp_path / name, b"newer")
    assert (tmp_path / name).read_bytes() == b"newer"
    assert os.listdir(tmp_path) == [name]


def test_a_name_beyond_the_limit(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 256)
    with pytest.raises(OSError, match="too long"):
        put(path)
    with pytest.raises(InputError, match=r"path must be a file that can be written, got '.*: File"):
        check_writable(path)
    assert os.listdir(tmp_path) == []


@posix
def test_the_longest_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a whole a path is shorter than 4,096 bytes; below the current folder it can go on."""
    limit = os.pathconf(tmp_path, "PC_PATH_MAX")
    folder = str(tmp_path)
    while limit - len(folder) > 210:
        folder += "/" + "d" * 200
        os.mkdir(folder)
    path = f"{folder}/{'f' * (limit - 1 - len(folder) - 1)}"
    assert len(path) == limit - 1
    put(path)
    assert Path(path).read_bytes() == b"new"
    short = os.path.join(folder, "x")
    put(short)
    assert len(os.listdir(folder)) == 2
    monkeypatch.chdir(folder)
    for _ in range(3):
        os.mkdir("d" * 200)
        monkeypatch.chdir("d" * 200)
    for name in ("g" * 255, "x"):
        put(name)
        assert Path(name).read_bytes() == b"new"


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put("a")
    put("./b")
    os.mkdir("c")
    put("c/../d")
    assert sorted(os.listdir()) == ["a", "b", "c", "d"]


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"below.npz"


def test_check_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_path(b"a.NPZ", [".npz"]) == Path("a.NPZ")
    assert check_path(BytesPath(), [".npz"]) == Path("below.npz")
    assert check_path("\udcff.npz", [".npz"]) == Path("\udcff.npz")
    assert check_path("any", []) == Path("any")
    with pytest.raises(InputError, match=r"it must end in \.a, \.b or \.c, got 'x'"):
        check_path("x", [".a", ".b", ".c"], name="it")
    for folder in ("a.npz/", "a/..", "a/."):
        with pytest.raises(InputError, match="it must name a file, got the folder"):
            check_path(folder, [], name="it")


# Links


@posix
@pytest.mark.parametrize("exists", [False, True])
def test_links_are_followed(tmp_path: Path, exists: bool) -> None:
    far = tmp_path / "far"
    far.mkdir()
    (far / "one").symlink_to("file")
    (tmp_path / "two").symlink_to(far / "one")
    (tmp_path / "near").symlink_to(far)
    (tmp_path / "three").symlink_to("near/../two")
    if exists:
        (far / "file").write_text("old")
    for name in ("two", "three"):
        put(tmp_path / name, name.encode())
        assert (far / "file").read_text() == name
        assert not (far / "file").is_symlink()
    assert os.readlink(tmp_path / "three") == "near/../two"
    assert os.readlink(far / "one") == "file"
    assert sorted(os.listdir(far)) == ["file", "one"]
    assert sorted(os.listdir(tmp_path)) == ["far", "near", "three", "two"]


@posix
def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("absent/file")
    for name in ("loop", "gone"):
        with pytest.raises(OSError):
            put(tmp_path / name)
        with pytest.raises(InputError, match="must be a file that can be written"):
            check_writable(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["gone", "loop"]


@posix
def test_both_names_of_a_file_see_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old and longer")
    os.link(tmp_path / "a", tmp_path / "b")
    put(tmp_path / "b")
    assert (tmp_path / "a").read_text() == "new"
    assert (tmp_path / "a").samefile(tmp_path / "b")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


# Permissions


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@posix
@pytest.mark.parametrize("old", [None, 0o600, 0o664, 0o777])
@pytest.mark.parametrize("in_place", [False, True])
def test_permissions_are_those_of_open(
    tmp_path: Path, umask: None, old: int | None, in_place: bool, request: Any
) -> None:
    target = tmp_path / "file"
    if old is not None:
        target.touch()
        target.chmod(old)
    if in_place:
        request.getfixturevalue("no_temporary")
    put(target)
    assert mode(target) == (0o640 if old is None else old)


@posix
def test_the_owner_stays(tmp_path: Path, refusing: Callable[[str, type[OSError]], None]) -> None:
    """Who may not give a file away writes in place, which keeps its owner too."""
    target = tmp_path / "file"
    target.write_text("old and longer")
    stranger = os.stat_result((*list(target.stat())[:4], 12345, 12345, *list(target.stat())[6:]))
    refusing("fchown", PermissionError)
    with pytest.raises(PermissionError):
        files_module._Replacing(str(target), stranger)
    assert os.listdir(tmp_path) == ["file"]
    put(target)
    assert target.read_text() == "new"


_AS_NOBODY = """
import os, sys
from bark_fast import InputError
from bark_fast.files import check_writable, writing
if os.geteuid() == 0:
    os.setgid(65534), os.setuid(65534)
path = sys.argv[1]
try:
    check_writable(path, name="--output")
    said = "taken"
except InputError as error:
    said = str(error)
try:
    with writing(path) as file:
        file.write(b"new")
    print(said, "written")
except OSError as error:
    print(said, type(error).__name__)
"""


@posix
@pytest.mark.parametrize(
    ("folder_mode", "file_mode", "expected"),
    [
        (0o555, 0o666, "taken written"),
        (0o311 | 0o002, 0o666, "taken written"),  # a folder that cannot be listed
        (0o777, 0o444, "Permission denied PermissionError"),
        (0o555, None, "Permission denied PermissionError"),
        (0o777, None, "taken written"),
        (0o1777, 0o666, "taken written"),  # another user's file, as in /tmp
    ],
)
def test_as_open_would_have_it(
    tmp_path: Path, folder_mode: int, file_mode: int | None, expected: str
) -> None:
    with tempfile.TemporaryDirectory() as shared:
        os.chmod(shared, 0o755)
        folder = Path(shared) / "folder"
        folder.mkdir()
        target = folder / "file"
        if file_mode is not None:
            target.write_text("old and longer")
            target.chmod(file_mode)
        folder.chmod(folder_mode)
        done = subprocess.run(
            [sys.executable, "-c", _AS_NOBODY, str(target)], capture_output=True, text=True
        )
        assert done.stdout.rstrip().endswith(expected), done.stderr
        assert os.listdir(folder) == (["file"] if target.exists() else [])
        if "written" in expected:
            assert target.read_text() == "new"
        if file_mode is not None:
            assert mode(target) == file_mode


# What is no regular file


@posix
def test_devices(tmp_path: Path) -> None:
    put("/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    (tmp_path / "null").symlink_to("/dev/null")
    put(tmp_path / "null")
    assert (tmp_path / "null").is_symlink()
    if os.path.exists("/dev/full"):
        with pytest.raises(OSError, match="No space left"):
            put("/dev/full")


@posix
def test_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    check_writable(path)  # without waiting for a reader
    heard: list[bytes] = []
    reader = threading.Thread(target=lambda: heard.append(path.read_bytes()))
    reader.start()
    put(path, b"x" * 200_000)  # more than it holds
    reader.join(timeout=60)
    assert heard == [b"x" * 200_000]
    assert stat.S_ISFIFO(path.stat().st_mode)


@posix
def test_descriptors(tmp_path: Path) -> None:
    read, write = os.pipe()
    put(f"/dev/fd/{write}")
    assert os.read(read, 10) == b"new"
    os.close(read)
    os.close(write)
    # A file that has no name any more: what looks like its name must not be made.
    with open(tmp_path / "gone", "w+b") as file:
        os.unlink(tmp_path / "gone")
        put(f"/dev/fd/{file.fileno()}")
        assert file.read() == b"new"
    assert os.listdir(tmp_path) == []


@posix
@pytest.mark.parametrize("where", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output(tmp_path: Path, where: str) -> None:
    code = (
        "import sys; from bark_fast.files import writing\n"
        "with writing(sys.argv[1]) as file: file.write(b'new')"
    )
    command = [sys.executable, "-c", code, where]
    piped = subprocess.run(command, capture_output=True, check=True)
    assert piped.stdout == b"new"
    with open(tmp_path / "file", "wb") as file:
        inode = os.fstat(file.fileno()).st_ino
        subprocess.run(command, stdout=file, check=True)
    assert (tmp_path / "file").read_bytes() == b"new"
    assert (tmp_path / "file").stat().st_ino == inode
    assert os.listdir(tmp_path) == ["file"]


# Open files


class Trickle(io.RawIOBase):
    """A raw file that takes little at a time, as sockets do."""

    def __init__(self) -> None:
        self.content = b""

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.content += bytes(content)[:3]
        return min(3, len(content))


class Silent:
    """An object whose write() returns nothing."""

    content = b""

    def write(self, content: bytes) -> None:
        self.content += content


def test_open_files(tmp_path: Path) -> None:
    memory = io.BytesIO()
    memory.write(b"old ")
    put(memory)
    assert memory.getvalue() == b"old new"
    trickle, silent = Trickle(), Silent()
    put(trickle, b"0123456789")
    put(silent)
    assert (trickle.content, silent.content) == (b"0123456789", b"new")
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("wb") as file:
        put(file)
        file.flush()
        assert theirs.recv(10) == b"new"
    with open(tmp_path / "file", "wb") as file:
        put(file)
        assert not file.closed


def test_an_open_file_gets_nothing_of_a_failure() -> None:
    memory = io.BytesIO()

    def write() -> None:
        with writing(memory) as file:
            file.write(b"half")
            raise ValueError

    with pytest.raises(ValueError):
        write()
    assert memory.getvalue() == b""


def test_a_file_that_would_block() -> None:
    class Full(io.RawIOBase):
        def write(self, content: Any) -> None:
            return None

    with pytest.raises(BlockingIOError):
        write_all(Full(), b"x")
