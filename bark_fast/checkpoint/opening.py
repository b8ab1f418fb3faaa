"""Open a checkpoint of any kind: the demo, transformers' layout, or suno's own files."""

from __future__ import annotations

import os
from typing import Any

from bark_fast import demo
from bark_fast.checkpoint.layout import Checkpoint, open_transformers
from bark_fast.checkpoint.source import Source
from bark_fast.checkpoint.suno import SunoFiles, has_suno_files


def open_checkpoint(
    model: str | os.PathLike[str] | SunoFiles,
    revision: str | None = None,
    local_files_only: bool = False,
    **options: Any,
) -> Checkpoint:
    """Return the checkpoint `model`; arguments are those of `Bark.from_pretrained`.

    Args:
        options: cache_dir, token, subfolder, variant.

    Raises:
        CheckpointError: it cannot be read.
    """
    if isinstance(model, SunoFiles):
        return model.open(revision=revision, local_files_only=local_files_only, **options)
    folder: str | os.PathLike[str] = model
    if isinstance(model, str) and model == "demo":
        folder = demo.FOLDER
    source = Source.open(folder, revision=revision, local_files_only=local_files_only, **options)
    if has_suno_files(source):
        return SunoFiles(folder).open(
            revision=revision, local_files_only=local_files_only, **options
        )
    return open_transformers(source)
