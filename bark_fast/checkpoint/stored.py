"""Where a checkpoint's tensors are stored.

Files: model.safetensors, model.safetensors.index.json with its shards, pytorch_model.bin and
pytorch_model.bin.index.json with its. They are mapped and copied tensor by tensor, and mapped anew
every `_REMAP_BYTES`, because pages that were read count as resident until their mapping ends.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from bark_fast.checkpoint.source import Source
from bark_fast.types import CheckpointError

_REMAP_BYTES = 64 * 2**20


class StoredTensors(Protocol):
    """Tensors by name, read one by one.

    Attributes:
        where: a name for messages.
    """

    where: str
    names: set[str]

    def read(self, names: set[str]) -> Iterator[tuple[str, Tensor]]:
        """Each of `names` with its tensor, which is valid until the next one is asked for."""
        ...


class TensorsInMemory:
    """Those of a module, say."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self.where = where
        self.names = set(tensors)
        self._tensors = tensors

    def read(self, names: set[str]) -> Iterator[tuple[str, Tensor]]:
        for name in sorted(names):
            yield name, self._tensors[name]


class TensorsInFiles:
    """Those of one file or of several shards, in transformers' layout."""

    def __init__(self, source: Source) -> None:
        self.where = source.name
        self.files = self._locate(source)
        self.names: set[str] = set(self.files)

    def _locate(self, source: Source) -> dict[str, Path]:
        """Tensor name -> file."""
        for file in ("model.safetensors", "pytorch_model.bin"):
            path = source.find(file)
            if path is not None:
                with self._mapped(path) as (names, _):
                    return dict.fromkeys(names, path)
            if source.find(f"{file}.index.json") is not None:
                return self._locate_shards(source, f"{file}.index.json")
        raise CheckpointError(
            f"{source.name}: no weights found (model.safetensors, pytorch_model.bin, or either "
            "with .index.json and its shards)"
        )

    def _locate_shards(self, source: Source, index: str) -> dict[str, Path]:
        weight_map = source.read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(shard, str) for shard in weight_map.values()
        ):
            raise CheckpointError(f"{source.name}: {index}: weight_map must map tensors to files")
        paths = {shard: source.require(shard) for shard in sorted(set(weight_map.values()))}
        stored: dict[str, Path] = {}
        for path in paths.values():
            with self._mapped(path) as (names, _):
                stored.update(dict.fromkeys(names, path))
        for name, shard in weight_map.items():
            if stored.get(name) != paths[shard]:
                raise CheckpointError(
                    f"{source.name}: {index} says that {shard} holds {name}; it does not"
                )
        return stored

    def read(self, names: set[str]) -> Iterator[tuple[str, Tensor]]:
        for path in sorted({self.files[name] for name in names}):
            todo = sorted(name for name in names if self.files[name] == path)
            # torch's format before 1.6 cannot be mapped: it is read whole, and should be once.
            limit = _REMAP_BYTES if _can_be_mapped(path) else math.inf
            while todo:
                read_bytes = 0
                with self._mapped(path) as (_, get):
                    while todo and read_bytes < limit:
                        name = todo.pop(0)
                        try:
                            tensor = get(name)
                        except Exception as error:  # each library and version has its own
                            raise CheckpointError(
                                f"{path}: tensor {name} is unreadable: {error}"
                            ) from error
                        read_bytes += tensor.numel() * tensor.element_size()
                        yield name, tensor
                        del tensor

    def _mapped(
        self, path: Path
    ) -> AbstractContextManager[tuple[list[str], Callable[[str], Tensor]]]:
        return _map_safetensors(path) if path.suffix == ".safetensors" else _map_pickle(path)


class _map_safetensors:  # noqa: N801 - a context manager, named as a verb
    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            self._open = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: is not a whole safetensors file: {error}") from error

    def __enter__(self) -> tuple[list[str], Callable[[str], Tensor]]:
        file = self._open.__enter__()
        return list(file.keys()), file.get_tensor

    def __exit__(self, *exception: Any) -> None:
        self._open.__exit__(*exception)


def _can_be_mapped(path: Path) -> bool:
    return path.suffix == ".safetensors" or zipfile.is_zipfile(path)


def _map_pickle(path: Path) -> AbstractContextManager[tuple[list[str], Callable[[str], Tensor]]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path))
    except Exception as error:  # damage raises whatever the unpickler stumbles over
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: is not a whole file of plain tensors: {reason}") from error
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise CheckpointError(f"{path}: must hold a mapping of names to tensors")
    return nullcontext((list(content), content.__getitem__))
