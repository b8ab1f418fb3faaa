"""The names of a server's voices: the checkpoint's, a folder's, and OpenAI's for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bark_fast.errors import InputError
from bark_fast.server import ServerVoices
from bark_fast.server.voices import OPENAI_VOICES
from bark_fast.types import Voice
from bark_fast.voices import VoiceLibrary, open_voices


@pytest.fixture(scope="module")
def library() -> VoiceLibrary:
    return open_voices("demo")


@pytest.fixture
def folder(library: VoiceLibrary, tmp_path: Path) -> Path:
    voice = library.get("v2/en_speaker_0")
    assert voice is not None
    voice.save(tmp_path / "ann.npz")
    voice.save(tmp_path / "alloy.npz")
    (tmp_path / "notes.txt").write_text("no voice")
    return tmp_path


def test_names(library: VoiceLibrary, folder: Path) -> None:
    voices = ServerVoices(library, folder)
    assert voices.names == [*library.names, "alloy", "ann"]
    assert isinstance(voices.get("ann"), Voice)
    assert isinstance(voices.get("alloy"), Voice)  # itself, and no alias
    assert set(voices.aliases) == set(OPENAI_VOICES) - {"alloy"}
    assert voices.get("echo") in voices.names or isinstance(voices.get("echo"), Voice)
    assert voices.get(None) == library.names[0]
    for name in ("", "ann.npz", "./ann", str(folder / "ann.npz"), "notes", "Ann"):
        with pytest.raises(InputError, match=r"^voice must be one that GET /v1/audio/voices lists"):
            voices.get(name)


def test_a_file_that_goes_is_known_until_the_next_reading(
    library: VoiceLibrary, folder: Path
) -> None:
    voices = ServerVoices(library, folder)
    (folder / "ann.npz").unlink()
    assert isinstance(voices.get("ann"), Voice)
    voices.reload()
    with pytest.raises(InputError):
        voices.get("ann")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"<html>"])
def test_a_file_that_is_no_voice(library: VoiceLibrary, folder: Path, content: bytes) -> None:
    voices = ServerVoices(library, folder)
    (folder / "bad.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.npz"):
        voices.reload()
    assert voices.names == [*library.names, "alloy", "ann"]
    with pytest.raises(InputError, match=r"bad\.npz"):
        ServerVoices(library, folder)


def test_a_name_that_no_client_could_be_told(library: VoiceLibrary, folder: Path) -> None:
    os.rename(bytes(folder / "ann.npz"), bytes(folder) + b"/\xff.npz")
    with pytest.raises(InputError, match="the name of each file in --voices must be valid Unicode"):
        ServerVoices(library, folder)
