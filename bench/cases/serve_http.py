"""Measure what HTTP costs: the same requests through the library and through `bark-fast serve`.

The two take turns in one run, because a machine is never the same for long. The samples that they
make have to be as many. CPU time is that of the process that speaks, program or server; that of the
clients does not count.

A server whose speech is there already shows what its own work takes, and how many requests a second
it could answer if speaking took no time. The first audio of a long text is measured as well, beside
what its first sentence takes alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bark_fast.voices import open_voices
from bench.harness.checkpoint import DEMO
from bench.harness.engines import EngineSettings, LengthError
from bench.harness.results import Case, Results, Spread, percentile
from bench.harness.servers import PreparedServer, Server
from bench.harness.sides import Clients, Library, Order, Served
from bench.harness.worker import Worker
from bench.harness.workload import mixed_utterances

LONG = (
    "The weather is nice.",
    "We will go to the garden.",
    "The children play with a small dog.",
    "It rained for three days.",
    "My brother has a new bicycle.",
    "The train to the city was late.",
)
PREPARED_S = 4.0  # of speech, in an answer that is there already


@dataclass(frozen=True)
class Run:
    """One side's service of one load.

    Attributes:
        cpu_s: that the speaking process took.
    """

    served: Served
    cpu_s: float


class Sides:
    """Both sides, running; the library in a process, the server and its clients in two more."""

    def __init__(self, options: EngineSettings, work: Path) -> None:
        self._server = Server(options, work / "server.log")
        self._library = Worker(Library, options=options)
        self._clients: Worker | None = None

    def __enter__(self) -> Sides:
        return self

    def __exit__(self, *_: object) -> None:
        if self._clients is not None:
            self._clients.close()
        self._library.close()
        self._server.close()

    def wait(self) -> None:
        """Wait until both are ready."""
        self._server.wait()
        self._clients = Worker(Clients, port=self._server.port)
        self._clients.wait()
        self._library.wait()

    def in_library(self, orders: Sequence[Order], arrivals: Sequence[float]) -> Run:
        """Let the library serve all orders."""
        before = self._library.call("cpu_s")
        served = self._library.call("run", orders, arrivals)
        return Run(served, self._library.call("cpu_s") - before)

    def over_http(self, orders: Sequence[Order], arrivals: Sequence[float]) -> Run:
        """Let the server serve all orders."""
        assert self._clients is not None
        before = self._server.cpu_s()
        served = self._clients.call("run", orders, arrivals)
        return Run(served, self._server.cpu_s() - before)

    def first_audio_s(self, way: str, order: Order) -> float:
        """Return the seconds until the first audio, "stream", "async" or "http"."""
        if way != "http":
            return float(self._library.call("first_audio_s", order, in_tasks=way == "async"))
        assert self._clients is not None
        seconds = float(self._clients.call("first_audio_s", order))
        self._server.wait_until_idle()
        return seconds


def measure(
    checkpoint: Path,
    arguments: argparse.Namespace,
    results: Results,
    arrivals_at: Callable[[float, int], list[float]],
) -> None:
    """Measure all at once, each rate, and the first audio.

    Args:
        arrivals_at: returns the times of arrival at a rate, in requests a second, of at most so
            many requests.
    """
    options = EngineSettings(
        checkpoint,
        dtype=arguments.dtype,
        device=arguments.device,
        threads=arguments.threads,
        max_batch=arguments.max_batch,
    )
    voices = open_voices(checkpoint, local_files_only=True)
    orders = orders_of(arguments, voices.names[: arguments.voices])

    def add(case: Case, show: Callable[[Case], None]) -> Case:
        results.cases.append(case)
        show(case)
        results.write(arguments.json)
        return case

    with tempfile.TemporaryDirectory() as work, Sides(options, Path(work)) as sides:
        sides.wait()

        def pairs(name: str, arrivals: list[float], rate_per_s: float | None) -> Case:
            runs = alternate(sides, orders[: len(arrivals)], arrivals, arguments.runs)
            return add(compare(name, rate_per_s, runs, voices.config.sample_rate_hz), show_load)

        for run in (sides.in_library, sides.over_http):  # once, to warm up
            run(orders[:2], [0.0, 0.0])
        at_once = pairs("all at once", [0.0] * len(orders), None)
        capacity = at_once.values["library"]["requests_per_s"]
        results.settings["capacity_per_s"] = capacity
        for rate in arguments.rates or [load * capacity for load in arguments.loads]:
            name = f"{rate:g} a second" if arguments.rates else f"load {rate / capacity:.2g}"
            pairs(name, arrivals_at(rate, len(orders)), rate)
        for way in ("stream", "async", "http"):
            add(first_audio(sides, way, orders[0], arguments.runs), show_first)
    with Worker(PreparedServer, checkpoint=checkpoint, sentence_s=PREPARED_S) as server:
        for response_format in dict.fromkeys((arguments.format, "mp3")):
            order = replace(orders[0], text="Said.", response_format=response_format)
            add(answers_alone(server, order, arguments.answers, arguments.runs), show_answers)


def orders_of(arguments: argparse.Namespace, names: Sequence[str]) -> list[Order]:
    """Return the orders: texts of many lengths, the named voices in turn."""
    utterances = mixed_utterances(
        arguments.count,
        shortest=arguments.shortest,
        longest=arguments.longest,
        seed=arguments.seed,
    )
    orders = []
    for i, u in enumerate(utterances):
        params: dict[str, Any] = {"seed": i, "max_semantic_tokens": u.n_tokens}
        if arguments.size != DEMO:  # whose texts end by themselves
            params |= {"temperature": 0, "min_eos_p": 0}
        voice = names[i % len(names)]
        orders.append(Order(u.text, voice, arguments.format, params))
    return orders


def alternate(
    sides: Sides, orders: Sequence[Order], arrivals: Sequence[float], n_pairs: int
) -> list[tuple[Run, Run]]:
    """Run a load on both sides in turn; return (library, HTTP) of each pair.

    Which of the two goes first takes turns as well: what is left of one run may slow the next.

    Raises:
        LengthError: they made different numbers of samples.
    """
    pairs = []
    for i in range(n_pairs):
        if i % 2 == 0:
            library, http = sides.in_library(orders, arrivals), sides.over_http(orders, arrivals)
        else:
            http, library = sides.over_http(orders, arrivals), sides.in_library(orders, arrivals)
        pairs.append((library, http))
        if orders[0].response_format == "pcm":
            made = [[heard.n_bytes for heard in run.served.heard] for run in (library, http)]
            if made[0] != made[1]:
                raise LengthError(f"the library made {made[0]} bytes, the server {made[1]}")
    return pairs


def compare(
    name: str,
    rate_per_s: float | None,
    pairs: Sequence[tuple[Run, Run]],
    sample_rate_hz: int,
) -> Case:
    """Return the case of the pairs of one load."""
    library, http = zip(*pairs, strict=True)
    heard = library[0].served.heard
    n = len(heard)
    audio_s = sum(each.n_bytes for each in heard) / 2 / sample_rate_hz
    differences = {
        "ratio": [h.served.seconds / b.served.seconds for b, h in pairs],
        "cpu_ms_a_request": [1e3 * (h.cpu_s - b.cpu_s) / n for b, h in pairs],
        "latency_ms_a_request": [
            1e3 * (_mean_latency_s(h.served) - _mean_latency_s(b.served)) for b, h in pairs
        ],
    }
    return Case(
        name,
        Spread.of([run.served.seconds for run in http]),
        {
            "requests": n,
            "rate_per_s": rate_per_s,
            "audio_s": audio_s,
            "library": _side(library, audio_s),
            "http": _side(http, audio_s),
            **{key: Spread.of(runs).as_dict() for key, runs in differences.items()},
            "load_average": os.getloadavg()[0],
        },
    )


def _mean_latency_s(served: Served) -> float:
    return statistics.mean(heard.latency_s for heard in served.heard)


def _side(runs: Sequence[Run], audio_s: float) -> dict[str, Any]:
    """Return what is told of one side; percentiles are of all runs together."""
    seconds = Spread.of([run.served.seconds for run in runs])
    heard = [each for run in runs for each in run.served.heard]
    values: dict[str, Any] = {
        "seconds": seconds.as_dict(),
        "requests_per_s": len(runs[0].served.heard) / seconds.median,
        "audio_s_per_s": audio_s / seconds.median,
        "cpu_s": statistics.median(run.cpu_s for run in runs),
    }
    for name in ("first_audio_s", "latency_s"):
        for p in (50, 95):
            key = f"{name[:-2]}_p{p}_s"
            values[key] = percentile([getattr(each, name) for each in heard], p / 100)
    return values


def first_audio(sides: Sides, way: str, order: Order, n_pairs: int) -> Case:
    """Return the case of the first audio of a long text, beside its first sentence alone."""
    alone, long = (replace(order, text=text) for text in (LONG[0], " ".join(LONG)))
    sides.first_audio_s(way, alone)
    pairs = [(sides.first_audio_s(way, alone), sides.first_audio_s(way, long))
             for _ in range(n_pairs)]  # fmt: skip
    return Case(
        f"first audio, {way}",
        Spread.of([seconds for _, seconds in pairs]),
        {
            "sentences": len(LONG),
            "alone": Spread.of([seconds for seconds, _ in pairs]).as_dict(),
            "ratio": Spread.of([long_s / alone_s for alone_s, long_s in pairs]).as_dict(),
            "load_average": os.getloadavg()[0],
        },
    )


def answers_alone(server: Worker, order: Order, n: int, n_runs: int) -> Case:
    """Return the case of so many answers at once whose speech is there already."""
    with Worker(Clients, port=server.call("port")) as clients:
        clients.call("run", [order] * 4, [0.0] * 4)
        seconds, cpu_ms = [], []
        for _ in range(n_runs):
            before = server.call("cpu_s")
            seconds.append(clients.call("run", [order] * n, [0.0] * n).seconds)
            cpu_ms.append(1e3 * (server.call("cpu_s") - before) / n)
    median = statistics.median(seconds)
    return Case(
        f"answers alone, {order.response_format}",
        Spread.of(seconds),
        {
            "requests": n,
            "requests_per_s": n / median,
            "audio_s_per_s": n * PREPARED_S / median,
            "cpu_ms_a_request": Spread.of(cpu_ms).as_dict(),
            "load_average": os.getloadavg()[0],
        },
    )


def show_load(case: Case) -> None:
    v = case.values
    print(f"{case.name}: {v['requests']} requests, {v['audio_s']:.1f} s of audio")
    for name in ("library", "http"):
        side = v[name]
        print(
            f"  {name:8} {side['seconds']['median']:.2f} s, {side['requests_per_s']:.3g} requests "
            f"and {side['audio_s_per_s']:.2f} s of audio a second; first audio p50 "
            f"{side['first_audio_p50_s']:.3f} s, p95 {side['first_audio_p95_s']:.3f} s; latency "
            f"p50 {side['latency_p50_s']:.3f} s, p95 {side['latency_p95_s']:.3f} s; "
            f"CPU {side['cpu_s']:.2f} s"
        )
    print(
        f"  HTTP takes {v['ratio']['median'] - 1:+.1%} of the time, "
        f"{v['latency_ms_a_request']['median']:+.1f} ms of latency and "
        f"{v['cpu_ms_a_request']['median']:+.1f} ms of CPU a request "
        f"(load average {v['load_average']:.1f})",
        flush=True,
    )


def show_first(case: Case) -> None:
    v = case.values
    print(
        f"{case.name}: {case.seconds.median:.3f} s of {v['sentences']} sentences, "
        f"{v['alone']['median']:.3f} s of the first alone, ratio {v['ratio']['median']:.2f} "
        f"(load average {v['load_average']:.1f})",
        flush=True,
    )


def show_answers(case: Case) -> None:
    v = case.values
    print(
        f"{case.name}: {v['requests_per_s']:.3g} requests and {v['audio_s_per_s']:.3g} s of audio "
        f"a second, {v['cpu_ms_a_request']['median']:.2f} ms of CPU a request "
        f"(load average {v['load_average']:.1f})",
        flush=True,
    )
