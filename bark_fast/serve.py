"""The command `bark-fast serve`: speech over HTTP."""

from __future__ import annotations

import argparse
import asyncio
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bark_fast.errors import InputError
from bark_fast.say import add_model_options, source_options
from bark_fast.validation import check_integer

if TYPE_CHECKING:
    from bark_fast.aio import AsyncBark
    from bark_fast.server import ServerOptions

KEY_VARIABLE = "BARK_FAST_API_KEY"

# Of the extra `serve`: what is imported, and what it is installed as.
_NEEDED = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "httptools": "httptools",
    "prometheus_client": "prometheus-client",
}


def add_serve_options(serve: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    serve.set_defaults(run=_serve)
    serve.add_argument(
        "--host", default="127.0.0.1", help="to listen at (default: 127.0.0.1, this machine alone)"
    )
    serve.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    add_model_options(serve)
    serve.add_argument("--max-batch-size", type=int, metavar="N", help="see EngineOptions")
    serve.add_argument("--kv-cache-gib", type=float, metavar="GIB", help="see EngineOptions")
    serve.add_argument(
        "--name", help="of the model for clients (default: what --model says, without folders)"
    )
    serve.add_argument(
        "--voices", type=Path, metavar="DIR", help="more voices, an .npz file each; SIGHUP reads it"
    )
    serve.add_argument(
        "--api-key", metavar="KEY", help=f"that clients must send (default: {KEY_VARIABLE})"
    )
    serve.add_argument(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="lets web pages from there use the server; may be repeated",
    )
    limits = serve.add_argument_group("limits")
    for option, kind, what in (
        ("max_input", int, "characters of a request's text (4096)"),
        ("max_body_bytes", int, "of a request (65536)"),
        ("max_audio_s", float, "seconds of speech a request (600)"),
        ("max_requests", int, "that wait or are being spoken; beyond it 429 (256)"),
        ("max_queued_audio_s", float, "seconds of speech that wait; beyond it 429 (1800)"),
        ("pause_s", float, "silence between sentences (0.25)"),
        ("stall_s", float, "a reader that takes nothing for so long is given up (120)"),
        ("drain_s", float, "that requests have to finish after SIGTERM (30)"),
    ):
        limits.add_argument(
            f"--{option.replace('_', '-').removesuffix('-s').removesuffix('-bytes')}",
            type=kind,
            dest=f"option_{option}",
            metavar="SECONDS" if option.endswith("_s") else "N",
            help=what,
        )
    serve.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))


def _serve(arguments: argparse.Namespace) -> int:
    missing = [package for name, package in _NEEDED.items() if find_spec(name) is None]
    if missing:
        raise InputError(f"serve must have {', '.join(missing)}: pip install 'bark-fast[serve]'")
    from bark_fast.server import ServerVoices, Service
    from bark_fast.server.runner import listen, run

    options = _options(arguments)
    check_integer("--port", arguments.port, "an integer from 0 to 65535", 0, 65535)
    # What is wrong with the checkpoint's small files, or its voices, shows before anything starts.
    voices = ServerVoices.open(arguments.model, arguments.voices, **source_options(arguments))
    listener = listen(arguments.host, arguments.port)

    async def load() -> AsyncBark:
        return await asyncio.to_thread(_load, arguments)

    run(
        Service(load, voices, options=options),
        listener,
        log_level=arguments.log_level,
    )
    return 0


def _options(arguments: argparse.Namespace) -> ServerOptions:
    from bark_fast.server import ServerOptions
    from bark_fast.server.options import shown_name

    given: dict[str, Any] = {
        name.removeprefix("option_"): value
        for name, value in vars(arguments).items()
        if name.startswith("option_") and value is not None
    }
    return ServerOptions(
        model=arguments.name or shown_name(arguments.model),
        # A key that is there and empty is a mistake, and no wish for a server without one.
        api_key=os.environ.get(KEY_VARIABLE) if arguments.api_key is None else arguments.api_key,
        cors_origins=tuple(arguments.cors),
        **given,
    )


def _load(arguments: argparse.Namespace) -> AsyncBark:
    from bark_fast.engine.options import EngineOptions
    from bark_fast.server.backend import load_backend

    return load_backend(
        arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        engine=EngineOptions(
            max_batch_size=arguments.max_batch_size,
            kv_cache_gib=arguments.kv_cache_gib,
            threads=arguments.threads,
        ),
        **source_options(arguments),
    )
