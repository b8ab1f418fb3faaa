"""Audio files: every format, whole and piece by piece, to paths, pipes and open files."""

from __future__ import annotations

import io
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from bark_fast import AudioWriter, InputError
from bark_fast.audio import FORMATS, check_audio_path, save_audio
from bark_fast.encoders import SUBTYPES
from helpers.decoding import AAC_FRAME, aac_length, decode

RATE = 24_000
ALL = [(kind, subtype) for kind in FORMATS for subtype in SUBTYPES[kind]]


def tone(n: int = 10_001) -> np.ndarray:
    return (0.5 * np.sin(np.arange(n) / 20)).astype(np.float32)


def decoded(content: bytes, kind: str, subtype: str) -> np.ndarray:
    if kind == "aac":
        heard, rate = decode(content)
        assert rate == RATE
        return heard
    raw = {"samplerate": RATE, "channels": 1, "format": "RAW", "subtype": subtype}
    options: dict[str, Any] = {**raw, "endian": "LITTLE"} if kind in ("pcm", "raw") else {}
    with soundfile.SoundFile(io.BytesIO(content), **options) as file:
        assert (file.samplerate, file.channels) == (RATE, 1)
        return file.read(dtype="float32")


def check_sound(content: bytes, kind: str, subtype: str, samples: np.ndarray) -> None:
    """Lossless formats give the samples back, the others something close, of the same length."""
    heard = decoded(content, kind, subtype)
    if kind == "aac":
        assert len(heard) == aac_length(len(samples))
        heard = heard[AAC_FRAME:][: len(samples)]
    assert len(heard) == len(samples)
    if kind in ("wav", "pcm", "raw", "flac"):
        step = {"PCM_16": 2**-15, "PCM_24": 2**-23, "FLOAT": 0}[subtype]
        np.testing.assert_allclose(heard, samples, rtol=0, atol=step)
    elif len(samples) > 5000:
        middle = slice(len(samples) // 4, -len(samples) // 4)
        assert np.corrcoef(heard[middle], samples[middle])[0, 1] > 0.95


# Formats


@pytest.mark.parametrize(("kind", "subtype"), ALL)
def test_formats(tmp_path: Path, kind: str, subtype: str) -> None:
    samples = tone()
    path = tmp_path / f"a.{kind.upper()}"
    save_audio(path, samples, RATE, subtype=subtype)
    check_sound(path.read_bytes(), kind, subtype, samples)
    save_audio(tmp_path / "no ending", samples, RATE, subtype=subtype, format=kind.title())
    check_sound((tmp_path / "no ending").read_bytes(), kind, subtype, samples)
    assert sorted(os.listdir(tmp_path)) == [path.name, "no ending"]


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_rounding_is_libsndfiles(subtype: str) -> None:
    rng = np.random.default_rng(0)
    edges = [1, -1, 0, 1 - 2**-15, 2**-16, -(2**-16), -1e-9, 2, -2]
    samples = np.append(rng.uniform(-1.2, 1.2, 10_000), edges).astype(np.float32)
    ours, theirs = io.BytesIO(), io.BytesIO()
    save_audio(ours, samples, RATE, subtype=subtype, format="wav")
    soundfile.write(theirs, samples, RATE, format="WAV", subtype=subtype)
    if len(theirs.getvalue()) % 2 == 0:
        assert ours.getvalue() == theirs.getvalue()
    save_audio(ours := io.BytesIO(), samples, RATE, subtype=subtype, format="pcm")
    assert ours.getvalue() in theirs.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("n", [0, 1])
def test_next_to_nothing(tmp_path: Path, kind: str, n: int) -> None:
    """Without samples the compressed formats hold one, because an empty file is none."""
    save_audio(tmp_path / f"whole.{kind}", tone(n), RATE)
    with AudioWriter(tmp_path / f"pieces.{kind}", RATE) as writer:
        writer.write(tone(n))
    for name in ("whole", "pieces"):
        content = (tmp_path / f"{name}.{kind}").read_bytes()
        n_heard = len(decoded(content, kind, SUBTYPES[kind][0]))
        assert n_heard in ({n, 1} if kind != "aac" else {aac_length(1)})


@pytest.mark.parametrize(
    ("kind", "rate", "message"),
    [
        ("opus", 22_050, "got 'opus': .*Opus only supports"),
        ("mp3", 12_345, "MPEG"),
        ("aac", 12_345, "got 'aac'"),
    ],
)
def test_rates_that_a_format_has_not(tmp_path: Path, kind: str, rate: int, message: str) -> None:
    with pytest.raises(InputError, match=f"format must be one for {rate} Hz, .*{message}"):
        save_audio(tmp_path / f"a.{kind}", tone(), rate)
    with pytest.raises(InputError, match=f"format must be one for {rate} Hz"):
        AudioWriter(tmp_path / f"a.{kind}", rate)
    assert os.listdir(tmp_path) == []


def test_a_libsndfile_without_mp3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundfile, "available_subtypes", lambda kind: {})
    with pytest.raises(InputError, match=r"format must be one that libsndfile .* writes \(mp3"):
        check_audio_path(tmp_path / "a.mp3")
    check_audio_path(tmp_path / "a.wav")


