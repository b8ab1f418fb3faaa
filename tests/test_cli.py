"""The command, mostly in process: each new Python would import torch again."""

from __future__ import annotations

import io
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from bark_fast import Bark, GenerationParams, __version__
from bark_fast.checkpoint.random import PRESET_NAMES, create_checkpoint
from bark_fast.cli import main
from helpers.checkpoints import Checkpoint

QUICK = ["--max-semantic-tokens", "20", "--temperature", "0"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_checkpoint(tmp_path_factory.mktemp("command") / "tiny")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def say(checkpoint: Checkpoint | Path, text: str, *arguments: str) -> int:
    folder = checkpoint if isinstance(checkpoint, Path) else checkpoint.folder
    return main(["say", text, "--model", str(folder), "--device", "cpu", *QUICK, *arguments])


def samples(path: str) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


def test_say(small: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    assert say(small, "Hello", "--seed", "5") == 0
    assert os.listdir() == ["speech.wav"]
    info = soundfile.info("speech.wav")
    assert (info.samplerate, info.format, info.subtype) == (8000, "WAV", "PCM_16")
    params = GenerationParams(temperature=0, max_semantic_tokens=20, seed=5)
    expected = small.bark.generate("Hello", params=params).samples
    np.testing.assert_allclose(samples("speech.wav"), expected.clip(-1, 1), rtol=0, atol=1e-4)
    printed = capsys.readouterr()
    assert printed.out == ""
    length = len(expected) / 8000
    assert printed.err.startswith(f"speech.wav: {length:.2f} s of speech in ")
    assert printed.err.endswith(", seed 5\n")


def test_unknown_characters_are_named(
    small: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    assert say(small, "你好") == 0
    assert "2 of 2 tokens are unknown ('你', '好')" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["-o", "a.flac"], ("FLAC", "PCM_16")),
        (["--output", "a.flac", "--subtype", "PCM_24"], ("FLAC", "PCM_24")),
        (["-o", "a.wav", "--subtype", "FLOAT"], ("WAV", "FLOAT")),
    ],
)
def test_formats(small: Checkpoint, arguments: list[str], kind: tuple[str, str]) -> None:
    assert say(small, "Hello", *arguments) == 0
    info = soundfile.info(arguments[1])
    assert (info.format, info.subtype) == kind
    assert info.frames > 0
    assert os.listdir() == [arguments[1]]


def read(content: bytes) -> np.ndarray:
    """The samples of a WAV file, or of a stream without a length."""
    return soundfile.read(io.BytesIO(content), dtype="float32")[0]


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["-o", "a.MP3"], ("MP3", "MPEG_LAYER_III")),
        (["-o", "a.opus"], ("OGG", "OPUS")),
        (["-o", "a.ogg", "--subtype", "VORBIS"], ("OGG", "VORBIS")),
        (["-o", "no ending", "--format", "FLAC"], ("FLAC", "PCM_16")),
        (["-o", "a.mp3", "--format", "wav"], ("WAV", "PCM_16")),
    ],
)
def test_more_formats(small: Checkpoint, arguments: list[str], kind: tuple[str, str]) -> None:
    assert say(small, "Hello. You.", *arguments) == 0
    info = soundfile.info(arguments[1])
    assert (info.format, info.subtype) == kind
    assert info.frames > 0
    assert os.listdir() == [arguments[1]]


@pytest.mark.parametrize("output", ["-", "/dev/stdout", "/dev/fd/1"])
def test_standard_output(
    small: Checkpoint,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
    output: str,
) -> None:
    stream = Bark.stream

    def talkative(*arguments: Any, **options: Any) -> Any:
        if output == "-":
            print("what another library has to say")
        return stream(*arguments, **options)

    monkeypatch.setattr(Bark, "stream", talkative)
    assert say(small, "Hello. You.", "--seed", "5", "-o", output) == 0
    printed = capfdbinary.readouterr()
    assert f"{output}: ".encode() in printed.err
    assert os.listdir() == []
    assert say(small, "Hello. You.", "--seed", "5") == 0
    np.testing.assert_array_equal(read(printed.out), samples("speech.wav"))


