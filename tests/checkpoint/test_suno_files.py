"""suno's own files hold the same model as transformers' layout, and errors name what is wrong."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError

from bark_fast import Bark, CheckpointError, GenerationParams, InputError, Speech
from bark_fast.checkpoint.config import Config
from bark_fast.checkpoint.random import write_tokenizer
from bark_fast.checkpoint.reading import parse_config
from bark_fast.checkpoint.stored import StoredTensors, TensorsInMemory
from bark_fast.checkpoint.suno import SunoFiles
from bark_fast.checkpoint.weights import load_weights
from bark_fast.voices import open_voices
from helpers.checkpoints import Checkpoint, bark_windows, build_model
from helpers.suno_files import (
    LARGE,
    SMALL,
    encodec_tensors,
    suno_content,
    write_suno_files,
    write_suno_folder,
)

GREEDY = GenerationParams(temperature=0, min_eos_p=0, max_semantic_tokens=45, seed=0)


@pytest.fixture(scope="module")
def folder(narrow: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suno_folder(tmp_path_factory.mktemp("suno") / "bark_v0", narrow.model)


@pytest.fixture(scope="module")
def bark(folder: Path) -> Bark:
    return Bark.from_pretrained(folder, device="cpu")


def same(a: Speech, b: Speech) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("semantic_tokens", "coarse_tokens", "fine_tokens", "samples")
    )


def linked(folder: Path, tmp_path: Path, *without: str) -> Path:
    """Copy the files to another folder, without some of them."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        if path.name not in without:
            (copy / path.name).symlink_to(path)
    return copy


def all_tensors(stored: StoredTensors, config: Config) -> dict[str, torch.Tensor]:
    return load_weights(stored, config, dtype=torch.float32, device=torch.device("cpu"))