# Where to


def test_open_files(tmp_path: Path) -> None:
    memory = io.BytesIO()
    save_audio(memory, tone(), RATE, format="flac")
    check_sound(memory.getvalue(), "flac", "PCM_16", tone())
    with open(tmp_path / "named.wav", "wb") as file:  # its name says the format
        file.write(b"before")
        save_audio(file, tone(), RATE)
        file.write(b"after")
    content = (tmp_path / "named.wav").read_bytes()
    assert content.startswith(b"before")
    assert content.endswith(b"after")
    check_sound(content[6:-5], "wav", "PCM_16", tone())
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("wb") as stream:
        save_audio(stream, tone(100), RATE, format="mp3")
        stream.flush()
        check_sound(theirs.recv(100_000), "mp3", "MPEG_LAYER_III", tone(100))


@pytest.mark.parametrize(
    ("make", "format", "message"),
    [
        (io.BytesIO, None, "format must be one of wav, flac, mp3, .* for a file without such a"),
        (io.BytesIO, "m4a", "format must be one of wav, flac, mp3, .*, got 'm4a'"),
        (io.BytesIO, 3, "format must be one of wav, flac, mp3, .*, got 3"),
        (io.StringIO, "wav", "path must be an open binary file, got a text file"),
        (lambda: io.FileIO(os.devnull), "wav", "path must be a file that is open for writing"),
        (Path(os.devnull).open, "wav", "path must be an open binary file, got a text file"),
    ],
)
def test_files_that_do_not_do(make: Any, format: Any, message: str) -> None:
    file = make()
    with file, pytest.raises(InputError, match=message):
        save_audio(file, tone(), RATE, format=format)
    with pytest.raises(InputError, match=r"(format|path) must be"):
        save_audio(file, tone(), RATE, format="wav" if format is None else format)


@pytest.mark.skipif(os.name != "posix", reason="pipes")
@pytest.mark.parametrize("kind", FORMATS)
def test_a_whole_file_to_a_pipe(tmp_path: Path, kind: str) -> None:
    """All is known then, so it is the same file as on disk."""
    path = tmp_path / f"pipe.{kind}"
    os.mkfifo(path)
    heard: list[bytes] = []
    reader = threading.Thread(target=lambda: heard.append(path.read_bytes()))
    reader.start()
    save_audio(path, tone(), RATE)
    reader.join(timeout=60)
    check_sound(heard[0], kind, SUBTYPES[kind][0], tone())


