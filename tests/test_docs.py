"""Check that the documentation tells the truth: its Python runs, block after block, as a reader
would run it, its commands run or are looked up, and its links, names and figures are real."""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, redirect_stdout
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.utils import is_flash_attn_2_available

from bark_fast import Bark, BarkFastWarning, BarkModel, Speech
from bark_fast.checkpoint.config import GENERATION_FILE
from bark_fast.cli import main as bark_fast_main
from bark_fast.compat.suno import SunoAPI, session
from bark_fast.compat.suno.cli import cli as suno_main
from bark_fast.kernels import aot, why_not_native
from bench.__main__ import main as bench_main
from helpers.checkpoints import Checkpoint
from helpers.suno_files import SMALL, write_suno_files, write_suno_folder

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = ROOT / "bench" / "results"
# A block may follow a line "<!-- without SOMETHING: message -->": where this machine lacks it, the
# block is an error that says so, or for flash-attn a warning (which pyproject.toml makes an error
# of elsewhere; here others may come, of float16 on a CPU).
_BLOCK = re.compile(r"(?:<!-- without ([\w -]+): (.*?) -->\n)?```(\w*)\n(.*?)```", re.DOTALL)
_SEEDED = re.compile(r"\bseed=[\[\d]")
_PRESET = re.compile(r"\b(?:v2/)?[a-z]{2}_speaker_\d\b")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HELPED: dict[str, Callable[[list[str]], object]] = {
    "bark-fast": bark_fast_main,
    "bark_fast.compat.suno": suno_main,
    "bench": bench_main,
    "bark_fast.kernels.aot": aot.main,
}
"""The commands that tell their options."""


def write_presets(folder: Path, names: list[str], checkpoint: Checkpoint) -> None:
    """Write speaker_embeddings_path.json with its files, in transformers' layout."""
    index: dict[str, Any] = {"repo_or_path": str(folder)}
    for i, name in enumerate(names):
        index[name] = {}
        for key, array in checkpoint.voice(60, seed=i).items():
            file = f"speaker_embeddings/{name}_{key}.npy"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            np.save(folder / file, array)
            index[name][key] = file
    (folder / "speaker_embeddings_path.json").write_text(json.dumps(index))


