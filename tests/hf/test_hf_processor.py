"""Text and voices: what transformers' processor gives, and a voice for each text."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from bark_fast import AutoProcessor, Bark, BarkProcessor, CheckpointError, InputError, Voice
from helpers.checkpoints import Checkpoint
from helpers.hf_models import GREEDY

PRESETS = ("v2/en_speaker_1", "v2/en_speaker_2", "announcer")


@pytest.fixture(scope="module")
def arrays(small: Checkpoint) -> dict[str, dict[str, np.ndarray]]:
    return {name: small.voice(20 + i, seed=i) for i, name in enumerate(PRESETS)}


@pytest.fixture(scope="module")
def folder(small: Checkpoint, arrays: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A processor with three presets, in the layout of transformers' repositories."""
    folder = tmp_path_factory.mktemp("processor")
    transformers.AutoTokenizer.from_pretrained(small.folder).save_pretrained(folder)
    listed: dict[str, Any] = {"repo_or_path": "suno/bark"}
    (folder / "speaker_embeddings" / "v2").mkdir(parents=True)
    for name, prompts in arrays.items():
        listed[name] = {key: f"speaker_embeddings/{name}_{key}.npy" for key in prompts}
        for key, array in prompts.items():
            np.save(folder / listed[name][key], array)
    (folder / "speaker_embeddings_path.json").write_text(json.dumps(listed))
    return folder


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Any, Any]:
    # transformers cannot save again what it has loaded from a Path.
    return (
        transformers.BarkProcessor.from_pretrained(str(folder)),
        BarkProcessor.from_pretrained(folder),
    )


def assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        if hasattr(value, "keys"):
            assert_same(ours[key], value)
            continue
        assert type(ours[key]) is type(value), key
        if isinstance(value, list):
            assert ours[key] == value
        else:
            assert ours[key].dtype == value.dtype
            assert ours[key].shape == value.shape
            assert (ours[key] == value).all()


@pytest.mark.parametrize(
    "arguments",
    [
        {"text": "Hello"},
        {"text": ["Hello", "Good day to you"]},
        {"text": "Hello", "max_length": 32},
        {"text": "Hello", "return_tensors": "np", "voice_preset": "announcer"},
        {"text": ["Hello", "Hi"], "voice_preset": "v2/en_speaker_1"},
        {"text": "Hello", "return_attention_mask": False},
        {"text": "Hello", "return_token_type_ids": True},
        {"text": "Hello", "add_special_tokens": True},
        {"text": "a" * 40, "max_length": 8},
        {"text": "a" * 40, "max_length": 8, "truncation": True},
        {"text": "Hello", "return_tensors": None},
    ],
    ids=str,
)
def test_transformers_processor(pair: Any, arguments: Any) -> None:
    theirs, ours = (processor(**arguments) for processor in pair)
    assert_same(ours, theirs)


def test_kinds_of_voices(pair: Any, arrays: Any, tmp_path: Path) -> None:
    """A preset, a file with and without its ending, a mapping: as in transformers. And others."""
    expected = arrays["announcer"]
    Voice(**expected).save(tmp_path / "me.npz")
    theirs, ours = pair
    for voice in ("announcer", str(tmp_path / "me.npz"), str(tmp_path / "me"), expected):
        assert_same(ours("Hello", voice), theirs("Hello", voice))
    for voice in (
        tmp_path / "me.npz",
        tmp_path / "me",
        Voice(**expected),
        {key: torch.from_numpy(array) for key, array in expected.items()},
        transformers.BatchFeature(expected),
    ):
        history = ours("Hello", voice)["history_prompt"]
        assert set(history) == set(expected)
        for key, array in expected.items():
            np.testing.assert_array_equal(history[key].numpy(), array)


def test_arrays_that_transformers_takes(pair: Any, tmp_path: Path) -> None:
    """The processor does not know what the model can use."""
    voice = {
        "semantic_prompt": np.ones(35),
        "coarse_prompt": np.ones((2, 35)),
        "fine_prompt": np.ones((8, 35)),
    }
    np.savez(tmp_path / "file.npz", **voice)
    for given in (voice, str(tmp_path / "file.npz")):
        assert_same(pair[1]("Hello", given), pair[0]("Hello", given))


