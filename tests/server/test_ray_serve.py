"""The server on Ray Serve with OpenAI's client: overload, clients that leave, dead replicas."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from bark_fast import Bark, GenerationParams, InputError
from bark_fast.errors import collected_warnings
from bark_fast.server.errors import ApiError
from helpers.serving import wait_until

ROOT = Path(__file__).parents[2]
# Replicas have room for one, and one more may wait; the ingress itself turns nobody away.
ARGS = {"device": "cpu", "cpus": "0.5", "max_ongoing_requests": "1", "max_waiting": "1"}
ARGS |= {"max_requests": "100", "name": "demo-voice"}
LONG = " ".join(f"This is sentence number {n}." for n in ("one", "two", "three", "four", "five"))

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Ray with newer pydantics
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs ray: pip install 'bark-fast[ray]'"),
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Return where the demo voice is served, by one replica."""
    import ray
    from ray import serve

    from bark_fast.server.ray import build_app

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    ray.init(
        num_cpus=2,
        object_store_memory=80 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build_app(ARGS), name="bark")
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()
    finally:
        ray.shutdown()
        del os.environ["PYTHONPATH"]


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def stats() -> Any:
    """Return the statistics of the replica's engine."""
    from ray import serve

    return serve.get_deployment_handle("Speaker", "bark").stats.remote().result(timeout_s=120)


def replicas() -> list[int]:
    """Return the processes of the replicas that speak."""
    return [
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdecimal() and b"ServeReplica:bark:Speaker" in _command(folder)
    ]


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def say(client: openai.OpenAI, text: str, **more: Any) -> bytes:
    return client.audio.speech.create(
        model="tts-1", voice="alloy", input=text, response_format="pcm", **more
    ).content


def test_an_answer_is_that_of_the_library(client: openai.OpenAI) -> None:
    answer = client.audio.speech.with_raw_response.create(
        model="demo-voice",
        voice="alloy",
        input="Hello. How are you?",
        response_format="pcm",
        extra_body={"seed": 3},
    )
    assert answer.headers["x-seed"] == "3"
    assert len(answer.headers.get_list("x-request-id")) == 1
    heard = np.frombuffer(answer.content, np.int16)
    aliases = client.get("/audio/voices", cast_to=httpx.Response).json()["aliases"]
    parts = Bark.from_pretrained("demo", device="cpu").stream(
        "Hello. How are you?",
        voice=aliases["alloy"],
        params=GenerationParams(seed=3),
        pause_s=0.25,
    )
    said = np.concatenate([part.samples for part in parts])
    assert np.abs(heard / 2**15 - said).max() < 1e-4


def test_errors_and_warnings_come_from_where_they_arise(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="voice must be one that"):
        client.audio.speech.create(model="tts-1", voice="nobody", input="Hello.")
    # What only the replica finds: its tokenizer does not know these characters.
    answer = client.audio.speech.with_raw_response.create(
        model="tts-1", voice="alloy", input="你好 hello.", response_format="pcm"
    )
    assert r"\u4f60" in answer.headers["warning"]


def test_overload_is_told_in_openais_shape(client: openai.OpenAI) -> None:
    outcomes: list[Any] = []

    def ask() -> None:
        try:
            outcomes.append(len(say(client, "One two three four.")))
        except openai.RateLimitError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [error for error in outcomes if isinstance(error, openai.RateLimitError)]
    assert len(outcomes) == 12
    assert 0 < len(refused) < 12
    for error in refused:
        assert error.code == "queue_full"
        assert int(error.response.headers["retry-after"]) >= 1
    assert say(client, "And on it goes.")


def test_a_client_that_leaves_reaches_the_replica(client: openai.OpenAI) -> None:
    before = stats()
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input=" ".join([LONG] * 4), response_format="pcm"
    ) as answer:
        next(answer.iter_bytes())
    wait_until(lambda: stats().active == 0, "the replica goes on speaking")
    after = stats()
    assert after.cancelled > before.cancelled
    assert after.submitted - before.submitted < 10  # of 20 sentences


