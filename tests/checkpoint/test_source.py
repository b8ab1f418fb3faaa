"""Checkpoints from the hub: hf_hub_download is replaced by one that serves a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from bark_fast import Bark, CheckpointError, GenerationParams, InputError
from bark_fast.checkpoint.random import PRESET_NAMES, create_checkpoint
from bark_fast.checkpoint.source import Source
from bark_fast.voices import open_voices


class Hub:
    """Serves the files of `folder` as a hub repository, copying each that is asked for to `cache`
    as huggingface_hub does. With `error` it fails instead."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self.cache = cache
        self.asked: list[tuple[Any, ...]] = []
        self.error: BaseException | None = None

    def download(
        self,
        repo_id: str,
        filename: str,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: Path | None = None,
    ) -> str:
        self.asked.append((repo_id, filename, revision, local_files_only))
        if self.error is not None:
            raise self.error
        there, here = self.folder / filename, self.cache / filename
        if not here.is_file():
            if local_files_only:
                raise LocalEntryNotFoundError(f"{filename} is not in the cache")
            if not there.is_file():
                raise _http(EntryNotFoundError, f"404: {filename}")
            here.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(there, here)
        return str(here)


def _http(kind: type[Exception], message: str) -> Exception:
    """One of the hub's errors; whether they need a response depends on the version."""
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    return error


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_checkpoint(tmp_path_factory.mktemp("hub") / "tiny")


@pytest.fixture
def hub(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tiny, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    monkeypatch.chdir(tmp_path)  # where no folder has the repository's name
    return hub


def test_speaks(hub: Hub, tiny: Path) -> None:
    bark = Bark.from_pretrained("someone/bark-tiny", device="cpu")
    params = GenerationParams(temperature=0, max_semantic_tokens=5, seed=0)
    voice = PRESET_NAMES[1]
    speech = bark.generate("Hello", voice=voice, params=params)
    expected = Bark.from_pretrained(tiny, device="cpu").generate(
        "Hello", voice=voice, params=params
    )
    assert (speech.fine_tokens == expected.fine_tokens).all()
    assert {ask[0] for ask in hub.asked} == {"someone/bark-tiny"}
    assert not any(local for *_, local in hub.asked)
    # The other preset was not needed.
    assert not any(PRESET_NAMES[0] in file for _, file, *_ in hub.asked)


def test_revision_and_offline_reach_the_hub(hub: Hub) -> None:
    Bark.from_pretrained("someone/bark-tiny", revision="abc", device="cpu")
    assert {ask[2] for ask in hub.asked} == {"abc"}
    hub.asked.clear()
    Bark.from_pretrained("someone/bark-tiny", device="cpu", local_files_only=True)
    assert all(local for *_, local in hub.asked)


def test_offline_without_a_download(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match=r"someone/bark-tiny: config\.json is missing"):
        Bark.from_pretrained("someone/bark-tiny", device="cpu", local_files_only=True)


def test_missing_file(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match=r"someone/bark-tiny: nothing\.json is missing"):
        Source.open("someone/bark-tiny").require("nothing.json")


def test_presets_without_weights(hub: Hub) -> None:
    assert open_voices("someone/bark-tiny").names == list(PRESET_NAMES)
    assert not (hub.cache / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalEntryNotFoundError("no network"), "cannot reach the hub, and config.json was not"),
        (
            _http(RepositoryNotFoundError, "404"),
            "no folder and no hub repository has that name",
        ),
        (_http(GatedRepoError, "403: ask for access"), "403: ask for access"),
        (_http(HfHubHTTPError, "500"), "config.json could not be downloaded: 500"),
        (OSError("disk full"), "config.json could not be downloaded: disk full"),
        (ValueError("bad name"), "config.json could not be downloaded: bad name"),
        # httpx' errors, which newer versions of the hub library let through, are none of these.
        (RuntimeError("read timed out"), "config.json could not be downloaded: read timed out"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Exception) else "",
)
def test_failures(hub: Hub, error: Exception, message: str) -> None:
    hub.error = error
    with pytest.raises(CheckpointError) as caught:
        Bark.from_pretrained("someone/bark-tiny", device="cpu")
    assert str(caught.value).startswith("someone/bark-tiny: ")
    assert message in str(caught.value)


def test_interruption_is_not_swallowed(hub: Hub) -> None:
    hub.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        Bark.from_pretrained("someone/bark-tiny", device="cpu")


@pytest.mark.parametrize("model", ["bark", "a/b/c", "/a/b", "./a", "../a", "~/a", "a/", "/b"])
def test_what_is_no_hub_id(hub: Hub, model: str) -> None:
    with pytest.raises(InputError, match="model must be a folder that exists or a hub id"):
        Source.open(model)
    assert not hub.asked


def test_a_folder_comes_before_the_hub(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "someone" / "bark-tiny").mkdir(parents=True)
    source = Source.open("someone/bark-tiny")
    assert source.folder == Path("someone/bark-tiny").absolute()
    assert source.find("config.json") is None
    assert not hub.asked


@pytest.mark.parametrize("file", ["/etc/passwd", "../a", "a/../../b", "a\\b", ".."])
@pytest.mark.parametrize("where", ["someone/bark-tiny", "."])
def test_no_file_outside(hub: Hub, file: str, where: str) -> None:
    with pytest.raises(CheckpointError, match="a file name must stay in the folder"):
        Source.open(where).find(file)
    assert not hub.asked


def test_home(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    opened: Callable[[str], Source] = Source.open
    (tmp_path / "bark").mkdir()
    (tmp_path / "bark" / "config.json").write_text("{}")
    assert opened("~/bark").require("config.json") == tmp_path / "bark" / "config.json"