@pytest.mark.parametrize("return_tensors", ["pt", "np"])
def test_a_voice_for_each_text(pair: Any, arrays: Any, return_tensors: str) -> None:
    _, processor = pair
    announcer = Voice(**arrays["announcer"])
    voices = ["v2/en_speaker_2", None, announcer, arrays["v2/en_speaker_1"]]
    encoded = processor(["a", "b", "c", "d"], voices, return_tensors=return_tensors)
    assert len(encoded["input_ids"]) == 4
    first, none, third, fourth = encoded["history_prompt"]
    assert none is None
    names = ("v2/en_speaker_2", "announcer", "v2/en_speaker_1")
    for history, name in zip((first, third, fourth), names, strict=True):
        for key, array in arrays[name].items():
            assert isinstance(history[key], torch.Tensor if return_tensors == "pt" else np.ndarray)
            np.testing.assert_array_equal(np.asarray(history[key]), array)
    moved = encoded.to("cpu") if return_tensors == "pt" else encoded
    assert len(moved["history_prompt"]) == 4
    assert len(processor("a", ["announcer"])["history_prompt"]) == 1


def test_speaking_with_a_list(pair: Any, ours: Any) -> None:
    _, processor = pair
    keywords = {**GREEDY, "semantic_max_new_tokens": 10}
    both = processor(["Hello", "Hello"], ["announcer", None], max_length=32)
    audio = ours.generate(**both, **keywords)
    for row, voice in zip(audio, ("announcer", None), strict=True):
        alone = ours.generate(**processor("Hello", voice, max_length=32), **keywords)
        assert torch.equal(row, alone[0])
    assert not torch.equal(*audio)


def test_decoding(pair: Any) -> None:
    theirs, ours = pair
    ids = ours(["Hello", "Hi"])["input_ids"]
    assert ours.decode(ids[0]) == theirs.decode(ids[0])
    assert ours.batch_decode(ids) == theirs.batch_decode(ids)
    assert ours.available_voice_presets == theirs.available_voice_presets == list(PRESETS)


@pytest.mark.parametrize("reader", [transformers.BarkProcessor, BarkProcessor, AutoProcessor])
@pytest.mark.parametrize("writer", [0, 1], ids=["by_transformers", "by_bark_fast"])
def test_save_and_load(pair: Any, tmp_path: Path, writer: int, reader: Any) -> None:
    pair[writer].save_pretrained(str(tmp_path))
    loaded = reader.from_pretrained(tmp_path)
    for name in PRESETS:
        assert_same(loaded("Hello", name), pair[0]("Hello", name))
    assert loaded.available_voice_presets == list(PRESETS)
    assert isinstance(loaded, BarkProcessor) == (reader is not transformers.BarkProcessor)
    tokens = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert tokens.get("processor_class", "BarkProcessor") == "BarkProcessor"


def test_other_names_and_a_path(pair: Any, tmp_path: Path) -> None:
    """transformers cannot write to a Path, nor read presets where the list names no folder."""
    pair[1].save_pretrained(
        tmp_path, speaker_embeddings_dict_path="mine.json", speaker_embeddings_directory="mine"
    )
    listed = json.loads((tmp_path / "mine.json").read_text())
    del listed["repo_or_path"]
    (tmp_path / "mine.json").write_text(json.dumps(listed))
    assert (tmp_path / "mine" / "announcer_fine_prompt.npy").is_file()
    loaded = BarkProcessor.from_pretrained(tmp_path, speaker_embeddings_dict_path="mine.json")
    assert_same(loaded("Hello", PRESETS[0]), pair[0]("Hello", PRESETS[0]))
    silent = BarkProcessor.from_pretrained(tmp_path, speaker_embeddings_dict_path=None)
    assert silent.available_voice_presets == []
    assert silent.speaker_embeddings is None
    silent.save_pretrained(tmp_path / "silent")
    assert not (tmp_path / "silent" / "speaker_embeddings_path.json").exists()


# What is wrong.