def hub_folder(folder: Path, names: list[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint with the voices of a page, whose texts end after half a second.

    A folder with the name of a hub repository is taken in its place.
    """
    folder.mkdir(parents=True)
    for path in checkpoint.folder.iterdir():
        if path.name != GENERATION_FILE:
            (folder / path.name).symlink_to(path)
    generation = json.loads((checkpoint.folder / GENERATION_FILE).read_text())
    generation["semantic_config"]["max_new_tokens"] = 25
    (folder / GENERATION_FILE).write_text(json.dumps(generation))
    write_presets(folder, names, checkpoint)


def is_missing(what: str) -> bool:
    """Return True if this machine lacks what a block needs."""
    if what == "a GPU":
        return not torch.cuda.is_available()
    if what == "flash-attn":
        return not is_flash_attn_2_available()
    assert what == "avx512_vnni", what
    return why_not_native(torch.device("cpu"), torch.float32, int8=True) is not None


def expected(missing: str, message: str) -> AbstractContextManager[Any]:
    """Return a context that expects what comes of a block on this machine."""
    if not missing or not is_missing(missing):
        return nullcontext()
    if missing == "flash-attn":
        return pytest.warns(BarkFastWarning, match=re.escape(message))
    return pytest.raises(ValueError, match=re.escape(message))


def spoken(namespace: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the audio that a page has made so far, as rows."""
    found = {}
    for name, value in namespace.items():
        rows = value if isinstance(value, list) else [value]
        if rows and all(isinstance(row, Speech) for row in rows):
            found[name] = [row.samples for row in rows]
        elif name.startswith("audio"):
            found[name] = [np.asarray(row) for row in rows]
    return found


def assert_same(ours: dict[str, list[Any]], others: dict[str, list[Any]]) -> None:
    assert ours.keys() == others.keys()
    for name, rows in ours.items():
        for row, other in zip(rows, others[name], strict=True):
            np.testing.assert_array_equal(row, other, err_msg=name)


def check_suno(page: dict[str, Any]) -> None:
    """It is "the same each time"."""
    for _ in range(2):
        np.testing.assert_array_equal(page["generate_audio"]("Hello"), page["audio_array"])


def check_transformers(page: dict[str, Any]) -> None:
    """Each row "is what it is alone, with a voice and a seed of its own"."""
    rows, lengths = page["audio_rows"], page["lengths"]
    assert [len(row) for row in rows] == lengths
    assert page["audio_batch"].shape == (2, max(lengths))
    model = BarkModel.from_pretrained("suno/bark-small")
    texts = {"Hello.": "v2/en_speaker_6", "Bonjour!": "fr_speaker_5"}
    for i, (text, voice) in enumerate(texts.items()):
        alone = model.generate(
            **page["processor"](text, voice), do_sample=True, fine_temperature=0.5, seed=7 + i
        )
        assert torch.equal(rows[i], alone[0])


def check_usage(page: dict[str, Any]) -> None:
    """A result is what its text gives alone; a seed gives "the same to the last sample"."""
    bark = Bark.from_pretrained("suno/bark-small")
    for text, speech in zip(["One.", "Two.", "Three."], page["speeches"], strict=True):
        np.testing.assert_array_equal(bark.generate(text).samples, speech.samples)
    alone = bark.generate("Hello", voice="v2/en_speaker_6")
    np.testing.assert_array_equal(alone.samples, page["stepped"].samples)
    np.testing.assert_array_equal(page["first"].samples, page["again"].samples)
    assert Path("again.flac").is_file()  # what the command line said in the voice that it saved


CLAIMS = {"suno": check_suno, "transformers": check_transformers, "usage": check_usage}
"""Checks of what a page says about the audio that it makes."""


# Commands


def commands(block: str) -> list[list[str]]:
    """Return the words of every command of a console block."""
    lines = block.splitlines()
    assert all(line.startswith("$ ") for line in lines), block
    return [
        shlex.split(command, comments=True)
        for line in lines
        for command in line.removeprefix("$ ").split(" && ")
    ]


def check_command(words: list[str]) -> None:
    """Run a command that is quick and stays in this folder; look others up.

    `.ci/run` installs, and runs the tests and linters.
    """
    program, *arguments = words
    if program == "bark-fast":
        # Compilers, GPUs, clusters, files of half a gigabyte, and servers: tests/server runs them,
        # and curl.
        looked_up = {"new-checkpoint", "serve", "--kernels", "--help", "--ray", "cuda:0", "cuda:1"}
        if looked_up & set(arguments):
            check_options(program, arguments)
        else:
            run_bark_fast(arguments)
    elif words[:2] == ["python", "-m"] and words[2] in _HELPED:
        check_options(words[2], words[3:])
    elif words[:3] == ["python", "-m", "pytest"]:
        paths = [word for word in words[3:] if "/" in word]
        assert all((ROOT / path).exists() for path in paths), words
    elif words[:2] == ["pip", "install"]:
        extras = re.findall(r"\[(\w+)\]", " ".join(arguments))
        assert set(extras) <= set(metadata("bark-fast").get_all("Provides-Extra") or []), words
    elif words[:3] == ["serve", "run", "bark_fast.server.ray:build_app"]:
        # Ray need not be installed: the names of arguments are read.
        options = (ROOT / "bark_fast/server" / name for name in ("ray.py", "options.py"))
        known_fields = "".join(path.read_text() for path in options)
        assert all(f"\n    {word.split('=')[0]}: " in known_fields for word in words[3:]), words
    elif program == ".ci/run":
        assert os.access(ROOT / program, os.X_OK)
    else:
        known = (["ruff"], ["source"], ["curl"], ["python", "-m", "venv"])
        assert any(words[: len(start)] == start for start in known), words


def run_bark_fast(arguments: list[str]) -> None:
    """Run the command in this process."""
    printed, complained = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(complained):
        status = bark_fast_main(arguments)
    assert status == 0, complained.getvalue()
    if arguments[0] == "say":
        output = arguments[arguments.index("-o") + 1] if "-o" in arguments else "speech.wav"
        assert Path(output).stat().st_size > 1000
    elif arguments[0] == "bulk":
        assert list(Path(arguments[2]).glob("manifest-*"))
    else:
        assert printed.getvalue()


def check_options(program: str, arguments: list[str]) -> None:
    """Check that the command's help knows every option."""
    commands = [word for word in arguments[:1] if not word.startswith("-")]
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        _HELPED[program]([*commands, "--help"])
    assert ended.value.code == 0
    for word in arguments:
        if word.startswith("--"):
            assert word in printed.getvalue(), f"{program} {shlex.join(arguments)}"


# Pages


@pytest.mark.filterwarnings("ignore::bark_fast.errors.BarkFastWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(
    page: Path, narrow: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = page.read_text(encoding="utf-8")
    names = sorted(set(_PRESET.findall(text)))
    for model in ("suno/bark", "suno/bark-small"):
        hub_folder(tmp_path / model, names, narrow)
    write_suno_files(write_suno_folder(tmp_path / "bark_v0", narrow.model), narrow.model, SMALL)
    monkeypatch.chdir(tmp_path)
    # A program of its own, that never happens to draw a text of no length.
    monkeypatch.setattr(session, "_current", SunoAPI())
    monkeypatch.setattr(secrets, "randbits", lambda n: 7)
    torch.manual_seed(7)
    blocks = _BLOCK.findall(text)
    assert 2 * len(blocks) == text.count("```")
    namespace: dict[str, Any] = {"__name__": page.stem}
    has_run = False
    for i, (missing, message, language, block) in enumerate(blocks):
        if language == "console":
            for command in commands(block):
                check_command(command)
            continue
        assert language == "python", "a block of something else"
        code = compile(block, f"{page.name}, block {i + 1}", "exec")
        with expected(missing, message) as failure:
            exec(code, namespace)
            has_run = True
        if failure is None and _SEEDED.search(block):
            first = spoken(namespace)
            exec(code, namespace)
            assert_same(spoken(namespace), first)
    assert bool(spoken(namespace)) == has_run
    for name, rows in spoken(namespace).items():
        for row in rows:
            assert np.isfinite(row).all(), name
            assert row.size > 0, name
    CLAIMS.get(page.stem, lambda namespace: None)(namespace)


def test_the_speaking_pages_are_here() -> None:
    """A page that loses its blocks is noticed."""
    speaking = [page.stem for page in PAGES if "```python" in page.read_text(encoding="utf-8")]
    assert speaking == ["README", "cpu", "gpu", "suno", "transformers", "usage"]


@pytest.mark.parametrize(
    ("block", "error", "message"),
    [
        ("python\nfrom bark_fast import nothing", ImportError, "nothing"),
        ("python\naudio = [[]]", AssertionError, "audio"),
        ("bash\nls", AssertionError, "else"),
        ("console\nls", AssertionError, "ls"),
        ("console\n$ ls", AssertionError, "ls"),
        ("console\n$ pip install '.[nothing]'", AssertionError, "nothing"),
        ("console\n$ python -m pytest tests/nothing", AssertionError, "nothing"),
        ("console\n$ python -m bench stages --nothing 3", AssertionError, "nothing"),
        ("console\n$ bark-fast info && bark-fast say Hello --voice nobody", AssertionError, "nobo"),
    ],
)
def test_a_block_that_fails_is_noticed(
    block: str, error: type[Exception], message: str, narrow: Checkpoint, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```{block}\n```\n")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(error, match=message):
        test_page(page, narrow, tmp_path / "here", patch)


# Links, names, figures


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CHANGELOG.md", RESULTS / "README.md"], ids=lambda page: page.stem
)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        if not link.startswith(("https://", "#")):
            assert (page.parent / link.partition("#")[0]).exists(), link


def test_the_architecture_is_that_of_the_code() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    quoted = re.findall(r"`([^`\n]+)`", page)
    paths = {name for name in quoted if "/" in name}
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    rooms = [ROOT / room for room in ("bark_fast", "bark_fast/engine", "kernels", "kernels/cpu")]
    for module in (path for room in rooms for path in room.iterdir()):
        if module.suffix == ".py" and not module.stem.startswith("__"):
            assert str(module.relative_to(ROOT)) in paths
        elif (module / "__init__.py").exists():
            inside = any(path.startswith(f"{module.relative_to(ROOT)}/") for path in paths)
            assert inside, module


def test_the_glossary_has_the_names_of_the_code() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = re.findall(r"^\| `(\w+)` \|", page.partition("## Glossary")[2], re.MULTILINE)
    assert len(names) > 15
    sources = [*(ROOT / "bark_fast").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    words = {word for path in sources for word in re.findall(r"\w+", path.read_text())}
    assert [name for name in names if name not in words] == []


def test_the_figures_are_measured() -> None:
    """Each cell of the README's table is a rounded figure of bench/results."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (one|\d+)(?: mixed)? requests?, ([^|]*) \|(.*)\|$", text, re.MULTILINE)
    assert len(rows) == 3
    for number, what, cells in rows:
        audio_s, dtype = what.split(" s of audio, ")
        file = RESULTS / "cpu-epyc-zen5-2-cores" / f"end_to_end-small-{dtype}.json"
        cases = json.loads(file.read_text())["cases"]
        n = 1 if number == "one" else int(number)
        case = next(case for case in cases if case["requests"] == n)
        measured = [
            case["audio_s"],
            case["bark_fast"]["seconds"]["median"],
            case["transformers"]["seconds"]["median"],
            *(case["ratio"][which] for which in ("median", "min", "max")),
        ]
        shown = [audio_s, *re.findall(r"[\d.]+", cells)]
        for figure, exact in zip(shown, measured, strict=True):
            decimals = len(figure.partition(".")[2])
            assert float(figure) == round(exact, decimals), (number, dtype, figure, exact)
