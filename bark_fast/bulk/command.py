"""The command `bark-fast bulk`: a file of texts into a folder of audio files."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bark_fast.audio import FORMATS
from bark_fast.errors import InputError
from bark_fast.progress import counting_bar
from bark_fast.say import add_model_options, source_options

if TYPE_CHECKING:
    from bark_fast.bulk.runner import Summary

EXIT_ROWS_FAILED = 1
_LINE_EVERY_S = 60.0


def add_bulk_options(bulk: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    bulk.set_defaults(run=_bulk)
    bulk.add_argument(
        "input",
        metavar="IN",
        help=".jsonl, .csv or .parquet with rows of id, text and, if they have them, voice, "
        'language, seed and other parameters; a folder of such files; "-" is JSONL from standard '
        "input",
    )
    bulk.add_argument("out", metavar="OUT", help="the folder for the audio files and the manifest")
    bulk.add_argument("--format", default="wav", help=f"{', '.join(FORMATS)} (default: wav)")
    bulk.add_argument("--manifest", default="jsonl", help="jsonl or parquet (default: jsonl)")
    bulk.add_argument(
        "--seed", type=int, default=0, help="from which rows without a seed take one (default: 0)"
    )
    bulk.add_argument(
        "--pause",
        type=float,
        default=0.25,
        metavar="SECONDS",
        help="between sentences (default: 0.25)",
    )
    bulk.add_argument(
        "--shard", type=_shard, default=(0, 1), metavar="I/N", help="do the I-th of N parts, from 0"
    )
    bulk.add_argument(
        "--ignore-unknown", action="store_true", help="let rows have fields that mean nothing"
    )
    bulk.add_argument("--retry-errors", action="store_true", help="try rows that failed again")
    bulk.add_argument("--max-errors", type=int, metavar="N", help="stop when more rows failed")
    bulk.add_argument("--max-batch-size", type=int, metavar="N", help="see EngineOptions")
    bulk.add_argument("--kv-cache-gib", type=float, metavar="GIB", help="see EngineOptions")
    add_model_options(bulk)
    ray = bulk.add_argument_group("Ray", "many machines, each of which sees IN's voices and OUT")
    ray.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="of a cluster; without one that of RAY_ADDRESS, or a new one on this machine",
    )
    ray.add_argument(
        "--ray-actors", type=int, metavar="N", help="(default: as many as there is room for)"
    )
    ray.add_argument(
        "--ray-cpus", type=float, default=1.0, metavar="N", help="of each actor (default: 1)"
    )
    ray.add_argument(
        "--ray-gpus",
        type=float,
        metavar="N",
        help="of each actor; 0.5 is half of one (default: 1 if the cluster has any)",
    )


def _shard(text: str) -> tuple[int, int]:
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise InputError(f"--shard must be I/N with I from 0 to N - 1, got {text!r}")
    return int(i), int(n)


def _bulk(arguments: argparse.Namespace) -> int:
    from bark_fast.bulk.rows import read_rows
    from bark_fast.engine.options import EngineOptions

    rows = read_rows(arguments.input)
    model_options = {
        "device": arguments.device,
        "dtype": arguments.dtype,
        "engine": EngineOptions(
            max_batch_size=arguments.max_batch_size,
            kv_cache_gib=arguments.kv_cache_gib,
            threads=arguments.threads,
        ),
        **source_options(arguments),
    }
    run = _runner(arguments, model_options)
    with _reporting(_count(arguments.input, arguments.shard[1])) as report:
        summary = run(
            rows,
            arguments.out,
            format=arguments.format,
            manifest=arguments.manifest,
            seed=arguments.seed,
            pause_s=arguments.pause,
            shard=arguments.shard,
            ignored=None if arguments.ignore_unknown else (),
            retry_errors=arguments.retry_errors,
            max_errors=arguments.max_errors,
            report=report,
        )
    print(f"{arguments.out}: {_shown(summary)}", file=sys.stderr)
    if summary.ended_early:
        print("bark-fast: too many rows failed; run again to go on", file=sys.stderr)
    return EXIT_ROWS_FAILED if summary.failed else 0


def _runner(
    arguments: argparse.Namespace, model_options: Mapping[str, Any]
) -> Callable[..., Summary]:
    """Return what says rows: this process, or a cluster."""
    if arguments.ray is None:
        from bark_fast.bark import Bark
        from bark_fast.bulk.runner import run

        return partial(run, bark=Bark.from_pretrained(arguments.model, **model_options))
    from bark_fast.bulk.ray import Actors
    from bark_fast.bulk.ray import run as run_on_ray

    return partial(
        run_on_ray,
        model=arguments.model,
        model_options=model_options,
        address=arguments.ray or None,
        actors=Actors(arguments.ray_actors, arguments.ray_cpus, arguments.ray_gpus),
    )


def _count(source: str, n_shards: int) -> int | None:
    """Return about how many rows a shard has; None where they can be read only once."""
    from bark_fast.bulk.rows import read_rows

    if not (Path(source).is_file() or Path(source).is_dir()):
        return None
    return sum(1 for _ in read_rows(source)) // n_shards


@contextlib.contextmanager
def _reporting(n_rows: int | None) -> Iterator[Callable[[Summary], None]]:
    """Yield what shows how far a run is: a bar on a terminal, elsewhere a line a minute.

    Args:
        n_rows: about how many there are, if that is known.
    """
    if sys.stderr.isatty():
        with counting_bar("rows", enabled=True) as move:
            yield lambda summary: move(
                summary.done + summary.failed,
                max(summary.rows, n_rows or 0),
                _speed(summary),
            )
        return
    last = time.monotonic()

    def report(summary: Summary) -> None:
        nonlocal last
        if time.monotonic() - last >= _LINE_EVERY_S:
            last = time.monotonic()
            left_s = _left_s(summary, n_rows)
            eta = "" if left_s is None else f", about {timedelta(seconds=round(left_s))} left"
            print(f"{_shown(summary)}{eta}", file=sys.stderr, flush=True)

    yield report


def _left_s(summary: Summary, n_rows: int | None) -> float | None:
    """Return how long the rest takes at the speed so far; rows that were there cost nothing."""
    n_over = summary.done + summary.failed
    n_new = n_over - summary.skipped
    if n_rows is None or n_new == 0:
        return None
    return max(0, n_rows - n_over) * summary.elapsed_s / n_new


def _speed(summary: Summary) -> str:
    rate = summary.elapsed_s / summary.audio_s if summary.audio_s else 0.0
    return f"{summary.audio_s:.1f} s of speech, real-time factor {rate:.3f}"


def _shown(summary: Summary) -> str:
    return (
        f"{summary.done} of {summary.rows} rows done ({summary.skipped} before), "
        f"{summary.failed} failed, {summary.elapsed_s:.1f} s for {_speed(summary)}"
    )
