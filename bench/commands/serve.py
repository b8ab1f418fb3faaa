"""Measure how long requests that arrive at random wait for their audio, by arrival rate.

    python -m bench serve --size small --dtype bfloat16 --loads 0.3 0.6 0.9

Arrivals are a Poisson process, seeded, so every run meets the same ones. Rates are given in
requests a second, or as shares of the capacity, which is measured first: how many requests a second
are made when all are there at once. The requests go through AsyncBark, as a server's would. Latency
is counted from the arrival to the samples, waiting included.

With --http the same requests go through the library and through `bark-fast serve` in turn: what
HTTP costs, and how soon the first sentence of a long text is heard.

    python -m bench serve --http --size demo --loads 0.6
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from bark_fast import AsyncBark, Bark, EngineOptions, GenerationParams
from bark_fast.checkpoint.random import SIZES
from bench.harness.arguments import add_checkpoint, add_common, begin, device_of, dtype_of
from bench.harness.checkpoint import DEMO, checkpoint_for
from bench.harness.results import Case, Results, Spread, percentile
from bench.harness.workload import Utterance, mixed_utterances


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common(parser, sizes=(*SIZES, DEMO))
    add_checkpoint(parser)
    parser.add_argument(
        "--loads", type=float, nargs="+", default=[0.3, 0.6, 0.9], help="shares of the capacity"
    )
    parser.add_argument("--rates", type=float, nargs="+", help="requests a second, instead")
    parser.add_argument("--seconds", type=float, default=60.0, help="of arrivals, for each rate")
    parser.add_argument("--count", type=int, default=64, help="requests for each rate, at most")
    parser.add_argument("--shortest", type=int, default=30, help="semantic tokens")
    parser.add_argument("--longest", type=int, default=200)
    parser.add_argument("--voices", type=int, default=2, choices=[1, 2, 3])
    parser.add_argument("--max-batch", type=int, help="of the engine")
    parser.add_argument("--http", action="store_true", help="measure what HTTP costs")
    parser.add_argument(
        "--answers", type=int, default=100, help="with --http, whose speech is there already"
    )
    parser.add_argument(
        "--format", default="pcm", choices=("pcm", "wav", "mp3", "opus", "flac"), help="with --http"
    )


@dataclass(frozen=True)
class Served:
    """The outcome of one rate's requests.

    Attributes:
        latencies_s: latency of each request.
        pending: how many others were under way when each arrived.
        audio_s: length of all audio.
        seconds: time from the first arrival to the last samples.
    """

    latencies_s: list[float]
    pending: list[int]
    audio_s: float
    seconds: float


def run(arguments: argparse.Namespace) -> int:
    if arguments.http and arguments.impl != "auto":
        raise SystemExit("--http: the server chooses its kernels' implementation itself")
    results, _ = begin("serve_http" if arguments.http else "serve", arguments)
    with checkpoint_for(
        arguments.checkpoint, size=arguments.size, seed=arguments.seed, dtype=arguments.dtype
    ) as checkpoint:
        if arguments.http:
            from bench.cases import serve_http  # needs the extra `serve`

            arrivals_at = partial(poisson_arrivals, seconds=arguments.seconds, seed=arguments.seed)
            serve_http.measure(checkpoint, arguments, results, arrivals_at)
            return 0
        bark = Bark.from_pretrained(
            checkpoint,
            device=device_of(arguments),
            dtype=dtype_of(arguments),
            impl=arguments.impl,
            engine=EngineOptions(max_batch_size=arguments.max_batch),
            local_files_only=True,
        )
        measure(bark, arguments, results)
    return 0


def measure(bark: Bark, arguments: argparse.Namespace, results: Results) -> None:
    """Warm up, measure the capacity if loads are shares of it, and then each rate."""
    bark.warm_up()
    utterances = mixed_utterances(
        arguments.count,
        n_voices=arguments.voices,
        shortest=arguments.shortest,
        longest=arguments.longest,
        seed=arguments.seed,
    )
    asyncio.run(serve(bark, utterances[:1], [0.0]))
    rates = arguments.rates
    if rates is None:
        first = utterances[:16]
        at_once = asyncio.run(serve(bark, first, [0.0] * len(first)))
        capacity = len(first) / at_once.seconds
        results.settings["capacity_per_s"] = capacity
        print(f"capacity {capacity:.2f} requests a second")
        rates = [load * capacity for load in arguments.loads]
    for i, rate in enumerate(rates):
        arrivals = poisson_arrivals(
            rate, arguments.count, seconds=arguments.seconds, seed=arguments.seed
        )
        served = asyncio.run(serve(bark, utterances[: len(arrivals)], arrivals))
        # The capacity differs from run to run, and names have to be the same.
        name = f"{rate:g} requests a second" if arguments.rates else f"load {arguments.loads[i]:g}"
        results.cases.append(summarize(name, rate, served))
        print_case(results.cases[-1])
        results.write(arguments.json)


def poisson_arrivals(rate_per_s: float, most: int, *, seconds: float, seed: int) -> list[float]:
    """Return at least two and at most `most` times of arrival in order, the first at zero."""
    rng = random.Random(seed)
    times = [0.0]
    while len(times) < most:
        # The same draws for every rate: a higher rate is the same arrivals, closer together.
        times.append(times[-1] + rng.expovariate(1.0) / rate_per_s)
        if times[-1] > seconds and len(times) > 2:
            return times[:-1]
    return times


async def serve(bark: Bark, utterances: Sequence[Utterance], arrivals: Sequence[float]) -> Served:
    """Submit each utterance at its time of arrival, and wait for all."""
    speaker = AsyncBark(bark)
    start = time.perf_counter()
    pending: list[int] = []
    active = 0

    async def one(utterance: Utterance, arrival: float) -> tuple[float, float]:
        nonlocal active
        await asyncio.sleep(max(0.0, start + arrival - time.perf_counter()))
        pending.append(active)
        active += 1
        speech = await speaker.generate(
            utterance.text,
            voice=utterance.voice,
            params=GenerationParams(
                temperature=0, min_eos_p=0, max_semantic_tokens=utterance.n_tokens
            ),
        )
        active -= 1
        return time.perf_counter() - start - arrival, speech.duration_s

    done = await asyncio.gather(*(one(*each) for each in zip(utterances, arrivals, strict=True)))
    return Served(
        latencies_s=[latency for latency, _ in done],
        pending=pending,
        audio_s=sum(audio_s for _, audio_s in done),
        seconds=time.perf_counter() - start,
    )


def summarize(name: str, rate: float, served: Served) -> Case:
    latencies = served.latencies_s
    return Case(
        name,
        Spread.of(latencies),
        {
            "rate_per_s": rate,
            "requests": len(latencies),
            "latency_p50_s": percentile(latencies, 0.5),
            "latency_p95_s": percentile(latencies, 0.95),
            "latency_max_s": max(latencies),
            "pending_mean": sum(served.pending) / len(served.pending),
            "pending_max": max(served.pending),
            "audio_s_per_s": served.audio_s / served.seconds,
        },
    )


def print_case(case: Case) -> None:
    v = case.values
    kinds = ("p50", "p95", "max")
    latency = ", ".join(f"{kind} {v[f'latency_{kind}_s']:.2f} s" for kind in kinds)
    print(
        f"{case.name}: {v['requests']} requests, {v['rate_per_s']:.3g} a second; "
        f"latency {latency}; under way at an arrival {v['pending_mean']:.1f}, "
        f"at most {v['pending_max']}; "
        f"{v['audio_s_per_s']:.2f} s of audio a second",
        flush=True,
    )