@pytest.mark.skipif(os.name != "posix", reason="devices")
def test_a_device_without_an_ending(tmp_path: Path) -> None:
    save_audio("/dev/null", tone(), RATE)
    os.mkfifo(tmp_path / "pipe")
    assert check_audio_path(tmp_path / "pipe") == tmp_path / "pipe"
    code = (
        "import numpy as np; from bark_fast.audio import save_audio\n"
        "save_audio('/dev/stdout', np.zeros(8, np.float32), 24000)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert len(decoded(done.stdout, "wav", "PCM_16")) == 8


@pytest.mark.parametrize("name", ["a" * 251 + ".wav", "你" * 83 + ".flac", "\udcff.mp3"], ids=ascii)
def test_long_and_strange_names(tmp_path: Path, name: str) -> None:
    save_audio(tmp_path / name, tone(), RATE)
    with AudioWriter(os.fsencode(tmp_path / name), RATE) as writer:
        writer.write(tone())
    check_sound(
        (tmp_path / name).read_bytes(),
        name[-4:].lstrip("."),
        SUBTYPES[name[-4:].lstrip(".")][0],
        tone(),
    )
    assert os.listdir(tmp_path) == [name]


# Piece by piece


def write_pieces(writer: AudioWriter, samples: np.ndarray, n_pieces: int = 7) -> None:
    for piece in np.array_split(samples, n_pieces):
        writer.write(piece)


@pytest.mark.parametrize(("kind", "subtype"), ALL)
def test_pieces_make_the_whole(tmp_path: Path, kind: str, subtype: str) -> None:
    samples = tone()
    path = tmp_path / f"a.{kind}"
    path.write_text("old")
    with AudioWriter(path, RATE, subtype=subtype) as writer:
        write_pieces(writer, samples)
        assert path.read_text() == "old"
        assert (writer.n_samples, writer.saved) == (len(samples), False)
    assert writer.saved
    assert writer.duration_s == len(samples) / RATE
    check_sound(path.read_bytes(), kind, subtype, samples)
    assert os.listdir(tmp_path) == [path.name]
    # An open file that goes back gets the same, where it stands.
    memory = io.BytesIO()
    memory.write(b"before")
    with AudioWriter(memory, RATE, subtype=subtype, format=kind) as writer:
        write_pieces(writer, samples)
    memory.write(b"after")
    content = memory.getvalue()
    assert (content[:6], content[-5:]) == (b"before", b"after")
    assert content[6:-5] == path.read_bytes()
    check_sound(content[6:-5], kind, subtype, samples)


class OneWay(io.RawIOBase):
    """A file that only goes forward, as a socket does."""

    def __init__(self) -> None:
        self.content = b""

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        taken = bytes(content)[:1000]
        self.content += taken
        return len(taken)


@pytest.mark.parametrize(("kind", "subtype"), ALL)
def test_pieces_that_only_go_forward(kind: str, subtype: str) -> None:
    samples, file = tone(), OneWay()
    with AudioWriter(file, RATE, subtype=subtype, format=kind) as writer:
        write_pieces(writer, samples)
    assert not file.closed
    save_audio(whole := io.BytesIO(), samples, RATE, subtype=subtype, format=kind)
    if kind == "mp3":  # but for the first frame, which tells the length
        first = len(whole.getvalue()) - len(file.content)
        assert 100 < first < 500
        assert file.content == whole.getvalue()[first:]
        assert file.content[:2] == b"\xff\xf3"
        assert b"Info" in whole.getvalue()[:first]
        assert b"Info" not in file.content
    elif kind == "flac":  # but for the length, the sizes of frames and the checksum of all
        assert file.content[:4] == b"fLaC"
        assert file.content[21] & 15 == 0
        assert file.content[22:42] == bytes(20)
        assert file.content[42:] == whole.getvalue()[42:]
    elif kind == "wav":
        check_sound(file.content, kind, subtype, samples)
        assert file.content[4:8] == b"\xff" * 4
        data = file.content.index(b"data")
        assert file.content[data + 4 : data + 8] == b"\xff" * 4
        assert file.content[data + 8 :] == whole.getvalue()[data + 8 :]
    elif subtype == "VORBIS":  # which looks ahead as far as a piece goes
        check_sound(file.content, kind, subtype, samples)
    else:
        assert file.content == whole.getvalue()


def test_each_piece_is_there_at_once() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("wb") as file, AudioWriter(file, RATE, format="pcm") as writer:
        for n in (1, 700, 3):
            writer.write(tone(n))
            assert len(theirs.recv(10_000)) == 2 * n


@pytest.mark.skipif(os.name != "posix", reason="O_APPEND")
def test_a_file_that_is_appended_to(tmp_path: Path) -> None:
    """What goes back there would write at the end."""
    path = tmp_path / "a.wav"
    for mode, how in (("ab", "python"), ("wb", "shell")):
        path.write_bytes(b"old!")
        flags = os.O_WRONLY | os.O_APPEND
        opened: Any = path if how == "python" else os.open(path, flags)
        with open(opened, mode) as file, AudioWriter(file, RATE, format="wav") as writer:
            write_pieces(writer, tone())
        content = path.read_bytes()
        assert content[:4] == b"old!"
        assert len(content) == 4 + 44 + 2 * 10_001
        check_sound(content[4:], "wav", "PCM_16", tone())


def test_wav_says_its_length(tmp_path: Path) -> None:
    with AudioWriter(tmp_path / "a.wav", RATE, subtype="PCM_24") as writer:
        write_pieces(writer, tone(1001))
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnframes(), file.getsampwidth(), file.getframerate()) == (1001, 3, RATE)
    content = (tmp_path / "a.wav").read_bytes()
    assert len(content) % 2 == 0  # a chunk of odd length has a byte more
    assert struct.unpack("<I", content[4:8])[0] == len(content) - 8


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "opus", "pcm"])
def test_what_was_written_is_kept(tmp_path: Path, error: type[BaseException], kind: str) -> None:
    path = tmp_path / f"a.{kind}"

    def write(n_pieces: int) -> None:
        with AudioWriter(path, RATE) as writer:
            for _ in range(n_pieces):
                writer.write(tone(1000))
            raise error

    path.write_text("old")
    with pytest.raises(error):
        write(0)
    assert path.read_text() == "old"
    with pytest.raises(error):
        write(3)
    check_sound(path.read_bytes(), kind, SUBTYPES[kind][0], np.tile(tone(1000), 3))
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_an_interrupted_write_is_made_again(tmp_path: Path, kind: str) -> None:
    """Neither a hole nor a piece twice, wherever the interruption came."""
    path = tmp_path / f"a.{kind}"
    writer = AudioWriter(path, RATE)
    file = writer._output.file
    write, calls = file.write, []

    def interrupted(content: bytes) -> int:
        calls.append(content)
        if len(calls) == 2:
            write(content[:7])
            raise KeyboardInterrupt
        return write(content)

    file.write = interrupted  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt), writer:
        write_pieces(writer, np.tile(tone(9000), 2), 2)
    heard = decoded(path.read_bytes(), kind, "PCM_16")
    np.testing.assert_allclose(heard, np.tile(tone(9000), 2), rtol=0, atol=2**-15)


