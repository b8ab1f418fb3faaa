"""The routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.resources import files

from fastapi import FastAPI, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.cors import CORSMiddleware

from bark_fast import __version__
from bark_fast.errors import InputError
from bark_fast.server.encode import CONTENT_TYPES, check_format
from bark_fast.server.errors import (
    ApiError,
    ErrorBody,
    add_handlers,
    explain,
    too_long,
    unavailable,
)
from bark_fast.server.middleware import SPEECH, Gate, Requests
from bark_fast.server.response import SpeechResponse
from bark_fast.server.schema import (
    FIELDS,
    OPENAI_MODELS,
    AudioModels,
    Model,
    Models,
    Named,
    Order,
    SpeechRequest,
    State,
    Voices,
)
from bark_fast.server.service import Service
from bark_fast.server.synthesis import Synthesis
from bark_fast.text import check_unicode, estimate_duration_s

_PAGE = {
    "index.html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}
_VOICES = "/v1/audio/voices"


def create_app(service: Service) -> FastAPI:
    """Return the ASGI app of a server."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(
        title="bark-fast",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # whose scripts come from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # whose addresses know of no proxy before this server
        responses={"default": {"model": ErrorBody, "description": "a failure"}},
    )
    add_handlers(app)
    # The last that is added is the first that a request meets.
    app.add_middleware(Gate, options=service.options, open_paths={_VOICES})
    if service.options.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.options.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "x-seed", "retry-after", "warning"],
        )
    app.add_middleware(Requests, metrics=service.metrics)
    _add_speech(app, service)
    _add_lists(app, service)
    _add_state(app, service)
    _add_page(app)
    return app


def _add_speech(app: FastAPI, service: Service) -> None:
    audio = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in _content_types()}

    @app.post(
        SPEECH,
        response_class=Response,
        responses={200: {"content": audio, "description": "the speech"}},
    )
    async def speech(body: SpeechRequest, request: Request) -> Response:  # type: ignore[valid-type]
        """Say a text."""
        arrived = time.perf_counter()
        try:
            order = Order.of(body)
            if request.scope["http_version"] == "1.0":
                # Where only the end of the connection ends an answer, half of one looks whole.
                order = replace(order, streamed=False)
            return _begin(service, order, body.model, arrived)  # type: ignore[attr-defined]
        except (InputError, ApiError) as error:
            raise explain(error, FIELDS) from error


def _content_types() -> list[str]:
    return [*CONTENT_TYPES.values(), "text/event-stream"]


def _begin(service: Service, order: Order, model: str, arrived: float) -> SpeechResponse:
    """Check a request and let it in.

    Raises:
        InputError, ApiError: it is wrong, or there is no room for it.
    """
    options = service.options
    _check_model(service, model)
    check_format(order.response_format, service.voices.sample_rate_hz)
    voice = service.voices.get(order.voice)
    check_unicode(order.text, "input")
    if not order.text.strip():
        raise InputError("input must not be empty")
    if len(order.text) > options.max_input:
        raise InputError(
            f"input must have at most {options.max_input} characters, got {len(order.text)}"
        )
    audio_s = estimate_duration_s(order.text)
    if audio_s > options.max_audio_s:
        raise too_long(options.max_audio_s, f"would take about {audio_s:.0f}")
    backend = service.backend
    ticket = service.admission.admit(audio_s)
    service.n_answers += 1

    def end() -> None:
        ticket.set_aside()
        service.n_answers -= 1

    synthesis = Synthesis(
        backend,
        order,
        voice,
        ticket,
        sample_rate_hz=service.voices.sample_rate_hz,
        options=options,
        metrics=service.metrics,
        arrived=arrived,
    )
    return SpeechResponse(synthesis, order, options, service.metrics, end)


def _check_model(service: Service, model: str) -> None:
    known = service.options.model
    if model not in (known, *OPENAI_MODELS):
        raise ApiError(
            404,
            f"model must be {known!r} or one of {', '.join(OPENAI_MODELS)}, got {model!r}",
            param="model",
            code="model_not_found",
        )


def _add_lists(app: FastAPI, service: Service) -> None:
    model = Model(id=service.options.model, created=int(time.time()))

    @app.get("/v1/models")
    async def models() -> Models:
        """List the models."""
        return Models(data=[model])

    @app.get("/v1/models/{model_id:path}")
    async def one_model(model_id: str) -> Model:
        """Return one model."""
        _check_model(service, model_id)
        return model

    @app.get("/v1/audio/models")
    async def audio_models() -> AudioModels:
        """List the models, as Open WebUI asks for them."""
        return AudioModels(models=[Named(id=model.id, name=model.id)])

    @app.get(_VOICES)
    async def voices() -> Voices:
        """List the voices; without a key too."""
        return Voices(
            voices=[Named(id=name, name=name) for name in service.voices.names],
            aliases=service.voices.aliases,
        )


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> State:
        """Tell that the process is alive."""
        return State(status="ok")

    @app.get("/ready")
    async def ready() -> State:
        """Tell whether requests for speech are taken; 503 while loading or shutting down."""
        if service.status != "ready":
            raise unavailable(service.reason())
        return State(status="ready")

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return the metrics in Prometheus' format."""
        content = await asyncio.to_thread(service.metrics.render)
        return Response(content, headers={"content-type": CONTENT_TYPE_LATEST})


def _add_page(app: FastAPI) -> None:
    folder = files("bark_fast.server") / "page"
    page: dict[str, tuple[bytes, str]] = {}
    for file in folder.iterdir():
        kind = _PAGE.get(file.name, _PAGE.get(file.name.rpartition(".")[2]))
        if kind is not None:
            page[file.name] = (file.read_bytes(), f"{kind}; charset=utf-8")

    def send(name: str) -> Response:
        content, kind = page[name]
        return Response(content, headers={**_PAGE_HEADERS, "content-type": kind})

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return send("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        if name not in page:
            raise ApiError(404, f"the page has no file {name!r}")
        return send(name)
