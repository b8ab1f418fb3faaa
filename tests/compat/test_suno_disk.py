"""What suno's code has left on a disk, what it reads from the environment, and its command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from bark_fast import Bark, BarkFastWarning, InputError
from bark_fast.checkpoint.random import write_tokenizer
from bark_fast.checkpoint.suno import CODEC_FILE, SunoFiles
from bark_fast.compat import suno
from bark_fast.compat.suno import SunoAPI, cli, session, stages
from bark_fast.compat.suno.environment import cache_folder, installed_preset
from helpers.checkpoints import Checkpoint, bark_windows, build_model
from helpers.suno_files import LARGE, SMALL, encodec_tensors, write_suno_files

TOKENIZERS = ("bert-base-multilingual-cased", "google-bert/bert-base-multilingual-cased")


def write_hub_cache(home: Path, repository: str, write: Any) -> Path:
    """Write a repository as huggingface_hub caches it; `write` fills the snapshot's folder."""
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    write(snapshot)
    return snapshot


def write_bert(folder: Path) -> None:
    write_tokenizer(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')


@pytest.fixture(scope="module")
def small_model() -> Any:
    config, _ = bark_windows()
    for name in ("semantic_config", "coarse_acoustics_config", "fine_acoustics_config"):
        config[name]["num_layers"] = 1
    config["codec_config"] = {"model_type": "encodec"}
    return build_model(config, seed=2, std=0.25)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory, narrow: Checkpoint, small_model: Any) -> Path:
    """The caches of a machine on which suno's code has run, all under one folder."""
    root = tmp_path_factory.mktemp("disk")
    # Compiled kernels are in the same cache; to compile them once more takes half a minute.
    compiled = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bark-fast"
    compiled.mkdir(parents=True, exist_ok=True)
    (root / "bark-fast").symlink_to(compiled)
    write_suno_files(root / "suno" / "bark_v0", narrow.model, LARGE)
    write_suno_files(root / "suno" / "bark_v0", small_model, SMALL)
    checkpoints = root / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(encodec_tensors(small_model.codec_model), checkpoints / CODEC_FILE)
    presets = root / "site" / "bark" / "assets" / "prompts" / "v2"
    presets.mkdir(parents=True)
    (root / "site" / "bark" / "__init__.py").write_text("raise ImportError('not to be run')")
    for n, preset in enumerate(("en_speaker_5", "en_speaker_6", "en_speaker_9", "en_speaker_2")):
        np.savez(presets / f"{preset}.npz", **narrow.voice(60, seed=n))
    write_hub_cache(root / "huggingface", TOKENIZERS[0], write_bert)
    return root


