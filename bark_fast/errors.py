"""The errors and the warning that this library raises on purpose, and those thrown in from outside.

Ours survive pickling and copying, because work that is spread over processes sends its failures
home that way.
"""

from __future__ import annotations

import dis
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType, TracebackType
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


class ProcessError(BarkFastError, RuntimeError):
    """Something was used in, or sent to, another process than the one that it belongs to."""


class CheckpointError(BarkFastError, ValueError):
    """A checkpoint cannot be used; the message names the file, and the key or tensor."""


class BarkFastWarning(_Portable, UserWarning):
    """Something was done differently from what was asked, or gave nothing; the message says what
    and why."""


_collected: ContextVar[list[str] | None] = ContextVar("collected warnings", default=None)


@contextmanager
def collected_warnings(messages: list[str]) -> Iterator[None]:
    """Add what `warn` says in this context to `messages`, each once, and give no warnings.

    A context is that of a thread, or of a task of asyncio with what it runs in threads, so that a
    server can tell each client of its own.
    """
    token = _collected.set(messages)
    try:
        yield
    finally:
        _collected.reset(token)


def warn(message: str, *, stacklevel: int) -> None:
    """Give a BarkFastWarning; `stacklevel` is that of `warnings.warn`, counted from the caller."""
    if (messages := _collected.get()) is not None:
        if message not in messages:
            messages.append(message)
        return
    try:
        warnings.warn(message, BarkFastWarning, stacklevel=stacklevel + 1)
    except ValueError:
        # Python has no care for a closed standard error. Nobody reads it: the speech goes on.
        if sys.stderr is None or not sys.stderr.closed:
            raise


# Exceptions from outside -------------------------------------------------------------------------

# Raised without a message by interpreter and libraries, where nothing was thrown in.
_BARE = (MemoryError, StopIteration, StopAsyncIteration)
_RAISING = {"RAISE_VARARGS", "RERAISE"}


def is_asynchronous(error: BaseException) -> bool:
    """Return True if `error`, or what it was raised from, was thrown in from outside.

    Python throws exceptions into code at any place: what a signal's handler raises
    (KeyboardInterrupt, or an alarm's own class, which may be an Exception like any other), and what
    another thread sets by PyThreadState_SetAsyncExc. They are for whoever called, and say nothing
    about what was running.

    Limits: a handler that is written in C and raises an Exception looks like a failure of what it
    interrupted, and so does an exception that another library has turned into one of its own. What
    comes while the callbacks of a future run is logged by `concurrent.futures`, as all that they
    raise.
    """
    seen: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in seen:
        if not isinstance(each, Exception) or _is_a_handlers(each) or _was_set(each):
            return True
        seen.append(each)
        each = each.__cause__
    return False


def _is_a_handlers(error: BaseException) -> bool:
    """Return True if a signal's handler raised it.

    Nothing else is called with the frame that called it. (Trace functions are, which throw
    exceptions into code as well.)
    """
    return any(
        frame.f_back is not None and frame.f_back in _frames_given_to(frame)
        for frame in (step.tb_frame for step in _traceback(error))
    )


def _frames_given_to(frame: FrameType) -> list[FrameType]:
    code = frame.f_code
    n_arguments = code.co_argcount + code.co_kwonlyargcount + 2  # *arguments and **keywords too
    values = [frame.f_locals.get(name) for name in code.co_varnames[:n_arguments]]
    values += [each for value in values if isinstance(value, tuple) for each in value]
    return [value for value in values if isinstance(value, FrameType)]


def _was_set(error: BaseException) -> bool:
    """Return True if another thread threw it in: Python makes it of its class alone, and where it
    arises nothing is raised."""
    steps = list(_traceback(error))
    if error.args or isinstance(error, _BARE) or not steps:
        return False
    last = steps[-1]
    opcode = last.tb_frame.f_code.co_code[last.tb_lasti]
    return dis.opname[opcode] not in _RAISING


def _traceback(error: BaseException) -> Iterator[TracebackType]:
    step = error.__traceback__
    while step is not None:
        yield step
        step = step.tb_next


def carry_out(call: Callable[[], None]) -> None:
    """Call `call`, once more if an exception from outside cuts it short, and raise that at the end.

    `call` must do no harm when it is begun again.
    """
    try:
        call()
    except BaseException as error:
        if is_asynchronous(error):
            call()
        raise
