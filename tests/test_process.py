"""The process that the library lives in: its streams, home, folders, libraries, and its forks."""

from __future__ import annotations

import asyncio
import copy
import io
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bark_fast import (
    AsyncBark,
    Bark,
    BarkFastWarning,
    BarkModel,
    BarkProcessor,
    GenerationParams,
    ProcessError,
    cli,
    demo,
    kernels,
)
from bark_fast.compat.suno import SunoAPI, SunoFiles
from bark_fast.kernels.cpu import build, native
from helpers.checkpoints import Checkpoint
from helpers.suno_files import write_suno_folder

PARAMS = GenerationParams(seed=3, max_semantic_tokens=8)
VOICE = "v2/en_speaker_0"


def run_code(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )


# Optional parts -----------------------------------------------------------------------------------


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str | None]]:
    """Find out again whether there are native kernels, and return why not."""
    if native.why_not(torch.float32) is not None:
        pytest.skip("there are none here in any case")

    def find_out() -> str | None:
        build.loaded.cache_clear()
        return native.why_not(torch.float32)

    yield find_out
    monkeypatch.undo()
    find_out()


def _raise(error: BaseException) -> Callable[..., Any]:
    def function(*_: object, **__: object) -> Any:
        raise error

    return function


def _no_home(patch: pytest.MonkeyPatch, _: Path) -> None:
    patch.delenv("HOME")
    patch.delenv("XDG_CACHE_HOME", raising=False)
    patch.setattr("pwd.getpwuid", _raise(KeyError("no such user")))


def _relative_home(patch: pytest.MonkeyPatch, _: Path) -> None:
    patch.setenv("HOME", "somewhere")
    patch.delenv("XDG_CACHE_HOME", raising=False)


def _file_for_a_folder(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bark-fast").write_text("not a folder")
    patch.setenv("XDG_CACHE_HOME", str(tmp_path))


def _compiler_is_a_text(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "gcc").write_text("no program")
    (tmp_path / "gcc").chmod(0o755)
    patch.setattr(build.shutil, "which", lambda name: str(tmp_path / "gcc"))


def _compiler_speaks_latin_1(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "gcc").write_bytes(b"#!/bin/sh\nprintf 'gcc\\351'; exit 3\n")
    (tmp_path / "gcc").chmod(0o755)
    patch.setattr(build.shutil, "which", lambda name: str(tmp_path / "gcc"))


def _compiler_hangs(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "gcc").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "gcc").chmod(0o755)
    patch.setattr(build.shutil, "which", lambda name: str(tmp_path / "gcc"))
    patch.setattr(build, "_COMPILER_LIMIT_S", 0.2)