def assert_equal_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert set(a) == set(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


# The same model


def test_speaks_as_the_same_model_in_transformers_layout(narrow: Checkpoint, bark: Bark) -> None:
    assert replace(bark.config, codec=narrow.config.codec) == narrow.config
    texts, voices = ["Hello, you", "Hello again"], [None, narrow.voice(30)]
    for a, b in zip(
        bark.generate(texts, voice=voices, params=GREEDY),
        narrow.bark.generate(texts, voice=voices, params=GREEDY),
        strict=True,
    ):
        assert same(a, b)
        assert len(a.samples) == 67 * 320


def test_defaults_are_sunos(bark: Bark) -> None:
    """suno-ai/bark: generation.py's constants, and the temperatures of api.py."""
    text, coarse, fine = (
        bark.config.semantic_rules,
        bark.config.coarse_rules,
        bark.config.fine_rules,
    )
    assert (text.sampling.temperature, coarse.sampling.temperature) == (0.7, 0.7)
    assert (fine.sampling.temperature, text.min_eos_p) == (0.5, 0.2)
    assert (text.semantic_vocab_size, text.eos_token_id) == (10_000, 10_000)
    assert (text.text_encoding_offset, text.text_pad_token) == (10_048, 129_595)
    assert (text.semantic_infer_token, text.max_input_semantic_length) == (129_599, 256)
    assert (text.max_new_tokens, text.semantic_rate_hz) == (768, 49.9)
    assert (coarse.coarse_semantic_pad_token, coarse.coarse_infer_token) == (12_048, 12_050)
    assert (coarse.coarse_rate_hz, coarse.n_coarse_codebooks) == (75, 2)
    assert (coarse.max_coarse_input_length, coarse.max_coarse_history) == (256, 630)
    assert (coarse.sliding_window_len, fine.n_fine_codebooks) == (60, 8)
    assert (fine.max_fine_history_length, fine.max_fine_input_length) == (512, 1024)
    assert (bark.config.codebook_size, bark.sample_rate_hz) == (1024, 24_000)


@pytest.mark.parametrize("compiled", [True, False])
def test_biases_masks_and_older_arguments(tmp_path: Path, compiled: bool) -> None:
    """Every tensor arrives, also those of networks that are not Bark's own."""
    config, generation = bark_windows()
    for name in ("semantic_config", "coarse_acoustics_config", "fine_acoustics_config"):
        config[name]["bias"] = True
    model = build_model(config, seed=3, std=0.1)

    def change(stage: str, content: dict[str, Any]) -> dict[str, Any]:
        arguments = content["model_args"]
        if stage == "coarse":  # from before the two sizes could differ
            arguments["vocab_size"] = arguments.pop("input_vocab_size")
            assert arguments.pop("output_vocab_size") == arguments["vocab_size"]
        if stage == "fine":  # suno's code knows these, and the default of bias
            del arguments["n_codes_total"], arguments["n_codes_given"], arguments["bias"]
        prefix = "_orig_mod." if compiled else ""
        mask = torch.ones(1, 1, 1024, 1024, dtype=torch.bool).tril()
        content["model"][f"{prefix}transformer.h.0.attn.bias"] = mask
        return content

    write_suno_files(tmp_path, model, change=change, compiled=compiled)
    model.codec_model.save_pretrained(tmp_path / "encodec_24khz")
    write_tokenizer(tmp_path)
    opened = SunoFiles(tmp_path).open()
    expected = parse_config(config, generation)
    assert opened.config.semantic == expected.semantic
    assert opened.config.coarse == expected.coarse
    assert opened.config.fine == expected.fine
    in_memory = TensorsInMemory(model.state_dict(), "the model")
    assert_equal_tensors(
        all_tensors(opened.tensors(), opened.config), all_tensors(in_memory, expected)
    )


def test_the_codec_as_the_encodec_package_has_it(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    codec = transformers.EncodecModel(transformers.EncodecConfig())
    copy = linked(folder, tmp_path, "encodec_24khz")
    codec.save_pretrained(copy / "encodec_24khz")
    expected = SunoFiles(copy).open()
    expected_tensors = all_tensors(expected.tensors(), expected.config)
    (copy / "encodec_24khz").rename(tmp_path / "away")
    torch.save(encodec_tensors(codec), copy / "encodec_24khz-d7cc33bc.th")
    opened = SunoFiles(copy).open()
    assert_equal_tensors(all_tensors(opened.tensors(), opened.config), expected_tensors)


# Sizes


@pytest.fixture(scope="module")
def both(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Also a "small" model: one layer instead of two."""
    config, _ = bark_windows()
    for name in ("semantic_config", "coarse_acoustics_config", "fine_acoustics_config"):
        config[name]["num_layers"] = 1
    copy = linked(folder, tmp_path_factory.mktemp("both"))
    return write_suno_files(copy, build_model(config, seed=2, std=0.25), SMALL)


def layers(model: Any) -> tuple[int, int, int]:
    config = (model if isinstance(model, SunoFiles) else SunoFiles(model)).open().config
    return config.semantic.num_layers, config.coarse.num_layers, config.fine.num_layers


def test_sizes(both: Path, tmp_path: Path) -> None:
    assert layers(both) == (2, 2, 2)
    assert layers(SunoFiles(both, text="small", coarse="small", fine="small")) == (1, 1, 1)
    assert layers(SunoFiles(both, coarse="small")) == (2, 1, 2)
    assert layers(linked(both, tmp_path, "text_2.pt", "fine_2.pt")) == (1, 2, 1)


def test_sizes_can_be_mixed(both: Path, bark: Bark) -> None:
    mixed = Bark.from_pretrained(SunoFiles(both, fine="small"), device="cpu")
    a, b = mixed.generate("Hello", params=GREEDY), bark.generate("Hello", params=GREEDY)
    assert np.array_equal(a.coarse_tokens, b.coarse_tokens)
    assert not np.array_equal(a.fine_tokens, b.fine_tokens)


def test_a_size_that_is_none() -> None:
    with pytest.raises(InputError, match='coarse must be "large", "small" or None, got \'tiny\''):
        SunoFiles("bark_v0", coarse="tiny")  # type: ignore[arg-type]


# What is wrong


@pytest.mark.parametrize(
    ("file", "small", "message"),
    [
        ("text_2.pt", False, "copy: text_2.pt or text.pt is missing"),
        ("coarse_2.pt", False, "copy: coarse_2.pt or coarse.pt is missing"),
        ("fine_2.pt", False, "copy: fine_2.pt or fine.pt is missing"),
        ("nothing", True, "copy: text.pt is missing"),
    ],
)
def test_missing_files(folder: Path, tmp_path: Path, file: str, small: bool, message: str) -> None:
    copy = linked(folder, tmp_path, file)
    with pytest.raises(CheckpointError) as caught:
        Bark.from_pretrained(SunoFiles(copy, text="small") if small else copy, device="cpu")
    assert str(caught.value).endswith(message)


def _tensor(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    """`value` in the place of a tensor, which is left out if it is None."""

    def change(content: dict[str, Any]) -> dict[str, Any]:
        content["model"].pop(name, None)
        if value is not None:
            content["model"][name] = value
        return content

    return change


def _argument(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        content["model_args"][name] = value
        return content

    return change


class _Malicious:
    def __reduce__(self) -> Any:
        return os.system, ("echo this must never run > malicious",)


_LN_F = "_orig_mod.transformer.ln_f.weight"
_C_FC = "_orig_mod.transformer.h.1.mlp.c_fc.weight"


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        ("coarse", _tensor(_LN_F, None), "tensor coarse_acoustics.layernorm_final.weight [32] is"),
        (
            "coarse",
            _tensor(_C_FC, torch.ones(9, 32)),
            "layers.1.mlp.in_proj.weight must have shape",
        ),
        ("coarse", _tensor(_LN_F, torch.ones(32).int()), "must be floating point, got torch.int32"),
        (
            "coarse",
            _tensor("adapter.weight", torch.ones(3)),
            "hold coarse_acoustics.adapter.weight",
        ),
        ("coarse", _tensor("transformer.ln_f.weight", torch.ones(32)), "are the same tensor"),
        (
            "coarse",
            _tensor("step", 3),
            "coarse_2.pt: model: must hold a mapping of names to tensors",
        ),
        ("fine", _tensor("_orig_mod.lm_heads.2.weight", torch.ones(1056, 32)), "differs from"),
        (
            "coarse",
            lambda c: c["model"],
            "coarse_2.pt: must hold a dictionary model_args, got None",
        ),
        ("coarse", lambda c: [], "coarse_2.pt: must hold a dictionary model_args, got None"),
        ("coarse", lambda c: {"model_args": c["model_args"]}, "coarse_2.pt: model: must hold a"),
        ("coarse", _argument("n_layer", 0), "model_args: n_layer must be an integer >= 1, got 0"),
        ("coarse", _argument("bias", "no"), "model_args: bias must be true or false, got 'no'"),
        ("coarse", _argument("n_layer", 3), "layers.2."),
        ("text", _argument("input_vocab_size", 9000), "semantic_config.input_vocab_size"),
        ("coarse", lambda c: {**c, "config": _Malicious()}, "coarse_2.pt: is not a whole file of"),
        ("coarse", lambda c: {**c, "config": np.zeros(3)}, "coarse_2.pt: is not a whole file of"),
    ],
)
def test_contents(
    narrow: Checkpoint,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    change: Callable[[dict[str, Any]], Any],
    message: str,
) -> None:
    copy = linked(folder, tmp_path, LARGE[stage])
    torch.save(change(suno_content(narrow.model, stage)), copy / LARGE[stage])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        Bark.from_pretrained(copy, device="cpu")
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(copy))
    assert not (tmp_path / "malicious").exists()


def test_the_malicious_file_works_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the test above shows nothing."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(_Malicious()))
    assert (tmp_path / "malicious").exists()


def test_what_the_program_allows_itself_stays_as_it_is(folder: Path) -> None:
    """Programs have been told to allow numpy's numbers, for suno's code to read these files. Of
    several for one name torch would take any."""
    allowed: list[Any] = [(partial(pytest.fail, "called"), "numpy.dtype") for _ in range(50)]
    with torch.serialization.safe_globals(allowed):
        assert layers(folder) == (2, 2, 2)
        assert set(torch.serialization.get_safe_globals()) >= set(allowed)


def test_what_others_allow_meanwhile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's list is one for all threads: while a file is read, theirs is neither missing what it
    had nor loses what is added."""
    ours, before, after = (np.dtype, "numpy.dtype"), Decimal, Fraction
    original, during = torch.load, []

    def load(*arguments: Any, **options: Any) -> Any:
        torch.serialization.add_safe_globals([after])
        during.append(set(torch.serialization.get_safe_globals()))
        return original(*arguments, **options)

    at_first = torch.serialization.get_safe_globals()
    monkeypatch.setattr(torch, "load", load)
    try:
        with torch.serialization.safe_globals([ours, np.dtype, before]):
            assert layers(folder) == (2, 2, 2)
            left = set(torch.serialization.get_safe_globals())
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(at_first)
    assert len(during) >= 3
    for allowed in during:
        assert allowed >= {*at_first, before, after}
        assert not allowed & {ours, np.dtype}
    assert left == {*at_first, ours, np.dtype, before, after}


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04 half a zip file"])
def test_damaged(folder: Path, tmp_path: Path, content: bytes) -> None:
    copy = linked(folder, tmp_path, "fine_2.pt")
    (copy / "fine_2.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"fine_2\.pt: is not a whole file"):
        Bark.from_pretrained(copy, device="cpu")


# What suno's files leave to others


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Repositories by their ids; the others cannot be reached."""
    repositories: dict[str, Path] = {}

    def download(repo_id: str, filename: str, *, local_files_only: bool = False, **_: Any) -> str:
        path = repositories.get(repo_id, tmp_path / "nowhere") / filename
        if not path.is_file():
            raise LocalEntryNotFoundError(f"{filename} is not there")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)  # where no folder has the repositories' names
    return repositories


def bert_repository(folder: Path) -> Path:
    """As the hub has it: the class of the tokenizer follows from the kind of model."""
    folder.mkdir()
    write_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return folder


def test_codec_and_tokenizer_from_the_hub(
    narrow: Checkpoint, folder: Path, tmp_path: Path, hub: dict[str, Path], bark: Bark
) -> None:
    copy = linked(folder, tmp_path, "encodec_24khz", "bert-base-multilingual-cased")
    hub["facebook/encodec_24khz"] = folder / "encodec_24khz"
    hub["google-bert/bert-base-multilingual-cased"] = bert_repository(tmp_path / "bert")
    again = Bark.from_pretrained(copy, device="cpu", local_files_only=True)
    assert same(again.generate("Hello", params=GREEDY), bark.generate("Hello", params=GREEDY))


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("encodec_24khz", "no codec (encodec_24khz/ or encodec_24khz-d7cc33bc.th); facebook/enc"),
        ("bert-base-multilingual-cased", "no tokenizer (bert-base-multilingual-cased/); google-"),
    ],
)
def test_neither_in_the_folder_nor_on_the_hub(
    folder: Path,
    tmp_path: Path,
    hub: dict[str, Path],
    without: str,
    message: str,
    offline: bool,
) -> None:
    copy = linked(folder, tmp_path, without)
    with pytest.raises(CheckpointError) as caught:
        Bark.from_pretrained(copy, device="cpu", local_files_only=offline)
    assert str(caught.value).startswith(f"{copy}: it holds {message}")


def test_a_hub_repository_of_sunos_files(hub: dict[str, Path], folder: Path, bark: Bark) -> None:
    hub["someone/bark_v0"] = folder
    hub["facebook/encodec_24khz"] = folder / "encodec_24khz"
    hub["google-bert/bert-base-multilingual-cased"] = bert_repository(Path("bert").absolute())
    with pytest.raises(CheckpointError, match="cannot reach the hub, and config"):
        Bark.from_pretrained("someone/bark_v0", device="cpu")
    again = Bark.from_pretrained("someone/bark_v0", device="cpu", local_files_only=True)
    assert same(again.generate("Hello", params=GREEDY), bark.generate("Hello", params=GREEDY))


@pytest.mark.parametrize("presets", ["prompts", "assets/prompts", "."])
def test_voices(narrow: Checkpoint, folder: Path, tmp_path: Path, presets: str) -> None:
    copy = linked(folder, tmp_path)
    place = copy / presets
    names = ["announcer", "en_speaker_1"]
    if presets != ".":
        (place / "v2").mkdir(parents=True)
        names.append("v2/en_speaker_1")
    for i, name in enumerate(names):
        np.savez(place / f"{name}.npz", **narrow.voice(20, seed=i))
    voices = open_voices(copy)
    assert voices.names == names
    for i, name in enumerate(names):
        voice = voices.get(name)
        assert voice is not None
        assert voice.name == name
        np.testing.assert_array_equal(voice.fine_prompt, narrow.voice(20, seed=i)["fine_prompt"])
