"""NaN and infinity, in weights and in what the stages compute: an error that names the place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bark_fast import (
    Bark,
    BarkModel,
    CheckpointError,
    GenerationError,
    GenerationParams,
    ModelError,
    Speech,
)
from bark_fast.checkpoint.reading import read_config
from bark_fast.checkpoint.source import Source
from bark_fast.checkpoint.stored import TensorsInFiles
from bark_fast.checkpoint.weights import load_weights
from bark_fast.kernels import why_not_native
from bark_fast.request import Request
from helpers.checkpoints import Checkpoint
from helpers.engines import make_engine, one_by_one, same

NAN, INF = float("nan"), float("inf")
CPU = torch.device("cpu")

# What the stages compute


def _requests(small: Checkpoint, temperature: float) -> list[Request]:
    params = GenerationParams(
        temperature=temperature, min_eos_p=0, min_semantic_tokens=20, max_semantic_tokens=20, seed=5
    )
    return [small.bark.request(text, None, params) for text in ("aaa", "bbb", "ccc")]


def _poison(engine: Any, small: Checkpoint, stage: str, speeches: list[Speech]) -> None:
    """Make NaN of a row of weights that the second utterance alone reads."""

    def own(name: str) -> int:
        used = [set(getattr(s, name).flatten().tolist()) for s in speeches]
        return min(used[1] - used[0] - used[2])

    runner, rules = engine.runner, small.config.semantic_rules
    if stage == "semantic":
        ids = [small.bark.requests.tokenizer.encode(text)[0] for text in ("aaa", "bbb")]
        assert ids[0] != ids[1]
        runner.semantic.stage.model.embedding[ids[1] + rules.text_encoding_offset] = NAN
    elif stage == "decode":  # in the middle of the loop, after its prompt
        runner.semantic.stage.model.embedding[own("semantic_tokens")] = NAN
    elif stage == "coarse":
        runner.coarse.stage.model.embedding[own("semantic_tokens")] = NAN
    elif stage == "fine":
        n_books = small.config.coarse_rules.n_coarse_codebooks
        _poison_codes(runner.fine.model.embeddings, speeches, n_books)
    else:
        codebooks = runner.codec.model.codebooks
        _poison_codes(codebooks, speeches, len(codebooks))


def _poison_codes(tables: torch.Tensor, speeches: list[Speech], n_books: int) -> None:
    n = 0
    for book in range(n_books):
        codes = [set(s.fine_tokens[book].tolist()) for s in speeches]
        for code in codes[1] - codes[0] - codes[2]:
            tables[book, code] = NAN
            n += 1
    assert n


@pytest.mark.parametrize("stage", ["semantic", "decode", "coarse", "fine", "codec"])
@pytest.mark.parametrize(
    ("impl", "temperature"),
    [("torch", 0.0), ("torch", 0.8), ("native", 0.0), ("native", 0.8), ("cpu", 0.8), ("int8", 0.8)],
)
def test_one_utterance_ends_and_no_other(
    small: Checkpoint, impl: Any, stage: str, temperature: float
) -> None:
    int8 = impl == "int8"
    missing = impl in ("native", "int8") and why_not_native(CPU, torch.float32, int8=int8)
    if missing:
        pytest.skip(f"no such kernels here: {missing}")
    engine = make_engine(small, impl=impl)
    requests = _requests(small, temperature)
    healthy = one_by_one(engine, requests)
    _poison(engine, small, stage, healthy)
    futures = [engine.submit(request) for request in requests]
    while engine.step():
        pass
    name = "semantic" if stage == "decode" else stage
    with pytest.raises(ModelError, match=rf"^the {name} stage gave .* NaN or infinity for text 'b"):
        futures[1].result(timeout=0)
    assert same(futures[0].result(timeout=0), healthy[0])
    assert same(futures[2].result(timeout=0), healthy[2])
    assert engine.used_pages == 0
    assert engine.stats().failed == 1


def test_every_face_says_so(small: Checkpoint) -> None:
    bark = Bark.from_pretrained(small.folder, device="cpu")
    bark.engine.runner.codec.model.codebooks.fill_(INF)  # type: ignore[attr-defined]
    params = GenerationParams(min_semantic_tokens=3, max_semantic_tokens=3, seed=1)
    with pytest.raises(ModelError, match="the codec stage gave samples with NaN or infinity"):
        bark.generate("a", params=params)
    with pytest.raises(GenerationError) as caught:
        bark.generate(["a", "b"], params=params)
    assert all(isinstance(result, ModelError) for result in caught.value.results)
    with pytest.raises(ModelError):
        list(bark.stream("a b c.", params=params))
    with pytest.raises(ModelError):
        bark.speak_tokens([1, 2, 3], params=params)
    assert len(bark.semantic("a", params=params)) == 3  # whose numbers are all right


# Weights


def _damage(folder: Path, name: str, value: float, *, bin_file: bool = False) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[3] = value
    if bin_file:
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")


NAMES = [
    "semantic.input_embeds_layer.weight",
    "semantic.layers.1.attn.att_proj.bias",
    "coarse_acoustics.layernorm_final.weight",
    "fine_acoustics.input_embeds_layers.3.weight",
    "codec_model.quantizer.layers.2.codebook.embed",
    "codec_model.decoder.layers.0.conv.parametrizations.weight.original1",
]


@pytest.mark.parametrize("bin_file", [False, True])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_no_numbers(
    small: Checkpoint, tmp_path: Path, name: str, value: float, bin_file: bool
) -> None:
    folder = _copy(small, tmp_path)
    _damage(folder, name, value, bin_file=bin_file)
    with pytest.raises(CheckpointError) as caught:
        _load(folder)
    assert f"tensor {name} must hold finite numbers, got 1 that are NaN or" in str(caught.value)


def test_numbers_too_large_for_the_dtype(small: Checkpoint, tmp_path: Path) -> None:
    name = "coarse_acoustics.layers.0.mlp.in_proj.weight"
    folder = _copy(small, tmp_path)
    _damage(folder, name, -7e4)
    _load(folder)
    _load(folder, torch.bfloat16)
    with pytest.raises(
        CheckpointError, match=rf"{name} has numbers too large for float16 .up to 7e"
    ):
        _load(folder, torch.float16)


def test_a_weight_norm_of_zeros(small: Checkpoint, tmp_path: Path) -> None:
    """Its direction has no length to divide by."""
    name = "codec_model.decoder.layers.0.conv.parametrizations.weight.original1"
    folder = _copy(small, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors[name][1] = 0
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"tensor {name} has a row of zeros"):
        _load(folder)


@pytest.mark.parametrize("face", ["Bark", "BarkModel"])
def test_both_ways_of_loading(small: Checkpoint, tmp_path: Path, face: str) -> None:
    folder = _copy(small, tmp_path)
    _damage(folder, NAMES[1], NAN)

    def by_bark() -> Any:
        return Bark.from_pretrained(folder, device="cpu")

    def by_model() -> Any:
        model = BarkModel.from_pretrained(folder)
        return model.generate(torch.ones(1, 4, dtype=torch.int64), do_sample=False)

    calls: dict[str, Callable[[], Any]] = {"Bark": by_bark, "BarkModel": by_model}
    with pytest.raises(CheckpointError, match=rf"tensor {NAMES[1]} must hold finite numbers"):
        calls[face]()


def _copy(small: Checkpoint, tmp_path: Path) -> Path:
    for file in small.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def _load(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    source = Source.open(folder)
    return load_weights(TensorsInFiles(source), read_config(source), dtype=dtype, device=CPU)
