"""Every layout that a checkpoint comes in loads to the same tensors, in little memory."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bark_fast import Bark, CheckpointError, demo
from bark_fast.checkpoint.random import save_model, settings_for
from bark_fast.checkpoint.reading import read_config
from bark_fast.checkpoint.source import Source
from bark_fast.checkpoint.stored import TensorsInFiles
from bark_fast.checkpoint.weights import load_weights
from bark_fast.models.block import is_of_a_product
from helpers.checkpoints import Checkpoint


def load(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    source = Source.open(folder)
    return load_weights(
        TensorsInFiles(source), read_config(source), dtype=dtype, device=torch.device("cpu")
    )


def assert_equal(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


@pytest.fixture(scope="module")
def stored(small: Checkpoint) -> dict[str, Tensor]:
    return load_file(small.folder / "model.safetensors")


@pytest.fixture(scope="module")
def expected(small: Checkpoint) -> dict[str, Tensor]:
    return load(small.folder)


@pytest.fixture
def folder(small: Checkpoint, tmp_path: Path) -> Path:
    """The small checkpoint without its weights."""
    return shutil.copytree(
        small.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("model.safetensors")
    )


def test_the_tensors_are_transformers(small: Checkpoint, expected: dict[str, Tensor]) -> None:
    """They are the tensors of the four networks, and no others."""
    theirs = small.model.state_dict()
    same = set(expected) & set(theirs)
    for name in same:
        assert torch.equal(expected[name], theirs[name]), name
    folded = set(expected) - same
    assert folded
    for name in folded:
        assert re.fullmatch(r"codec_model\.decoder\..*conv\.weight", name)
        module = small.model.get_submodule(name.removesuffix(".weight"))
        torch.testing.assert_close(expected[name], module.weight, rtol=1e-6, atol=1e-7)
    unused = set(theirs) - same
    assert not any(".lm_heads." in name for name in expected)
    for name in unused:
        assert re.search(
            r"attn\.bias$|encoder\.|lm_heads\.|original[01]$|weight_[gv]$"
            r"|inited$|cluster_size$|embed_avg$|quantizer\.layers\.\d+\.codebook",
            name,
        ), name


def write(folder: Path, layout: str, tensors: dict[str, Tensor]) -> None:
    """The weights in one of the layouts that transformers has written over the years."""
    shards = 3 if "shards" in layout else 1
    kind, ending = ("model", "safetensors") if "safetensors" in layout else ("pytorch_model", "bin")
    names = [
        f"{kind}-{i:05}-of-{shards:05}.{ending}" if shards > 1 else f"{kind}.{ending}"
        for i in range(1, shards + 1)
    ]
    weight_map = {}
    for i, file in enumerate(names):
        part = {name: t for j, (name, t) in enumerate(sorted(tensors.items())) if j % shards == i}
        weight_map |= dict.fromkeys(part, file)
        if ending == "safetensors":
            save_file(part, folder / file)
        else:
            torch.save(part, folder / file, _use_new_zipfile_serialization="old" not in layout)
    if shards > 1:
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / f"{kind}.{ending}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "layout",
    ["safetensors", "safetensors shards", "bin", "bin shards", "bin old", "bin old shards"],
)
def test_layouts(
    folder: Path, layout: str, stored: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    write(folder, layout, stored)
    assert_equal(load(folder), expected)


@pytest.mark.parametrize(
    ("layout", "n_loads"), [("safetensors", 0), ("bin", 10), ("bin old", 2), ("bin old shards", 6)]
)
def test_files_are_mapped_anew(
    folder: Path,
    layout: str,
    n_loads: int,
    monkeypatch: pytest.MonkeyPatch,
    stored: dict[str, Tensor],
    expected: dict[str, Tensor],
) -> None:
    """Many times for a file as large as trained ones; but what cannot be mapped is read twice at
    most, for the names and for the tensors."""
    write(folder, layout, stored)
    loads = 0

    def count(*arguments: Any, **options: Any) -> Any:
        nonlocal loads
        loads += 1
        return torch_load(*arguments, **options)

    torch_load = torch.load
    monkeypatch.setattr(torch, "load", count)
    monkeypatch.setattr("bark_fast.checkpoint.stored._REMAP_BYTES", 20_000)
    assert_equal(load(folder), expected)
    assert loads >= n_loads if layout == "bin" else loads == n_loads


def test_shards_as_transformers_writes_them(
    small: Checkpoint, folder: Path, expected: dict[str, Tensor]
) -> None:
    generation = (folder / "generation_config.json").read_text()
    small.model.save_pretrained(folder, max_shard_size="200KB")
    (folder / "generation_config.json").write_text(generation)
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert not (folder / "model.safetensors").exists()
    assert_equal(load(folder), expected)


def test_safetensors_come_before_bin(
    folder: Path, stored: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    write(folder, "safetensors shards", stored)
    (folder / "pytorch_model.bin").write_bytes(b"garbage")
    assert_equal(load(folder), expected)


def test_views_of_one_storage(
    folder: Path, stored: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    """A .bin may hold transposed and overlapping tensors."""
    name = "semantic.layers.0.mlp.in_proj.weight"
    stored = {**stored, name: stored[name].T.contiguous().T}
    assert not stored[name].is_contiguous()
    write(folder, "bin", stored)
    tensors = load(folder)
    assert tensors[name].is_contiguous()
    assert_equal(tensors, expected)


@pytest.mark.parametrize("form", ["new", "old", "folded", "mixed"])
def test_weight_norm(
    folder: Path, form: str, stored: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    """transformers' own form depends on its version and torch's; write each."""
    tensors = {}
    changed = 0
    for name, tensor in stored.items():
        match = re.fullmatch(r"(.*)\.(?:parametrizations\.weight\.original|weight_)([01gv])", name)
        if match is None:
            tensors[name] = tensor
            continue
        stem, part = match[1], {"0": 0, "g": 0, "1": 1, "v": 1}[match[2]]
        written = ("new", "old")[changed // 4 % 2] if form == "mixed" else form
        if written == "folded" and not stem.startswith("codec_model.encoder"):
            tensors[f"{stem}.weight"] = expected[f"{stem}.weight"]
        elif written == "old":
            tensors[f"{stem}.weight_{'gv'[part]}"] = tensor
        else:
            tensors[f"{stem}.parametrizations.weight.original{part}"] = tensor
        changed += 1
    assert changed > 10
    write(folder, "safetensors", tensors)
    assert_equal(load(folder), expected)


def test_tied_heads_stored(
    folder: Path, stored: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    """Written by older versions, which store both ends of a tie."""
    heads = {
        f"fine_acoustics.lm_heads.{k}.weight": stored[
            f"fine_acoustics.input_embeds_layers.{k + 1}.weight"
        ]
        for k in range(4)
    }
    assert not heads.keys() & stored.keys()
    write(folder, "bin", {**stored, **heads})
    assert_equal(load(folder), expected)


def test_untied_heads(folder: Path, stored: dict[str, Tensor]) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["fine_acoustics_config"]["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    heads = {f"fine_acoustics.lm_heads.{k}.weight": torch.randn(72, 48) for k in range(4)}
    write(folder, "safetensors", {**stored, **heads})
    tensors = load(folder)
    for name, head in heads.items():
        assert torch.equal(tensors[name], head)
    write(folder, "safetensors", stored)
    with pytest.raises(CheckpointError, match=r"lm_heads\.0\.weight \[72, 48\] is missing"):
        load(folder)


@pytest.mark.parametrize("stored_as", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_precisions(
    folder: Path,
    layout: str,
    stored_as: torch.dtype,
    dtype: torch.dtype,
    stored: dict[str, Tensor],
    expected: dict[str, Tensor],
) -> None:
    low = {n: t.to(stored_as) if t.is_floating_point() else t for n, t in stored.items()}
    write(folder, layout, low)
    tensors = load(folder, dtype)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == (torch.float32 if name.startswith("codec_model.") else dtype)
        if name in low:
            assert torch.equal(tensor, low[name].to(tensor.dtype)), name
        else:
            torch.testing.assert_close(tensor, expected[name], rtol=0.03, atol=0.01)


# Memory: what a process had at most, over what it had before the first weight was read. 64 MiB at a
# time are mapped beside the tensors, so a checkpoint must be several times as large.

_MEMORY = """
import re, sys, torch, transformers
from pathlib import Path
from bark_fast.checkpoint.reading import read_config
from bark_fast.checkpoint.source import Source
from bark_fast.checkpoint.stored import TensorsInFiles
from bark_fast.checkpoint.codec_module import build_codec_decoder
from bark_fast.checkpoint.weights import load_weights

