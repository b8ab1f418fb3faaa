"""docs/serve.md: its commands run as they are, and its tables are the server's."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import soundfile
from prometheus_client.parser import text_string_to_metric_families

from bark_fast.server import ServerOptions
from bark_fast.server.encode import CONTENT_TYPES
from bark_fast.server.schema import FIELDS
from helpers.fake_backend import FakeBackend
from helpers.serving import ROOT, ServerThread, server_thread

PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerThread]:
    with server_thread(FakeBackend(), api_key="secret") as server:
        yield server


@pytest.fixture(scope="module")
def open_server() -> Iterator[ServerThread]:
    with server_thread(FakeBackend()) as server:
        yield server


def table(heading: str) -> dict[str, list[str]]:
    """Return the rows of the table under a heading by their first cells, without backquotes."""
    rows = PAGE.partition(f"\n| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [row.strip("|").split(" | ") for row in rows]
    return {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in cells}


def curls(page: str) -> list[list[str]]:
    blocks = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    commands = [
        c for block in blocks for line in block.splitlines() for c in line[2:].split(" && ")
    ]
    return [shlex.split(command) for command in commands if command.startswith("curl ")]


@pytest.mark.parametrize("page", [PAGE, README], ids=["serve", "README"])
def test_its_commands_run(
    page: str, server: ServerThread, open_server: ServerThread, tmp_path: Path
) -> None:
    assert curls(page)
    for words in curls(page):
        to = server if "secret" in " ".join(words) else open_server
        arguments = [word.replace("localhost:8000", f"127.0.0.1:{to.port}") for word in words[1:]]
        done = subprocess.run(
            ["curl", "-sS", "--fail", *arguments], cwd=tmp_path, capture_output=True, timeout=60
        )
        assert done.returncode == 0, (words, done.stderr)
        assert done.stdout or "-o" in words
    for path in tmp_path.iterdir():
        assert soundfile.info(path).duration > 0.1


def test_its_routes_are_all(server: ServerThread) -> None:
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    shown = {re.sub(r"^localhost:8000", "", word) for words in curls(PAGE) for word in words}
    for path in paths:
        assert path.replace("{model_id}", "tts-1") in shown


def test_its_tables_are_true(server: ServerThread) -> None:
    for name, cells in table("format").items():
        assert CONTENT_TYPES[name] == cells[0]
    assert set(table("format")) == set(CONTENT_TYPES)
    fields = {name for row in table("field") for name in re.findall(r"\w+", row)}
    assert fields <= FIELDS
    assert {"instructions", "stream", "voice", "speed", "language", "seed"} <= fields
    defaults = vars(ServerOptions())
    for option, (default, _) in table("option").items():
        name = option.removeprefix("--").replace("-", "_")
        value = next(defaults[n] for n in (name, f"{name}_s", f"{name}_bytes") if n in defaults)
        assert float(default) == value, option
    text = httpx.get(f"{server.url}/metrics").text
    families = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(text)
        if not family.name.endswith("_created")
    }
    ours = {name for name in families if not name.startswith("bark_fast_engine_")}
    assert ours == {name for name in table("metric") if not name.endswith("...")}
