"""Requests made up from the OpenAPI schema: no 500, and no answer that the schema does not know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from helpers.serving import FakeBackend, ServerThread, server_thread


@pytest.fixture(scope="module")
def server() -> Iterator[ServerThread]:
    with server_thread(FakeBackend(audio_s=0.02)) as server:
        yield server


OPERATIONS = [
    "POST /v1/audio/speech",
    "GET /v1/models",
    "GET /v1/models/{model_id}",
    "GET /v1/audio/models",
    "GET /v1/audio/voices",
    "GET /health",
    "GET /ready",
    "GET /metrics",
]


def operations(server: ServerThread) -> dict[str, Any]:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    return {result.ok().label: result.ok() for result in schema.get_all_operations()}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("label", OPERATIONS)
def test_the_schema_holds(server: ServerThread, label: str, mode: GenerationMode) -> None:
    operation = operations(server)[label]
    if mode == GenerationMode.NEGATIVE and operation.method == "get":
        pass
    made = 0

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        nonlocal made
        made += 1
        case.call_and_validate(timeout=60)

    check()
    assert made


def test_all_operations_are_tested(server: ServerThread) -> None:
    assert sorted(operations(server)) == sorted(OPERATIONS)


def test_no_422_is_promised(server: ServerThread) -> None:
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    assert "/v1/audio/speech" in paths
    for path in paths.values():
        for operation in path.values():
            assert operation["responses"].keys() == {"200", "default"}
