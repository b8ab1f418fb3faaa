"""Speech over HTTP, as OpenAI's clients ask for it (extra `serve`)."""

from __future__ import annotations

from bark_fast.server.app import create_app
from bark_fast.server.backend import Backend
from bark_fast.server.options import ServerOptions
from bark_fast.server.service import Service
from bark_fast.server.voices import ServerVoices

__all__ = ["Backend", "ServerOptions", "ServerVoices", "Service", "create_app"]
