"""Time `bark-fast bulk` beside `Bark.generate` on the same list, and kill it again and again.

    python -m bench bulk --model demo --rows 48 --runs 5 --kill-rows 500 --kills 10 --ray-rows 50

Both say the same texts with the same voices and seeds, in turns: what bulk takes more is what
files, journal and manifest cost. Then a run of `--kill-rows` rows is killed with SIGKILL at
`--kills` random moments and begun again. The folder must be that of a run that was left alone, byte
for byte; rows that were written twice are counted in its journal. Last, the command says
`--ray-rows` rows and five times as many, with and without `--ray` (one actor with all CPUs): what
Ray costs once and what it costs a row.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bark_fast import Bark, GenerationParams
from bark_fast.bulk import run as run_bulk
from bench.harness.arguments import add_common, begin, device_of, dtype_of
from bench.harness.results import Case, Spread

_RAY_TIMES = 5  # as many rows, in the longer runs
_TEXTS = Path(__file__).parents[2] / "recipes" / "demo_voice" / "everyday.txt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument("--model", default="demo", help="a folder, a hub id, or demo")
    parser.add_argument("--rows", type=int, default=48, help="that both say; 0 leaves this out")
    parser.add_argument("--kill-rows", type=int, default=0, help="of the run that is killed")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--ray-rows", type=int, default=0, help="that the command says on Ray too")
    parser.add_argument("--max-tokens", type=int, help="semantic tokens a row, at most")


def run(arguments: argparse.Namespace) -> int:
    results, _ = begin("bulk", arguments)
    bark = Bark.from_pretrained(
        arguments.model,
        device=device_of(arguments),
        dtype=dtype_of(arguments),
        impl=arguments.impl,
        local_files_only=True,
    )
    results.settings["size"] = results.settings["model"] = Path(arguments.model).name
    results.settings["load_average"] = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        if arguments.rows:
            results.cases.extend(side_by_side(bark, arguments, Path(folder)))
            results.write(arguments.json)
        if arguments.kill_rows:
            results.cases.append(killed(arguments, rows_of(arguments.kill_rows, bark, arguments)))
            results.write(arguments.json)
        if arguments.ray_rows:
            rows = rows_of(_RAY_TIMES * arguments.ray_rows, bark, arguments)
            results.cases.extend(ray_beside(arguments, rows, Path(folder)))
            results.write(arguments.json)
    return 0 if all(case.values.get("equal", True) for case in results.cases) else 1


def rows_of(n: int, bark: Bark, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return rows of everyday sentences in the model's voices by turns.

    Those that `stream` would split are left out, because `generate` says them otherwise.
    """
    texts = [
        text
        for text in _TEXTS.read_text(encoding="utf-8").splitlines()
        if len(bark.split(text, max_tokens=arguments.max_tokens)) == 1
    ]
    voices = bark.voices or [None]
    return [
        {
            "id": f"row-{i}",
            "text": texts[i % len(texts)],
            "voice": voices[i % len(voices)],
            "seed": arguments.seed + i,
            "max_semantic_tokens": arguments.max_tokens,
        }
        for i in range(n)
    ]


def side_by_side(bark: Bark, arguments: argparse.Namespace, folder: Path) -> list[Case]:
    """Say the same rows by turns with both; the first turn warms up."""
    rows = rows_of(arguments.rows, bark, arguments)
    params = [
        GenerationParams(seed=row["seed"], max_semantic_tokens=row["max_semantic_tokens"])
        for row in rows
    ]
    generate, bulk, audio_s = _Times(), _Times(), 0.0
    for turn in range(arguments.runs + 1):
        generate.begin()
        speeches = bark.generate(
            [row["text"] for row in rows], voice=[row["voice"] for row in rows], params=params
        )
        generate.end()
        bulk.begin()
        summary = run_bulk(rows, folder / str(turn), bark=bark)
        bulk.end()
        audio_s = sum(speech.duration_s for speech in speeches)
        same = math.isclose(summary.audio_s, audio_s)  # added in another order
        assert same, f"{summary} for {audio_s} s of speech"
        assert summary.done == len(rows)
    cases = [
        _case("Bark.generate", generate, len(rows), audio_s),
        _case("bulk", bulk, len(rows), audio_s),
    ]
    for name in ("wall_s", "cpu_s"):
        pairs = zip(getattr(bulk, name)[1:], getattr(generate, name)[1:], strict=True)
        key = "ratio" if name == "wall_s" else "cpu_ratio"
        cases[1].values[key] = Spread.of([b / g for b, g in pairs]).as_dict()
        print(f"bulk over generate, {name}: {cases[1].values[key]['median']:.3f}", flush=True)
    return cases


