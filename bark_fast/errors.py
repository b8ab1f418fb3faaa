"""The errors and the warning that this library raises on purpose.

All of them survive pickling and copying, because work that is spread over processes sends its
failures home that way.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar


class _Portable(BaseException):
    """An exception that can be pickled and copied, whatever its constructor takes.

    Attributes, notes and the cause come along. An exception among these that cannot be pickled, or
    not be made again on the other side, becomes a RuntimeError with its name and message.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: _pack(value) for name, value in self.__dict__.items()}
        cause, hidden = _pack(self.__cause__), self.__suppress_context__
        return _rebuild, (type(self), self.args, state, cause, hidden)

    def __copy__(self) -> Any:
        cause, hidden = self.__cause__, self.__suppress_context__
        return _rebuild(type(self), self.args, self.__dict__, cause, hidden)


_Error = TypeVar("_Error", bound=_Portable)


def _rebuild(
    cls: type[_Error],
    args: tuple[Any, ...],
    state: Mapping[str, Any],
    cause: Any,
    context_hidden: bool,
) -> _Error:
    """Return the exception again, without calling its constructor."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update({name: _unpack(value) for name, value in state.items()})
    error.__cause__ = _unpack(cause)
    error.__suppress_context__ = context_hidden
    return error


class _Packed:
    """An exception in a form that can always be pickled."""

    def __init__(self, error: BaseException) -> None:
        self.text = f"{type(error).__module__}.{type(error).__qualname__}: {error}"
        try:
            self.content: bytes | None = pickle.dumps(error)
        except Exception:  # it may hold anything: locks, files, responses
            self.content = None

    def unpack(self) -> BaseException:
        """Return the exception, or a RuntimeError that says what it was."""
        try:
            error = pickle.loads(self.content or b"")
        except Exception:  # its constructor takes something else, or its module is not here
            return RuntimeError(self.text)
        return error if isinstance(error, BaseException) else RuntimeError(self.text)


def _pack(value: Any) -> Any:
    """Return `value` with the exception that it is, or those in the list that it is, packed."""
    if isinstance(value, list):
        return [_pack(each) for each in value]
    return _Packed(value) if isinstance(value, BaseException) else value


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(each) for each in value]
    return value.unpack() if isinstance(value, _Packed) else value


class BarkFastError(_Portable, Exception):
    """The base of every error that this library raises on purpose."""


class InputError(BarkFastError, ValueError):
    """An argument is not what it must be; the message names it, the requirement and the value."""


class GenerationError(BarkFastError):
    """Some utterances of a list failed.

    Attributes:
        results: for each text, in order, its Speech or the error that it failed with.
    """

    def __init__(self, results: Sequence[Any]) -> None:
        self.results: list[Any] = list(results)
        errors = [(i, r) for i, r in enumerate(self.results) if isinstance(r, Exception)]
        index, first = errors[0]
        super().__init__(
            f"{len(errors)} of {len(self.results)} utterances failed; text {index}: {first!r} "
            "(results holds the others)"
        )


class ModelError(BarkFastError):
    """The model gave something that no speech can be made of; the message names the stage."""


class QueueFullError(BarkFastError):
    """More utterances would wait than an AsyncBark was allowed."""


class ClosedError(BarkFastError):
    """An AsyncBark was closed: it takes no more requests, and gave up those that were under way."""


class CheckpointError(BarkFastError, ValueError):
    """A checkpoint cannot be used; the message names the file, and the key or tensor."""


class BarkFastWarning(_Portable, UserWarning):
    """Something was done differently from what was asked, or gave nothing; the message says what
    and why."""
