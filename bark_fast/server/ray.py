"""The server on a Ray cluster, by Ray Serve (extra `ray`).

    serve run bark_fast.server.ray:build_app model=suno/bark max_replicas=8

Its ingress is the app of `bark-fast serve`; the model is on replicas, each with a device and an
engine of its own, that send it sentences as float32. The ingress encodes them. Scheduling,
placement, autoscaling and restarts are Ray's.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI
from pydantic import TypeAdapter, ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bark_fast.engine.options import MAX_BATCH, EngineOptions
from bark_fast.engine.stats import EngineStats
from bark_fast.errors import BarkFastError, InputError, QueueFullError, collected_warnings, warn
from bark_fast.server.app import create_app
from bark_fast.server.backend import load_backend
from bark_fast.server.errors import shorten, unavailable
from bark_fast.server.options import ServerOptions, shown_name
from bark_fast.server.service import Service
from bark_fast.server.voices import ServerVoices
from bark_fast.types import GenerationParams, Speech
from bark_fast.validation import check_integer, check_number
from bark_fast.voices import VoiceLike

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

log = logging.getLogger("bark_fast.server")

_TRIES = 3  # of a text whose replica ends; one that ends replicas shall not end all
_FAILURES = 8  # in a row, after which a replica is taken to be broken
_T = TypeVar("_T")


@dataclass(frozen=True)
class ClusterOptions:
    """What the replicas run, and how many there are.

    Attributes:
        model: a folder, which all nodes see, or an id on the hub.
        device, dtype, revision, local_files_only: as in `Bark.from_pretrained`.
        max_batch_size, kv_cache_gib: of each replica's EngineOptions.
        voices: a folder of more voices, which the nodes with an ingress see; they are read once.
        cpus, gpus: of each replica; `gpus` None is 0 with device "cpu" and else 1.
        min_replicas, max_replicas: bounds of their number, which follows the requests under way.
        max_ongoing_requests: of a replica; None is twice its batch.
        max_waiting: requests for which no replica has room, of each ingress; beyond it clients are
            told to come again.
        ingresses: processes that take requests and encode.

    Raises:
        InputError: a value is out of its range.
    """

    model: str = "demo"
    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    local_files_only: bool = False
    max_batch_size: int | None = None
    kv_cache_gib: float | None = None
    voices: Path | None = None
    cpus: float = 1.0
    gpus: float | None = None
    min_replicas: int = 1
    max_replicas: int = 1
    max_ongoing_requests: int | None = None
    max_waiting: int = 256
    ingresses: int = 1

    def __post_init__(self) -> None:
        for name in ("min_replicas", "max_replicas", "ingresses", "max_waiting"):
            check_integer(name, getattr(self, name), "an integer >= 1", 1, 2**31 - 1)
        if self.min_replicas > self.max_replicas:
            raise InputError(
                f"min_replicas must be at most max_replicas, got {self.min_replicas} and "
                f"{self.max_replicas}"
            )
        check_number("cpus", self.cpus, "a number >= 0", 0, 2**31)
        if self.gpus is not None:
            check_number("gpus", self.gpus, "a number >= 0", 0, 2**31)
        if self.max_ongoing_requests is not None:
            check_integer(
                "max_ongoing_requests", self.max_ongoing_requests, "an integer >= 1", 1, 2**31 - 1
            )
        self.engine()

    def engine(self) -> EngineOptions:
        """Return the options of a replica's engine."""
        return EngineOptions(max_batch_size=self.max_batch_size, kv_cache_gib=self.kv_cache_gib)

    def resolved(self) -> ClusterOptions:
        """Return the same with nothing of the replicas' number and size left open."""
        on_cpu = self.device == "cpu"
        batch = self.max_batch_size or MAX_BATCH["cpu" if on_cpu else "cuda"]
        gpus = (0.0 if on_cpu else 1.0) if self.gpus is None else self.gpus
        return replace(self, gpus=gpus, max_ongoing_requests=self.max_ongoing_requests or 2 * batch)

    def source(self) -> dict[str, Any]:
        """Return the keyword arguments that say which files of a hub's model are meant."""
        return {"revision": self.revision, "local_files_only": self.local_files_only}

    def open_voices(self) -> ServerVoices:
        """Open the voices that clients may name."""
        return ServerVoices.open(self.model, self.voices, **self.source())