class _Times:
    """The times of one side's turns: by the clock, and of the processor, which others' load leaves
    alone (all but what waiting threads spin: --threads 1 has none)."""

    def __init__(self) -> None:
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []

    def begin(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def end(self) -> None:
        self.wall_s.append(time.perf_counter() - self._began[0])
        self.cpu_s.append(time.process_time() - self._began[1])


def _case(name: str, times: _Times, n_rows: int, audio_s: float) -> Case:
    spread = Spread.of(times.wall_s[1:])
    values = {
        "rows": n_rows, "audio_s": audio_s, "rows_per_s": n_rows / spread.median,
        "cpu_s": Spread.of(times.cpu_s[1:]).as_dict(),
    }  # fmt: skip
    print(f"{name}: {values['rows_per_s']:.2f} rows a second, {spread.median:.2f} s", flush=True)
    return Case(name, spread, values)


def killed(arguments: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> Case:
    """Compare a run that is killed again and again with one that is left alone."""
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        source = _write(rows, Path(folder, "rows.jsonl"))
        alone, out = Path(folder, "alone"), Path(folder, "out")
        start = time.perf_counter()
        assert _command(arguments, source, alone).wait() == 0
        alone_s = time.perf_counter() - start
        start, twice = time.perf_counter(), 0
        for kill in range(1, arguments.kills + 1):
            process = _command(arguments, source, out)
            # A random moment of each part of the run, however quick this machine is.
            until = int(len(rows) * (kill - 1 + moments.random()) / arguments.kills)
            while process.poll() is None and len(list(out.glob("*.wav"))) < max(1, until):
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, "it had ended before"
            lines = (out / ".bark-fast" / "journal.jsonl").read_bytes().split(b"\n")[:-1]
            times = Counter(json.loads(line)["key"] for line in lines)
            twice = sum(n - 1 for n in times.values())
            print(f"kill {kill}: {len(times)} rows done, {twice} written twice", flush=True)
        assert _command(arguments, source, out).wait() == 0
        seconds = time.perf_counter() - start
        equal = _tree(out) == _tree(alone)
    print(f"killed {arguments.kills} times: equal {equal}, {twice} rows written twice", flush=True)
    values = {
        "rows": len(rows), "kills": arguments.kills, "equal": equal, "written_twice": twice,
        "alone_s": alone_s, "rows_per_s": len(rows) / seconds,
    }  # fmt: skip
    return Case(f"killed {arguments.kills} times", Spread.of([seconds]), values)


def ray_beside(
    arguments: argparse.Namespace, rows: Sequence[dict[str, Any]], folder: Path
) -> list[Case]:
    """Time the command with and without Ray, by turns, for a part of the rows and for all."""
    few = len(rows) // _RAY_TIMES
    sizes = {n: _write(rows[:n], folder / f"rows-{n}.jsonl") for n in (few, len(rows))}
    on_ray = ["--ray", "--ray-actors", "1", "--ray-cpus", str(os.cpu_count())]
    times: dict[tuple[str, int], list[float]] = {}
    for turn in range(arguments.runs):
        for n, source in sizes.items():
            trees = []
            for name, options in (("command", []), ("command on Ray", on_ray)):
                out = folder / f"{name} {n} {turn}"
                start = time.perf_counter()
                assert _command(arguments, source, out, *options).wait() == 0
                times.setdefault((name, n), []).append(time.perf_counter() - start)
                trees.append(_tree(out))
            assert trees[0] == trees[1], f"{n} rows are others on Ray"
    cases = []
    for (name, n), seconds in times.items():
        spread = Spread.of(seconds)
        values = {"rows": n, "rows_per_s": n / spread.median}
        cases.append(Case(f"{name}, {n} rows", spread, values))
        print(f"{cases[-1].name}: {cases[-1].seconds.median:.2f} s", flush=True)
    for name in ("command", "command on Ray"):
        least = [min(times[name, n]) for n in sizes]
        a_row = (least[1] - least[0]) / (len(rows) - few)
        once = least[0] - few * a_row
        print(f"{name}: {once:.2f} s and {a_row * 1e3:.1f} ms a row", flush=True)
        cases.append(
            Case(
                f"{name}, each further row",
                Spread.of([a_row]),
                {"rows": 1, "rows_per_s": 1 / a_row, "once_s": once},
            )
        )
    return cases


def _write(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _command(
    arguments: argparse.Namespace, source: Path, out: Path, *more: str
) -> subprocess.Popen[bytes]:
    options = ["--model", arguments.model, "--device", arguments.device, "--dtype", arguments.dtype]
    options += more
    return subprocess.Popen(
        [sys.executable, "-m", "bark_fast", "bulk", str(source), str(out), *options],
        stderr=subprocess.DEVNULL,
    )


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