class _Trap:
    """Unpickling it would be noticed."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("something was unpickled",)


@pytest.mark.parametrize("kind", ["object array", "pickle", "text"])
def test_files_are_never_unpickled(folder: Path, tmp_path: Path, kind: str) -> None:
    trap = np.array([_Trap()], dtype=object)
    for name in ("trap.npz", "trap.npy"):
        with (tmp_path / name).open("wb") as file:
            if kind == "object array" and name.endswith("z"):
                np.savez(file, semantic_prompt=trap, coarse_prompt=trap, fine_prompt=trap)
            elif kind == "object array":
                np.save(file, trap, allow_pickle=True)
            else:
                file.write(pickle.dumps(_Trap()) if kind == "pickle" else b"not an array")
    for processor in (
        BarkProcessor.from_pretrained(folder),
        BarkProcessor.from_pretrained(folder, speaker_embeddings_dict_path=None),
    ):
        with pytest.raises(InputError, match=r"voice_preset .*trap\.npz is not a whole"):
            processor("Hello", tmp_path / "trap.npz")
    (folder / "speaker_embeddings" / "trap.npy").write_bytes((tmp_path / "trap.npy").read_bytes())
    processor = BarkProcessor.from_pretrained(folder)
    processor.speaker_embeddings["trap"] = dict.fromkeys(
        ("semantic_prompt", "coarse_prompt", "fine_prompt"), "speaker_embeddings/trap.npy"
    )
    with pytest.raises(InputError, match="voice_preset 'trap' cannot be read"):
        processor("Hello", "trap")


@pytest.mark.parametrize(
    ("voice", "message"),
    [
        ("nobody", r"must be a preset \(v2/en_speaker_1, .*\), .* got 'nobody'"),
        (Path("nobody.npz"), r"must be .* the path of an \.npz file that exists"),
        ("repo_or_path", "must be a preset"),
        (7, "must be a preset .* got 7"),
        ({"semantic_prompt": np.ones(3)}, "must hold coarse_prompt, got semantic_prompt"),
        ({}, "must hold semantic_prompt, got none"),
        ({1: 2}, "must hold semantic_prompt, got 1"),
        (["announcer"], "must have an entry for each of the 2 texts, got 1"),
        (["announcer", "nobody"], "must be a preset"),
        (
            {"semantic_prompt": np.ones((3, 1))},
            r"semantic_prompt must be an array of numbers with 1 dimensions, got float64 \[3, 1\]",
        ),
        ({"semantic_prompt": np.array([None])}, "semantic_prompt must be an array of numbers"),
        (
            {"semantic_prompt": torch.ones(3, dtype=torch.bfloat16)},
            "semantic_prompt must be an array of numbers with 1 dimensions: .* BFloat16",
        ),
        ({"semantic_prompt": [[1], [2, 3]]}, "semantic_prompt must be an array of numbers"),
        ("", "must be a preset .* got ''"),
        (".", r"must be a preset .* got '\.'"),
        ("/", "must be a preset .* got '/'"),
        ("a" * 300, "must be a preset .* got 'aaa"),
    ],
    ids=str,
)
def test_wrong_voices(pair: Any, voice: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"voice_preset:? {message}"):
        pair[1](["Hello", "Hi"], voice)


@pytest.mark.parametrize("voice", [None, "announcer", ["announcer"]])
@pytest.mark.parametrize("text", [None, 7, b"Hello", {"Hello"}, np.array(["Hello"])], ids=str)
def test_wrong_text(pair: Any, text: Any, voice: Any) -> None:
    with pytest.raises(InputError, match=r"^text must be a string or a list of them, got "):
        pair[1](text, voice)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([], r"text must hold at least one text, got \[\]"),
        ((), r"text must hold at least one text, got \(\)"),
        (["Hello", None], r"text\[1\] must be a string, got None"),
        (["Hello", 7], r"text\[1\] must be a string, got 7"),
        ([["Hello", "you"]], r"text\[0\] must be a string, got \['Hello', 'you'\]"),
        ([b"Hello"], r"text\[0\] must be a string, got b'Hello'"),
        (["Hello", "\ud800"], "text must be valid Unicode"),
    ],
    ids=str,
)
def test_wrong_texts(pair: Any, text: Any, message: str) -> None:
    for voice in (None, "announcer"):
        with pytest.raises(InputError, match=f"^{message}"):
            pair[1](text, voice)


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": -1},
        {"max_length": "long"},
        {"max_length": 2.5},
        {"return_tensors": "xx"},
        {"truncation": "sometimes"},
        {"padding": True},
    ],
    ids=str,
)
def test_wrong_options(pair: Any, options: Any) -> None:
    """Which transformers refuses with errors of many kinds."""
    with pytest.raises((ArithmeticError, TypeError, ValueError)):
        pair[0]("Hello", **options)
    with pytest.raises(InputError, match=r"^text and its options must be what"):
        pair[1]("Hello", **options)


@pytest.mark.parametrize(
    "text", ["", [""], np.str_("Hello"), ["Hel lo", "you"], [["Hel", "lo"], ["you"]]], ids=str
)
def test_text_that_transformers_takes(pair: Any, text: Any) -> None:
    in_words = isinstance(text, list) and isinstance(text[0], list)
    theirs, ours = (processor(text, is_split_into_words=in_words) for processor in pair)
    assert_same(ours, theirs)


def _without_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)


def _with_empty_vocabulary(folder: Path) -> None:
    _without_tokenizer(folder)
    (folder / "vocab.txt").write_text("")


def _with_a_folder_for_a_file(folder: Path) -> None:
    _without_tokenizer(folder)
    (folder / "tokenizer.json").mkdir()


def _written(name: str, content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return write


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_tokenizer, r"no tokenizer found \(tokenizer\.json or vocab\.txt\)"),
        (_with_empty_vocabulary, r"vocab\.txt: is no tokenizer's: it is empty"),
        (_with_a_folder_for_a_file, "no tokenizer found"),
        (_written("tokenizer.json", b"{"), r"tokenizer\.json: is not valid JSON"),
        (_written("tokenizer.json", b"{}"), "cannot load its tokenizer: "),
        (_written("tokenizer.json", b"[]"), r"tokenizer\.json: must hold a JSON object"),
        (_written("tokenizer.json", b"\xff\xfe"), r"tokenizer\.json: is not valid JSON"),
        (_written("tokenizer_config.json", b"[]"), r"config\.json: must hold a JSON object"),
    ],
)
def test_a_folder_whose_tokenizer_is_none(
    small: Checkpoint, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    """It is Bark's own error, where transformers makes a tokenizer of five words."""
    folder = tmp_path / "model"
    shutil.copytree(small.folder, folder)
    damage(folder)
    said = []
    for load in (
        partial(BarkProcessor.from_pretrained, speaker_embeddings_dict_path=None),
        partial(AutoProcessor.from_pretrained, speaker_embeddings_dict_path=None),
        partial(Bark.from_pretrained, device="cpu"),
    ):
        with pytest.raises(CheckpointError, match=message) as raised:
            load(folder)
        said.append(str(raised.value).splitlines()[0])
    assert len(set(said)) == 1


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_damaged_lists_of_presets(folder: Path, tmp_path: Path, content: bytes) -> None:
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "speaker_embeddings_path.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"speaker_embeddings_path\.json: (is|must)"):
        BarkProcessor.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("name", [None, 7, ""])
def test_what_is_no_folder(name: Any) -> None:
    with pytest.raises(InputError, match="must be a folder or a hub id, got "):
        BarkProcessor.from_pretrained(name)


@pytest.mark.parametrize("file", ["../secret.npy", "/etc/secret.npy", None, 3])
def test_presets_stay_in_their_folder(folder: Path, file: Any) -> None:
    processor = BarkProcessor.from_pretrained(folder)
    processor.speaker_embeddings["announcer"]["coarse_prompt"] = file
    with pytest.raises(InputError, match="must name a file in the folder for coarse_prompt"):
        processor("Hello", "announcer")


def test_a_preset_whose_file_is_missing(folder: Path) -> None:
    processor = BarkProcessor.from_pretrained(folder)
    processor.speaker_embeddings["announcer"]["fine_prompt"] = "speaker_embeddings/gone.npy"
    with pytest.raises(InputError, match=r"voice_preset 'announcer' cannot be read: .*gone\.npy"):
        processor("Hello", "announcer")
