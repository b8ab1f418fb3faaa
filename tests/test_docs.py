"""The pages in docs/ say what is so: their Python runs, block after block, as a reader would."""

from __future__ import annotations

import json
import re
import secrets
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.utils import is_flash_attn_2_available

from bark_fast import BarkFastWarning, BarkModel
from bark_fast.checkpoint.config import GENERATION_FILE
from bark_fast.compat import suno
from bark_fast.compat.suno import SunoAPI
from helpers.checkpoints import Checkpoint
from helpers.suno_files import SMALL, write_suno_files, write_suno_folder

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))
# "<!-- without a GPU: message -->" before a block: there it is an error that says so.
# "<!-- without flash-attn: message -->": there it is a warning (which pyproject.toml makes an error
# of elsewhere; here others may come, of float16 on a CPU).
_BLOCK = re.compile(
    r"(?:<!-- without (a GPU|flash-attn): (.*?) -->\n)?```python\n(.*?)```", re.DOTALL
)
_SEEDED = re.compile(r"\bseed=[\[\d]")
_PRESET = re.compile(r"\b(?:v2/)?[a-z]{2}_speaker_\d\b")


def write_presets(folder: Path, names: list[str], checkpoint: Checkpoint) -> None:
    """speaker_embeddings_path.json with its files, in transformers' layout."""
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
    """A checkpoint with the voices of a page, whose texts end after a second: where there is a
    folder with a hub repository's name, it is taken."""
    folder.mkdir(parents=True)
    for path in checkpoint.folder.iterdir():
        if path.name != GENERATION_FILE:
            (folder / path.name).symlink_to(path)
    generation = json.loads((checkpoint.folder / GENERATION_FILE).read_text())
    generation["semantic_config"]["max_new_tokens"] = 50
    (folder / GENERATION_FILE).write_text(json.dumps(generation))
    write_presets(folder, names, checkpoint)


def expected(missing: str, message: str) -> AbstractContextManager[Any]:
    """What comes of a block where this machine has not what it needs."""
    if missing == "a GPU" and not torch.cuda.is_available():
        return pytest.raises(ValueError, match=re.escape(message))
    if missing == "flash-attn" and not is_flash_attn_2_available():
        return pytest.warns(BarkFastWarning, match=re.escape(message))
    return nullcontext()


def spoken(namespace: dict[str, Any]) -> dict[str, list[Any]]:
    """The audio that a page has made so far, as rows."""
    return {
        name: [np.asarray(row) for row in (value if isinstance(value, list) else [value])]
        for name, value in namespace.items()
        if name.startswith("audio")
    }


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


CLAIMS = {"suno": check_suno, "transformers": check_transformers}
"""What a page says of the audio that it makes."""


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
    monkeypatch.setattr(suno, "_default", SunoAPI())
    monkeypatch.setattr(secrets, "randbits", lambda n: 7)
    torch.manual_seed(7)
    blocks = _BLOCK.findall(text)
    assert blocks
    assert 2 * len(blocks) == text.count("```"), "a block of something else"
    namespace: dict[str, Any] = {"__name__": page.stem}
    for i, (missing, message, block) in enumerate(blocks):
        code = compile(block, f"{page.name}, block {i + 1}", "exec")
        with expected(missing, message):
            exec(code, namespace)
        if _SEEDED.search(block):
            first = spoken(namespace)
            exec(code, namespace)
            assert_same(spoken(namespace), first)
    assert spoken(namespace)
    for name, rows in spoken(namespace).items():
        for row in rows:
            assert np.isfinite(row).all(), name
            assert row.size > 0, name
    CLAIMS.get(page.stem, lambda namespace: None)(namespace)


def test_a_block_that_fails_is_noticed(narrow: Checkpoint, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\naudio = [0.0]\n```\n```bash\nls\n```\n")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError, match="else"):
        test_page(page, narrow, tmp_path / "bash", patch)
    page.write_text("```python\nfrom bark_fast import nothing\n```\n")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ImportError, match="nothing"):
        test_page(page, narrow, tmp_path, patch)