def test_no_standard_output(
    small: Checkpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as without:
        without.setattr(sys, "stdout", io.StringIO())
        assert say(small, "Hello", "-o", "-") == 2
    assert "--output must be a file where there is no standard output" in capsys.readouterr().err


def test_links_and_long_names(small: Checkpoint) -> None:
    os.symlink("far.wav", "near.wav")
    long = "\udcff" + "n" * 250 + ".wav"
    for name in ("near.wav", long):
        assert say(small, "Hello", "-o", name) == 0
    assert os.path.islink("near.wav")
    assert sorted(os.listdir()) == sorted(["far.wav", "near.wav", long])
    os.symlink("far.npz", "near.npz")
    assert say(small, "Hello", "-q", "--save-voice", "near.npz") == 0
    assert os.path.islink("near.npz")
    assert small.bark.load_voice("far.npz").fine_prompt.shape[1] > 0


def test_nothing_is_loaded_for_what_cannot_be_written(
    small: Checkpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Bark, "from_pretrained", None)
    os.symlink("absent/a.wav", "gone.wav")
    os.symlink("absent/a.npz", "gone.npz")
    for option, name in (
        ("-o", "gone.wav"),
        ("-o", "n" * 252 + ".wav"),
        ("--save-voice", "gone.npz"),
    ):
        assert say(small, "Hello", option, name) == 2
        assert "must be a file that can be written, got" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), 130), (OSError("no memory"), 2)]
)
@pytest.mark.parametrize("output", ["a.wav", "a.mp3"])
def test_what_was_said_is_kept(
    small: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    output: str,
) -> None:
    stream = Bark.stream

    def interrupted(*arguments: Any, **options: Any) -> Any:
        parts = stream(*arguments, **options)
        yield next(parts)
        yield next(parts)
        raise error

    monkeypatch.setattr(Bark, "stream", interrupted)
    text = "One two. Three four. Five."
    assert say(small, text, "--save-voice", "me.npz", "--seed", "5", "-o", output) == status
    printed = capsys.readouterr().err.splitlines()
    assert printed[0].startswith(f"{output}: the first ")
    assert printed[1] == f"bark-fast: {'interrupted' if status == 130 else 'error: no memory'}"
    monkeypatch.setattr(Bark, "stream", lambda *a, **o: itertools.islice(stream(*a, **o), 2))
    assert say(small, text, "--seed", "5", "-o", f"short.{output[2:]}") == 0
    np.testing.assert_array_equal(samples(output), samples(f"short.{output[2:]}"))
    assert sorted(os.listdir()) == sorted([output, "me.npz", f"short.{output[2:]}"])


def test_seeds(small: Checkpoint) -> None:
    sampled = ["--temperature", "1", "--subtype", "FLOAT", "--min-eos-p", "0"]
    for file, seed in (("a.wav", "1"), ("b.wav", "1"), ("c.wav", "2")):
        assert say(small, "Hello", *sampled, "-o", file, "--seed", seed) == 0
    assert np.array_equal(samples("a.wav"), samples("b.wav"))
    assert not np.array_equal(samples("a.wav"), samples("c.wav"))


