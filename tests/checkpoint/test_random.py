"""Checkpoints of random weights: reproducible, and good for transformers too."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from bark_fast import Bark, CheckpointError
from bark_fast.checkpoint.random import (
    PRESET_NAMES,
    SIZES,
    create_checkpoint,
    settings_for,
    stored_shapes,
)
from bark_fast.checkpoint.reading import parse_config, read_config
from bark_fast.checkpoint.source import Source
from bark_fast.checkpoint.stored import TensorsInFiles
from bark_fast.checkpoint.weights import load_weights


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_checkpoint(tmp_path_factory.mktemp("random") / "tiny")


def test_same_seed_same_bytes(tiny: Path, tmp_path: Path) -> None:
    again = digests(create_checkpoint(tmp_path / "tiny", seed=0))
    assert again == digests(tiny)
    other = digests(create_checkpoint(tmp_path / "other" / "tiny", seed=1))
    assert other.keys() == again.keys()
    changed = {file for file in again if again[file] != other[file]}
    assert changed == {"model.safetensors", *(f for f in again if f.endswith(".npy"))}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype(tiny: Path, tmp_path: Path, dtype: str) -> None:
    low = load_file(create_checkpoint(tmp_path / "tiny", dtype=dtype) / "model.safetensors")
    full = load_file(tiny / "model.safetensors")
    assert low.keys() == full.keys()
    for name, tensor in low.items():
        if full[name].is_floating_point():
            assert tensor.dtype == getattr(torch, dtype)
            torch.testing.assert_close(tensor.float(), full[name], rtol=0.02, atol=1e-3)


@pytest.mark.parametrize(
    ("size", "n_parameters"), [("tiny", 1.4e6), ("small", 411e6), ("large", 1.06e9)]
)
def test_sizes(size: str, n_parameters: float) -> None:
    """The config of every size is consistent; its tensors are as many as suno's."""
    config, generation = settings_for(size)
    read = parse_config(config, generation)
    assert read.sample_rate_hz == 24_000
    # Masks and the codec's encoder are not what makes a size.
    total = sum(
        torch.Size(shape).numel()
        for name, shape in stored_shapes(config).items()
        if not name.startswith("codec_model") and not name.endswith("attn.bias")
    )
    assert total == pytest.approx(n_parameters, rel=0.1)
    assert size in SIZES


def test_ids_of_the_large_sizes_are_sunos() -> None:
    small, large = (parse_config(*settings_for(size)) for size in ("small", "large"))
    assert small.semantic_rules == large.semantic_rules
    assert small.coarse_rules == large.coarse_rules
    rules = small.semantic_rules
    assert (rules.text_encoding_offset, rules.text_pad_token) == (10_048, 129_595)
    assert (rules.semantic_infer_token, rules.eos_token_id) == (129_599, 10_000)
    assert (small.coarse_rules.coarse_infer_token, small.coarse.input_vocab_size) == (
        12_050,
        12_096,
    )


def test_transformers_loads_it(tiny: Path) -> None:
    model, info = transformers.BarkModel.from_pretrained(tiny, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    # Tied heads are stored once.
    assert all(key.startswith("fine_acoustics.lm_heads.") for key in info["missing_keys"])
    source = Source.open(tiny)
    ours = load_weights(
        TensorsInFiles(source), read_config(source), dtype=torch.float32, device=torch.device("cpu")
    )
    theirs = model.state_dict()
    same = [name for name in ours if name in theirs]
    assert len(same) > 50
    for name in same:
        assert torch.equal(ours[name], theirs[name]), name
    for k, head in enumerate(model.fine_acoustics.lm_heads):
        embedding = model.fine_acoustics.input_embeds_layers[k + 1]
        assert torch.equal(head.weight, embedding.weight)


def test_transformers_processor_reads_it(tiny: Path) -> None:
    processor = transformers.AutoProcessor.from_pretrained(tiny)
    assert isinstance(processor, transformers.BarkProcessor)
    inputs = processor("Hi é!", voice_preset=PRESET_NAMES[0])
    bark = Bark.from_pretrained(tiny, device="cpu")
    ids = inputs["input_ids"][0][inputs["attention_mask"][0] > 0].tolist()
    assert ids == bark.requests.tokenizer.encode("Hi é!")
    (unknown,) = bark.requests.tokenizer.ids("今")
    assert unknown not in ids
    voice = bark.load_voice(PRESET_NAMES[0])
    for key, array in voice.arrays().items():
        assert (inputs["history_prompt"][key] == array).all()


def test_every_character_is_known(tiny: Path) -> None:
    bark = Bark.from_pretrained(tiny, device="cpu")
    text = "The quick brown fox jumps over the lazy dog 0123456789 .,;:!?'\"()[]-+*/ äöüßéñ"
    (unknown,) = bark.requests.tokenizer.ids("今")
    ids = bark.requests.tokenizer.encode(text)
    assert unknown not in ids
    assert len(ids) == len(text.replace(" ", ""))


def test_messages_name_the_folder(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
        read_config(Source.open(tmp_path))


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_no_half_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existed: bool, error: type[BaseException]
) -> None:
    folder = tmp_path / "new"
    if existed:
        folder.mkdir()

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("bark_fast.checkpoint.random._write_presets", fail)
    with pytest.raises(error):
        create_checkpoint(folder)
    assert folder.exists() == existed
    assert not list(tmp_path.glob("new/*"))


@pytest.mark.parametrize("name", ["n" * 255, "你" * 85, "\udcff"], ids=ascii)
def test_names_of_folders(tmp_path: Path, name: str) -> None:
    folder = create_checkpoint(tmp_path / name)
    assert (folder / "model.safetensors").exists()
