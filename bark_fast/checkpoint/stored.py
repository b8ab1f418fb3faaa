"""The tensors of a checkpoint, by name, wherever they are stored.

transformers' files are model.safetensors, model.safetensors.index.json with its shards,
pytorch_model.bin, and pytorch_model.bin.index.json with its shards, each with a variant's name
before its ending if one is asked for; `checkpoint.suno` knows suno's.
Files are mapped and copied tensor by tensor, and mapped anew every `_REMAP_BYTES`, because pages
that were read count as resident until their mapping ends.
"""

from __future__ import annotations

import math
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from bark_fast.checkpoint.source import Source
from bark_fast.checkpoint.unreadable import in_one_line, why_unreadable
from bark_fast.errors import CheckpointError

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_REMAP_BYTES = 64 * 2**20
_SAFE_GLOBALS_LOCK = threading.Lock()  # torch's list is one for all threads


class StoredTensors(Protocol):
    """Tensors by name, read one by one.

    Attributes:
        where: their place, for error messages.
        shared: what is read may be kept without a copy, and must not be written to, because
            someone else uses it too.
        names: the names of all of them.
    """

    where: str
    shared: bool
    names: set[str]

    def read(self, names: set[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield each of `names` with its tensor.

        Unless they are `shared`, a tensor is valid until the next one is asked for.
        """
        ...


class TensorsInMemory:
    """Tensors in memory whose owner goes on using them, such as a module's."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self.where = where
        self.shared = True
        self.names = set(tensors)
        self._tensors = tensors

    def read(self, names: set[str]) -> Iterator[tuple[str, Tensor]]:
        for name in sorted(names):
            yield name, self._tensors[name]


class RenamedTensors:
    """The tensors of `stored` under other names.

    Raises:
        CheckpointError: `rename` gives two of them the same name.
    """

    def __init__(self, stored: StoredTensors, rename: Callable[[str], str]) -> None:
        self.where, self.shared = stored.where, stored.shared
        self._stored = stored
        self._old: dict[str, str] = {}
        for name in sorted(stored.names):
            other = self._old.setdefault(rename(name), name)
            if other != name:
                raise CheckpointError(f"{self.where}: {other} and {name} are the same tensor")
        self.names = set(self._old)

    def read(self, names: set[str]) -> Iterator[tuple[str, Tensor]]:
        new = {self._old[name]: name for name in names}
        for name, tensor in self._stored.read(set(new)):
            yield new[name], tensor


class JoinedTensors:
    """The tensors of several `parts`, whose names must differ."""

    def __init__(self, parts: Sequence[StoredTensors], where: str) -> None:
        self.where, self.shared = where, all(part.shared for part in parts)
        self._parts = parts
        self.names = {name for part in parts for name in part.names}

    def read(self, names: set[str]) -> Iterator[tuple[str, Tensor]]:
        for part in self._parts:
            yield from part.read(names & part.names)


Mapped = AbstractContextManager[tuple[list[str], Callable[[str], Tensor]]]
"""An open file: the names in it, and a function from a name to its tensor."""


class _TensorsByFile:
    """The base of tensors in files: a subclass sets `files` (tensor name -> file) and opens one."""

    where: str
    shared = False  # a mapping's pages count as resident until it ends
    names: set[str]
    files: dict[str, Path]

    def _mapped(self, path: Path) -> Mapped:
        raise NotImplementedError

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
                                f"{path}: tensor {name} is unreadable: {in_one_line(error)}"
                            ) from error
                        read_bytes += tensor.numel() * tensor.element_size()
                        yield name, tensor
                        del tensor


def _with_variant(file: str, variant: str | None) -> str:
    """Return the name of the file of a variant: "model.fp16.safetensors"."""
    if variant is None:
        return file
    stem, _, ending = file.rpartition(".")
    return f"{stem}.{variant}.{ending}"


class TensorsInFiles(_TensorsByFile):
    """The tensors of one file or of several shards, in transformers' layout."""

    def __init__(self, source: Source) -> None:
        self.where = source.name
        self.files = self._locate(source)
        self.names = set(self.files)

    def _locate(self, source: Source) -> dict[str, Path]:
        """Return the file of each tensor."""
        files = [_with_variant(file, source.variant) for file in _WEIGHTS]
        for file, plain in zip(files, _WEIGHTS, strict=True):
            path = source.find(file)
            if path is not None:
                with self._mapped(path) as (names, _):
                    return dict.fromkeys(names, path)
            index = _with_variant(f"{plain}.index.json", source.variant)
            if source.find(index) is not None:
                return self._locate_shards(source, index)
        raise source.missing(
            f"no weights found ({', '.join(files)}, or either with .index.json and its shards)"
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

    def _mapped(self, path: Path) -> Mapped:
        if path.suffix == ".safetensors":
            return _map_safetensors(path)
        return _plain_tensors(read_pickle(path), str(path))


class TensorsInPickle(_TensorsByFile):
    """The tensors of one file that torch.save wrote.

    Args:
        key: what they are under, in a file that holds more than them.
        unread: as in `read_pickle`.
    """

    def __init__(self, path: Path, *, key: str | None = None, unread: Sequence[str] = ()) -> None:
        self.where = str(path)
        self._key, self._unread = key, unread
        with self._mapped(path) as (names, _):
            self.files = dict.fromkeys(names, path)
        self.names = set(self.files)

    def _mapped(self, path: Path) -> Mapped:
        content = read_pickle(path, unread=self._unread)
        if self._key is None:
            return _plain_tensors(content, str(path))
        within = content.get(self._key) if isinstance(content, Mapping) else None
        return _plain_tensors(within, f"{path}: {self._key}")


class _map_safetensors:  # noqa: N801 - a context manager, named as a verb
    """Open a safetensors file."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        try:
            self._open = safe_open(path, framework="pt")
        except Exception as error:  # SafetensorError and OSError; a header may bring others
            reason = why_unreadable(path, error)
            raise CheckpointError(f"{path}: is not a whole safetensors file: {reason}") from error

    def __enter__(self) -> tuple[list[str], Callable[[str], Tensor]]:
        file = self._open.__enter__()
        return list(file.keys()), file.get_tensor

    def __exit__(self, *exception: Any) -> None:
        self._open.__exit__(*exception)


def _can_be_mapped(path: Path) -> bool:
    return path.suffix == ".safetensors" or zipfile.is_zipfile(path)


class _Unread:
    """Stands where a file has an object of a class that must not be made."""

    def __init__(self, *arguments: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


@contextmanager
def _stand_ins(names: Sequence[str]) -> Iterator[None]:
    """Let torch.load take `_Unread` for the classes and functions of these full names.

    What the program itself allows under one of the names is off torch's list meanwhile, because of
    two entries for one name torch would take either. Other entries stay: the list is one for all
    threads.
    """
    stand_ins: list[Any] = [(_Unread, name) for name in names]
    with _SAFE_GLOBALS_LOCK:
        allowed = torch.serialization.get_safe_globals()
        hidden = [entry for entry in allowed if _full_name(entry) in names]
        with torch.serialization.safe_globals(stand_ins):
            try:
                # torch takes entries off its list at the end of such a block, and nowhere else.
                with torch.serialization.safe_globals(hidden):
                    pass
                yield
            finally:
                torch.serialization.add_safe_globals(hidden)


def _full_name(allowed: Any) -> str:
    """Return the name that torch knows an entry of its list of safe globals by."""
    if isinstance(allowed, tuple):
        return str(allowed[1])
    return f"{allowed.__module__}.{allowed.__qualname__}"


def read_pickle(path: Path, *, unread: Sequence[str] = ()) -> Any:
    """Read a file that torch.save wrote of tensors and plain containers; mapped, if it can be.

    Args:
        unread: full names of classes and functions that the file may use. They are not called, and
            what they would make is left out.

    Raises:
        CheckpointError: the file is damaged, or holds anything else.
    """
    try:
        with _stand_ins(unread) if unread else nullcontext():
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path)
            )
    except Exception as error:  # damage raises whatever the unpickler stumbles over
        reason = why_unreadable(path, error)
        raise CheckpointError(f"{path}: is not a whole file of plain tensors: {reason}") from error


def _plain_tensors(content: Any, where: str) -> Mapped:
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise CheckpointError(f"{where}: must hold a mapping of names to tensors")
    return nullcontext((list(content), content.__getitem__))
