"""The faces of the library judge an argument alike: a table of inputs, each shown to every face."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bark_fast import (
    AsyncBark,
    BarkModel,
    GenerationParams,
    InputError,
    Voice,
)
from bark_fast.cli import main
from bark_fast.compat.suno import SunoAPI
from bark_fast.voices import check_voice
from helpers import oracle
from helpers.checkpoints import Checkpoint

GREEDY = GenerationParams(temperature=0, max_semantic_tokens=12, min_eos_p=0, seed=1)
Arrays = dict[str, Any]
Change = Callable[[Arrays], Arrays]


def _each(change: Callable[[np.ndarray], Any]) -> Change:
    return lambda voice: {key: change(array) for key, array in voice.items()}


def _fine(change: Callable[[np.ndarray], Any]) -> Change:
    return lambda voice: {**voice, "fine_prompt": change(voice["fine_prompt"])}


def _semantic(change: Callable[[np.ndarray], Any]) -> Change:
    return lambda voice: {**voice, "semantic_prompt": change(voice["semantic_prompt"])}


def _longer(array: np.ndarray) -> np.ndarray:
    return np.concatenate([array[:, ::-1], array], axis=1)


ACCEPTED: Mapping[str, Change] = {
    "as it is": lambda voice: voice,
    "fine longer": _fine(_longer),
    "fine much longer": _fine(lambda a: np.tile(a, 5)),
    "fine shorter": _fine(lambda a: a[:, 9:]),
    "fine of one frame": _fine(lambda a: a[:, :1]),
    "float64": _each(lambda a: a.astype(np.float64)),
    "float32": _each(lambda a: a.astype(np.float32)),
    "float16": _each(lambda a: a.astype(np.float16)),
    "uint16": _each(lambda a: a.astype(np.uint16)),
    "int32": _each(lambda a: a.astype(np.int32)),
    "big-endian": _each(lambda a: a.astype(">i8")),
    "read-only": _each(lambda a: np.broadcast_to(a, a.shape)),
    "not contiguous": _each(lambda a: np.repeat(a, 2, axis=-1)[..., ::2]),
}
IN_MEMORY: Mapping[str, Change] = {
    "lists": _each(lambda a: a.tolist()),
    "lists of floats": _each(lambda a: a.astype(float).tolist()),
    "tensors": _each(torch.from_numpy),
    "bfloat16 tensors": _each(lambda a: torch.from_numpy(a).bfloat16()),
    "tensors with gradients": _each(lambda a: torch.from_numpy(a).float().requires_grad_()),
    "a Voice": lambda voice: Voice(**voice),  # type: ignore[dict-item,return-value]
}
REFUSED: Mapping[str, tuple[Change, str]] = {
    "a half": (_semantic(lambda a: a + 0.5), "must hold integers"),
    "a NaN": (_fine(lambda a: np.where(a == a[0, 0], np.nan, a)), "must hold integers"),
    "an infinity": (_fine(lambda a: a + np.inf), "must hold integers"),
    "booleans": (_fine(lambda a: a > 3), "must hold integers, got bool"),
    "complex": (_semantic(lambda a: a + 0j), "must hold integers, got complex128"),
    "words": (_semantic(lambda a: a.astype(str)), "must hold integers, got <U"),
    "too large": (_semantic(lambda a: a + 100), "from 0 to 99"),
    "too large a float": (_semantic(lambda a: a + 1e300), "from 0 to 99"),
    "negative": (_fine(lambda a: a - 64.0), "from 0 to 63"),
    "one dimension more": (_semantic(lambda a: a[None]), "must have shape [*], got [1, 20]"),
    "a number": (_semantic(lambda a: np.int64(3)), "must have shape [*], got []"),
    "too few codebooks": (_fine(lambda a: a[:4]), "must have shape [5, *]"),
    "no frame": (_fine(lambda a: a[:, :0]), "must not be empty"),
    "too short": (_semantic(lambda a: a[:1]), "at least 2 semantic tokens"),
    "nothing": (lambda voice: {}, "is missing"),
}


class Faces:
    """Each says one text greedily in a voice; what it returns is compared."""

    def __init__(self, small: Checkpoint, folder: Path) -> None:
        self.small, self.bark, self.folder = small, small.bark, folder
        self.model = BarkModel.from_pretrained(small.folder)
        self.model.generation_config = small.model.generation_config
        self.suno = SunoAPI(small.folder, seed=1)
        self.suno._models._loaded = small.bark

    def ids(self) -> torch.Tensor:
        ids = self.bark.requests.tokenizer.encode("Hello")
        return torch.tensor([ids])

    def by_bark(self, voice: Any) -> np.ndarray:
        return self.bark.generate("Hello", voice=voice, params=GREEDY).samples

    def by_asyncio(self, voice: Any) -> np.ndarray:
        async def say() -> np.ndarray:
            async with AsyncBark(self.bark) as bark:
                return (await bark.generate("Hello", voice=voice, params=GREEDY)).samples

        return asyncio.run(say())

    def by_stream(self, voice: Any) -> np.ndarray:
        (part,) = self.bark.stream("Hello", voice=voice, params=GREEDY)
        return part.samples

    def by_transformers(self, voice: Any) -> np.ndarray:
        audio: np.ndarray = self.model.generate(
            self.ids(), voice, do_sample=False, fine_temperature=1.0, semantic_max_new_tokens=12
        )[0].numpy()
        return audio

    def by_suno(self, voice: Any) -> np.ndarray:
        loaded = self.suno.history(voice, *Voice.ARRAYS)  # its sampling settings are its own
        return self.bark.generate("Hello", voice=loaded, params=GREEDY).samples

    def by_file(self, voice: Any) -> np.ndarray:
        path = self.folder / "voice.npz"
        np.savez(path, **voice)
        return self.bark.generate("Hello", voice=path, params=GREEDY).samples

    @property
    def in_memory(self) -> Iterator[Callable[[Any], np.ndarray]]:
        yield from (self.by_bark, self.by_asyncio, self.by_stream)
        yield from (self.by_transformers, self.by_suno)

    @property
    def all(self) -> Iterator[Callable[[Any], np.ndarray]]:
        yield from (*self.in_memory, self.by_file)


@pytest.fixture(scope="module")
def faces(small: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Faces:
    return Faces(small, tmp_path_factory.mktemp("faces"))


@pytest.mark.parametrize("kind", ACCEPTED)
def test_voices_that_all_take(faces: Faces, kind: str) -> None:
    voice = ACCEPTED[kind](faces.small.voice(20))
    expected = _transformers(faces, voice)
    for say in faces.all:
        found = say(voice)
        assert found.shape == expected.shape, say.__name__
        assert np.abs(found - expected).max() < 1e-5, say.__name__


@pytest.mark.parametrize("kind", IN_MEMORY)
def test_kinds_that_all_take(faces: Faces, kind: str) -> None:
    arrays = faces.small.voice(20)
    expected = faces.by_bark(arrays)
    for say in faces.in_memory:
        assert np.array_equal(say(IN_MEMORY[kind](arrays)), expected), say.__name__


@pytest.mark.parametrize("kind", REFUSED)
def test_voices_that_none_takes(faces: Faces, kind: str) -> None:
    change, message = REFUSED[kind]
    voice = change(faces.small.voice(20))
    for say in faces.all:
        with pytest.raises(InputError) as caught:
            say(voice)
        assert message in str(caught.value), say.__name__
        original = faces.small.voice(20)
        changed = [key for key in voice if str(voice[key]) != str(original[key])]
        assert not changed or changed[0].removesuffix("_prompt") in str(caught.value)


@pytest.mark.parametrize("frames", [1, 40, 100])
def test_a_fine_prompt_of_another_length_gives_transformers_codes(
    narrow: Checkpoint, frames: int
) -> None:
    voice = narrow.voice(40)
    rng = np.random.default_rng(frames)
    voice["fine_prompt"] = rng.integers(1024, size=(8, frames))
    ids = narrow.bark.requests.tokenizer.encode("Hi")
    expected = oracle.greedy(narrow.model, ids, voice, max_new_tokens=5)
    params = GenerationParams(temperature=0, max_semantic_tokens=5, min_eos_p=0)
    speech = narrow.bark.generate("Hi", voice=voice, params=params)
    assert np.array_equal(speech.semantic_tokens, expected.semantic)
    assert np.array_equal(speech.coarse_tokens, expected.coarse)
    assert np.array_equal(speech.fine_tokens, expected.fine)


def _transformers(faces: Faces, voice: Arrays) -> np.ndarray:
    """Return transformers' samples; it takes no floats, so it is given the same numbers as ids."""
    arrays = {key: np.ascontiguousarray(array, dtype=np.int64) for key, array in voice.items()}
    ids = faces.ids()[0].tolist()
    return oracle.greedy(faces.small.model, ids, arrays, max_new_tokens=12).samples


