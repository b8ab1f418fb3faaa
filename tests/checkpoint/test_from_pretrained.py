"""cache_dir, token, subfolder and variant of from_pretrained, with files as transformers and the
hub library write them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import transformers

from bark_fast import Bark, CheckpointError, GenerationParams, InputError
from bark_fast.aio import AsyncBark
from bark_fast.checkpoint.opening import open_checkpoint
from bark_fast.checkpoint.random import PRESET_NAMES, create_checkpoint
from bark_fast.checkpoint.suno import SunoFiles
from bark_fast.cli import main
from bark_fast.voices import open_voices

QUICK = GenerationParams(temperature=0, max_semantic_tokens=4, seed=0)
REVISION = "0123456789abcdef0123456789abcdef01234567"
VOICE = PRESET_NAMES[0]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_checkpoint(tmp_path_factory.mktemp("from_pretrained") / "tiny")


@pytest.fixture(scope="module")
def said(tiny: Path) -> list[int]:
    return say(tiny)


def say(model: Any, **options: Any) -> list[int]:
    bark = Bark.from_pretrained(model, device="cpu", **options)
    tokens: list[int] = bark.generate("Hi", voice=VOICE, params=QUICK).fine_tokens.tolist()
    return tokens


def hub_cache(folder: Path, cache: Path, *, name: str = "someone/bark", below: str = "") -> Path:
    """Lay `folder` out as the hub library does: blobs, and a snapshot of links to them."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / REVISION
    for file in [path for path in folder.rglob("*") if path.is_file()]:
        place = snapshot / below / file.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(file)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    return cache


def variant_of(tiny: Path, folder: Path, **options: Any) -> Path:
    """Save the weights with transformers, as a variant; what is beside them stays."""
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    rules = (tiny / "generation_config.json").read_text()
    model = transformers.BarkModel.from_pretrained(tiny)
    for name in ("semantic_config", "coarse_acoustics_config", "fine_acoustics_config"):
        value = getattr(model.generation_config, name)
        if not isinstance(value, dict):  # transformers fails to write them otherwise
            setattr(model.generation_config, name, value.to_dict())
    model.save_pretrained(folder, **options)
    (folder / "generation_config.json").write_text(rules)
    return folder


# Variants


@pytest.mark.parametrize(
    ("options", "files"),
    [
        ({"variant": "fp16"}, {"model.fp16.safetensors"}),
        (
            {"variant": "a.b", "max_shard_size": "5MB"},
            {"model.safetensors.index.a.b.json", "model.a.b-00001-of-"},
        ),
    ],
)
def test_variants(
    tiny: Path, said: list[int], tmp_path: Path, options: dict[str, Any], files: set[str]
) -> None:
    folder = variant_of(tiny, tmp_path / "checkpoint", **options)
    names = [path.name for path in folder.iterdir()]
    for start in files:
        assert any(name.startswith(start) for name in names), names
    assert say(folder, variant=options["variant"]) == said
    with pytest.raises(CheckpointError, match=r"no weights found \(model.safetensors, pytorch_mod"):
        say(folder)
    with pytest.raises(CheckpointError, match=r"no weights found \(model.bf16.safetensors, pytor"):
        say(folder, variant="bf16")


