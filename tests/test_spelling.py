"""Numbers and the like in words: who asks for it, in which language, and what is missing."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from bark_fast import Bark, BarkFastWarning, CheckpointError, GenerationParams, InputError
from bark_fast import spelling as spelling_module
from bark_fast.checkpoint.random import create_checkpoint
from bark_fast.cli import main
from bark_fast.spelling import Spelling

QUICK = GenerationParams(temperature=0, max_semantic_tokens=3, seed=0)
SPELL = GenerationParams(temperature=0, max_semantic_tokens=3, seed=0, normalize_text=True)


class Normalizer:
    """Stands in for NeMo's: "3" in the language's own word."""

    made: list[tuple[str, str | None]]

    def __init__(self, *, input_case: str, lang: str, cache_dir: str | None) -> None:
        assert input_case == "cased"
        if lang not in ("en", "de"):
            raise NotImplementedError(lang)
        self.made.append((lang, cache_dir))
        if cache_dir is not None:
            (Path(cache_dir) / "rules.far").touch()
        self.word = {"en": "three", "de": "drei"}[lang]

    def normalize(self, text: str, *, punct_post_process: bool) -> str:
        if "boom" in text:
            raise ValueError("no path in the grammar")
        return "" if text == "nothing" else text.replace("3", self.word)


@pytest.fixture
def nemo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Normalizer]:
    Normalizer.made = []
    module: Any = types.ModuleType("normalize")
    module.Normalizer = Normalizer
    name = "nemo_text_processing.text_normalization"
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, f"{name}.normalize", module)
    monkeypatch.setattr(spelling_module.importlib.metadata, "version", lambda _: "1")
    monkeypatch.setattr(spelling_module.importlib.util, "find_spec", lambda _: True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Normalizer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_checkpoint(tmp_path_factory.mktemp("spelling") / "tiny")


@pytest.fixture(scope="module")
def bark(tiny: Path) -> Bark:
    return Bark.from_pretrained(tiny, device="cpu")


def asking(tiny: Path, folder: Path, value: object) -> Path:
    """The same checkpoint, which says whether it wants words."""
    shutil.copytree(tiny, folder)
    rules = json.loads((folder / "generation_config.json").read_text())
    rules["normalize_text"] = value
    (folder / "generation_config.json").write_text(json.dumps(rules))
    return folder


def test_nothing_is_spelled_unless_asked_for(bark: Bark) -> None:
    assert bark.generate("3 dogs", params=QUICK).text == "3 dogs"
    assert bark.split("3 dogs. 3 cats.") == ["3 dogs.", "3 cats."]
    assert bark.requests._spelling._normalizers == {}


def test_asked_for(bark: Bark, nemo: type[Normalizer]) -> None:
    said = bark.generate("3 dogs", params=SPELL)
    assert said.text == "three dogs"
    assert said.semantic_tokens.tolist() == (
        bark.generate("three dogs", params=QUICK).semantic_tokens.tolist()
    )
    german = GenerationParams(**{**vars(SPELL), "normalize_text": "de"})
    assert bark.generate(["3", "3", "3"], params=[SPELL, german, QUICK])[1].text == "drei"
    assert bark.request("3", None, german).text == "drei"
    streamed = "".join(part.text for part in bark.stream("3. 3", params=SPELL, language="de"))
    assert streamed == "drei.drei"  # in pieces, because so few tokens are allowed
    assert bark.split("3\n3", normalize_text="de") == ["drei", "drei"]
    assert bark.split("3", normalize_text=False) == ["3"]
    assert bark.semantic("3", params=SPELL).tolist() == (
        bark.semantic("three", params=QUICK).tolist()
    )
    # Each language is loaded once.
    assert sorted(language for language, _ in nemo.made) == ["de", "en"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, "three"), ("de", "drei"), (False, "3"), (None, "3")],
)
def test_the_checkpoint_says_so(
    tiny: Path, tmp_path: Path, nemo: type[Normalizer], value: object, expected: str
) -> None:
    bark = Bark.from_pretrained(asking(tiny, tmp_path / "checkpoint", value), device="cpu")
    assert bark.request("3").text == expected
    assert bark.request("3", None, GenerationParams(normalize_text=False)).text == "3"
    assert bark.request("3", None, GenerationParams(normalize_text="de")).text == "drei"
    assert bark.split("3") == [expected]


@pytest.mark.parametrize("value", ["e n", 1, [], ""])
def test_a_checkpoint_that_says_something_else(tiny: Path, tmp_path: Path, value: object) -> None:
    folder = asking(tiny, tmp_path / "checkpoint", value)
    with pytest.raises(CheckpointError, match="normalize_text must be true, false or a code such"):
        Bark.from_pretrained(folder, device="cpu")


def test_without_the_package(bark: Bark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spelling_module.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(bark.requests, "_spelling", Spelling())
    with pytest.raises(InputError, match=r'pip install "bark-fast\[text\]"'):
        bark.generate("3", params=SPELL)
    with pytest.raises(InputError, match=r'pip install "bark-fast\[text\]"'):
        bark.stream("3", params=SPELL)
    assert bark.generate("3", params=QUICK).text == "3"


def test_a_language_that_is_not_there(nemo: type[Normalizer]) -> None:
    with pytest.raises(InputError, match="normalize_text must be a language that nemo_text_proces"):
        Spelling().load("xx")


def test_what_cannot_be_spelled_is_said_as_it_is(nemo: type[Normalizer]) -> None:
    spell = Spelling().load("en")
    with pytest.warns(BarkFastWarning, match="'boom 3' could not be spelled in words and is said"):
        assert spell("boom 3") == "boom 3"
    assert spell("nothing") == "nothing"


def test_what_is_compiled_is_kept(
    nemo: type[Normalizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "cache" / "bark-fast" / "spelling-1-en"
    Spelling().load("en")
    assert [path.name for path in kept.iterdir()] == ["rules.far"]
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    Spelling().load("en")
    assert nemo.made[1] == ("en", str(kept))
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # where no folder can be
    Spelling().load("en")
    assert nemo.made[2] == ("en", None)


def test_command(
    tiny: Path, nemo: type[Normalizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    stream = Bark.stream

    def spy(self: Bark, *arguments: Any, **options: Any) -> Any:
        parts = stream(self, *arguments, **options)
        for part in parts:
            seen.append(part.text)
            yield part

    monkeypatch.setattr(Bark, "stream", spy)
    monkeypatch.chdir(tmp_path)
    command = ["say", "3", "--model", str(tiny), "--max-semantic-tokens", "3", "-q"]
    for more in ([], ["--normalize-text"], ["--normalize-text", "--language", "de"]):
        assert main([*command, *more]) == 0
    asked = asking(tiny, tmp_path / "checkpoint", True)
    command[3] = str(asked)
    for more in ([], ["--no-normalize-text"]):
        assert main([*command, *more]) == 0
    assert "".join(seen) == "3threedreithree3"  # in pieces, as above


_SPOKEN = {
    "Hello, my dog is cute.": "Hello, my dog is cute.",
    "I have $5.20 and 3 dogs.": "I have five dollars twenty cents and three dogs.",
    "It is 5 km, or 50%.": "It is five kilometers, or fifty percent.",
    "Dr. Smith came on Jan. 5, 2024.": ("doctor Smith came on january fifth, twenty twenty four."),
    "[laughs] MAN: Well... I'm here, don't go.": "[laughs] MAN: Well... I'm here, don't go.",
    "♪ In the jungle ♪": "♪ In the jungle ♪",
}


@pytest.mark.slow  # compiles its grammars, on a new machine
@pytest.mark.skipif(
    importlib.util.find_spec("nemo_text_processing") is None, reason="needs the extra text"
)
def test_nemo_itself() -> None:
    spell = Spelling().load("en")
    assert {text: spell(text) for text in _SPOKEN} == _SPOKEN
