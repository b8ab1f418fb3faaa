"""What the server measures, for Prometheus to scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from bark_fast.engine.stats import EngineStats
from bark_fast.server.admission import Admission

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, float("inf"))
_FACTORS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, float("inf"))


class Metrics:
    """The metrics of one server; the engine's are read when they are asked for.

    Args:
        admission: counts what waits.
        stats: returns the engine's statistics, or None before it is there.
    """

    def __init__(self, admission: Admission, stats: Callable[[], EngineStats | None]) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "bark_fast_http_requests",
            "Requests by route, method and status; 499 is a client that left before an answer.",
            ["route", "method", "code"],
            registry=registry,
        )
        self.queue_wait_s = Histogram(
            "bark_fast_queue_wait_seconds",
            "From a request's arrival until its first sentence was worked on, all waits together.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.time_to_first_audio_s = Histogram(
            "bark_fast_time_to_first_audio_seconds",
            "From a request's arrival until the audio of its first sentence was there.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.real_time_factor = Histogram(
            "bark_fast_real_time_factor",
            "Seconds that a whole request took for each second of its speech.",
            buckets=_FACTORS,
            registry=registry,
        )
        self.disconnects = Counter(
            "bark_fast_disconnects",
            "Clients that left: before their first audio, or while it was sent.",
            ["when"],
            registry=registry,
        )
        self.broken_off = Counter(
            "bark_fast_broken_off",
            "Answers that ended before their end: failed, stalled (a reader), too_long, closed.",
            ["why"],
            registry=registry,
        )
        self.rejections = Counter(
            "bark_fast_rejections",
            "Requests for speech that were turned away, by status.",
            ["code"],
            registry=registry,
        )
        # Series that are there from the start, so that a rate of zero is seen as one.
        for when in ("before_audio", "streaming"):
            self.disconnects.labels(when)
        waiting = Gauge(
            "bark_fast_requests_waiting",
            "Requests that wait for speech or are being spoken.",
            registry=registry,
        )
        waiting.set_function(lambda: admission.n_requests)
        queued = Gauge(
            "bark_fast_queued_audio_seconds",
            "Speech that those are estimated to need still.",
            registry=registry,
        )
        queued.set_function(lambda: admission.audio_s)
        registry.register(_EngineCollector(stats))

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """The engine's statistics, as they are when they are asked for."""

    _TOTALS = ("submitted", "finished", "failed", "cancelled", "preempted")
    _STAGE_TOTALS = ("batches", "tokens", "prefill_tokens")
    _STAGE_NOW = ("waiting", "used_pages", "total_pages")

    def __init__(self, stats: Callable[[], EngineStats | None]) -> None:
        self._stats = stats

    def describe(self) -> Iterator[Any]:
        return iter(())  # nothing is asked of the engine when this is registered

    def collect(self) -> Iterator[Any]:
        stats = self._stats()
        if stats is None:
            return
        for name in self._TOTALS:
            yield CounterMetricFamily(
                f"bark_fast_engine_{name}", f"Utterances {name}.", value=getattr(stats, name)
            )
        yield GaugeMetricFamily(
            "bark_fast_engine_active", "Utterances in the engine.", value=stats.active
        )
        for name in ("audio_s", "busy_s"):
            yield CounterMetricFamily(
                f"bark_fast_engine_{name[:-2]}_seconds",
                "Audio made." if name == "audio_s" else "Time with anything under way.",
                value=getattr(stats, name),
            )
        for names, family in (
            (self._STAGE_TOTALS, CounterMetricFamily),
            (self._STAGE_NOW, GaugeMetricFamily),
        ):
            for name in names:
                metric = family(
                    f"bark_fast_engine_stage_{name}", f"{name} of each stage.", labels=["stage"]
                )
                for stage, of_stage in stats.stages.items():
                    metric.add_metric([stage], getattr(of_stage, name))
                yield metric
        busy = CounterMetricFamily(
            "bark_fast_engine_stage_busy_seconds",
            "Time with a batch of the stage under way.",
            labels=["stage"],
        )
        for stage, of_stage in stats.stages.items():
            busy.add_metric([stage], of_stage.busy_s)
        yield busy
