"""OpenAI's own Python client against `bark-fast serve`, with the demo voice."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest

from helpers.decoding import decode_response
from helpers.fake_backend import FakeBackend
from helpers.serving import ROOT, ServerProcess, server_process, server_thread, wait_until

KEY = "a-secret"
TEXT = "Hello, my dog is cute."
LONG = "The weather is nice. We will go to the garden. It rained for three days."
VOICE = "v2/en_speaker_1"
RATE_HZ = 24_000
SENTENCE_BYTES = 9_600  # of PCM, of the made-up backend
FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with server_process("--api-key", KEY) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def speak(client: openai.OpenAI, text: str = TEXT, seed: int = 3, **fields: Any) -> bytes:
    """Return the bytes of a text's speech; with PCM unless `fields` say something else."""
    extra = {"seed": seed, **fields.pop("extra_body", {})}
    fields = {"model": "tts-1", "voice": VOICE, "response_format": "pcm", **fields}
    return client.audio.speech.create(input=text, extra_body=extra, **fields).content


@pytest.fixture(scope="module")
def pcm(client: openai.OpenAI) -> bytes:
    """The speech of TEXT that the others are compared with."""
    return speak(client)


@pytest.mark.parametrize("response_format", FORMATS)
def test_every_format(client: openai.OpenAI, pcm: bytes, response_format: str) -> None:
    reference = decode_response(pcm, "pcm")[0]
    samples, rate_hz = decode_response(
        speak(client, response_format=response_format), response_format
    )
    assert np.isfinite(samples).all()
    # Codecs delay, and fill up their last frame.
    assert len(samples) / rate_hz == pytest.approx(len(reference) / RATE_HZ, abs=0.15)
    assert np.std(samples) == pytest.approx(np.std(reference), rel=0.1), "not as loud"
    letters = sum(c.isalpha() for c in TEXT)
    assert 0.035 * letters < len(reference) / RATE_HZ < 0.16 * letters


def test_mp3_is_the_default(client: openai.OpenAI) -> None:
    answer = client.audio.speech.create(model="tts-1", voice="alloy", input="Hi.")
    assert answer.response.headers["content-type"] == "audio/mpeg"
    assert len(decode_response(answer.content, "mp3")[0])


def test_streamed_whole_and_from_the_command_line(client: openai.OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice=VOICE, input=LONG, response_format="pcm", extra_body={"seed": 5}
    ) as answer:
        assert "content-length" not in answer.headers
        streamed = b"".join(answer.iter_bytes())
    whole = speak(client, LONG, 5, extra_body={"stream": False})
    said = subprocess.run(
        [sys.executable, "-m", "bark_fast", "say", LONG, "--voice", VOICE, "--seed", "5",
         "--format", "pcm", "-o", "-", "--quiet"],
        cwd=ROOT, capture_output=True, timeout=300, check=True,
    )  # fmt: skip
    assert streamed == whole
    assert streamed == said.stdout
    assert len(streamed) > 2 * RATE_HZ


def test_the_length_is_known_of_what_is_not_streamed(client: openai.OpenAI, pcm: bytes) -> None:
    answer = client.audio.speech.with_raw_response.create(
        model="tts-1", voice=VOICE, input=TEXT, response_format="pcm",
        extra_body={"seed": 3, "stream": False},
    )  # fmt: skip
    assert int(answer.headers["content-length"]) == len(pcm)
    assert answer.headers["x-seed"] == "3"
    assert answer.content == pcm


def test_events(client: openai.OpenAI) -> None:
    events = []
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice=VOICE, input=LONG, response_format="pcm", stream_format="sse",
        extra_body={"seed": 5},
    ) as answer:  # fmt: skip
        assert answer.headers["content-type"] == "text/event-stream"
        for line in answer.iter_lines():
            if line:
                assert line.startswith("data: ")
                events.append(json.loads(line[6:]))
    assert {event["type"] for event in events[:-1]} == {"speech.audio.delta"}
    assert len(events) > 3
    assert b"".join(base64.b64decode(e["audio"]) for e in events[:-1]) == speak(client, LONG, 5)
    assert events[-1]["type"] == "speech.audio.done"
    usage = events[-1]["usage"]
    assert usage["input_tokens"] == len(LONG)
    assert usage["output_tokens"] > 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_voices(client: openai.OpenAI, pcm: bytes) -> None:
    aliases = client.get("/audio/voices", cast_to=dict)["aliases"]  # type: ignore[type-var]
    assert {"alloy", "nova", "verse"} <= aliases.keys()
    alias = next(name for name, voice in aliases.items() if voice == VOICE)
    assert speak(client, voice=alias) == pcm
    assert speak(client, voice={"id": VOICE}) == pcm
    assert speak(client, voice={"id": alias}) == pcm
    assert speak(client, voice="v2/en_speaker_2") != pcm


def test_seeds_and_sampling(client: openai.OpenAI, pcm: bytes) -> None:
    assert speak(client) == pcm
    assert speak(client, seed=4) != pcm
    assert speak(client, extra_body={"temperature": 0.9}) != pcm
    greedy = {"temperature": 0}
    assert speak(client, seed=1, extra_body=greedy) == speak(client, seed=2, extra_body=greedy)