def build_app(args: Mapping[str, Any]) -> Application:
    """Return the application for Ray Serve: `serve run bark_fast.server.ray:build_app KEY=VALUE`.

    Args:
        args: fields of `ClusterOptions` and of `ServerOptions`, as text or as themselves. The
            server's `model` is the name of the replicas' if `name` does not say another; its
            `max_requests` and `max_queued_audio_s` are, of each ingress, by default what all
            replicas and those that wait come to.

    Raises:
        InputError: a name or a value is wrong.
        CheckpointError: the checkpoint's small files are.
    """
    from ray import serve

    given = dict(args)
    name = given.pop("name", None)
    known = {field.name for kind in (ClusterOptions, ServerOptions) for field in fields(kind)}
    for key in given:
        if key not in known:
            raise InputError(f"args must be of {', '.join(sorted({*known, 'name'}))}; got {key!r}")
    cluster = _read(ClusterOptions, given).resolved()
    assert cluster.max_ongoing_requests is not None
    room = cluster.max_replicas * cluster.max_ongoing_requests + cluster.max_waiting
    limits = {"max_requests": room, "max_queued_audio_s": 1800.0 * cluster.max_replicas}
    shown = name or shown_name(cluster.model)
    options = _read(ServerOptions, {**limits, **given, "model": shown})
    cluster.open_voices()  # what is wrong with the checkpoint's small files shows now
    speaker = serve.deployment(
        Speaker,
        max_ongoing_requests=cluster.max_ongoing_requests,
        max_queued_requests=cluster.max_waiting,
        ray_actor_options={"num_cpus": cluster.cpus, "num_gpus": cluster.gpus},
        graceful_shutdown_timeout_s=options.drain_s,
        **_number(cluster),
    ).bind(cluster)
    ingress = serve.deployment(
        serve.ingress(_asgi_app(cluster, options))(),
        name="Ingress",
        num_replicas=cluster.ingresses,
        # The app turns requests away itself, and has to hear of those who ask how it is.
        max_ongoing_requests=2 * options.max_requests + 100,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=options.drain_s,
    )
    return ingress.bind(speaker)


def _read(kind: type[_T], given: Mapping[str, Any]) -> _T:
    """Return options of a kind from those of the given values that it has.

    Raises:
        InputError: a value is wrong.
    """
    mine = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    try:
        return TypeAdapter(kind).validate_python({k: v for k, v in given.items() if k in mine})
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(own := first.get("ctx", {}).get("error"), InputError):
            raise own from None
        place = ".".join(map(str, first["loc"]))
        got = shorten(repr(first["input"]), 100)
        raise InputError(f"{place} is wrong: {first['msg']}, got {got}") from None