def _no_sources(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    patch.setattr(build, "SOURCES", tmp_path)


def _loader_fails(patch: pytest.MonkeyPatch, _: Path) -> None:
    patch.setattr(build.ctypes, "CDLL", _raise(OSError("the loader is broken")))


def _anything(patch: pytest.MonkeyPatch, _: Path) -> None:
    patch.setattr(build, "compiled_library", _raise(LookupError("whatever")))


@pytest.mark.parametrize(
    ("take_away", "reason"),
    [
        (_compiler_is_a_text, "gcc"),
        (_compiler_speaks_latin_1, "gcc failed"),
        (_compiler_hangs, "timed out"),
        (_no_sources, "native.c"),
        (_loader_fails, "the loader is broken"),
        (_anything, "whatever"),
    ],
)
def test_speech_without_native_kernels(
    take_away: Callable[[pytest.MonkeyPatch, Path], None],
    reason: str,
    anew: Callable[[], str | None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever is missing: `info` says so, and torch and oneDNN serve."""
    take_away(monkeypatch, tmp_path)
    assert reason in (anew() or "")
    kernels.release_threads()
    assert cli.main(["info"]) == 0
    assert f"cpu on cpu in float32 (not native: {native.why_not(torch.float32)}" in (
        capsys.readouterr().out
    )
    with pytest.warns(BarkFastWarning, match=f"several times as long.*{reason}"):
        bark = Bark.from_pretrained(demo.FOLDER, device="cpu")
    assert next(iter(bark.stream("Hi.", params=PARAMS))).duration_s > 0


@pytest.mark.parametrize("take_away", [_no_home, _relative_home, _file_for_a_folder])
def test_native_kernels_without_a_cache(
    take_away: Callable[[pytest.MonkeyPatch, Path], None],
    anew: Callable[[], str | None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They are compiled for this process alone, which is said while it takes its time."""
    monkeypatch.setattr(build, "OPTIMISED", ("-O0", "-march=native"))
    monkeypatch.setattr(build.compiled_library, "__defaults__", (build.OPTIMISED,))
    build._own_folder.cache_clear()
    take_away(monkeypatch, tmp_path)
    assert anew() is None
    folder = build._own_folder()
    assert Path(build.load()._name).parent == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    assert capsys.readouterr().err == "bark-fast: compiling the kernels for this CPU, once\n"
    assert not (tmp_path / "bark-fast").is_dir()


def test_a_damaged_library_is_made_again(
    anew: Callable[[], str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading half a library would end the process (SIGBUS), so nobody tries."""
    assert anew() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    quick = ("-O0", "-march=native")
    library = build.compiled_library(quick)
    whole = library.read_bytes()
    for damaged in (b"", b"no library", whole[: len(whole) // 2], whole + b"more",
                    whole[:5000] + bytes(3000) + whole[8000:]):  # fmt: skip
        library.write_bytes(damaged)
        assert build.compiled_library(quick) == library
        assert len(library.read_bytes()) == len(whole)
    made = library.stat().st_mtime_ns
    build.compiled_library(quick)
    assert library.stat().st_mtime_ns == made
    # Now, because a file that is loaded must not be written to.
    assert build.open_library(library).packed_bytes(0, 0, 32, 1) > 0


@pytest.mark.parametrize("folder", ["with space", "new\nline", "[brackets] (deleted)", "ünïcode"])
def test_openmp_lies_in_any_folder(folder: str, tmp_path: Path) -> None:
    """Seen from torch, its libgomp is the one that was loaded under its name before."""
    own = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
    if not own.exists():
        pytest.skip("this torch does not bring libgomp")
    (tmp_path / folder).mkdir()
    copied = shutil.copy(own, tmp_path / folder)
    code = """
import ctypes, os, sys
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
import torch
from bark_fast.kernels.cpu import native, openmp
def address(library): return ctypes.cast(library.omp_get_max_threads, ctypes.c_void_p).value
is_it = address(openmp.runtime()) == address(ctypes.CDLL(sys.argv[1]))
print(is_it, native.why_not(torch.float32), openmp.release_threads())
"""
    done = run_code(code, str(copied))
    assert done.stdout.strip() == f"True {native.why_not(torch.float32)} True", done


def test_openmp_is_torchs_among_several(tmp_path: Path) -> None:
    """Another package's, under a name of its own, seen by all libraries and loaded before torch."""
    own = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
    if not own.exists():
        pytest.skip("this torch does not bring libgomp")
    other = tmp_path / "libgomp-e985bcbb.so.1.0.0"
    other.write_bytes(own.read_bytes().replace(b"libgomp.so.1\0", b"libgomp-e.so\0"))
    code = """
import ctypes, sys
if "before" in sys.argv: ctypes.CDLL(sys.argv[1])
import torch
if "after" in sys.argv: ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
from bark_fast.kernels.cpu import native, openmp
torch.set_num_threads(3)
print(openmp.runtime().omp_get_max_threads(), native.why_not(torch.float32))
"""
    for when in ("before", "after"):
        done = run_code(code, str(other), when)
        assert done.stdout.strip() == f"3 {native.why_not(torch.float32)}", done


# Standard streams ---------------------------------------------------------------------------------


class _Broken(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def _closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS: list[Callable[[], Any]] = [lambda: None, _closed, _Broken]
STREAM_IDS = ["none", "closed", "broken"]


@pytest.mark.parametrize("stream", STREAMS, ids=STREAM_IDS)
def test_a_progress_bar_that_cannot_be_shown(
    small: Checkpoint, stream: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = small.bark.generate("Hi.", params=PARAMS)
    monkeypatch.setattr(sys, "stderr", stream())
    shown = small.bark.generate("Hi.", params=PARAMS, progress=True)
    (part,) = small.bark.stream("Hi.", params=PARAMS, progress=True)
    small.bark.warm_up(progress=True)
    assert (shown.samples == plain.samples).all()
    assert (part.samples == plain.samples).all()


def test_a_progress_bar_that_fails_on_the_way(
    small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tqdm.auto

    monkeypatch.setattr(tqdm.auto.tqdm, "update", _raise(ZeroDivisionError()))
    monkeypatch.setattr(tqdm.auto.tqdm, "close", _raise(RuntimeError()))
    assert len(small.bark.generate(["Hi.", "You."], params=PARAMS, progress=True)) == 2


def test_a_warning_that_nobody_can_read(small: Checkpoint) -> None:
    """In a process of its own, because pytest takes the place of what shows warnings."""
    code = """
import sys
from bark_fast import Bark, GenerationParams
bark = Bark.from_pretrained(sys.argv[1], device="cpu")
sys.stderr.close()
params = GenerationParams(seed=1, max_semantic_tokens=4)
print(bark.generate("word " * 500, params=params).text[:4])  # it is cut, with a warning
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(small.folder)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("word\n", 0), done.stderr


@pytest.mark.parametrize("stderr", STREAMS, ids=STREAM_IDS)
@pytest.mark.parametrize("stdout", STREAMS[:2], ids=STREAM_IDS[:2])
def test_commands_without_streams(
    small: Checkpoint,
    tmp_path: Path,
    stdout: Callable[[], Any],
    stderr: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = ["--model", str(small.folder)]
    say = ["say", "Hi.", "-o", str(tmp_path / "x.wav"), "--max-semantic-tokens", "8", *model]
    for name, stream in (("stdout", stdout()), ("stderr", stderr()), ("stdin", None)):
        monkeypatch.setattr(sys, name, stream)
    for arguments, status in (
        (say, 0),
        ([*say, "--progress"], 0),
        (["voices", *model], 0),
        (["info"], 0),
        (["say", "-", *say[2:]], 2),
        (["say", "Hi.", "-o", "/nowhere/x.wav"], 2),
        (["voices", "--modle"], 2),
    ):
        assert cli.main(arguments) == status, arguments
    assert (tmp_path / "x.wav").stat().st_size > 44
    assert sys.stdin is None


@pytest.mark.parametrize("redirection", [">&- 2>&- <&-", ">&- 2>/dev/full", "2>&1 | head -c 1"])
def test_a_shell_without_streams(tmp_path: Path, redirection: str) -> None:
    """The audio is whole: no message was written into the file that got the number of a stream."""
    target = tmp_path / "x.wav"
    say = f"{sys.executable} -m bark_fast say Hi. -o {target} --progress --seed 1"
    quiet = subprocess.run(
        [
            "bash",
            "-c",
            f"{say} --max-semantic-tokens 8 {redirection}; exit ${{PIPESTATUS[0]}}",
        ],
        capture_output=True,
        timeout=300,
    )
    assert quiet.returncode == 0, quiet
    import soundfile

    samples, _ = soundfile.read(target)
    assert len(samples) > 1000


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    """A full disk is an error once, and the status is this command's and not Python's."""
    for output, status in (("/dev/full", 2), ("/dev/null", 0)):
        with open(output, "w") as file:
            done = subprocess.run(
                [sys.executable, "-m", "bark_fast", "voices"],
                stdout=file,
                stderr=subprocess.PIPE,
                text=True,
                timeout=300,
            )
        assert done.returncode == status
        assert len(done.stderr.splitlines()) == (status > 0)


def test_names_that_the_terminal_does_not_have(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/m\xc3\xa9\xff"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "bark_fast",
            "new-checkpoint",
            folder,
        ],
        capture_output=True,
        timeout=300,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b"m\\xe9\\udcff\n")


# Folders ------------------------------------------------------------------------------------------


def test_relative_folders_keep_their_meaning(
    narrow: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that is opened in one working directory and read in another."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(demo.FOLDER, "model")
    suno = write_suno_folder(tmp_path / "suno", narrow.model)
    bark = Bark.from_pretrained(Path("model"))
    speaker = AsyncBark.from_pretrained("./model")
    processor = BarkProcessor.from_pretrained("model")
    apis = SunoAPI("model", seed=1), SunoAPI("suno", device="cpu"), SunoAPI(SunoFiles("suno"))
    files = SunoFiles("suno")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert bark.generate("Hi.", voice=VOICE, params=PARAMS).duration_s > 0
    assert speaker.bark.load_voice(VOICE).name == VOICE
    assert "history_prompt" in processor("Hi.", voice_preset=VOICE)
    for api in apis:
        assert api.bark.sample_rate_hz == 24_000
    assert Path(files.model) == suno


def test_a_relative_cache_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from bark_fast.checkpoint.source import Source

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "cache")
    monkeypatch.chdir(tmp_path)
    source = Source.open("someone/bark")
    assert source.cache_dir == tmp_path / "cache"


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    code = """
import os, sys
from bark_fast import Bark, BarkFastError, GenerationParams
loaded = Bark.from_pretrained("demo")
os.chdir(sys.argv[1]); os.rmdir(sys.argv[1])
bark = Bark.from_pretrained("demo")
params = GenerationParams(seed=1, max_semantic_tokens=6)
for each in (loaded, bark):
    print(len(list(each.stream("Hi.", voice=bark.voices[0], params=params))) > 0)
for model in ("model", "./model", "a/b/c"):
    try: Bark.from_pretrained(model)
    except BarkFastError as error: print(type(error).__name__)
"""
    (tmp_path / "gone").mkdir()
    done = run_code(code, str(tmp_path / "gone"), XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout.split() == ["True", "True", *["InputError"] * 3], done


# Forks --------------------------------------------------------------------------------------------


def in_fork(work: Callable[[], Any]) -> str:
    """Do `work` in a fork of this process and return what came of it; "hung" after 120 s."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, f"spoke {work()}".encode())
        except BaseException as error:
            os.write(writer, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(writer)
    end = time.monotonic() + 120
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() > end:
            os.kill(child, 9)
            os.waitpid(child, 0)
            return "hung"
        time.sleep(0.01)
    with os.fdopen(reader, "rb") as file:
        return file.read().decode()


pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture
def threads() -> Iterator[None]:
    """Two threads, which have worked."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.randn(500, 500).matmul(torch.randn(500, 500)).exp()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_a_fork_speaks(small: Checkpoint) -> None:
    """Nothing was under way, and OpenMP's workers were given back before the fork."""
    bark, model = small.bark, BarkModel.from_pretrained(small.folder)
    ids = torch.tensor([[3, 4, 5]])
    expected = bark.generate("Hi.", params=PARAMS).samples
    row = model.generate(ids, seed=1, max_new_tokens=6)
    api = SunoAPI(demo.FOLDER, seed=1)
    for work in (
        lambda: (bark.generate("Hi.", params=PARAMS).samples == expected).all(),
        lambda: (next(iter(bark.stream("Hi.", params=PARAMS))).samples == expected).all(),
        lambda: (bark.submit(bark.request("Hi.", None, PARAMS)).result().samples == expected).all(),
        lambda: asyncio.run(AsyncBark(bark).generate("Hi.", params=PARAMS)).duration_s > 0,
        lambda: torch.equal(model.generate(ids, seed=1, max_new_tokens=6), row),
        lambda: Bark.from_pretrained(demo.FOLDER).generate("Hi.", params=PARAMS).duration_s > 0,
        lambda: api.bark.sample_rate_hz > 0,
        lambda: in_fork(lambda: bark.generate("Hi.", params=PARAMS)).startswith("spoke"),
    ):
        assert in_fork(work) == "spoke True"
    assert (bark.generate("Hi.", params=PARAMS).samples == expected).all()


@pytest.fixture
def busy(small: Checkpoint) -> Iterator[Bark]:
    """A model in the midst of a step of its own thread."""
    started, go_on = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        started.set()
        assert go_on.wait(120)

    bark = small.bark
    future = bark.submit(bark.request("Hi.", None, PARAMS), progress=hold)
    assert started.wait(60)
    yield bark
    go_on.set()
    future.result(60)


@pytest.mark.usefixtures("threads")
def test_a_fork_of_a_busy_engine_says_so(busy: Bark) -> None:
    speaker, request = AsyncBark(busy), busy.request("Hi.", None, PARAMS)
    for work in (
        lambda: busy.generate("Hi.", params=PARAMS),
        lambda: busy.semantic(["Hi.", "You."], params=PARAMS),
        lambda: busy.speak_tokens([1, 2, 3], params=PARAMS),
        lambda: list(busy.stream("Hi.", params=PARAMS)),
        lambda: busy.submit(request),
        lambda: asyncio.run(speaker.generate("Hi.", params=PARAMS)),
        lambda: busy.engine.submit(request),
        lambda: busy.engine.step(),
        lambda: busy.warm_up(),
    ):
        assert in_fork(work) == "ProcessError"


def test_a_stream_does_not_go_on_in_a_fork(small: Checkpoint) -> None:
    parts = small.bark.stream("One. Two. Three. Four.", voice=small.voice(20), params=PARAMS)
    next(parts)
    assert in_fork(lambda: next(parts)) == "ProcessError"
    assert len(list(parts)) == 3


@pytest.mark.parametrize("face", ["BarkModel", "SunoAPI"])
def test_locks_that_were_held_at_the_fork(small: Checkpoint, face: str) -> None:
    if face == "BarkModel":
        model = BarkModel.from_pretrained(small.folder)
        lock = model._serving._lock
        work: Any = lambda: model.generate(torch.tensor([[3]]), max_new_tokens=4)  # noqa: E731
    else:
        api = SunoAPI(demo.FOLDER)
        lock, work = api._models._lock, lambda: api.generate_audio("Hi.", silent=True)
    with lock:
        assert in_fork(work) == "ProcessError"


def test_forks_that_python_does_not_see(small: Checkpoint) -> None:
    """As a server written in C makes them: libgomp would wait for workers that are not there."""
    code = """
import ctypes, os, signal, sys, time
from bark_fast import Bark, BarkFastError, GenerationParams, demo
import torch
bark = Bark.from_pretrained(demo.FOLDER)
params = GenerationParams(seed=1, max_semantic_tokens=6)
bark.generate("Hi.", params=params)
child = ctypes.PyDLL(None).fork()
if child == 0:
    works = {"generate": lambda: bark.generate("Hi.", params=params),
             "stream": lambda: list(bark.stream("Hi.", params=params)),
             "load": lambda: Bark.from_pretrained(demo.FOLDER)}
    for name, work in works.items():
        try: work(); print(name, "spoke", flush=True)
        except BarkFastError as error: print(name, type(error).__name__, flush=True)
    torch.set_num_threads(1)
    works["load"]().generate("Hi.", params=params); print("alone", flush=True)
    os._exit(0)
signal.alarm(240)
os.waitpid(child, 0)
"""
    done = run_code(code, OMP_NUM_THREADS="2")
    assert done.stdout.split() == [
        *("generate", "ProcessError", "stream", "ProcessError", "load", "ProcessError", "alone")
    ], done


def test_a_model_is_not_pickled(small: Checkpoint) -> None:
    bark = small.bark
    for thing in (bark, AsyncBark(bark), bark.engine, [bark], bark.generate):
        with pytest.raises(ProcessError, match="load it there"):
            pickle.dumps(thing)
    with pytest.raises(ProcessError):
        copy.deepcopy(bark)
    assert copy.copy(bark).engine is bark.engine


def test_signals_and_threads_other_than_the_main_one(small: Checkpoint) -> None:
    """Loading and speaking need no main thread."""
    spoken: list[Any] = []

    def work() -> None:
        bark = Bark.from_pretrained(small.folder, device="cpu")
        spoken.append(bark.generate("Hi.", params=PARAMS, progress=True))
        spoken.extend(bark.stream("Hi.", params=PARAMS))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert (spoken[0].samples == spoken[1].samples).all()
