"""The files of a checkpoint, in a folder or in a repository on the Hugging Face hub."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bark_fast.errors import CheckpointError, InputError


def absolute_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that means the same file when the working directory has changed."""
    try:
        expanded = Path(path).expanduser()
    except RuntimeError:  # ~someone, and there is no such user
        expanded = Path(path)
    try:
        return expanded.absolute()
    except OSError:  # the working directory is gone, and whatever was in it
        return expanded


def folder_as_absolute(model: Any) -> Any:
    """Return a folder that exists by its absolute path, and anything else (a hub id) as it is."""
    if not isinstance(model, (str, os.PathLike)):
        return model
    folder = absolute_path(model)
    return str(folder) if folder.is_dir() else model


@dataclass(frozen=True)
class Source:
    """The files of one checkpoint.

    Attributes:
        name: the folder or the hub id.
        folder: the folder, or None for the hub.
        revision: a hub revision, or None for the newest.
        local_files_only: use only what was downloaded before, and ask nothing of the network.
        cache_dir: where downloads are kept; None for the hub library's own place.
    """

    name: str
    folder: Path | None
    revision: str | None = None
    local_files_only: bool = False
    cache_dir: Path | None = None

    @classmethod
    def open(
        cls,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> Source:
        """Resolve `model` to a folder that exists, else to a hub id ("owner/name").

        Raises:
            InputError: it is neither.
        """
        if not isinstance(model, (str, os.PathLike)) or not str(model).strip():
            raise InputError(f"model must be a folder or a hub id, got {model!r}")
        folder = absolute_path(model)
        if folder.is_dir():
            return cls(str(model), folder)
        if folder.exists():
            raise InputError(f"model must be a folder, not a file, got {str(model)!r}")
        parts = str(model).split("/")
        hub_id = isinstance(model, str) and len(parts) == 2 and all(parts)
        if not hub_id or parts[0].startswith((".", "~")):
            raise InputError(
                f"model must be a folder that exists or a hub id (owner/name), got {str(model)!r}"
            )
        from huggingface_hub.constants import HF_HUB_CACHE

        # Voices are downloaded when they are first used, and HF_HOME may be a relative path.
        return cls(str(model), None, revision, local_files_only, absolute_path(HF_HUB_CACHE))

    def find(self, file: str) -> Path | None:
        """Return the local path of `file` (relative, with forward slashes), None if there is none.

        Raises:
            CheckpointError: the name leads out of the checkpoint, or the hub cannot be asked.
        """
        relative = PurePosixPath(file)
        if relative.is_absolute() or ".." in relative.parts or "\\" in file:
            raise CheckpointError(f"{self.name}: a file name must stay in the folder, got {file!r}")
        if self.folder is not None:
            path = self.folder / relative
            return path if path.is_file() else None
        return self._download(file)

    def subfolder(self, name: str) -> Source | None:
        """Return a folder within this one as a source; None if there is none, or on the hub."""
        folder = None if self.folder is None else self.folder / name
        return None if folder is None or not folder.is_dir() else Source(str(folder), folder)

    def matching(self, pattern: str) -> list[str]:
        """Return the files that match a glob pattern, as `find` takes them, in order; on the hub
        none."""
        if self.folder is None:
            return []
        found = [path for path in self.folder.glob(pattern) if path.is_file()]
        return sorted(path.relative_to(self.folder).as_posix() for path in found)

    def _download(self, file: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )

        try:
            return Path(
                hf_hub_download(
                    self.name,
                    file,
                    revision=self.revision,
                    local_files_only=self.local_files_only,
                    cache_dir=self.cache_dir,
                )
            )
        except LocalEntryNotFoundError as error:
            if self.local_files_only:
                return None
            raise CheckpointError(
                f"{self.name}: cannot reach the hub, and {file} was not downloaded before"
            ) from error
        except EntryNotFoundError:
            return None
        except Exception as error:  # the hub's, the system's, and those of two HTTP libraries
            unknown = isinstance(error, RepositoryNotFoundError)
            if unknown and not isinstance(error, GatedRepoError):
                reason = "no folder and no hub repository has that name"
            else:
                reason = f"{file} could not be downloaded: {error}"
            raise CheckpointError(f"{self.name}: {reason}") from error

    def require(self, file: str) -> Path:
        """Return the local path of `file`, as `find` does.

        Raises:
            CheckpointError: there is no such file, or `find` raises it.
        """
        path = self.find(file)
        if path is None:
            raise CheckpointError(f"{self.name}: {file} is missing")
        return path

    def read_json(self, file: str) -> dict[str, Any]:
        """Read a JSON file whose top level is an object.

        Raises:
            CheckpointError: the file is missing, or is not such a file.
        """
        path = self.require(file)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise CheckpointError(f"{path}: is not valid JSON: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointError(
                f"{path}: must hold a JSON object, got a {type(content).__name__}"
            )
        return content
