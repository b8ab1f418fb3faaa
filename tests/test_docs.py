"""The pages in docs/ say what is so: their Python runs, block after block, as a reader would."""

from __future__ import annotations

import json
import re
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bark_fast.checkpoint.config import GENERATION_FILE
from bark_fast.compat import suno
from bark_fast.compat.suno import SunoAPI
from checkpoints import Checkpoint
from suno_files import SMALL, write_suno_files, write_suno_folder

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))
# "<!-- without a GPU: message -->" before a block: there it is an error that says so.
_BLOCK = re.compile(r"(?:<!-- without a GPU: (.*?) -->\n)?```python\n(.*?)```", re.DOTALL)
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


@pytest.mark.filterwarnings("ignore::bark_fast.types.BarkFastWarning")
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
    namespace: dict[str, Any] = {"__name__": page.stem}
    for i, (message, block) in enumerate(blocks):
        code = compile(block, f"{page.name}, block {i + 1}", "exec")
        if message and not torch.cuda.is_available():
            with pytest.raises(ValueError, match=re.escape(message)):
                exec(code, namespace)
        else:
            exec(code, namespace)
    spoken = {name: value for name, value in namespace.items() if name.startswith("audio")}
    assert spoken
    for name, value in spoken.items():
        for row in value if isinstance(value, list) else [value]:
            assert np.isfinite(np.asarray(row)).all(), name
            assert np.asarray(row).size > 0, name


def test_a_block_that_fails_is_noticed(narrow: Checkpoint, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nfrom bark_fast import nothing\n```\n")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ImportError, match="nothing"):
        test_page(page, narrow, tmp_path, patch)