def _number(cluster: ClusterOptions) -> dict[str, Any]:
    """Return how many replicas there are, for Serve."""
    if cluster.min_replicas == cluster.max_replicas:
        return {"num_replicas": cluster.max_replicas}
    assert cluster.max_ongoing_requests is not None
    return {
        "autoscaling_config": {
            "min_replicas": cluster.min_replicas,
            "max_replicas": cluster.max_replicas,
            "target_ongoing_requests": max(1, cluster.max_ongoing_requests // 2),
        }
    }


def _asgi_app(cluster: ClusterOptions, options: ServerOptions) -> Any:
    """Return what makes the ingress' app, where the ingress is."""

    def build() -> FastAPI:
        from ray import serve

        voices = cluster.open_voices()
        application = serve.get_replica_context().app_name

        async def load() -> ReplicaBackend:
            speaker = serve.get_deployment_handle("Speaker", application)
            await speaker.stats.remote()  # is answered when there is a replica
            return ReplicaBackend(speaker)

        app = create_app(Service(load, voices, options=options))
        app.add_middleware(_WithoutRequestId)
        return app

    return build


class _WithoutRequestId:
    """Leaves out the header with a request's id, which Serve's proxy adds once more."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [pair for pair in message["headers"] if pair[0] != b"x-request-id"]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_without)


class Speaker:
    """A replica: a model on a device, and its engine."""

    def __init__(self, cluster: ClusterOptions) -> None:
        self._failures = 0
        self._bark = load_backend(
            cluster.model,
            device=cluster.device,
            dtype=cluster.dtype,
            engine=cluster.engine(),
            **cluster.source(),
        )

    async def stream(
        self, text: str, arguments: Mapping[str, Any]
    ) -> AsyncIterator[tuple[Speech, list[str]]]:
        """Yield each sentence, as `AsyncBark.stream` does, with what was warned of meanwhile."""
        async with aclosing(self._bark.stream(text, **arguments)) as parts:  # type: ignore[type-var]
            while True:
                warned: list[str] = []
                try:
                    with collected_warnings(warned):
                        speech = await anext(parts, None)
                except Exception as error:
                    self._failures += not isinstance(error, InputError)
                    raise
                if speech is None:
                    return
                self._failures = 0
                yield speech, warned

    async def stats(self) -> EngineStats:
        """Return what the engine has done so far and what waits."""
        return self._bark.stats()

    def check_health(self) -> None:
        """Tell Serve to replace a replica that fails whatever is asked, as a GPU does after some
        errors."""
        if self._failures >= _FAILURES:
            raise RuntimeError(f"the last {self._failures} requests have failed")


class ReplicaBackend:
    """A backend of the server that lets replicas speak.

    A text whose replica ends is said again by another, from the same seed, so that its client hears
    the rest as if nothing had happened.

    Args:
        speaker: the handle of the replicas.
    """

    def __init__(self, speaker: DeploymentHandle[Any]) -> None:
        self._speaker = speaker.options(stream=True)

    async def stream(
        self,
        text: str,
        *,
        voice: VoiceLike | None = None,
        params: GenerationParams | None = None,
        language: str = "en",
        pause_s: float = 0.0,
    ) -> AsyncIterator[Speech]:
        """Say a text, a Speech a sentence.

        Raises:
            QueueFullError: no replica has room, and too many wait already.
            ApiError: several replicas ended while they said it.
        """
        from ray import exceptions
        from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError

        # What says that a replica, or what it had sent, is no more.
        lost = (
            exceptions.RayActorError,
            exceptions.WorkerCrashedError,
            exceptions.NodeDiedError,
            exceptions.OutOfMemoryError,
            exceptions.ObjectLostError,
            ReplicaUnavailableError,
        )
        params = params or GenerationParams()
        if params.seed is None:
            params = replace(params, seed=secrets.randbits(64))
        arguments = {"voice": voice, "params": params, "language": language, "pause_s": pause_s}
        n_heard = 0
        for _ in range(_TRIES):
            said = self._speaker.stream.remote(text, arguments)
            n = 0
            try:
                async for speech, warned in said:
                    n += 1
                    if n <= n_heard:
                        continue
                    for message in warned:
                        warn(message, stacklevel=1)
                    n_heard = n
                    yield speech
                return
            except lost as error:
                log.warning("a replica ended after sentence %d of a request: %s", n, error)
            except BackPressureError as error:
                raise QueueFullError("all replicas are busy") from error
            except exceptions.RayTaskError as error:
                if isinstance(error.cause, BarkFastError):
                    raise error.cause from None
                raise
            except (asyncio.CancelledError, GeneratorExit):
                said.cancel()
                raise
        raise unavailable(f"{_TRIES} replicas ended while they said it")

    def stats(self) -> None:
        """Return nothing: engines are elsewhere, and Ray has metrics of its replicas."""

    async def close(self, *, cancel: bool = False) -> None:
        """Do nothing: replicas are ended by Serve."""
