"""The server's page in a browser: it speaks, shows, stops, saves, and says what is wrong."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pytest
import soundfile
from playwright.sync_api import Browser, expect

from helpers.browser import OpenPage, chromium, opening
from helpers.decoding import decode
from helpers.fake_backend import FakeBackend
from helpers.serving import ServerProcess, server_process, server_thread, wait_until

RATE = 24_000
KEY = "open-sesame"  # of the second server, which says one text at a time
SENTENCE = "The kettle is on, and the rain has stopped at last. "
SHORT = "Where is the key to the garden?"
SEED = "12345678901234567890"  # more than a number of JavaScript holds

Open = Callable[..., OpenPage]


@pytest.fixture(scope="module")
def servers(browser: Browser) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    with (
        server_process() as one,
        server_process("--api-key", KEY, "--max-requests", "1") as other,
    ):
        yield one, other


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    with chromium(request) as started:
        yield started


@pytest.fixture
def server(servers: tuple[ServerProcess, ServerProcess]) -> ServerProcess:
    return servers[0]


@pytest.fixture
def strict(servers: tuple[ServerProcess, ServerProcess]) -> ServerProcess:
    return servers[1]


@pytest.fixture
def opened(browser: Browser, server: ServerProcess) -> Iterator[Open]:
    """Opens the page of the first server, or of another; at the end nothing must have gone wrong
    in it."""
    with opening(browser) as open_page:
        yield lambda url=server.url, **options: open_page(url, **options)


def said(server: ServerProcess, text: str, seed: str = SEED) -> np.ndarray:
    """Return what the server says without the page, int16 [T]."""
    body = {"model": "tts-1", "input": text, "response_format": "pcm", "seed": int(seed)}
    answer = httpx.post(f"{server.url}/v1/audio/speech", json=body, timeout=60)
    assert answer.status_code == 200
    return np.frombuffer(answer.content, dtype="<i2")


def test_speaks_while_the_server_is_still_speaking(opened: Open, server: ServerProcess) -> None:
    shown = opened()
    page = shown.page
    shown.wait_for_voices()
    shown.type(input=SENTENCE * 3, seed=SEED)
    page.click("#speak")
    wait_until(lambda: shown.level > 0.02, "nothing was heard", 60)
    shown.wait_for_end()
    starts = shown.starts
    assert starts[0]["ended"] == 0, "the first sound came after the end of the answer"
    assert np.array_equal(shown.given, said(server, SENTENCE * 3))
    # One after the other without a gap, but for those that the page confesses.
    ends = [each["when"] + each["duration"] for each in starts[:-1]]
    breaks = [abs(b["when"] - a) > 0.5 / RATE for a, b in zip(ends, starts[1:], strict=True)]
    gaps = shown.text("gaps")
    assert sum(breaks) == (0 if gaps == "none" else int(gaps.split()[0]))
    assert shown.text("used-seed") == SEED
    expect(page.locator("#status")).to_have_text(
        re.compile(r"Said all of it: [\d.]+ seconds"), timeout=60_000
    )
    expect(page.locator("#stop")).to_be_disabled()


def test_figures(opened: Open) -> None:
    shown = opened()
    shown.wait_for_voices()
    shown.type(input=SHORT)
    shown.page.click("#speak")
    shown.wait_for_end()
    length_s = len(shown.given) / RATE
    assert float(shown.text("length").split()[0]) == pytest.approx(length_s, abs=0.06)
    factor, first_s = (float(shown.text(x).split()[0]) for x in ("factor", "first-audio"))
    assert 0 < first_s <= factor * length_s + 0.1
    times = float(shown.text("factor").split()[1])
    assert times == pytest.approx(1 / factor, rel=0.1, abs=0.06)
    description = shown.text("pictures-text")
    assert f"{length_s:.1f} seconds" in description
    loudest_s = float(re.search(r"loudest at ([\d.]+) s", description)[1])
    assert loudest_s == pytest.approx(np.abs(shown.given.astype(int)).argmax() / RATE, abs=0.06)


def test_a_late_sentence_is_counted_as_a_gap(opened: Open, server: ServerProcess) -> None:
    shown = opened()
    shown.wait_for_voices()
    shown.type(input=SENTENCE * 4)
    shown.page.click("#speak")
    wait_until(lambda: shown.starts, "it never came about", 60)
    server.freeze()
    try:
        wait_until(lambda: shown.left_s < 0, "it never ran dry", 60)
        assert shown.page.evaluate("ear.ended") == 0, "the answer had ended before"
    finally:
        server.thaw()
    expect(shown.page.locator("#gaps")).to_have_text(
        re.compile(r"^[1-9].* s of silence"), timeout=60_000
    )
    shown.page.keyboard.press("Escape")


def test_stop_is_silent_and_ends_the_work(opened: Open, strict: ServerProcess) -> None:
    shown = opened(strict.url, key=KEY)
    page = shown.page
    shown.wait_for_voices()
    left = 'bark_fast_disconnects_total{when="streaming"}'
    before = strict.metric(left)
    shown.type(input=SENTENCE * 40)
    page.click("#speak")
    wait_until(lambda: shown.level > 0.02 and shown.left_s > 1, "nothing was heard", 60)
    # By the clock of the sound card, which a busy machine does not hurry.
    level, left_s = page.evaluate("""async () => {
      const clicked_s = ear.context.currentTime;
      document.getElementById("stop").click();
      while (ear.context.currentTime < clicked_s + 0.2) await new Promise((r) => setTimeout(r, 5));
      return [ear.level(), ear.left_s()];
    }""")
    assert left_s > 0, "there was nothing left to stop"
    assert level == 0, "it went on sounding"
    wait_until(lambda: strict.metric("bark_fast_requests_waiting") == 0, "it never came about", 5)
    wait_until(lambda: strict.metric("bark_fast_engine_active") == 0, "it never came about", 5)
    assert strict.metric(left) == before + 1
    expect(page.locator("#status")).to_have_text(re.compile("Stopped after"))
    expect(page.locator("#stop")).to_be_disabled()
    expect(page.locator("#download")).to_be_disabled()
    assert page.evaluate("document.activeElement.id") == "speak"

    # Before the first sound, and a second run after it.
    page.keyboard.press("Control+Enter")
    expect(page.locator("#status")).to_have_text("Waiting for the first sound…")
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_have_text("Stopped.")
    wait_until(lambda: strict.metric("bark_fast_requests_waiting") == 0, "it never came about", 5)
    shown.type(input=SHORT)
    page.keyboard.press("Control+Enter")
    shown.wait_for_end()
    wait_until(lambda: shown.level > 0.02, "nothing was heard the second time", 10)


def test_a_new_text_takes_the_place_of_the_old_one(opened: Open, server: ServerProcess) -> None:
    shown = opened()
    page = shown.page
    shown.wait_for_voices()
    shown.type(input=SENTENCE * 4)
    page.click("#speak")
    wait_until(lambda: shown.starts, "it never came about", 60)
    shown.type(input=SHORT, seed=SEED)
    page.evaluate("ear.starts.length = 0")
    page.click("#speak")
    shown.wait_for_end()
    expected = said(server, SHORT)
    assert np.array_equal(shown.given, expected)
    page.evaluate("ear.starts.length = 0")
    page.click("#again")
    assert np.array_equal(shown.given, expected)


def test_keeps_a_seed_that_was_drawn(opened: Open, server: ServerProcess) -> None:
    shown = opened()
    page = shown.page
    shown.wait_for_voices()
    shown.type(input=SHORT)
    page.click("#speak")
    shown.wait_for_end()
    page.click("#keep")
    seed = page.locator("#seed").input_value()
    assert seed == shown.text("used-seed")
    first = shown.given
    page.evaluate("ear.starts.length = 0")
    page.click("#speak")
    shown.wait_for_end()
    assert shown.text("used-seed") == seed
    assert np.array_equal(shown.given, first)


def test_what_is_sent(opened: Open) -> None:
    shown = opened()
    page = shown.page
    shown.wait_for_voices()
    page.click("summary")
    shown.type(input=SHORT, seed="007", temperature="0,5", top_k="40", min_eos_p="0.1")
    page.select_option("#voice", "v2/en_speaker_2")
    page.select_option("#speed", "1.25")
    with page.expect_request("**/v1/audio/speech") as sent:
        page.click("#speak")
    assert sent.value.post_data_json == {
        "model": "demo",
        "input": SHORT,
        "voice": "v2/en_speaker_2",
        "language": "en",
        "speed": 1.25,
        "seed": 7,
        "temperature": 0.5,
        "top_k": 40,
        "min_eos_p": 0.1,
        "response_format": "pcm",
        "stream": True,
    }
    shown.wait_for_end()
    page.select_option("#voice", label="alloy (v2/en_speaker_0)")
    with page.expect_request("**/v1/audio/speech") as sent:
        page.click("#speak")
    assert sent.value.post_data_json["voice"] == "alloy"
    assert sent.value.post_data_json["language"] == "en"
    shown.wait_for_end()


@pytest.mark.parametrize("format", ["wav", "mp3"])
def test_saves_what_was_said(opened: Open, server: ServerProcess, format: str) -> None:
    shown = opened()
    page = shown.page
    shown.wait_for_voices()
    shown.type(input=SHORT)
    page.click("#speak")
    shown.wait_for_end()
    seed, samples = shown.text("used-seed"), shown.given / 32768
    shown.type(input="Another text.", seed="1")  # which is not what was said
    page.select_option("#response_format", format)
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == f"speech-{seed}.{format}"
    content = download.value.path().read_bytes()
    if format == "wav":
        read, rate = soundfile.read(io.BytesIO(content))
        assert rate == RATE
        assert np.array_equal(read, samples)
        return
    decoded, rate = decode(content)
    assert rate == RATE
    assert len(decoded) == pytest.approx(len(samples), abs=0.15 * RATE)  # the codec's delay
    assert best_correlation(decoded, samples) > 0.98


def best_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the greatest correlation of two sounds over all delays."""
    n = len(a) + len(b)
    products = np.fft.irfft(np.fft.rfft(a, n) * np.conj(np.fft.rfft(b, n)), n)
    return float(products.max() / np.sqrt((a**2).sum() * (b**2).sum()))


