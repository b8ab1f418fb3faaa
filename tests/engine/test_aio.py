"""AsyncBark: awaiting, streaming, cancelling, waiting for a place, closing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from bark_fast import (
    AsyncBark,
    Bark,
    ClosedError,
    EngineOptions,
    GenerationParams,
    InputError,
    QueueFullError,
    Speech,
)
from helpers.checkpoints import Checkpoint

LONG = "First there is this. Then there is that. At last it ends."


def params(seed: int, n: int = 6) -> GenerationParams:
    return GenerationParams(seed=seed, min_eos_p=0, max_semantic_tokens=n)


def same(a: Speech, b: Speech) -> bool:
    return np.array_equal(a.fine_tokens, b.fine_tokens) and a.text == b.text


@pytest.fixture
def bark(small: Checkpoint) -> Bark:
    return Bark.from_pretrained(
        small.folder, device="cpu", engine=EngineOptions(page_size=8, steps_per_look=1)
    )


def run(coroutine: Coroutine[Any, Any, None], bark: Bark) -> None:
    asyncio.run(coroutine)
    deadline = time.monotonic() + 60
    while bark.engine.has_work:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert bark.engine.used_pages == 0


@pytest.mark.parametrize("in_tasks", [False, True])
def test_on_a_cpu_the_first_sentence_has_the_engine_for_itself(
    small: Checkpoint, bark: Bark, monkeypatch: pytest.MonkeyPatch, in_tasks: bool
) -> None:
    """So that it is heard as soon as it would be alone; then two are under way, then four."""
    text = " ".join(f"This is sentence {i}." for i in range(3))
    options = {"voice": small.voice(17), "params": params(3)}
    futures: list[Future[Speech]] = []
    n_active: list[int] = []
    submit = bark.engine.submit

    def watched(*args: Any, **kwargs: Any) -> Future[Speech]:
        n_active.append(sum(not future.done() for future in futures))
        futures.append(submit(*args, **kwargs))
        return futures[-1]

    monkeypatch.setattr(bark.engine, "submit", watched)
    heard: list[Speech] = []

    async def main() -> None:
        if in_tasks:
            async with AsyncBark(bark) as speaker:
                heard.extend([part async for part in speaker.stream(text, **options)])
        else:
            heard.extend(bark.stream(text, **options))

    run(main(), bark)
    assert len(heard) == len(n_active) > 6
    assert n_active[:2] == [0, 0], "the second began before the first was there"
    assert n_active[2] <= 1
    assert max(n_active) <= 3


def test_two_hundred_tasks(small: Checkpoint, bark: Bark) -> None:
    """As many as ask at once; each gets what it would get alone, in batches."""

    async def main() -> None:
        async with AsyncBark(bark) as speaker:
            speeches = await asyncio.gather(
                *(speaker.generate(f"text {i}", params=params(i)) for i in range(200))
            )
        for i in range(0, 200, 20):
            assert same(speeches[i], small.bark.generate(f"text {i}", params=params(i)))

    run(main(), bark)
    assert bark.stats().finished == 200
    assert bark.stats().stages["semantic"].utterances_a_batch > 4


def test_streams_side_by_side(small: Checkpoint, bark: Bark) -> None:
    expected = {i: list(small.bark.stream(LONG, params=params(i))) for i in range(3)}

    async def listen(speaker: AsyncBark, i: int) -> None:
        parts = [part async for part in speaker.stream(LONG, params=params(i))]
        assert all(same(a, b) for a, b in zip(parts, expected[i], strict=True))

    async def main() -> None:
        # Fewer places than the streams could use: none waits for itself.
        async with AsyncBark(bark, max_pending=2) as speaker:
            await asyncio.gather(*(listen(speaker, i) for i in range(3)))

    run(main(), bark)


def test_a_stream_that_is_left_gives_up_the_rest(bark: Bark) -> None:
    async def main() -> None:
        async with AsyncBark(bark) as speaker:
            stream = speaker.stream(LONG, params=params(1, 60))
            async for _ in stream:
                break
            await stream.aclose()  # type: ignore[attr-defined]

    run(main(), bark)
    assert bark.stats().finished < 3


def test_cancelling_a_task_cancels_its_utterance(small: Checkpoint, bark: Bark) -> None:
    async def main() -> None:
        async with AsyncBark(bark) as speaker:
            long = asyncio.create_task(speaker.generate("One", params=params(1, 148)))
            short = asyncio.create_task(speaker.generate("Two", params=params(2)))
            while bark.stats().stages["semantic"].tokens < 3:
                await asyncio.sleep(0.001)
            long.cancel()
            with pytest.raises(asyncio.CancelledError):
                await long
            assert same(await short, small.bark.generate("Two", params=params(2)))

    run(main(), bark)
    stats = bark.stats()
    assert (stats.cancelled, stats.finished) == (1, 1)
    assert stats.stages["semantic"].tokens < 148


def test_a_timeout_cancels_too(bark: Bark) -> None:
    async def main() -> None:
        async with AsyncBark(bark) as speaker:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(speaker.generate("One", params=params(1, 148)), 0.02)

    run(main(), bark)
    assert bark.stats().finished == 0


def test_a_full_queue_is_an_error(bark: Bark) -> None:
    async def main() -> None:
        async with AsyncBark(bark, max_pending=2, when_full="error") as speaker:
            tasks = [
                asyncio.create_task(speaker.generate("One", params=params(i))) for i in range(5)
            ]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            refused = [r for r in results if isinstance(r, QueueFullError)]
            assert len(refused) == 3
            assert "max_pending utterances, 2, are waiting" in str(refused[0])
            # There is room again.
            assert isinstance(await speaker.generate("One", params=params(9)), Speech)

    run(main(), bark)


def test_a_full_queue_does_not_break_a_stream_that_has_begun(bark: Bark) -> None:
    async def main() -> None:
        async with AsyncBark(bark, max_pending=1, when_full="error") as speaker:
            others, texts = [], []
            async for part in speaker.stream(LONG, params=params(1)):
                texts.append(part.text)
                others.append(asyncio.create_task(speaker.generate("One", params=params(2))))
                await asyncio.sleep(0.01)
            assert texts == bark.split(LONG, max_tokens=6)
            results = await asyncio.gather(*others, return_exceptions=True)
            assert all(isinstance(r, Speech | QueueFullError) for r in results)

    run(main(), bark)


def test_a_full_queue_waits(bark: Bark) -> None:
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, bark.stats().active)
            await asyncio.sleep(0.001)

    async def main() -> None:
        async with AsyncBark(bark, max_pending=3) as speaker:
            watcher = asyncio.create_task(watch())
            await asyncio.gather(*(speaker.generate("One", params=params(i)) for i in range(20)))
            watcher.cancel()

    run(main(), bark)
    assert 0 < most <= 3
    assert bark.stats().finished == 20


def test_closing_finishes_what_is_there(bark: Bark) -> None:
    async def main() -> None:
        speaker = AsyncBark(bark, max_pending=4)
        tasks = [asyncio.create_task(speaker.generate("One", params=params(i))) for i in range(8)]
        while bark.stats().submitted < 4:
            await asyncio.sleep(0.001)
        await speaker.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(r, Speech) for r in results) == 4
        assert sum(isinstance(r, ClosedError) for r in results) == 4  # they had no place yet
        with pytest.raises(ClosedError, match="is closed"):
            await speaker.generate("One")
        with pytest.raises(ClosedError, match="is closed"):
            async for _ in speaker.stream("One"):
                pass
        await speaker.close()

    run(main(), bark)


def test_closing_can_give_up_what_is_there(bark: Bark, monkeypatch: pytest.MonkeyPatch) -> None:
    closing, decode = threading.Event(), bark.engine.runner.codec.run

    def decode_later(codes: Any) -> Any:
        assert closing.wait(30)
        return decode(codes)

    async def main() -> None:
        speaker = AsyncBark(bark)
        monkeypatch.setattr(bark.engine.runner.codec, "run", decode_later)  # nobody ends before
        tasks = [
            asyncio.create_task(speaker.generate("One", params=params(i, 148))) for i in range(8)
        ]
        while bark.stats().submitted < 8 or not bark.stats().stages["semantic"].tokens:
            await asyncio.sleep(0.001)
        asyncio.get_running_loop().call_soon(closing.set)  # when close() waits for the first time
        await speaker.close(cancel=True)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(r, ClosedError) for r in results)

    run(main(), bark)
    assert bark.stats().cancelled == 8


def test_bad_arguments(bark: Bark) -> None:
    async def main() -> None:
        async with AsyncBark(bark) as speaker:
            with pytest.raises(InputError, match="text must"):
                await speaker.generate("")
            with pytest.raises(InputError, match="text must"):
                async for _ in speaker.stream("  "):
                    pass

    run(main(), bark)
    with pytest.raises(InputError, match="bark must be a Bark, got str"):
        AsyncBark("suno/bark")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="max_pending must be an integer >= 1, got 0"):
        AsyncBark(bark, max_pending=0)
    with pytest.raises(InputError, match='when_full must be "wait" or "error", got \'drop\''):
        AsyncBark(bark, when_full="drop")  # type: ignore[arg-type]


def test_from_pretrained(small: Checkpoint) -> None:
    speaker = AsyncBark.from_pretrained(small.folder, max_pending=3, device="cpu")
    assert speaker.stats().submitted == 0
    assert speaker.bark.sample_rate_hz == 8000