def test_a_failed_write_gives_the_file_up(tmp_path: Path) -> None:
    class Broken(OneWay):
        def write(self, content: Any) -> int:
            raise BrokenPipeError("nobody reads")

    with (
        pytest.raises(BrokenPipeError, match="nobody"),
        AudioWriter(Broken(), RATE, format="wav") as writer,
    ):
        writer.write(tone())
    assert not writer.saved


def test_discard_and_close(tmp_path: Path) -> None:
    writer = AudioWriter(tmp_path / "a.wav", RATE)
    writer.write(tone())
    writer.discard()
    writer.close()
    assert not writer.saved
    assert os.listdir(tmp_path) == []
    with pytest.raises(InputError, match="open AudioWriter"):
        writer.write(tone())
    with pytest.raises(InputError, match=r"samples must have shape \[T\], got \[1, 4\]"):
        AudioWriter(io.BytesIO(), RATE, format="wav").write(np.zeros((1, 4)))


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_at_any_time(tmp_path: Path) -> None:
    """A process that writes without end is interrupted: a whole file, and nothing beside it."""
    code = (
        "import sys, numpy as np; from bark_fast import AudioWriter\n"
        "with AudioWriter(sys.argv[1], 24000) as writer:\n"
        "    while True:\n"
        "        writer.write(np.full(5000, 0.25, np.float32))\n"
        "        print('.', end='', flush=True)\n"
    )
    for kind in ("flac", "mp3"):
        path = tmp_path / f"a.{kind}"
        with subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as process:
            assert process.stdout is not None
            assert process.stdout.read(3) == b"..."
            time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        heard = decoded(path.read_bytes(), kind, SUBTYPES[kind][0])
        assert len(heard) % 5000 == 0
        assert len(heard) >= 15_000
    assert sorted(os.listdir(tmp_path)) == ["a.flac", "a.mp3"]