def test_the_seed_that_was_drawn_is_told(
    small: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    sampled = ["--temperature", "1", "--subtype", "FLOAT"]
    assert say(small, "Hello", *sampled, "-o", "a.wav") == 0
    seed = capsys.readouterr().err.rsplit(maxsplit=1)[1]
    assert say(small, "Hello", *sampled, "-o", "b.wav", "--seed", seed) == 0
    assert np.array_equal(samples("a.wav"), samples("b.wav"))


def test_sentences_and_pauses(small: Checkpoint) -> None:
    text = "One two. Three four. Five."
    params = GenerationParams(temperature=0, max_semantic_tokens=20, seed=5)
    parts = [part.samples for part in small.bark.stream(text, params=params)]
    assert len(parts) == 3
    for pause_s, arguments in ((0.25, []), (0.5, ["--pause", "0.5"]), (0, ["--pause", "0"])):
        assert say(small, text, "--subtype", "FLOAT", "--seed", "5", *arguments) == 0
        silence = np.zeros(round(pause_s * 8000), dtype=np.float32)
        expected = np.concatenate([parts[0], silence, parts[1], silence, parts[2]])
        np.testing.assert_array_equal(samples("speech.wav"), expected)


def test_standard_input(small: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    assert say(small, "Hé, you", "--seed", "1", "-o", "a.wav") == 0
    stdin = io.TextIOWrapper(io.BytesIO("\nHé,  you\n".encode()), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stdin)
    assert say(small, "-", "--seed", "1", "-o", "b.wav") == 0
    assert np.array_equal(samples("a.wav"), samples("b.wav"))


def test_voices_given_and_saved(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--subtype", "FLOAT", "--seed", "1"]
    name = PRESET_NAMES[0]
    assert say(tiny, "Hi", *arguments, "--voice", name, "--save-voice", "me.npz") == 0
    with_preset = samples("speech.wav")
    bark = Bark.from_pretrained(tiny, device="cpu")
    params = GenerationParams(temperature=0, max_semantic_tokens=20, seed=1)
    speech = bark.generate("Hi", voice=name, params=params)
    np.testing.assert_array_equal(with_preset, speech.samples)
    saved = bark.load_voice("me.npz")
    np.testing.assert_array_equal(saved.semantic_prompt, speech.semantic_tokens)
    np.testing.assert_array_equal(saved.fine_prompt, speech.fine_tokens)

    assert say(tiny, "Hi", *arguments, "--voice", "me.npz") == 0
    np.testing.assert_array_equal(
        samples("speech.wav"), bark.generate("Hi", voice=saved, params=params).samples
    )
    assert not np.array_equal(samples("speech.wav"), with_preset)
    assert sorted(os.listdir()) == ["me.npz", "speech.wav"]


def test_a_speaker_too_short_to_save(small: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    """A voice file that nobody can use helps nobody; what was said is kept."""
    assert say(small, "H", "--max-semantic-tokens", "1", "--save-voice", "me.npz") == 2
    printed = capsys.readouterr().err
    assert printed.startswith("speech.wav: the first ")
    assert "bark-fast: error: --save-voice needs more speech" in printed
    assert os.listdir() == ["speech.wav"]


def test_quiet(small: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    assert say(small, "Hello", "-q") == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert os.listdir() == ["speech.wav"]


def test_progress(small: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    assert say(small, "Hello", "--progress") == 0
    assert "1/1 codec" in capsys.readouterr().err


def test_parameters_reach_the_model(small: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[GenerationParams] = []
    stream = Bark.stream

    def spy(self: Bark, *arguments: Any, **options: Any) -> Any:
        seen.append(options["params"])
        return stream(self, *arguments, **options)

    monkeypatch.setattr(Bark, "stream", spy)
    expected: dict[str, Any] = {
        "temperature": 0.5,
        "semantic_temperature": 0.25,
        "coarse_temperature": 0.75,
        "fine_temperature": 0.0,
        "top_k": 9,
        "semantic_top_k": 8,
        "coarse_top_k": 7,
        "fine_top_k": 0,
        "top_p": 0.5,
        "semantic_top_p": 0.25,
        "coarse_top_p": 0.75,
        "fine_top_p": 1.0,
        "min_eos_p": 0.125,
        "max_semantic_tokens": 3,
        "max_duration_s": 9.5,
        "seed": 2**64 - 1,
    }
    options = [word for k, v in expected.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    assert main(["say", "Hi", "--model", str(small.folder), *options]) == 0
    assert seen == [GenerationParams(**expected)]


def test_without_a_model_the_demo_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    shown = warnings.showwarning
    assert main(["voices"]) == 0
    assert warnings.showwarning is shown  # a program that calls main() keeps its own
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) >= 4
    assert printed.err == ""
    assert main(["say", "Hello.", "-q"]) == 0
    assert len(samples("speech.wav")) > 0


def test_voices(tiny: Path, small: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["voices", "--model", str(tiny)]) == 0
    assert capsys.readouterr().out.splitlines() == list(PRESET_NAMES)
    assert main(["voices", "--model", str(small.folder)]) == 0
    assert capsys.readouterr().out == ""


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr()
    lines = dict(line.split(maxsplit=1) for line in printed.out.splitlines())
    assert lines["bark-fast"] == __version__
    assert {"python", "torch", "transformers", "cpu", "cuda", "kernels"} <= lines.keys()
    assert printed.err == ""


def test_new_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-checkpoint", "below/new", "--dtype", "bfloat16", "--seed", "3"]) == 0
    assert capsys.readouterr().out == f"{Path('below/new')}\n"
    assert say(Path("below/new"), "Hi", "-q") == 0
    assert soundfile.info("speech.wav").samplerate == 24_000
    assert main(["new-checkpoint", "below/new"]) == 2


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["--version"], f"bark-fast {__version__}\n"),
        (["--help"], "usage: bark-fast"),
        (["say", "--help"], "usage: bark-fast say"),
        (["voices", "-h"], "usage: bark-fast voices"),
        (["info", "-h"], "usage: bark-fast info"),
        (["new-checkpoint", "-h"], "usage: bark-fast new-checkpoint"),
    ],
)
def test_help(capsys: pytest.CaptureFixture[str], arguments: list[str], printed: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(printed)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "bark-fast: interrupted\n"),
        (MemoryError(), 2, "bark-fast: error: MemoryError\n"),
        (OSError("two\n lines"), 2, "bark-fast: error: two lines\n"),
        (PermissionError(13, "Permission denied", "a.wav"), 2, "bark-fast: error: [Errno 13] "),
    ],
)
def test_failures_on_the_way(
    small: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    message: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Bark, "stream", fail)
    assert say(small, "Hello") == status
    printed = capsys.readouterr()
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1
    assert os.listdir() == []


# What only a process of its own can show

_MODULE = [sys.executable, "-m", "bark_fast"]


def test_module() -> None:
    done = subprocess.run([*_MODULE, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"bark-fast {__version__}\n"
    done = subprocess.run([*_MODULE, "say", ""], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "bark-fast: error: TEXT must not be empty\n"


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c(tiny: Path) -> None:
    text = "This is a long text, and nobody will listen to the end of it. " * 200
    command = [*_MODULE, "say", text, "--model", str(tiny), "--progress", "--min-eos-p", "0"]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A test run in the background of a shell has it ignored, and its children too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stderr is not None
        seen = b""
        while b"semantic" not in seen:
            more = os.read(process.stderr.fileno(), 4096)
            assert more, seen
            seen += more
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert rest.rstrip().endswith(b"bark-fast: interrupted")
    assert b"Traceback" not in rest
    assert os.listdir() == []


def _keep_all(file: Any, kept: list[bytes]) -> None:
    kept.append(file.read())


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_in_the_middle(tiny: Path) -> None:
    """What was said goes on to a pipe at once, and is kept in a file."""
    text = "This text is long. " * 200
    command = [*_MODULE, "say", text, "--model", str(tiny), "--max-semantic-tokens", "20"]
    for output in ("-", "kept.flac"):
        with subprocess.Popen(
            [*command, "--progress", "-o", output],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            # A pipe that nobody reads would fill.
            heard: list[bytes] = []
            reader = threading.Thread(target=_keep_all, args=(process.stdout, heard))
            reader.start()
            seen = b""
            while not re.search(rb"\r\d*[2-9]/\d", seen):
                more = os.read(process.stderr.fileno(), 4096)
                assert more, seen
                seen += more
            process.send_signal(signal.SIGINT)
            rest = process.stderr.read()
            reader.join()
        assert process.returncode == 130
        assert rest.splitlines()[-2].startswith(f"{output}: the first ".encode())
        assert rest.splitlines()[-1] == b"bark-fast: interrupted"
        spoken = read(heard[0]) if output == "-" else samples(output)
        assert len(spoken) > 24_000 // 4
    assert os.listdir() == ["kept.flac"]


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_a_reader_that_leaves(tiny: Path) -> None:
    with subprocess.Popen(
        [*_MODULE, "voices", "--model", str(tiny)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Python writes what is buffered when it exits, too late for main().
        env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, error = process.communicate(timeout=60)
    assert error == b""
    assert process.returncode == 0
