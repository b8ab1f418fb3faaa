"""What HTTP costs: clients that read real answers, pairs that are compared, and all of it once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.cases.serve_http import Run, alternate, compare, first_audio
from bench.harness import arguments
from bench.harness.engines import LengthError
from bench.harness.machine import Limits
from bench.harness.results import Results
from bench.harness.sides import Clients, Heard, Order, Served
from helpers.fake_backend import FakeBackend
from helpers.serving import server_thread, wait_until

ORDER = Order("One. Two. Three.", "alloy", "pcm", {"seed": 1})
SENTENCE_BYTES = 9_600  # of PCM, of the made-up backend


class MadeUpSides:
    """Sides that take as long as it is said here."""

    def __init__(self, http_bytes: int = 96_000) -> None:
        self.called: list[str] = []
        self._http_bytes = http_bytes

    def in_library(self, orders: list[Order], arrivals: list[float]) -> Run:
        self.called.append("library")
        return Run(Served([Heard(0.5, 1.0, 96_000)] * len(orders), 2.0), cpu_s=1.0)

    def over_http(self, orders: list[Order], arrivals: list[float]) -> Run:
        self.called.append("http")
        return Run(Served([Heard(0.6, 1.2, self._http_bytes)] * len(orders), 2.1), cpu_s=1.4)

    def first_audio_s(self, way: str, order: Order) -> float:
        is_long = "." in order.text[:-1]
        self.called.append("long" if is_long else "alone")
        return 1.25 if is_long else 1.0


def test_clients_hear_all_and_when_it_began() -> None:
    backend = FakeBackend(gated=True)
    with server_thread(backend) as server:
        heard: list[Served] = []
        asking = threading.Thread(
            target=lambda: heard.append(Clients(server.port).run([ORDER, ORDER], [0.0, 0.0]))
        )
        asking.start()
        wait_until(lambda: backend.n_begun == 2, "the texts have not begun")
        backend.say(6)
        asking.join()
    assert [each.n_bytes for each in heard[0].heard] == [3 * SENTENCE_BYTES] * 2
    for each in heard[0].heard:
        assert 0 < each.first_audio_s <= each.latency_s <= heard[0].seconds


def test_a_client_leaves_after_the_first_audio() -> None:
    backend = FakeBackend(gated=True)
    with server_thread(backend) as server:
        backend.say()
        assert Clients(server.port).first_audio_s(ORDER) > 0
        wait_until(lambda: backend.n_active == 0, "the rest is still being said")
    assert backend.n_said == 1


def test_a_refusal_is_no_figure() -> None:
    wrong = Order("One.", "nobody", "pcm", {})
    with server_thread(FakeBackend()) as server, pytest.raises(RuntimeError, match="400"):
        Clients(server.port).run([wrong], [0.0])


def test_sides_take_turns_and_pairs_are_compared() -> None:
    sides = MadeUpSides()
    pairs = alternate(sides, [ORDER] * 4, [0.0] * 4, 3)  # type: ignore[arg-type]
    assert sides.called == ["library", "http", "http", "library", "library", "http"]
    case = compare("all at once", None, pairs, 24_000)
    values = case.values
    assert values["audio_s"] == 8.0
    assert values["ratio"]["median"] == pytest.approx(1.05)
    assert values["cpu_ms_a_request"]["median"] == pytest.approx(100)
    assert values["latency_ms_a_request"]["median"] == pytest.approx(200)
    assert values["library"]["requests_per_s"] == 2.0
    assert values["http"]["first_audio_p95_s"] == 0.6


def test_other_samples_are_no_figure() -> None:
    with pytest.raises(LengthError, match="the server"):
        alternate(MadeUpSides(http_bytes=2), [ORDER], [0.0], 1)  # type: ignore[arg-type]


def test_first_audio_is_compared_with_the_first_sentence() -> None:
    sides = MadeUpSides()
    case = first_audio(sides, "http", ORDER, 2)  # type: ignore[arg-type]
    assert sides.called[-4:] == ["alone", "long"] * 2
    assert case.values["ratio"]["median"] == 1.25
    assert case.values["sentences"] == 6


@pytest.mark.slow
def test_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(1e10, 1e10, 1e11, 1e11)
    monkeypatch.setattr(arguments, "measure_limits", lambda *_: limits)
    path = tmp_path / "results.json"
    options = [
        "--http", "--size", "demo", "--dtype", "float32", "--device", "cpu", "--threads", "1",
        "--count", "2", "--shortest", "8", "--longest", "16", "--runs", "1", "--rates", "5",
        "--answers", "3", "--json", str(path),
    ]  # fmt: skip
    assert main(["serve", *options]) == 0
    results = Results.read(path)
    assert results.kind == "serve_http"
    assert [case.name for case in results.cases] == [
        "all at once", "5 a second", "first audio, stream", "first audio, async",
        "first audio, http", "answers alone, pcm", "answers alone, mp3",
    ]  # fmt: skip
    loads, firsts, answers = results.cases[:2], results.cases[2:5], results.cases[5:]
    for case in loads:
        for side in ("library", "http"):
            assert case.values[side]["cpu_s"] > 0
            assert case.values[side]["first_audio_p50_s"] <= case.values[side]["latency_p50_s"]
    assert all(case.values["ratio"]["median"] > 0 for case in firsts)
    assert all(case.values["cpu_ms_a_request"]["median"] > 0 for case in answers)


def test_the_implementation_is_the_servers_choice() -> None:
    with pytest.raises(SystemExit, match="chooses"):
        main(["serve", "--http", "--impl", "torch"])