def test_errors_are_shown_at_their_field(opened: Open) -> None:
    shown = opened()
    page = shown.page
    shown.provoked = ["status of 400"]
    shown.wait_for_voices()
    for field, value, message in [
        ("seed", str(2**64), "seed must be"),
        ("seed", "seven", "seed"),
        ("temperature", "-1", "temperature must be"),
        ("top_p", "much", "top_p"),
        ("input", " ", "must not be empty"),
    ]:
        shown.type(input=SHORT, seed="")
        page.evaluate("([id, value]) => document.getElementById(id).value = value", [field, value])
        page.evaluate("document.getElementById('sampling').open = false")
        page.click("#speak")
        wrong = page.locator(f"#{field}")
        expect(wrong).to_have_attribute("aria-invalid", "true")
        expect(wrong).to_be_visible()
        expect(wrong).to_be_focused()
        expect(page.locator("#error")).to_contain_text(message)
        expect(page.locator("[aria-invalid]")).to_have_count(1)
        wrong.fill("")
    shown.type(input=SHORT)
    page.keyboard.press("Control+Enter")
    shown.wait_for_end()
    expect(page.locator("#error")).to_be_empty()
    expect(page.locator("[aria-invalid]")).to_have_count(0)


@pytest.fixture
def failing() -> Iterator[str]:
    """The address of a server that says two sentences and then fails."""
    with server_thread(FakeBackend(audio_s=2.0, delay_s=0.2, fails_at=2)) as served:
        yield served.url


