"""The files of a checkpoint, in a folder or in a repository on the Hugging Face hub."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from bark_fast.checkpoint.unreadable import in_one_line, why_unreadable
from bark_fast.errors import CheckpointError, InputError
from bark_fast.validation import as_path


def absolute_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that means the same file when the working directory has changed."""
    try:
        expanded = Path(path).expanduser()
    except (RuntimeError, ValueError):  # ~someone, and there is or can be no such user
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
    # That of os.path, because a name that is too long for a file is none.
    return str(folder) if os.path.isdir(folder) else model


@dataclass(frozen=True)
class Source:
    """The files of one checkpoint.

    Attributes:
        name: the folder or the hub id.
        folder: the folder, or None for the hub.
        revision: a hub revision, or None for the newest.
        local_files_only: use only what was downloaded before, and ask nothing of the network.
        cache_dir: where the hub's files are kept; None for a folder.
        token: for the hub; True takes the stored one, False none.
        variant: of the weights: "fp16" for model.fp16.safetensors.
        parent: what this is a subfolder of.
    """

    name: str
    folder: Path | None
    revision: str | None = None
    local_files_only: bool = False
    cache_dir: Path | None = None
    token: str | bool | None = field(default=None, repr=False)
    variant: str | None = None
    parent: Source | None = None

    @classmethod
    def open(
        cls,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        subfolder: str = "",
        variant: str | None = None,
    ) -> Source:
        """Resolve `model` to a folder that exists, else to a hub id ("owner/name").

        Args:
            subfolder: where the files are in it, with forward slashes.

        Raises:
            InputError: it is neither, or another argument is of the wrong kind.
        """
        _check_options(cache_dir, token, subfolder, variant)
        options: dict[str, Any] = {"token": token, "variant": variant}
        if not isinstance(model, (str, os.PathLike)) or not str(model).strip():
            raise InputError(f"model must be a folder or a hub id, got {model!r}")
        folder = absolute_path(as_path("model", model))
        # Those of os.path, because a name that is too long for a file is none.
        if os.path.isdir(folder):
            return cls(str(model), folder, **options)._below(subfolder)
        if os.path.exists(folder):
            raise InputError(f"model must be a folder, not a file, got {str(model)!r}")
        parts = str(model).split("/")
        hub_id = isinstance(model, str) and len(parts) == 2 and all(parts)
        if not hub_id or parts[0].startswith((".", "~")):
            raise InputError(
                f"model must be a folder that exists or a hub id (owner/name), got {str(model)!r}"
            )
        from huggingface_hub.constants import HF_HUB_CACHE

        # Voices are downloaded when they are first used, and either path may be a relative one.
        options["cache_dir"] = absolute_path(HF_HUB_CACHE if cache_dir is None else cache_dir)
        found = cls(str(model), None, revision, local_files_only, **options)
        return found._below(subfolder)

    def _below(self, subfolder: str) -> Source:
        """Return the source of a subfolder; "" is this one."""
        below = PurePosixPath(subfolder).as_posix()
        if below == ".":
            return self
        folder = None
        if self.folder is not None:
            folder = self.folder / subfolder
            if not os.path.isdir(folder):
                raise InputError(f"subfolder must be a folder in {self.name}, got {subfolder!r}")
        return replace(self, name=f"{self.name}/{below}", folder=folder, parent=self)

    def holding(self, *files: str) -> Source:
        """Return this source if it has one of `files`, else its parent if that has one.

        A subfolder may have weights alone, with the tokenizer and the voices beside it.
        """
        if self.parent is None or any(self.find(file) for file in files):
            return self
        return self.parent if any(self.parent.find(file) for file in files) else self

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
            return path if os.path.isfile(path) else None
        if self.parent is not None:
            file = f"{self.name[len(self.parent.name) + 1 :]}/{file}"
            return self.parent.find(file)
        return self._download(file)

    def subfolder(self, name: str) -> Source | None:
        """Return a folder within this one as a source; None if there is none, or on the hub."""
        folder = None if self.folder is None else self.folder / name
        return None if folder is None or not os.path.isdir(folder) else Source(str(folder), folder)

    def matching(self, pattern: str) -> list[str]:
        """Return the files that match a glob pattern, as `find` takes them, in order; on the hub
        none."""
        if self.folder is None:
            return []
        found = [path for path in self.folder.glob(pattern) if path.is_file()]
        return sorted(path.relative_to(self.folder).as_posix() for path in found)

    def _download(self, file: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        options: dict[str, Any] = {"cache_dir": self.cache_dir, "token": self.token}
        try:
            return Path(
                hf_hub_download(
                    self.name,
                    file,
                    revision=self.revision,
                    local_files_only=self.is_offline,
                    **{name: value for name, value in options.items() if value is not None},
                )
            )
        except LocalEntryNotFoundError as error:
            if self.is_offline:
                return None
            raise CheckpointError(
                f"{self.name}: cannot reach the hub, and {file} was not downloaded before"
            ) from error
        except EntryNotFoundError:
            return None
        except Exception as error:  # the hub's, the system's, and those of two HTTP libraries
            raise CheckpointError(f"{self.name}: {self._refusal(file, error)}") from error

    def _refusal(self, file: str, error: Exception) -> str:
        """Return why the hub did not give a file."""
        from huggingface_hub.errors import (
            GatedRepoError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        reason = in_one_line(error)
        if isinstance(error, GatedRepoError):
            return (
                f"{file} is for those whom the owner lets in: ask on the repository's page, and "
                f"log in (`hf auth login`): {reason}"
            )
        if isinstance(error, RepositoryNotFoundError):
            return (
                "no folder and no hub repository has that name, or it is private and you are not "
                "logged in (`hf auth login`)"
            )
        if isinstance(error, RevisionNotFoundError):
            return f"the hub repository has no revision {self.revision!r}"
        return f"{file} could not be downloaded: {reason}"

    @property
    def is_offline(self) -> bool:
        """True if nothing is asked of the network, by `local_files_only` or by HF_HUB_OFFLINE."""
        from huggingface_hub import constants

        return self.local_files_only or bool(constants.HF_HUB_OFFLINE)

    def missing(self, what: str) -> CheckpointError:
        """Return the error for files that the checkpoint lacks, or that were not downloaded.

        Args:
            what: "config.json is missing", say.
        """
        if self.folder is None and self.is_offline:
            return CheckpointError(
                f"{self.name}: {what} from what was downloaded before, and nothing more is "
                "downloaded offline (local_files_only, --offline or HF_HUB_OFFLINE)"
            )
        return CheckpointError(f"{self.name}: {what}")

    def require(self, file: str) -> Path:
        """Return the local path of `file`, as `find` does.

        Raises:
            CheckpointError: there is no such file, or `find` raises it.
        """
        path = self.find(file)
        if path is None:
            raise self.missing(f"{file} is missing")
        return path

    def read_json(self, file: str) -> dict[str, Any]:
        """Read a JSON file whose top level is an object.

        Raises:
            CheckpointError: the file is missing, or is not such a file.
        """
        path = self.require(file)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError) as error:
            reason = why_unreadable(path, error)
            raise CheckpointError(f"{path}: is not valid JSON: {reason}") from error
        if not isinstance(content, dict):
            raise CheckpointError(
                f"{path}: must hold a JSON object, got a {type(content).__name__}"
            )
        return content


def _check_options(cache_dir: Any, token: Any, subfolder: Any, variant: Any) -> None:
    if cache_dir is not None and not isinstance(cache_dir, (str, os.PathLike)):
        raise InputError(f"cache_dir must be a folder or None, got {cache_dir!r}")
    if token is not None and not isinstance(token, (str, bool)):
        raise InputError(f"token must be a string, True, False or None, got {type(token).__name__}")
    path = PurePosixPath(subfolder) if isinstance(subfolder, str) else None
    if path is None or path.is_absolute() or ".." in path.parts or "\\" in subfolder:
        raise InputError(f"subfolder must be a path within the checkpoint, got {subfolder!r}")
    if variant is not None and (
        not isinstance(variant, str) or not variant or set(variant) & set("/\\")
    ):
        raise InputError(f'variant must be a name such as "fp16" or None, got {variant!r}')
