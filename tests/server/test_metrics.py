"""/metrics as Prometheus' own parser reads it, after requests that are known."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from helpers.fake_backend import FakeBackend
from helpers.serving import ServerThread, server_thread, wait_until

SPEECH = {"model": "tts-1", "input": "One. Two.", "response_format": "pcm"}


def scrape(server: ServerThread) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return the value of each series, by its name and labels."""
    response = httpx.get(f"{server.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_counts() -> None:
    backend = FakeBackend(audio_s=0.5)
    with (
        server_thread(backend, max_input=20) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        for _ in range(3):
            assert client.post("/v1/audio/speech", json=SPEECH).status_code == 200
        assert client.post("/v1/audio/speech", json={**SPEECH, "input": "a" * 21}).is_error
        assert client.post("/v1/audio/speech", json={**SPEECH, "speed": "1.0"}).is_error
        assert client.post("/v1/audio/speech", json={**SPEECH, "model": "x"}).is_error
        assert client.post("/v1/audio/speech", content=b"a" * 70_000).is_error
        assert client.post("/v1/nothing", json=SPEECH).is_error
        assert client.get("/v1/audio/speech").is_error
        client.get("/health")
        client.get("/v1/models/tts-1")
        wait_until(server.is_idle, "it is not over")
        series = scrape(server)

    def requests(route: str, method: str, code: int) -> float:
        labels = (("code", str(code)), ("method", method), ("route", route))
        return series["bark_fast_http_requests_total", labels]

    assert requests("/v1/audio/speech", "POST", 200) == 3
    assert requests("/v1/audio/speech", "POST", 400) == 2
    assert requests("/v1/audio/speech", "POST", 404) == 1
    assert requests("/health", "GET", 200) == 1
    assert requests("/v1/models/{model_id:path}", "GET", 200) == 1
    rejections = {
        labels: n for (name, labels), n in series.items() if name == "bark_fast_rejections_total"
    }
    assert rejections == {(("code", "400"),): 2, (("code", "404"),): 1, (("code", "413"),): 1}
    for name in ("queue_wait_seconds", "time_to_first_audio_seconds", "real_time_factor"):
        assert series[f"bark_fast_{name}_count", ()] == 3
        assert series[f"bark_fast_{name}_bucket", (("le", "+Inf"),)] == 3
    for when in ("before_audio", "streaming"):
        assert series["bark_fast_disconnects_total", (("when", when),)] == 0
    assert series["bark_fast_requests_waiting", ()] == 0
    assert series["bark_fast_queued_audio_seconds", ()] == 0
    assert series["bark_fast_engine_submitted_total", ()] == 6
    assert series["bark_fast_engine_finished_total", ()] == 6
    assert series["bark_fast_engine_active", ()] == 0
    assert series["bark_fast_engine_audio_seconds_total", ()] == 3.0


def test_what_waits() -> None:
    with server_thread(FakeBackend(gated=True)) as server:
        with httpx.Client() as client, pytest.raises(httpx.ReadTimeout):
            client.post(f"{server.url}/v1/audio/speech", json=SPEECH, timeout=0.5)
        # The client above has left; one that has not is counted while it waits.
        wait_until(server.is_idle, "it is not over")
        ticket = server.service.admission.admit(12.5)
        series = scrape(server)
        ticket.set_aside()
    assert series["bark_fast_requests_waiting", ()] == 1
    assert series["bark_fast_queued_audio_seconds", ()] == 12.5


def test_clients_cannot_make_series() -> None:
    """Whatever they ask for."""
    with server_thread(FakeBackend()) as server, httpx.Client(base_url=server.url) as client:
        client.get("/nothing")
        client.request("BREW", "/health")
        client.get("/v1/models/nothing")
        client.get("/page/nothing")
        known = set(scrape(server))
        known = set(scrape(server))
        for i in range(30):
            client.get(f"/nothing-{i}")
            client.get(f"/v1/models/nothing-{i}")
            client.get(f"/page/nothing-{i}")
            client.request("BREW", "/health", headers={"x-request-id": str(i)})
        assert set(scrape(server)) == known