def test_an_answer_that_breaks_off_is_no_clean_end(failing: str, opened: Open) -> None:
    shown = opened(failing)
    page = shown.page
    shown.wait_for_voices()
    shown.provoked = ["ERR_INCOMPLETE_CHUNKED_ENCODING"]
    shown.type(input=SENTENCE * 6)
    page.click("#speak")
    expect(page.locator("#error")).to_contain_text("broke off", timeout=60_000)
    assert len(shown.given) > RATE
    expect(page.locator("#download")).to_be_disabled()
    expect(page.locator("#again")).to_be_enabled()
    assert shown.text("factor") == "–"
    page.keyboard.press("Escape")


def test_asks_for_a_key(opened: Open, strict: ServerProcess) -> None:
    shown = opened(strict.url)
    shown.provoked = ["status of 401"]
    page = shown.page
    expect(page.locator("#key")).to_be_focused()
    expect(page.locator("#error")).to_contain_text("Authorization")
    shown.type(key="wröng 🔑")
    page.keyboard.press("Tab")
    expect(page.locator("#error")).to_contain_text("ASCII")
    shown.type(key="wrong")
    page.keyboard.press("Tab")
    expect(page.locator("#error")).to_contain_text("Authorization")
    shown.type(input=SHORT, key=KEY)
    page.keyboard.press("Enter")
    shown.wait_for_end()
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    page.reload()
    shown.wait_for_voices()  # the tab remembers the key
    expect(page.locator("#key")).to_be_hidden()


def test_a_busy_server_says_when_to_try_again(opened: Open, strict: ServerProcess) -> None:
    shown = opened(strict.url, key=KEY)
    shown.provoked = ["status of 429"]
    shown.wait_for_voices()
    shown.type(input=SHORT)
    body = {"model": "tts-1", "input": SENTENCE * 40, "response_format": "pcm"}
    headers = {"authorization": f"Bearer {KEY}"}
    url = f"{strict.url}/v1/audio/speech"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as other:
        pieces = other.iter_raw()  # kept: the answer is closed with it
        next(pieces)
        shown.page.click("#speak")
        expect(shown.page.locator("#error")).to_contain_text(
            re.compile(r"busy.*Next try: in \d+ s, at \d+:\d+")
        )
    wait_until(lambda: strict.metric("bark_fast_requests_waiting") == 0, "it never came about", 10)
    shown.page.click("#speak")
    shown.wait_for_end()