def test_a_replica_that_is_killed_is_not_heard_of(client: openai.OpenAI) -> None:
    seed = {"extra_body": {"seed": 11}}
    whole = say(client, LONG, **seed)
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input=LONG, response_format="pcm", **seed
    ) as answer:
        pieces = answer.iter_bytes()
        heard = next(pieces)
        killed = replicas()
        assert len(killed) == 1
        os.kill(killed[0], signal.SIGKILL)
        heard += b"".join(pieces)
    assert heard == whole
    assert killed != wait_until(replicas, "no new replica")


class Replicas:
    """A handle of replicas that all end after some sentences, but for the last.

    Args:
        ends: after how many sentences each of them does.
    """

    def __init__(self, *ends: int) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._ends = deque(ends)
        self.stream = self

    def options(self, *, stream: bool) -> Replicas:
        assert stream
        return self

    async def remote(self, *call: Any) -> AsyncIterator[tuple[str, list[str]]]:
        from ray.exceptions import ActorDiedError

        self.calls.append(call)
        end = self._ends.popleft() if self._ends else 5
        for n in range(end):
            yield f"sentence {n}", [f"warning {n}"]
        if end < 5:
            raise ActorDiedError


async def said_by(replicas: Replicas) -> tuple[list[Any], list[str]]:
    from bark_fast.server.ray import ReplicaBackend

    warned: list[str] = []
    with collected_warnings(warned):
        said: list[Any] = [part async for part in ReplicaBackend(replicas).stream("five")]  # type: ignore[arg-type]
    return said, warned


def test_another_replica_goes_on_where_one_has_ended() -> None:
    replicas = Replicas(2, 1)
    said, warned = asyncio.run(said_by(replicas))
    assert said == [f"sentence {n}" for n in range(5)]
    assert warned == [f"warning {n}" for n in range(5)]
    # The same call, with a seed.
    assert len(replicas.calls) == 3
    assert replicas.calls[0] == replicas.calls[1] == replicas.calls[2]
    assert replicas.calls[0][1]["params"].seed is not None


def test_a_text_that_ends_replicas_does_not_end_all() -> None:
    replicas = Replicas(*[0] * 10)
    with pytest.raises(ApiError, match="3 replicas ended") as error:
        asyncio.run(said_by(replicas))
    assert error.value.status == 503
    assert len(replicas.calls) == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"modle": "demo"}, "args must be of .*; got 'modle'"),
        ({"max_replicas": "many"}, "max_replicas is wrong: .*got 'many'"),
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas must be at most max_replicas"),
        ({"max_input": "0"}, "max_input must be an integer >= 1, got 0"),
        ({"cpus": -1}, "cpus must be a number >= 0"),
        ({"max_batch_size": 0}, "max_batch_size must be an integer >= 1"),
        ({"model": "no/such/folder/here"}, "no/such/folder/here"),
    ],
)
def test_wrong_arguments(args: dict[str, Any], message: str) -> None:
    from bark_fast.server.ray import build_app

    with pytest.raises(InputError, match=message):
        build_app({"device": "cpu", "local_files_only": True, **args})


def test_how_many_replicas_of_what_size() -> None:
    from bark_fast.server.ray import ClusterOptions, build_app

    assert ClusterOptions().resolved().gpus == 1
    assert ClusterOptions(device="cpu").resolved().gpus == 0
    assert ClusterOptions(gpus=0.5).resolved().gpus == 0.5
    assert ClusterOptions(max_batch_size=64).resolved().max_ongoing_requests == 128
    assert ClusterOptions(device="cpu").resolved().max_ongoing_requests == 32
    assert ClusterOptions(max_ongoing_requests=5).resolved().max_ongoing_requests == 5

    def of(name: str, **args: Any) -> Any:
        app = build_app({"device": "cpu", "max_batch_size": "8", **args})._bound_deployment
        speaker = app.init_args[0]._bound_deployment if app.init_args else app
        return {"Ingress": app, "Speaker": speaker}[name]

    speaker = of("Speaker", min_replicas="1", max_replicas="4", cpus="2")._deployment_config
    assert speaker.max_ongoing_requests == 16
    scaling = speaker.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 4)
    assert scaling.target_ongoing_requests == 8
    assert of("Speaker", min_replicas=3, max_replicas=3)._deployment_config.num_replicas == 3
    assert of("Ingress", ingresses=2)._deployment_config.num_replicas == 2