@pytest.fixture
def on_disk(disk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Let this process find them, and no network."""
    from huggingface_hub import constants

    for variable in ("TORCH_HOME", "SUNO_USE_SMALL_MODELS", "SUNO_OFFLOAD_CPU", "SUNO_ENABLE_MPS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(disk))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(disk / "huggingface" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.syspath_prepend(str(disk / "site"))
    for module in (session, stages):
        monkeypatch.setattr(module, "most_semantic_tokens", lambda *_: 20)
    return disk


@pytest.fixture
def in_use(on_disk: Path, monkeypatch: pytest.MonkeyPatch) -> SunoAPI:
    """Return the `SunoAPI` of the functions, as at first, but on a CPU."""
    api = SunoAPI(device="cpu")
    monkeypatch.setattr(session, "_current", api)
    return api


def layers(api: SunoAPI) -> tuple[int, int, int]:
    config = api.bark.config
    return config.semantic.num_layers, config.coarse.num_layers, config.fine.num_layers


# Files


def test_all_is_found_without_a_network(in_use: SunoAPI, disk: Path) -> None:
    assert cache_folder() == disk / "suno" / "bark_v0"
    audio = suno.generate_audio("Hello", history_prompt="v2/en_speaker_6", silent=True)
    assert audio.shape == (30 * 320,)
    assert layers(in_use) == (2, 2, 2)
    suno.preload_models(text_use_small=True, fine_use_small=True)
    assert layers(in_use) == (1, 2, 1)


def test_the_codec_is_the_packages(on_disk: Path, small_model: Any) -> None:
    """In torch's folder of the hub: what it decodes is what the module decodes."""
    api = SunoAPI(on_disk / "suno" / "bark_v0", device="cpu")
    codes = np.random.default_rng(0).integers(1024, size=(8, 12))
    codec = small_model.codec_model
    with torch.no_grad():
        expected = codec.decoder(codec.quantizer.decode(torch.from_numpy(codes)[:, None]))[0, 0]
    np.testing.assert_allclose(api.codec_decode(codes), expected.numpy(), atol=1e-5)


def test_torch_home(on_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "checkpoints").symlink_to(on_disk / "torch" / "hub" / "checkpoints")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert SunoAPI(on_disk / "suno" / "bark_v0", device="cpu").bark.voices == []
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="it holds no codec"):
        SunoFiles(on_disk / "suno" / "bark_v0").open()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_either_name_of_the_tokenizer(
    on_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = write_hub_cache(tmp_path, name, write_bert)
    checkpoint = SunoFiles(on_disk / "suno" / "bark_v0").open()
    found = checkpoint.tokenizer.find("tokenizer.json") or checkpoint.tokenizer.find("vocab.txt")
    assert found is not None
    assert found.parent == snapshot


# Voices


def test_presets_of_the_installed_package(in_use: SunoAPI, disk: Path) -> None:
    assert installed_preset("v2/en_speaker_6") is not None
    assert installed_preset("v2/de_speaker_6") is None
    named = suno.generate_coarse(np.arange(9), "v2/en_speaker_6", temp=0, silent=True)
    file = disk / "site" / "bark" / "assets" / "prompts" / "v2" / "en_speaker_6.npz"
    assert np.array_equal(suno.generate_coarse(np.arange(9), str(file), temp=0, silent=True), named)
    assert not np.array_equal(suno.generate_coarse(np.arange(9), temp=0, silent=True), named)


def test_presets_of_the_hub(
    in_use: SunoAPI, narrow: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants
    from test_docs import write_presets

    for name in ("announcer", "v2/de_speaker_3"):
        with pytest.raises(InputError, match=f"history_prompt '{name}' must be in suno's"):
            suno.generate_audio("Hello", name, silent=True)
    in_use.preload_models()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    names = ["announcer", "v2/de_speaker_3"]
    write_hub_cache(tmp_path, "suno/bark", lambda path: write_presets(path, names, narrow))
    for seed, name in enumerate(names):
        got = suno.generate_coarse(np.arange(9), name, temp=0, silent=True)
        voice = narrow.voice(60, seed=seed)
        assert np.array_equal(got, suno.generate_coarse(np.arange(9), voice, temp=0, silent=True))


# The environment


@pytest.mark.parametrize("value", ["1", "True", "0"])
def test_use_small_models(in_use: SunoAPI, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Anything is true, as in suno's code."""
    monkeypatch.setenv("SUNO_USE_SMALL_MODELS", value)
    suno.preload_models()
    assert layers(in_use) == (1, 1, 1)
    monkeypatch.setenv("SUNO_USE_SMALL_MODELS", "")
    suno.preload_models()
    assert layers(in_use) == (2, 2, 2)


def test_variables_without_effect_are_named(
    on_disk: Path, narrow: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUNO_USE_SMALL_MODELS", "1")
    with pytest.warns(BarkFastWarning, match="SUNO_USE_SMALL_MODELS has no effect: .*sizes"):
        assert SunoAPI(narrow.folder, device="cpu").bark is not None
    monkeypatch.delenv("SUNO_USE_SMALL_MODELS")
    monkeypatch.setenv("SUNO_ENABLE_MPS", "1")
    with pytest.warns(BarkFastWarning, match="SUNO_ENABLE_MPS has no effect: .*CUDA"):
        assert SunoAPI(narrow.folder, device="cpu").bark is not None


class FakeBark:
    sample_rate_hz = 24_000


@pytest.mark.parametrize(("device", "expected"), [("cpu", None), ("cuda", True)])
def test_offload(
    on_disk: Path, monkeypatch: pytest.MonkeyPatch, device: str, expected: bool | None
) -> None:
    from bark_fast.compat.suno import models

    loaded: list[dict[str, Any]] = []

    def load(model: Any, **options: Any) -> FakeBark:
        loaded.append(options)
        return FakeBark()

    api, own = SunoAPI(device=device), SunoAPI(device=device, offload=False)
    monkeypatch.setattr(Bark, "from_pretrained", load)
    monkeypatch.setattr(models, "resolve_device", torch.device)
    for each in (api, own):
        each.preload_models()
    monkeypatch.setenv("SUNO_OFFLOAD_CPU", "1")
    for each in (api, own):
        each.preload_models(force_reload=True)
    assert [options.get("offload") for options in loaded] == [None, False, expected, False]


# The command line


def test_the_command_line(in_use: SunoAPI, tmp_path: Path, capsys: Any) -> None:
    cli.cli(["--text", "Hello", "--output_dir", str(tmp_path / "new"), "--silent", "True"])
    path = tmp_path / "new" / "bark_generation.wav"
    out, err = capsys.readouterr()
    assert out == f"Done! Output audio file is saved at: '{path}'\n"
    assert err == ""
    info = soundfile.info(str(path))
    assert (info.samplerate, info.subtype, info.frames) == (24_000, "FLOAT", 30 * 320)
    arguments = "--text Hi --output_filename me.audio --history_prompt v2/en_speaker_6"
    more = "--text_temp 0 --waveform_temp 0 --silent 1 --output_full yes --output_dir"
    cli.cli([*arguments.split(), *more.split(), str(tmp_path)])
    samples, _ = soundfile.read(str(tmp_path / "me.audio"), dtype="float32")
    with np.load(tmp_path / "me.npz") as tokens:
        assert set(tokens) == {"semantic_prompt", "coarse_prompt", "fine_prompt"}
        np.testing.assert_array_equal(suno.codec_decode(tokens["fine_prompt"]), samples)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ("--text Hello --history_prompt nobody", 1, "Oops, an error occurred: history_prompt must"),
        ("--text Hello --text_temp -1", 1, "text_temp must be a finite number >= 0, got -1"),
        ("--output_filename x.wav", 2, "the following arguments are required: --text"),
        ("--text Hello --silent maybe", 2, "must be True or False, got 'maybe'"),
    ],
)
def test_what_goes_wrong_on_the_command_line(
    in_use: SunoAPI, capsys: Any, arguments: str, status: int, message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.cli(arguments.split())
    assert caught.value.code == status
    assert message in capsys.readouterr().err


def test_a_process_of_its_own(disk: Path, tmp_path: Path) -> None:
    """As `python -m bark`, with nothing but the caches and the environment."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "SUNO_", "TORCH_HOME"))}
    environment = kept | {
        "XDG_CACHE_HOME": str(disk),
        "HF_HOME": str(disk / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "SUNO_USE_SMALL_MODELS": "1",
        "PYTHONPATH": str(disk / "site"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-m", "bark_fast.compat.suno", "--text", "Hello"]
    command += ["--output_filename", "said.wav", "--text_temp", "0.5", "--silent", "True"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Output audio file is saved at: 'said.wav'" in done.stdout
    assert soundfile.info(str(tmp_path / "said.wav")).samplerate == 24_000


# suno's notebooks, but for their imports and with shorter texts


def test_the_notebook_of_long_form_generation(in_use: SunoAPI) -> None:
    from bark_fast.compat.suno import SAMPLE_RATE, generate_audio
    from bark_fast.compat.suno.api import semantic_to_waveform
    from bark_fast.compat.suno.generation import generate_text_semantic, preload_models

    preload_models()
    script = "\nHey, have you heard?\nIt speaks.\n".replace("\n", " ").strip()
    sentences = in_use.bark.split(script)  # nltk.sent_tokenize there
    assert sentences == ["Hey, have you heard?", "It speaks."]

    speaker = "v2/en_speaker_6"
    silence = np.zeros(int(0.25 * SAMPLE_RATE))
    pieces = []
    for sentence in sentences:
        audio_array = generate_audio(sentence, history_prompt=speaker)
        pieces += [audio_array, silence.copy()]
    assert np.concatenate(pieces).shape == (2 * (30 * 320 + 6000),)

    pieces = []
    for sentence in sentences:
        semantic_tokens = generate_text_semantic(
            sentence,
            history_prompt=speaker,
            temp=0.6,
            min_eos_p=0.05,
        )
        audio_array = semantic_to_waveform(semantic_tokens, history_prompt=speaker)
        pieces += [audio_array, silence.copy()]
    assert np.isfinite(np.concatenate(pieces)).all()

    speaker_lookup = {"Samantha": "v2/en_speaker_9", "John": "v2/en_speaker_2"}
    pieces = []
    for line in ("Samantha: Hey!", "John: No."):
        speaker, text = line.split(": ")
        audio_array = generate_audio(text, history_prompt=speaker_lookup[speaker])
        pieces += [audio_array, silence.copy()]
    assert np.isfinite(np.concatenate(pieces)).all()


def test_the_notebook_of_memory_profiling(in_use: SunoAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    from bark_fast.compat.suno import generate_audio
    from bark_fast.compat.suno.generation import preload_models

    if not torch.cuda.is_available():  # the notebook needs a GPU
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)
    monkeypatch.setenv("SUNO_USE_SMALL_MODELS", "1")
    monkeypatch.setenv("SUNO_OFFLOAD_CPU", "1")
    torch.cuda.reset_peak_memory_stats()
    preload_models()
    assert layers(in_use) == (1, 1, 1)
    audio_array = generate_audio("madam I'm adam", history_prompt="v2/en_speaker_5")
    assert audio_array.size

    monkeypatch.delenv("SUNO_USE_SMALL_MODELS")
    for use_small_models in (True, False):
        torch.cuda.reset_peak_memory_stats()
        preload_models(
            text_use_small=use_small_models,
            coarse_use_small=use_small_models,
            fine_use_small=use_small_models,
            force_reload=True,
        )
        audio_array = generate_audio(
            "madam I'm adam", history_prompt="v2/en_speaker_5", silent=True
        )
        assert torch.cuda.max_memory_allocated() >= 0
        assert audio_array.size
        assert layers(in_use) == ((1, 1, 1) if use_small_models else (2, 2, 2))