@pytest.mark.parametrize("speed", [0.5, 2.0])
def test_speed(client: openai.OpenAI, pcm: bytes, speed: float) -> None:
    assert len(speak(client, speed=speed)) == pytest.approx(len(pcm) / speed, rel=0.1)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"voice": "nobody"}, "voice"),
        ({"voice": "../x.npz"}, "voice"),
        ({"input": " "}, "input"),
        ({"input": "x" * 4097}, "input"),
        ({"speed": 9}, "speed"),
        ({"response_format": "midi"}, "response_format"),
        ({"stream_format": "tape"}, "stream_format"),
        ({"extra_body": {"temperature": -1}}, "temperature"),
        ({"extra_body": {"seed": 2**64}}, "seed"),
        ({"extra_body": {"language": "zz-not-one"}}, "language"),
    ],
)
def test_what_is_wrong_is_named(client: openai.OpenAI, fields: Any, param: str) -> None:
    good = {"model": "tts-1", "voice": VOICE, "input": TEXT}
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.speech.create(**{**good, **fields})
    assert caught.value.param == param
    assert param in caught.value.message
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id == caught.value.response.headers["x-request-id"]


def test_a_wrong_key(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(api_key="another").models.list()
    assert caught.value.code == "invalid_api_key"


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object, model.owned_by) == ("demo", "model", "bark-fast")
    assert client.models.retrieve("demo") == model
    for name in ("tts-1", "tts-1-hd", "gpt-4o-mini-tts", "gpt-4o-mini-tts-2025-12-15"):
        assert client.models.retrieve(name) == model
    assert speak(client, "Hi.", model="demo") == speak(client, "Hi.", model="gpt-4o-mini-tts")


def test_an_unknown_model(client: openai.OpenAI) -> None:
    for ask in (lambda: client.models.retrieve("tts-9"), lambda: speak(client, model="tts-9")):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_request_ids(client: openai.OpenAI) -> None:
    ids = {client.models.list()._request_id for _ in range(3)}
    assert len(ids) == 3
    assert None not in ids
    headers = {"x-request-id": "mine-17"}
    assert client.models.retrieve("demo", extra_headers=headers)._request_id == "mine-17"


def test_instructions_are_warned_of(client: openai.OpenAI) -> None:
    answer = client.audio.speech.create(
        model="gpt-4o-mini-tts", voice=VOICE, input="Hi.", instructions="Speak like a pirate."
    )
    assert "instructions are not followed" in answer.response.headers["warning"]


def test_tasks_at_once_hear_what_they_would_alone(
    server: ServerProcess, client: openai.OpenAI
) -> None:
    texts = ["Good morning, Anna.", "It rained for three days.", LONG, "How are you?"]
    voices = [VOICE, "v2/en_speaker_2", "v2/en_speaker_0", "nova"]

    async def all_at_once() -> list[bytes]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:

            async def one(i: int) -> bytes:
                answer = await client.audio.speech.create(
                    model="tts-1", voice=voices[i], input=texts[i], response_format="pcm",
                    extra_body={"seed": i},
                )  # fmt: skip
                return answer.content

            return await asyncio.gather(*(one(i) for i in range(len(texts))))

    together = asyncio.run(all_at_once())
    for i, content in enumerate(together):
        assert content == speak(client, texts[i], i, voice=voices[i]), texts[i]


# With a made-up backend, which waits for the test -------------------------------------------------


def test_the_first_sentence_comes_before_the_second_is_said() -> None:
    backend = FakeBackend(gated=True)
    with (
        server_thread(backend) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any") as client,
    ):
        backend.say()
        with client.audio.speech.with_streaming_response.create(
            model="tts-1", voice="alloy", input=LONG, response_format="pcm"
        ) as answer:
            pieces = answer.iter_bytes()
            first = next(pieces)
            assert backend.n_said == 1
            backend.say(2)
            assert len(first) + sum(map(len, pieces)) == 3 * SENTENCE_BYTES


def test_who_is_turned_away_comes_again_when_told_to() -> None:
    backend = FakeBackend(gated=True)
    with (
        server_thread(backend, max_requests=1) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client,
    ):
        first = threading.Thread(target=speak, args=(client, "One " * 12 + "is here."))
        first.start()
        wait_until(lambda: backend.n_begun == 1, "the first has not begun")
        with pytest.raises(openai.RateLimitError) as caught:
            speak(client)
        assert caught.value.code == "queue_full"
        retry_after_s = int(caught.value.response.headers["retry-after"])
        # Longer than the client would wait by itself, so that it shows who decides.
        assert 2 <= retry_after_s <= 10

        def refused() -> float:
            return server.service.metrics.rejections.labels("429")._value.get()

        before, began, heard = refused(), time.monotonic(), []
        second = threading.Thread(
            target=lambda: heard.append(speak(client.with_options(max_retries=1)))
        )
        second.start()
        wait_until(lambda: refused() == before + 1, "the second was not turned away")
        backend.say(2)
        first.join()
        second.join()
        assert time.monotonic() - began >= retry_after_s
        assert len(heard[0]) == SENTENCE_BYTES
        assert refused() == before + 1