# Seeds and temperatures

SEEDS = [(0, True), (2**64 - 1, True), (np.uint64(2**63), True), (np.int8(3), True)]
SEEDS += [(bad, False) for bad in (-1, 2**64, 1.0, True, "7", float("nan"), np.float32(2))]


@pytest.mark.parametrize(("seed", "good"), SEEDS, ids=repr)
def test_seeds(faces: Faces, seed: Any, good: bool) -> None:
    ways: list[Callable[[], Any]] = [
        lambda: GenerationParams(seed=seed),
        lambda: SunoAPI(faces.small.folder, seed=seed),
        lambda: faces.model.generate(
            faces.ids(), seed=seed, do_sample=True, fine_temperature=1.0, semantic_max_new_tokens=1
        ),
    ]
    for way in ways:
        if good:
            way()
            continue
        with pytest.raises(InputError, match=r"^seed must be an integer from 0 to 2\*\*64 - 1"):
            way()


def test_infinite_temperatures(faces: Faces) -> None:
    """transformers takes one, and does what it does with it."""
    for way in (
        lambda: GenerationParams(coarse_temperature=math.inf),
        lambda: faces.suno.generate_audio("Hello", waveform_temp=math.inf),
    ):
        with pytest.raises(InputError, match=r"temp(erature)? must be a finite number"):
            way()
    why = faces.model.why_not_served(coarse_temperature=math.inf, do_sample=True)
    assert "coarse_temperature must be a finite number" in why


