"""Chromium, without a window, on the server's page; and an ear at its loudspeaker."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from helpers.programs import needs_program

_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]

# Notes what is given to the sound card and when, the end of each response, and listens in.
_EAR = """
window.ear = {
  starts: [],
  ended: 0,
  context: null,
  level: () => 0,
  base64(bytes) {
    return new Promise((resolve) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result.split(",")[1] ?? "");
      reader.readAsDataURL(new Blob(bytes));
    });
  },
  left_s() {
    const last = this.starts.at(-1);
    return last ? last.when + last.duration - this.context.currentTime : 0;
  },
};
const { start } = AudioBufferSourceNode.prototype;
AudioBufferSourceNode.prototype.start = function (when) {
  ear.context = this.context;
  const samples = Int16Array.from(this.buffer.getChannelData(0), (x) => x * 32768);
  ear.starts.push({ when, duration: this.buffer.duration, ended: ear.ended, samples });
  return start.call(this, when);
};
const { read } = ReadableStreamDefaultReader.prototype;
ReadableStreamDefaultReader.prototype.read = async function () {
  const result = await read.call(this);
  if (result.done) ear.ended += 1;
  return result;
};
const { connect } = AudioNode.prototype;
AudioNode.prototype.connect = function (target, ...rest) {
  if (target instanceof AudioDestinationNode) {
    const analyser = new AnalyserNode(this.context, { fftSize: 2048 });
    connect.call(this, analyser);
    const wave = new Float32Array(2048);
    ear.level = () => {
      analyser.getFloatTimeDomainData(wave);
      return Math.max(...wave.map(Math.abs));
    };
  }
  return connect.call(this, target, ...rest);
};
"""


@contextmanager
def chromium(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """Start the browser, if it is there (see `needs_program`)."""
    path = needs_program(request, "chromium", "apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        yield browser
        browser.close()


class OpenPage:
    """The page in a context of its own.

    Attributes:
        page: playwright's.
        provoked: parts of the errors that Chromium logs because of what the test provokes.
        requests: the addresses of all that was asked for.
    """

    def __init__(self, browser: Browser, url: str, *, key: str = "", **options: Any) -> None:
        self.provoked: list[str] = []
        self._origin = urlsplit(url).netloc
        self._logged: list[str] = []
        self.requests: list[str] = []
        self._context = browser.new_context(**options)
        self.page: Page = self._context.new_page()
        self.page.add_init_script(_EAR)
        if key:
            self.page.add_init_script(f"sessionStorage.setItem('bark-fast.api-key', '{key}')")
        self.page.on("console", self._log)
        self.page.on("pageerror", lambda error: self._logged.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)

    def _log(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._logged.append(message.text)

    def close(self) -> None:
        """Close it; nothing may have gone wrong, and nobody else been asked."""
        self._context.close()
        assert [x for x in self._logged if not any(part in x for part in self.provoked)] == []
        hosts = {urlsplit(url).netloc for url in self.requests if not url.startswith("blob:")}
        assert hosts == {self._origin}

    def wait_for_voices(self) -> None:
        """Wait until the server has been asked for everything."""
        expect(self.page.locator("#voice option")).not_to_have_count(0)

    def type(self, **fields: str) -> None:
        """Fill in fields of the form, which are visible."""
        for name, value in fields.items():
            self.page.locator(f"#{name}").fill(value)

    def wait_for_end(self) -> None:
        """Wait until the answer has come, all of it."""
        expect(self.page.locator("#factor")).not_to_have_text("–", timeout=60_000)

    def pixels(self, canvas: str) -> np.ndarray:
        """Return what is on a canvas, uint8 [height, width, 4]."""
        width, height, content = self.page.evaluate(
            """async (id) => {
              const { width, height } = document.getElementById(id);
              const context = document.getElementById(id).getContext("2d");
              const { data } = context.getImageData(0, 0, width, height);
              return [width, height, await ear.base64([data])];
            }""",
            canvas,
        )
        pixels = np.frombuffer(base64.b64decode(content), dtype=np.uint8)
        return pixels.reshape(height, width, 4)

    def text(self, id: str) -> str:
        """Return what an element says."""
        return self.page.locator(f"#{id}").inner_text()

    @property
    def starts(self) -> list[dict[str, Any]]:
        """What was given to the sound card: when (s), duration (s), responses ended by then."""
        return self.page.evaluate("ear.starts.map(({ samples, ...rest }) => rest)")

    @property
    def given(self) -> np.ndarray:
        """All samples that were given to the sound card, int16 [T]."""
        content = self.page.evaluate("ear.base64(ear.starts.map((s) => s.samples))")
        return np.frombuffer(base64.b64decode(content), dtype="<i2")

    @property
    def level(self) -> float:
        """The greatest sample of the 85 ms that were last heard."""
        return self.page.evaluate("ear.level()")

    @property
    def left_s(self) -> float:
        """Seconds that the sound card still has to play, nothing if nothing was given to it."""
        return self.page.evaluate("ear.left_s()")


@contextmanager
def opening(browser: Browser) -> Iterator[Callable[..., OpenPage]]:
    """Give what opens the page, as `OpenPage` does; close all pages, and check them, at the end."""
    pages: list[OpenPage] = []

    def open_page(url: str, **options: Any) -> OpenPage:
        pages.append(OpenPage(browser, url, **options))
        return pages[-1]

    yield open_page
    for each in pages:
        each.close()
