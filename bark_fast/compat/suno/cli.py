"""The command line of suno's bark/cli.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bark_fast.audio import save_audio
from bark_fast.compat.suno.session import current, save_as_prompt
from bark_fast.errors import BarkFastError


def _flag(value: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if value.lower() not in known:
        raise argparse.ArgumentTypeError(f"must be True or False, got {value!r}")
    return known[value.lower()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bark_fast.compat.suno",
        description="Say a text, with the options of `python -m bark`.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--text", required=True, help="what to say")
    parser.add_argument("--output_filename", default="bark_generation.wav", help="the audio file")
    parser.add_argument("--output_dir", default=".", help="its folder, made if there is none")
    parser.add_argument("--history_prompt", help="the voice: a preset's name or an .npz file")
    for name, what in (("text_temp", "semantic"), ("waveform_temp", "coarse")):
        parser.add_argument(
            f"--{name}", type=float, default=0.7, help=f"the temperature of the {what} tokens"
        )
    parser.add_argument("--silent", type=_flag, default=False, help="show no progress bar")
    parser.add_argument(
        "--output_full",
        type=_flag,
        default=False,
        help="write a history prompt too, an .npz file of the same name",
    )
    return parser


def cli(arguments: Sequence[str] | None = None) -> None:
    """Say a text and write a WAV file of float samples, as suno's code does.

    What goes wrong is said on standard error, and the exit status is 1.
    """
    options = _parser().parse_args(arguments)
    try:
        written = _say(options)
    except (BarkFastError, OSError) as error:
        print(f"Oops, an error occurred: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"Done! Output audio file is saved at: '{written}'")


def _say(options: argparse.Namespace) -> Path:
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / str(options.output_filename)
    api = current()
    tokens, samples = api.generate_audio(
        options.text,
        history_prompt=options.history_prompt,
        text_temp=options.text_temp,
        waveform_temp=options.waveform_temp,
        silent=options.silent,
        output_full=True,
    )
    # A WAV file whatever its ending is.
    save_audio(path, samples, api.bark.sample_rate_hz, subtype="FLOAT", format="wav")
    if options.output_full:
        save_as_prompt(path.with_suffix(".npz"), tokens)
    return path