def peak_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

source = Source.open(sys.argv[1])
config = read_config(source)
with torch.device("meta"):
    build_codec_decoder(config.codec)
import safetensors.torch  # a part of the baseline too
before = peak_kib()
tensors = load_weights(
    TensorsInFiles(source), config, dtype=getattr(torch, sys.argv[2]), device=torch.device("cpu")
)
after = peak_kib()
kept = sum(t.numel() * t.element_size() for t in tensors.values())
print((after - before) * 1024, kept)
"""


@pytest.fixture(scope="module")
def bulky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 400 MB of weights, nearly all of them in the tables of the semantic model."""
    folder = tmp_path_factory.mktemp("bulky")
    config, generation = settings_for("tiny")
    config["semantic_config"] |= {"num_layers": 6, "hidden_size": 1152, "num_heads": 18}
    save_model(folder, config, generation, seed=0)
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(demo.FOLDER / name, folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc/self/status")
@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_peak_memory(bulky: Path, tmp_path: Path, layout: str) -> None:
    folder = bulky
    if layout == "bin":
        folder = shutil.copytree(
            bulky, tmp_path / "bin", ignore=shutil.ignore_patterns("model.safetensors")
        )
        write(folder, "bin", load_file(bulky / "model.safetensors"))
    (file,) = [p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin")]
    size = file.stat().st_size
    assert size > 350e6
    for dtype, kept_of_size in (("float32", 1.0), ("bfloat16", 0.5)):
        done = subprocess.run(
            [sys.executable, "-c", _MEMORY, str(folder), dtype],
            capture_output=True,
            text=True,
            check=True,
        )
        peak, kept = map(int, done.stdout.split())
        assert kept == pytest.approx(kept_of_size * size, rel=0.1)
        assert peak <= 1.2 * size, f"{dtype}: {peak / size:.2f} of the file's size"
        if dtype == "float32":
            assert peak >= 0.9 * kept, "the measurement misses the tensors themselves"


_MODEL_MEMORY = """
import re, sys
from pathlib import Path
from bark_fast import Bark, demo

def peak_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

Bark.from_pretrained(demo.FOLDER, device="cpu", impl=sys.argv[2])
before = peak_kib()
bark = Bark.from_pretrained(sys.argv[1], device="cpu", impl=sys.argv[2])
print((peak_kib() - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc/self/status")
@pytest.mark.parametrize("impl", ["auto", "cpu"])
def test_peak_memory_of_a_model(bulky: Path, impl: str) -> None:
    """Each weight is packed as soon as it is read: there are never two of all."""
    size = (bulky / "model.safetensors").stat().st_size
    command = [sys.executable, "-c", _MODEL_MEMORY, str(bulky), impl]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.8 * size <= int(done.stdout) <= 1.25 * size, int(done.stdout) / size


@pytest.mark.parametrize("packing", ["packs", "keeps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_tensors_are_packed_when_they_are_read(
    folder: Path, stored: dict[str, Tensor], layout: str, dtype: torch.dtype, packing: str
) -> None:
    """Each is given with its own numbers, whatever memory they lie in, and stays what it is."""
    write(folder, layout, stored)
    expected = load(folder, dtype)

    def pack(tensor: Tensor) -> Any:
        return ["packed", tensor.clone()] if packing == "packs" else tensor

    source = Source.open(folder)
    kept = load_weights(
        TensorsInFiles(source), read_config(source), dtype=dtype, device=torch.device("cpu"),
        is_packed=is_of_a_product, pack=pack,
    )  # fmt: skip
    packed = [name for name in kept if is_of_a_product(name)]
    assert len(packed) == 4 * 3 * 2, "the products of the blocks"
    if packing == "packs":
        assert all(kept[name][0] == "packed" for name in packed)
        kept |= {name: kept[name][1] for name in packed}
    assert_equal(kept, expected)


def _unused(names: Any) -> list[str]:
    return [name for name in names if "encoder" in name]


def test_the_encoder_may_be_left_out(
    folder: Path, stored: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    assert _unused(stored)
    slim = {name: t for name, t in stored.items() if name not in _unused(stored)}
    write(folder, "safetensors", slim)
    assert_equal(load(folder), expected)


def test_loading_draws_nothing_from_the_callers_generator(narrow: Checkpoint) -> None:
    """A seed that was set before a lazy load, and one that was set after it, give the same."""
    torch.manual_seed(11)
    Bark.from_pretrained(narrow.folder, device="cpu")
    after = torch.rand(3)
    torch.manual_seed(11)
    assert torch.equal(after, torch.rand(3))
