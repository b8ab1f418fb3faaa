"""The command `bark-fast`: speak, list voices, show what is installed, make random checkpoints."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from bark_fast import __version__
from bark_fast.audio import check_audio_path, save_audio
from bark_fast.console import drop_unwritten, usable_streams
from bark_fast.errors import BarkFastError, BarkFastWarning, InputError
from bark_fast.files import check_path
from bark_fast.types import FloatArray, GenerationParams, Speech, Voice

if TYPE_CHECKING:
    from bark_fast.bark import Bark

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
    _add_say_options(
        commands.add_parser("say", help="speak a text into an audio file", allow_abbrev=False)
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


def _add_say_options(say: argparse.ArgumentParser) -> None:
    say.set_defaults(run=_say)
    say.add_argument("text", metavar="TEXT", help='what to say; "-" reads standard input')
    say.add_argument(
        "-o",
        "--output",
        default="speech.wav",
        metavar="FILE",
        help=".wav or .flac (default: speech.wav)",
    )
    say.add_argument("--subtype", help="PCM_16 (default), PCM_24 or, for .wav, FLOAT")
    say.add_argument("--voice", help="a preset's name (see `bark-fast voices`) or an .npz file")
    say.add_argument(
        "--save-voice", metavar="FILE", help="write the (first) speaker to an .npz file"
    )
    say.add_argument(
        "--language", default="en", help="of the text, for its abbreviations (default: en)"
    )
    say.add_argument(
        "--pause",
        type=float,
        default=0.25,
        metavar="SECONDS",
        help="between sentences (default: 0.25)",
    )
    _add_model_options(say)
    group = say.add_argument_group("sampling", "what is not given comes from the checkpoint")
    for field in fields(GenerationParams):
        kind = (
            int
            if field.name == "seed" or "top_k" in field.name or "tokens" in field.name
            else float
        )
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=kind,
            dest=f"param_{field.name}",
            metavar=kind.__name__.upper(),
        )
    quiet = say.add_mutually_exclusive_group()
    quiet.add_argument(
        "--progress",
        action="store_true",
        default=None,
        help="show a progress bar (default on a terminal)",
    )
    quiet.add_argument(
        "-q", "--quiet", action="store_false", dest="progress", default=None, help="print nothing"
    )


def _add_voices_options(voices: argparse.ArgumentParser) -> None:
    voices.set_defaults(run=_voices)
    _add_source_options(voices)


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


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="demo", help='a folder, a hub id, or "demo" (the default)'
    )
    parser.add_argument("--revision", help="of a hub repository")
    parser.add_argument("--offline", action="store_true", help="ask nothing of the network")


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    _add_source_options(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16, int8")


def _say(arguments: argparse.Namespace) -> int:
    params = GenerationParams(
        **{f.name: getattr(arguments, f"param_{f.name}") for f in fields(GenerationParams)}
    )
    check_audio_path(arguments.output, arguments.subtype, name="--output")
    if arguments.save_voice is not None:
        check_path(arguments.save_voice, Voice.ENDINGS, name="--save-voice")
    if not 0 <= arguments.pause <= 60:
        raise InputError(f"--pause must be from 0 to 60 seconds, got {arguments.pause:g}")
    text = _read_stdin() if arguments.text == "-" else arguments.text
    if not text.strip():
        raise InputError("TEXT must not be empty")

    from bark_fast.bark import Bark

    bark = Bark.from_pretrained(
        arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        revision=arguments.revision,
        local_files_only=arguments.offline,
    )
    progress = sys.stderr.isatty() if arguments.progress is None else arguments.progress
    parts = list(
        bark.stream(
            text,
            voice=arguments.voice,
            params=params,
            language=arguments.language,
            progress=progress,
        )
    )
    samples = _join(parts, bark.sample_rate_hz, arguments.pause)
    speaker = None if arguments.save_voice is None else _first_voice(parts, bark)
    save_audio(arguments.output, samples, bark.sample_rate_hz, subtype=arguments.subtype)
    if speaker is not None:
        speaker.save(arguments.save_voice)
    if arguments.progress is not False:
        spent = sum(sum(part.timings.values()) for part in parts)
        length = len(samples) / bark.sample_rate_hz
        print(
            f"{arguments.output}: {length:.2f} s of speech in {spent:.2f} s, seed {parts[0].seed}",
            file=sys.stderr,
        )
    return 0


def _join(parts: Sequence[Speech], sample_rate_hz: int, pause_s: float) -> FloatArray:
    """Return the samples of all parts, with a pause between two."""
    silence = np.zeros(round(pause_s * sample_rate_hz), dtype=np.float32)
    return np.concatenate([piece for part in parts for piece in (silence, part.samples)][1:])


def _first_voice(parts: Sequence[Speech], bark: Bark) -> Voice:
    """Return the voice of the first part that is long enough for one."""
    from bark_fast.voices import long_enough

    for part in parts:
        if long_enough(part.semantic_tokens, part.coarse_tokens, bark.config):
            return part.to_voice()
    raise InputError("--save-voice needs more speech than TEXT gave (a few tokens)")


def _read_stdin() -> str:
    if sys.stdin is None or sys.stdin.closed:
        raise InputError('TEXT must be given where standard input is closed, got "-"')
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input must be text in {error.encoding}: {error}") from error


def _voices(arguments: argparse.Namespace) -> int:
    from bark_fast.voices import open_voices

    for name in open_voices(
        arguments.model, revision=arguments.revision, local_files_only=arguments.offline
    ).names:
        print(name)
    return 0


def _info(arguments: argparse.Namespace) -> int:
    if arguments.kernels:
        return _info_kernels(arguments.target)
    import torch

    from bark_fast.kernels import choose_impl, why_no_openmp, why_not_native

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
    print(f"openmp        {why_no_openmp() or 'shared with torch'}")
    devices = [
        f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())
    ]
    print(f"cuda          {', '.join(devices) or 'no device seen'}")
    for device, dtype in (
        ("cpu", torch.float32),
        ("cpu", torch.bfloat16),
        ("cuda", torch.bfloat16),
    ):
        chosen = choose_impl(torch.device(device), dtype)
        why = why_not_native(torch.device(device), dtype) if chosen == "cpu" else None
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
    print(folder)
    return 0
