"""What comes in wrong is refused with 400 (never 422), in OpenAI's shape, with the field named."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bark_fast.voices import open_voices
from helpers.fake_backend import FakeBackend
from helpers.serving import ServerThread, server_thread

GOOD = {"model": "tts-1", "input": "One. Two.", "voice": "alloy", "response_format": "pcm"}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerThread]:
    with server_thread(FakeBackend(audio_s=0.05), max_input=5000) as server:
        yield server


def post(server: ServerThread, **fields: Any) -> httpx.Response:
    body = json.dumps({**GOOD, **fields})  # httpx would refuse NaN
    return httpx.post(f"{server.url}/v1/audio/speech", content=body, headers=JSON)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """Return the error of a response, after a check of its shape."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert 0 < len(body["error"]["message"]) <= 500
    return body["error"]


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("input", {"input": ""}, "must not be empty"),
    ("input", {"input": " \n\t "}, "must not be empty"),
    ("input", {"input": None}, "valid string"),
    ("input", {"input": 3}, "valid string"),
    ("input", {"input": "\ud800"}, "Unicode"),
    ("input", {"input": "a" * 5001}, "at most 5000 characters, got 5001"),
    ("input", {"input": "你" * 4096}, "at most 600 s to say, and would take about 910"),
    ("voice", {"voice": "../x.npz"}, "must be one that GET /v1/audio/voices lists"),
    ("voice", {"voice": "nobody"}, "must be one that"),
    ("voice", {"voice": ""}, "must be one that"),
    ("voice", {"voice": "\ud800"}, ""),
    ("voice", {"voice": {"id": "../x.npz"}}, "must be one that"),
    ("voice", {"voice": {"id": 3}}, ""),
    ("voice", {"voice": {}}, ""),
    ("voice", {"voice": ["alloy"]}, ""),
    ("voice", {"voice": "x" * 10_000}, "must be one that"),
    ("speed", {"speed": float("nan")}, "got nan"),
    ("speed", {"speed": float("inf")}, "got inf"),
    ("speed", {"speed": "1.0"}, "got '1.0'"),
    ("speed", {"speed": 0.1}, "greater than or equal to 0.25"),
    ("speed", {"speed": 4.1}, "less than or equal to 4"),
    ("speed", {"speed": True}, "got True"),
    ("seed", {"seed": 2**64}, "from 0 to 2**64 - 1, got 18446744073709551616"),
    ("seed", {"seed": 10**4000}, "from 0 to 2**64 - 1, got 1000"),
    ("seed", {"seed": -1}, "got -1"),
    ("seed", {"seed": 1.5}, "got 1.5"),
    ("seed", {"seed": True}, "got True"),
    ("temperature", {"temperature": float("nan")}, "temperature must be"),
    ("temperature", {"temperature": -1}, "temperature must be"),
    ("coarse_top_p", {"coarse_top_p": 0}, "coarse_top_p must be"),
    ("fine_top_k", {"fine_top_k": 0.5}, "integer"),
    ("normalize_text", {"normalize_text": "../de"}, "normalize_text must be"),
    ("response_format", {"response_format": "wma"}, "'mp3'"),
    ("stream_format", {"stream_format": "events"}, "'sse'"),
    ("stream", {"stream": "yes"}, "boolean"),
    ("model", {"model": None}, "valid string"),
]


@pytest.mark.parametrize(("param", "fields", "message"), WRONG)
def test_a_wrong_field_is_named(
    server: ServerThread, param: str, fields: dict[str, Any], message: str
) -> None:
    before = len(server.backend.calls)
    response = post(server, **fields)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert param in error["message"]
    assert message in error["message"]
    assert len(server.backend.calls) == before


@pytest.mark.parametrize("field", ["model", "input"])
def test_a_missing_field_is_named(server: ServerThread, field: str) -> None:
    body = {name: value for name, value in GOOD.items() if name != field}
    response = httpx.post(f"{server.url}/v1/audio/speech", json=body)
    assert response.status_code == 400
    assert error_of(response)["param"] == field
    assert error_of(response)["message"] == f"{field} is missing"


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"", {}),
        (b"", JSON),
        (b"{", JSON),
        (b"null", JSON),
        (b"[]", JSON),
        (b'"One."', JSON),
        (b"\xff", JSON),
        (b'{"model": "tts-1", "input": "\xff"}', JSON),
        (b"[" * 10_000, JSON),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, JSON),
        (b'{"model": "tts-1", "input": "One.", "seed": ' + b"9" * 5000 + b"}", JSON),
        (json.dumps(GOOD).encode(), {}),
        (json.dumps(GOOD).encode(), {"content-type": "text/plain"}),
        (json.dumps(GOOD).encode(), {"content-type": "application/x-www-form-urlencoded"}),
    ],
)
def test_a_body_that_is_no_json(
    server: ServerThread, content: bytes, headers: dict[str, str]
) -> None:
    response = httpx.post(f"{server.url}/v1/audio/speech", content=content, headers=headers)
    assert response.status_code == 400
    error = error_of(response)
    assert error["message"] == ("the body must be JSON (content-type: application/json), an object")
    assert error["param"] is None


def test_an_unknown_model(server: ServerThread) -> None:
    response = post(server, model="gpt-9")
    assert response.status_code == 404
    error = error_of(response)
    assert (error["param"], error["code"]) == ("model", "model_not_found")


def test_a_voice_is_never_a_file(server: ServerThread, tmp_path: Path) -> None:
    """Not even the path of a file that is one."""
    path = tmp_path / "mine.npz"
    voice = open_voices("demo").get("v2/en_speaker_0")
    assert voice is not None
    voice.save(path)
    for given in (str(path), {"id": str(path)}):
        response = post(server, voice=given)
        assert response.status_code == 400
        assert error_of(response)["param"] == "voice"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"voice": {"id": "alloy"}}, "v2/en_speaker_0"),
        ({"voice": "v2/en_speaker_1"}, "v2/en_speaker_1"),
        ({"voice": None}, "v2/en_speaker_0"),
        ({"voice": "ash"}, "v2/en_speaker_1"),
    ],
)
def test_voices(server: ServerThread, fields: dict[str, Any], expected: str) -> None:
    assert post(server, **fields).status_code == 200
    assert server.backend.calls[-1][1]["voice"] == expected


def test_null_and_unknown_fields_are_ignored(server: ServerThread) -> None:
    nothing = dict.fromkeys(("speed", "stream", "stream_format", "language", "seed", "top_k"))
    plain = post(server, seed=7)
    other = post(server, **nothing, user="me", **{"\ud800": [1], "extra_body": {"a": 1}})
    assert plain.status_code == other.status_code == 200
    assert other.content == plain.content
    assert other.headers["x-seed"] == "7"


def test_what_is_asked_reaches_the_backend(server: ServerThread) -> None:
    response = post(server, seed=2**64 - 1, temperature=0, fine_top_k=5, language="de")
    assert response.headers["x-seed"] == str(2**64 - 1)
    call = server.backend.calls[-1][1]
    assert call["language"] == "de"
    assert (call["params"].temperature, call["params"].fine_top_k) == (0, 5)


def test_a_format_whose_package_is_missing(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    response = post(server, response_format="aac")
    assert response.status_code == 400
    assert error_of(response)["param"] == "response_format"
    assert "pip install 'bark-fast[aac]'" in error_of(response)["message"]
