"""The command `bark-fast`: speak, serve, list voices, show what is installed, make checkpoints."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from bark_fast import __version__
from bark_fast.bulk.command import add_bulk_options
from bark_fast.console import drop_unwritten, usable_streams
from bark_fast.errors import BarkFastError, BarkFastWarning, InputError
from bark_fast.say import add_say_options, add_source_options, source_options
from bark_fast.serve import add_serve_options

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, the shells' convention


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    with usable_streams():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", BarkFastWarning)
            warnings.showwarning = _show_warning
            arguments = _parser().parse_args(argv)
            status: int = arguments.run(arguments)
            sys.stdout.flush()  # here, where a reader that has gone is no failure
            return status
    except (BarkFastError, OSError, MemoryError) as error:
        drop_unwritten()
        if isinstance(error, BrokenPipeError):
            return 0  # the reader of our output has gone; nothing is wrong
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"bark-fast: error: {message}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("bark-fast: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _show_warning(
    message: Warning | str, category: type[Warning], *_: object, **__: object
) -> None:
    """Print our warnings, as one line without the place in the code, and no other library's."""
    if issubclass(category, BarkFastWarning):
        print(f"bark-fast: warning: {message}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others of this command."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="bark-fast", description="Text to speech with Bark, fast.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"bark-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_say_options(
        commands.add_parser("say", help="speak a text into an audio file", allow_abbrev=False)
    )
    add_serve_options(
        commands.add_parser(
            "serve", help="speak over HTTP, as OpenAI's API does", allow_abbrev=False
        )
    )
    add_bulk_options(
        commands.add_parser(
            "bulk", help="a file of texts into a folder of audio files", allow_abbrev=False
        )
    )
    _add_voices_options(
        commands.add_parser("voices", help="list a checkpoint's voices", allow_abbrev=False)
    )
    _add_info_options(
        commands.add_parser(
            "info", help="versions, device, kernels, what is missing", allow_abbrev=False
        )
    )
    _add_new_checkpoint_options(
        commands.add_parser(
            "new-checkpoint", help="write a checkpoint of random weights", allow_abbrev=False
        )
    )
    return parser


def _add_voices_options(voices: argparse.ArgumentParser) -> None:
    voices.set_defaults(run=_voices)
    add_source_options(voices)


def _add_info_options(info: argparse.ArgumentParser) -> None:
    info.set_defaults(run=_info)
    info.add_argument(
        "--kernels",
        action="store_true",
        help="compile the kernels for a GPU, which this machine need not have, and show what each "
        "takes: registers, shared memory, spills, instructions",
    )
    info.add_argument("--target", type=int, default=90, help="80, 90 or 100 (default: 90)")


def _add_new_checkpoint_options(new: argparse.ArgumentParser) -> None:
    new.set_defaults(run=_new_checkpoint)
    new.add_argument("folder", metavar="DIR")
    new.add_argument("--size", default="tiny", help="tiny, small or large (default: tiny)")
    new.add_argument("--seed", type=int, default=0)
    new.add_argument("--dtype", default="float32", help="float32, float16 or bfloat16")


def _voices(arguments: argparse.Namespace) -> int:
    from bark_fast.voices import open_voices

    for name in open_voices(arguments.model, **source_options(arguments)).names:
        print(name)
    return 0


def _info(arguments: argparse.Namespace) -> int:
    if arguments.kernels:
        return _info_kernels(arguments.target)
    import torch

    from bark_fast.kernels import choose_impl, why_no_openmp, why_not_native, why_onednn

    print(f"bark-fast     {__version__}")
    print(f"python        {platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in (
        "torch",
        "triton",
        "transformers",
        "safetensors",
        "numpy",
        "soundfile",
        "sentencex",
    ):
        print(f"{package:<13} {_version(package) or 'missing: pip install ' + package}")
    instructions = torch.backends.cpu.get_cpu_capability()
    print(f"cpu           {torch.get_num_threads()} threads, {instructions}")
    print(f"openmp        {why_no_openmp() or 'found'}")
    devices = [
        f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())
    ]
    print(f"cuda          {', '.join(devices) or 'no device seen'}")
    for device, dtype in (
        ("cpu", torch.float32),
        ("cpu", torch.bfloat16),
        ("cuda", torch.bfloat16),
    ):
        where = torch.device(device)
        chosen = choose_impl(where, dtype)
        why = None
        if chosen == "cpu":
            why = why_not_native(where, dtype) or why_onednn(where, dtype)
        because = f" (not native: {why})" if why else ""
        print(f"kernels       {chosen} on {device} in {str(dtype)[6:]}{because}")
    return 0


def _info_kernels(target: int) -> int:
    from bark_fast.kernels import aot

    if target not in aot.SHARED_LIMIT:
        raise InputError(f"--target must be one of {list(aot.SHARED_LIMIT)}, got {target}")
    return aot.main(["--targets", str(target), "--dtypes", "bfloat16"])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _new_checkpoint(arguments: argparse.Namespace) -> int:
    from bark_fast.checkpoint.random import create_checkpoint

    folder = create_checkpoint(
        arguments.folder, size=arguments.size, seed=arguments.seed, dtype=arguments.dtype
    )
    # A name need not be text, and then cannot be printed as it is.
    encoding = sys.stdout.encoding or "utf-8"
    print(str(folder).encode(encoding, "backslashreplace").decode(encoding))
    return 0
