"""Requests made up from the OpenAPI schema: no 500, and no answer that the schema does not know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from helpers.fake_backend import FakeBackend
from helpers.serving import ServerThread, server_thread


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


@pytest.mark.parametrize(
    ("label", "mode"),
    [
        # Only one of them takes anything that can be wrong.
        ("POST /v1/audio/speech", GenerationMode.NEGATIVE),
        *((label, GenerationMode.POSITIVE) for label in OPERATIONS),
    ],
)
def test_the_schema_holds(server: ServerThread, label: str, mode: GenerationMode) -> None:
    operation = operations(server)[label]
    made = 0

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        nonlocal made
        made += 1
        # Names of voices and languages, and what a tokenizer knows, are not in the schema.
        case.call_and_validate(timeout=60, excluded_checks=[positive_data_acceptance])

    check()
    assert made


def test_all_operations_are_tested(server: ServerThread) -> None:
    assert sorted(operations(server)) == sorted(OPERATIONS)


def test_the_schema_knows_the_ranges(server: ServerThread) -> None:
    """At their edges, what it allows is taken, and what it does not is refused."""
    schemas = httpx.get(f"{server.url}/openapi.json").json()["components"]["schemas"]
    body = {"model": "tts-1", "input": "One.", "response_format": "pcm"}
    tried = 0

    def status(name: str, value: float) -> int:
        return httpx.post(f"{server.url}/v1/audio/speech", json={**body, name: value}).status_code

    for name, field in schemas["SpeechRequest"]["properties"].items():
        is_integer = {"type": "integer"} in field.get("anyOf", [])
        for limit, step in (("minimum", -1), ("maximum", 1)):
            if limit in field:
                edge = int(field[limit]) if is_integer else field[limit]
                assert status(name, edge) == 200, (name, limit)
                assert status(name, edge + step) == 400, (name, limit)
                tried += 1
        for limit, step in (("exclusiveMinimum", 1), ("exclusiveMaximum", -1)):
            if limit in field:
                edge = int(field[limit]) if is_integer else field[limit]
                assert status(name, edge) == 400, (name, limit)
                assert status(name, edge + step) == 200, (name, limit)
                tried += 1
    assert tried == 4 + 4 + 2 * 4 + 2 + 1 + 1 + 1 + 2


def test_no_422_is_promised(server: ServerThread) -> None:
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    assert "/v1/audio/speech" in paths
    for path in paths.values():
        for operation in path.values():
            assert operation["responses"].keys() == {"200", "default"}