def test_a_variant_of_torchs_own_files(tiny: Path, said: list[int], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.ema.bin")
    (folder / "model.safetensors").write_bytes(b"not these")
    assert say(folder, variant="ema") == said


# Subfolders


@pytest.mark.parametrize("below", ["sub", "a/b", "sub/"])
def test_subfolders(tiny: Path, said: list[int], tmp_path: Path, below: str) -> None:
    shutil.copytree(tiny, tmp_path / below)
    assert say(tmp_path, subfolder=below) == said
    assert open_voices(tmp_path, subfolder=below).names == list(PRESET_NAMES)


def test_a_subfolder_of_weights_alone(tiny: Path, said: list[int], tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model").mkdir()
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        (tmp_path / name).rename(tmp_path / "model" / name)
    assert say(tmp_path, subfolder="model") == said


@pytest.mark.parametrize("below", ["/etc", "..", "a/../../b", "a\\b", None, 3])
def test_what_is_no_subfolder(tiny: Path, below: Any) -> None:
    with pytest.raises(InputError, match="subfolder must be a path within the checkpoint, got"):
        Bark.from_pretrained(tiny, subfolder=below)
    with pytest.raises(InputError, match=r"subfolder must be a folder in .*tiny, got 'absent'"):
        Bark.from_pretrained(tiny, subfolder="absent")


@pytest.mark.parametrize(
    ("option", "value"),
    [("cache_dir", 3), ("token", 3), ("variant", "a/b"), ("variant", ""), ("variant", 16)],
)
def test_options_of_the_wrong_kind(tiny: Path, option: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{option} must be .*"):
        Bark.from_pretrained(tiny, **{option: value})


# The hub's cache


@pytest.mark.parametrize("below", ["", "sub"])
def test_a_cache_folder(tiny: Path, said: list[int], tmp_path: Path, below: str) -> None:
    cache = hub_cache(tiny, tmp_path / "cache", below=below)
    options: dict[str, Any] = {"cache_dir": cache, "subfolder": below, "local_files_only": True}
    assert say("someone/bark", **options) == said
    assert say("someone/bark", **options, revision=REVISION, token="secret") == said
    assert open_voices("someone/bark", **options).names == list(PRESET_NAMES)
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        say("someone/bark", cache_dir=tmp_path / "other", local_files_only=True)


def test_a_variant_in_a_subfolder_of_a_cache(tiny: Path, said: list[int], tmp_path: Path) -> None:
    folder = variant_of(tiny, tmp_path / "variant", variant="fp16")
    cache = hub_cache(folder, tmp_path / "cache", below="a/b")
    options: dict[str, Any] = {"subfolder": "a/b", "variant": "fp16", "local_files_only": True}
    assert say("someone/bark", cache_dir=str(cache), **options) == said


def test_asyncbark(tiny: Path, tmp_path: Path) -> None:
    cache = hub_cache(tiny, tmp_path / "cache")
    bark = AsyncBark.from_pretrained(
        "someone/bark", cache_dir=cache, local_files_only=True, device="cpu"
    )
    assert bark.bark.voices == list(PRESET_NAMES)


def test_the_token_reaches_the_hub(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def download(repo_id: str, filename: str, **options: Any) -> str:
        asked.append({"repo_id": repo_id, "filename": filename, **options})
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(CheckpointError):
        open_checkpoint(
            "someone/bark", token="secret", cache_dir=tmp_path, subfolder="below", revision="r"
        )
    assert asked[0]["repo_id"] == "someone/bark"
    assert asked[0]["filename"] == "below/config.json"
    assert {k: asked[0][k] for k in ("token", "cache_dir", "revision")} == {
        "token": "secret",
        "cache_dir": tmp_path,
        "revision": "r",
    }
    asked.clear()
    with pytest.raises(CheckpointError):
        open_checkpoint("someone/bark")
    assert "token" not in asked[0]


def test_sunos_files_have_no_variants(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="variant must be None for suno's own files"):
        open_checkpoint(SunoFiles(tmp_path), variant="fp16")


# The command


def test_command(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = hub_cache(tiny, tmp_path / "cache", below="sub")
    monkeypatch.chdir(tmp_path)
    source = ["--model", "someone/bark", "--cache-dir", str(cache), "--subfolder", "sub"]
    assert main(["voices", *source, "--offline", "--token", "secret"]) == 0
    assert capsys.readouterr().out.splitlines() == list(PRESET_NAMES)
    quick = ["--max-semantic-tokens", "4", "-q"]
    assert main(["say", "Hi", *source, "--offline", *quick]) == 0
    assert Path("speech.wav").exists()
    assert main(["say", "Hi", *source, "--offline", "--variant", "fp16", *quick]) == 2
    assert "model.fp16.safetensors" in capsys.readouterr().err


def test_the_index_is_named_in_errors(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny, folder)
    index = {"weight_map": {"a": "model.fp16-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.fp16.json").write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError, match=r"model\.fp16-00001-of-00001\.safetensors is missing"
    ):
        say(folder, variant="fp16")
