"""The command `bark-fast say`: a text into an audio file, written while it is said."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bark_fast.audio import FORMATS, AudioTarget, AudioWriter, check_audio_path
from bark_fast.errors import InputError
from bark_fast.files import check_path, check_writable
from bark_fast.tempo import MAX_SPEED, MIN_SPEED, change_tempo, check_speed
from bark_fast.types import GenerationParams, Speech, Voice
from bark_fast.validation import check_pause

if TYPE_CHECKING:
    from bark_fast.bark import Bark


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which checkpoint, and where it is."""
    parser.add_argument(
        "--model", default="demo", help='a folder, a hub id, or "demo" (the default)'
    )
    parser.add_argument("--revision", help="of a hub repository")
    parser.add_argument("--offline", action="store_true", help="ask nothing of the network")
    parser.add_argument("--cache-dir", metavar="DIR", help="where files from the hub are kept")
    parser.add_argument("--token", help="for the hub (default: the stored one, or HF_TOKEN)")
    parser.add_argument("--subfolder", default="", help="of the folder or hub repository")
    parser.add_argument("--variant", help="of the weights: fp16 for model.fp16.safetensors")


def source_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return how `add_source_options` was answered, as `Bark.from_pretrained` takes it."""
    names = ("revision", "cache_dir", "token", "subfolder", "variant")
    options = {name: getattr(arguments, name) for name in names}
    return {**options, "local_files_only": arguments.offline}


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which checkpoint, and how it is run."""
    add_source_options(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16, int8")
    parser.add_argument("--threads", type=int, metavar="N", help="that compute on a CPU")


def add_say_options(say: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    say.set_defaults(run=_say)
    say.add_argument("text", metavar="TEXT", help='what to say; "-" reads standard input')
    say.add_argument(
        "-o",
        "--output",
        default="speech.wav",
        metavar="FILE",
        help='.wav, .flac, .mp3, .opus, .aac, ...; "-" is standard output (default: speech.wav)',
    )
    say.add_argument(
        "--format",
        help=f"{', '.join(FORMATS)} (default: what the file's ending says, else wav)",
    )
    say.add_argument(
        "--subtype",
        help="PCM_16 (default), PCM_24 or, for wav and pcm, FLOAT; for ogg OPUS or VORBIS",
    )
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
    say.add_argument(
        "--speed",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help=f"faster or slower at the same pitch, {MIN_SPEED:g} to {MAX_SPEED:g} (default: 1)",
    )
    add_model_options(say)
    group = say.add_argument_group("sampling", "what is not given comes from the checkpoint")
    for field in fields(GenerationParams):
        if field.name == "normalize_text":
            continue
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
    say.add_argument(
        "--normalize-text",
        action=argparse.BooleanOptionalAction,
        dest="param_normalize_text",
        help="spell numbers, dates, money, units and abbreviations in words, in the language of "
        "the text (default: what the checkpoint says, for Bark's own no)",
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


def _say(arguments: argparse.Namespace) -> int:
    params = GenerationParams(
        **{f.name: getattr(arguments, f"param_{f.name}") for f in fields(GenerationParams)}
    )
    target = _check_output(arguments)
    if arguments.save_voice is not None:
        voice_path = check_path(arguments.save_voice, Voice.ENDINGS, name="--save-voice")
        check_writable(voice_path, name="--save-voice")
    check_pause("--pause", arguments.pause)
    check_speed(arguments.speed, name="--speed")
    text = _read_stdin() if arguments.text == "-" else arguments.text
    if not text.strip():
        raise InputError("TEXT must not be empty")
    if arguments.output != "-":
        return _speak(text, params, target, arguments)
    with contextlib.redirect_stdout(sys.stderr):  # so that nothing else gets among the audio
        return _speak(text, params, target, arguments)


def _check_output(arguments: argparse.Namespace) -> AudioTarget:
    """Return where the audio goes, if it can, with `arguments.format` settled for "-"."""
    if arguments.output != "-":
        path = check_audio_path(
            arguments.output, arguments.subtype, format=arguments.format, name="--output"
        )
        check_writable(cast(Path, path), name="--output")
        return path
    stdout = getattr(sys.stdout, "buffer", None)
    if stdout is None:
        raise InputError('--output must be a file where there is no standard output, got "-"')
    arguments.format = arguments.format or "wav"
    return check_audio_path(stdout, arguments.subtype, format=arguments.format, name="--output")


def _speak(
    text: str, params: GenerationParams, target: AudioTarget, arguments: argparse.Namespace
) -> int:
    """Say the text, writing each part as soon as it is there."""
    from bark_fast.bark import Bark
    from bark_fast.engine.options import EngineOptions

    bark = Bark.from_pretrained(
        arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        engine=EngineOptions(threads=arguments.threads),
        **source_options(arguments),
    )
    tell = arguments.progress is not False
    parts = bark.stream(
        text,
        voice=arguments.voice,
        params=params,
        language=arguments.language,
        pause_s=arguments.pause,
        progress=sys.stderr.isatty() if arguments.progress is None else arguments.progress,
    )
    writer = AudioWriter(
        target,
        bark.sample_rate_hz,
        subtype=arguments.subtype,
        format=arguments.format,
        name="--output",
    )
    said: list[Speech] = []
    try:
        with writer:
            _write(parts, said, writer, arguments, bark)
    except BaseException:
        if tell and writer.saved:
            kept = f"{arguments.output}: the first {writer.duration_s:.2f} s of speech"
            print(kept, file=sys.stderr)
        raise
    if tell:
        spent = sum(sum(part.timings.values()) for part in said)
        print(
            f"{arguments.output}: {writer.duration_s:.2f} s of speech in {spent:.2f} s, "
            f"seed {said[0].seed}",
            file=sys.stderr,
        )
    return 0


def _write(
    parts: Iterable[Speech],
    said: list[Speech],
    writer: AudioWriter,
    arguments: argparse.Namespace,
    bark: Bark,
) -> None:
    """Write each part when it comes, and add it to `said`; write the voice of the first that is
    long enough for one."""
    speaker: Voice | None = None
    for part in parts:
        writer.write(change_tempo(part.samples, part.sample_rate_hz, arguments.speed))
        said.append(part)
        if arguments.save_voice is not None and speaker is None:
            speaker = _voice_of(part, bark)
            if speaker is not None:
                speaker.save(arguments.save_voice)
    if arguments.save_voice is not None and speaker is None:
        raise InputError("--save-voice needs more speech than TEXT gave (a few tokens)")


def _voice_of(part: Speech, bark: Bark) -> Voice | None:
    """Return the voice of a part, if it is long enough for one."""
    from bark_fast.voices import long_enough

    enough = long_enough(part.semantic_tokens, part.coarse_tokens, bark.config)
    return part.to_voice() if enough else None


def _read_stdin() -> str:
    if sys.stdin is None or sys.stdin.closed:
        raise InputError('TEXT must be given where standard input is closed, got "-"')
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input must be text in {error.encoding}: {error}") from error