@pytest.mark.parametrize("value", [-0.1, float("nan"), True, "0.7", 1j, 10**400])
def test_temperatures(faces: Faces, value: Any) -> None:
    ways: list[Callable[[], Any]] = [
        lambda: GenerationParams(coarse_temperature=value),
        lambda: faces.suno.generate_audio("Hello", waveform_temp=value),
        lambda: faces.model.generate(faces.ids(), coarse_temperature=value, do_sample=True),
    ]
    for way in ways:
        with pytest.raises(InputError, match=r"temp(erature)? must be a finite number"):
            way()


def test_the_command(
    faces: Faces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The command reads a voice from a file."""
    monkeypatch.chdir(tmp_path)
    arguments = ["say", "Hello", "-q", "--model", str(faces.small.folder), "--voice", "voice.npz"]
    arguments += ["--temperature", "0", "--max-semantic-tokens", "3"]
    for kind in ("fine longer", "float32"):
        np.savez("voice.npz", **ACCEPTED[kind](faces.small.voice(20)))
        assert main(arguments) == 0
    for kind in ("a half", "no frame"):
        change, message = REFUSED[kind]
        np.savez("voice.npz", **change(faces.small.voice(20)))
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_nothing_else_checks_a_voice() -> None:
    """One function reads the limits of a voice's arrays."""
    package = Path(check_voice.__code__.co_filename).parent
    users = [
        path.relative_to(package).as_posix()
        for path in sorted(package.rglob("*.py"))
        if "prompt_limits(" in path.read_text()
    ]
    assert users == ["voices.py"]
