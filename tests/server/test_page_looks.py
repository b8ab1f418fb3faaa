"""The server's page for eyes, fingers, keyboards and screen readers, and its arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Route, expect

from helpers.browser import OpenPage, chromium, opening
from helpers.serving import ServerProcess, server_process, wait_until

RATE = 24_000
TEXT = "Where is the key to the garden? I cannot find it."
PHONE = {"width": 390, "height": 844}
WIDE = {"width": 1280, "height": 900}

Open = Callable[..., OpenPage]


@pytest.fixture(scope="module")
def server(browser: Browser) -> Iterator[ServerProcess]:
    with server_process() as served:
        yield served


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    with chromium(request) as started:
        yield started


@pytest.fixture
def opened(browser: Browser, server: ServerProcess) -> Iterator[Open]:
    """Opens the page; at the end nothing must have gone wrong in it."""
    with opening(browser) as open_page:
        yield lambda path="", **options: open_page(server.url + path, **options)


# Each text's colour against the nearest ground that is not transparent, by WCAG's formula.
CONTRASTS = """
() => {
  const channel = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = (text) => {
    const [r, g, b] = rgb(text).map((c) => channel(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return rgb(color)[3] === 0 ? ground(element.parentElement) : color;
  };
  const texts = [...document.querySelectorAll("body *")].filter((element) => {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    return (own || element.matches("input, select")) && element.checkVisibility();
  });
  return texts.map((element) => {
    const [a, b] = [luminance(getComputedStyle(element).color), luminance(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    return [element.id || element.tagName + " " + element.textContent.trim(), ratio];
  });
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(opened: Open, scheme: str) -> None:
    shown = opened(color_scheme=scheme, viewport=WIDE)
    shown.wait_for_voices()
    shown.page.click("summary")
    shown.page.evaluate("""() => {
      for (const id of ["error", "warnings"]) document.getElementById(id).textContent = "Text";
      document.getElementById("key-row").hidden = false;
    }""")
    contrasts = shown.page.evaluate(CONTRASTS)
    assert len(contrasts) > 40
    assert [(name, ratio) for name, ratio in contrasts if ratio < 4.5] == []
    assert (
        shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
        == {
            "light": "rgb(245, 242, 235)",
            "dark": "rgb(23, 25, 23)",
        }[scheme]
    )


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_fits_every_width_and_finger(opened: Open, width: int) -> None:
    shown = opened(viewport={"width": width, "height": 800}, has_touch=True)
    shown.wait_for_voices()
    shown.page.click("summary")
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    controls = shown.page.locator("button, select, input, textarea, summary").all()
    boxes = [box for control in controls if (box := control.bounding_box()) is not None]
    assert len(boxes) >= 18
    assert min(box["height"] for box in boxes) >= 44
    assert min(box["width"] for box in boxes) >= 44
    left = {shown.page.locator(f"#{id}").bounding_box()["x"] for id in ("speak", "input")}
    assert len(left) == 1 or width < 960  # the bar of a phone has its own margin
    labels = """[...document.querySelectorAll("label, dt, button, legend")].filter(
      (each) => each.scrollWidth > each.clientWidth).map((each) => each.textContent)"""
    assert shown.page.evaluate(labels) == []


def test_buttons_stay_in_reach_on_a_phone(opened: Open) -> None:
    shown = opened(viewport=PHONE, has_touch=True)
    shown.wait_for_voices()
    shown.type(input=TEXT)
    shown.page.tap("#speak")
    shown.wait_for_end()
    expect(shown.page.locator("#spectrogram")).to_be_in_viewport(ratio=0.5)
    expect(shown.page.locator("#stop")).to_be_in_viewport(ratio=1)


@pytest.mark.parametrize("size", [PHONE, {"width": 1280, "height": 600}])
def test_error_and_field_are_seen_together(opened: Open, size: dict[str, int]) -> None:
    shown = opened(viewport=size)
    shown.provoked = ["status of 400"]
    page = shown.page
    shown.wait_for_voices()
    for field in ("min_eos_p", "seed"):
        page.evaluate("document.getElementById('sampling').open = true")
        shown.type(min_eos_p="", seed="", input=TEXT)
        shown.type(**{field: "-5"})
        page.focus("#input")
        page.keyboard.press("Control+Enter")
        expect(page.locator(f"#{field}")).to_be_focused()
        expect(page.locator(f"#{field}")).to_be_in_viewport(ratio=1)
        expect(page.locator("#error")).to_be_in_viewport(ratio=1)
        boxes = [page.locator(f"#{id}").bounding_box() for id in (field, "error")]
        assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]  # nor is one behind the other


def test_keyboard(opened: Open) -> None:
    shown = opened()
    page = shown.page
    shown.wait_for_voices()
    focused = []
    for _ in range(7):
        page.keyboard.press("Tab")
        focused.append(
            page.evaluate("""() => {
              const { id } = document.activeElement;
              const outline = getComputedStyle(document.activeElement);
              return [id, outline.outlineStyle, Number.parseFloat(outline.outlineWidth)];
            }""")
        )
    names = ["input", "voice", "language", "speed", "seed", "sampling-title", "speak"]
    assert focused == [[name, "solid", 3] for name in names]
    page.keyboard.press("Enter")
    wait_until(lambda: shown.starts, "it never came about", 60)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "stop"
    page.keyboard.press("Space")
    expect(page.locator("#stop")).to_be_disabled()
    assert page.evaluate("document.activeElement.id") == "speak"  # the focus is not lost


def test_screen_reader(opened: Open) -> None:
    shown = opened()
    page = shown.page
    shown.wait_for_voices()
    page.click("summary")
    page.evaluate("document.getElementById('key-row').hidden = false")
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    roles = {"textbox", "combobox", "button", "heading", "figure", "form", "region", "group"}
    found = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree
        if not node["ignored"] and node["role"]["value"] in roles
    ]
    assert [role for role, name in found if not name] == []
    names = {name for _, name in found}
    assert {"Text", "Voice", "Language", "Speed", "Seed", "Speak", "Stop", "Format"} <= names
    assert [name for role, name in found if role == "heading"] == [
        "bark-fast",
        "What to say",
        "What was said",
    ]
    assert page.locator("#status").get_attribute("role") == "status"
    assert page.locator("html").get_attribute("lang") == "en"


def test_motion_can_be_left_out(opened: Open) -> None:
    shown = opened(reduced_motion="reduce")
    page = shown.page
    shown.wait_for_voices()
    shown.type(input=TEXT)
    page.click("#speak")
    expect(page.locator("#playhead")).to_be_visible(timeout=60_000)
    animated = """[...document.querySelectorAll("*")].flatMap((element) =>
      ["", "::before", "::after"].map((part) => getComputedStyle(element, part).animationName))"""
    assert set(page.evaluate(animated)) == {"none"}
    places = set()

    def look() -> bool:
        places.add(page.evaluate("document.getElementById('playhead').style.transform"))
        return page.locator("#playhead").is_hidden()

    wait_until(look, "it never came about", 60)
    assert 2 <= len(places) <= 12  # steps of half a second


def test_works_behind_a_prefix(browser: Browser, server: ServerProcess) -> None:
    def strip(route: Route) -> None:
        assert route.request.url.startswith(f"{server.url}/voices/of/bark/")
        route.continue_(url=route.request.url.replace("/voices/of/bark/", "/"))

    context = browser.new_context()
    context.route("**/*", strip)
    page = context.new_page()
    page.goto(f"{server.url}/voices/of/bark/")
    expect(page.locator("#voice option")).not_to_have_count(0)
    page.fill("#input", TEXT)
    page.click("#speak")
    expect(page.locator("#factor")).not_to_have_text("–", timeout=60_000)
    context.close()


def test_the_policy_allows_nothing_from_elsewhere(opened: Open) -> None:
    shown = opened()
    shown.provoked = ["Content Security Policy"]
    shown.wait_for_voices()
    assert shown.page.evaluate("""() => new Promise((resolve) => {
      document.addEventListener("securitypolicyviolation", (event) =>
        resolve(event.effectiveDirective));
      const script = document.createElement("script");
      script.textContent = "window.injected = true";
      document.body.append(script);
    })""").startswith("script-src")
    assert shown.page.evaluate("window.injected") is None


def module(shown: OpenPage, name: str, body: str, argument: Any) -> Any:
    """Return what a function's body makes of a module of the page, `it`, and `argument`."""
    return shown.page.evaluate(
        f"""async (argument) => {{
          const it = await import(new URL("page/{name}.js", document.baseURI));
          {body}
        }}""",
        argument,
    )


@pytest.mark.parametrize("sizes", [[1], [3, 1, 4, 1, 5], [7, 0, 2], [10_000]])
def test_bytes_may_be_cut_anywhere(opened: Open, sizes: list[int]) -> None:
    shown = opened()
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, 501).astype("<i2")
    samples[:2] = -(2**15), 2**15 - 1
    content = list(samples.tobytes())
    ends = np.cumsum(np.resize(sizes, len(content)))
    pieces = [p.tolist() for p in np.split(np.array(content), ends[ends < len(content)])]
    added, whole, wav = module(
        shown,
        "pcm",
        """const recording = new it.Recording();
        const added = argument.flatMap((piece) => [...recording.add(Uint8Array.from(piece))]);
        const wav = new Uint8Array(await recording.toBlob("wav").arrayBuffer());
        return [added, [...recording.samples()], [...wav]];""",
        pieces,
    )
    assert np.array_equal(np.array(added) * 2**15, samples)
    assert np.array_equal(np.array(whole) * 2**15, samples)
    assert bytes(wav[44:]) == samples.tobytes()


def test_spectrum(opened: Open) -> None:
    shown = opened()
    size = 512
    rng = np.random.default_rng(1)
    times = np.arange(size)
    for samples in (rng.uniform(-1, 1, size), np.sin(2 * np.pi * 40 * times / size)):
        levels = module(
            shown,
            "fft",
            "return [...new it.Spectrum(512).levels_db(Float32Array.from(argument), 0)]",
            samples.tolist(),
        )
        window = 0.5 - 0.5 * np.cos(2 * np.pi * times / size)
        expected = (4 / size * np.abs(np.fft.fft(samples * window))[: size // 2]) ** 2
        np.testing.assert_allclose(10 ** (np.array(levels) / 10), expected, rtol=1e-3, atol=1e-9)
    assert max(levels) == pytest.approx(0, abs=0.01)  # a sine of full scale
    assert int(np.argmax(levels)) == 40


def test_pauses_in_words(opened: Open) -> None:
    shown = opened()
    rng = np.random.default_rng(2)
    sound = np.clip(rng.normal(0, 0.1, RATE // 2), -0.5, 0.5)
    for n, words in ((0, "without a pause"), (1, "with pauses at 0.5 to 1.0 s"), (5, "5 pauses")):
        parts = [part for _ in range(n) for part in (sound, np.zeros(RATE // 2))]
        samples = np.concatenate([*parts, sound])
        body = """const analysis = new it.Analysis();
        analysis.add(Float32Array.from(argument));
        return analysis.describe();"""
        described = module(shown, "analysis", body, samples.round(4).tolist())
        assert described.startswith(f"{0.5 + n:.1f} seconds, ")
        assert words in described
        # White noise: nine tenths of its energy lie in nine tenths of the band.
        assert float(described.split()[-2]) == pytest.approx(10.8, abs=0.2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_show_what_was_said(opened: Open, scheme: str) -> None:
    shown = opened(color_scheme=scheme, viewport=WIDE)
    page = shown.page
    shown.wait_for_voices()
    shown.type(input=TEXT)
    page.click("#speak")
    shown.wait_for_end()
    samples = shown.given / 32768
    page.evaluate("() => new Promise((drawn) => requestAnimationFrame(() => "
                  "requestAnimationFrame(drawn)))")  # fmt: skip
    left, right, bottom = 40, 10, 36
    wave = shown.pixels("waveform")[:, left:-right]
    spectrogram = shown.pixels("spectrogram")[:-bottom, left:-right]
    n_columns = wave.shape[1]
    columns = np.array_split(samples, n_columns)

    painted = (wave[..., 3] > 127).sum(axis=0)
    heights = [np.ptp(column) for column in columns]
    assert np.corrcoef(painted, heights)[0, 1] > 0.95

    ground = {"light": [0xFF, 0xFD, 0xF8], "dark": [0x1F, 0x22, 0x20]}[scheme]
    distance = np.abs(spectrogram[..., :3].astype(int) - ground).sum(axis=-1)
    loudness = np.log10([np.square(column).mean() + 1e-7 for column in columns])
    assert np.corrcoef(distance.mean(axis=0), loudness)[0, 1] > 0.8
    rows = distance[::-1].mean(axis=1)  # from low to high
    power = np.abs(np.fft.rfft(samples)) ** 2
    bands = np.log10([band.mean() + 1e-7 for band in np.array_split(power, len(rows))])
    assert np.corrcoef(rows, bands)[0, 1] > 0.8
