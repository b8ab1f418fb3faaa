"""Speak from asyncio tasks, as a server does: all tasks share one engine.

    python examples/async_tasks.py [FOLDER]

Writes a WAV file for each visitor; the one who leaves early gets none.
"""

import asyncio
import sys
from pathlib import Path

from bark_fast import AsyncBark, GenerationParams

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")


async def greet(bark: AsyncBark, name: str, voice: str) -> None:
    """Say good morning; tasks that wait are served together."""
    speech = await bark.generate(
        f"Good morning, {name}.", voice=voice, params=GenerationParams(seed=7)
    )
    speech.save(folder / f"{name.lower()}.wav")
    print(f"{name}: {speech.duration_s:.2f} s")


async def main() -> None:
    # At most 64 utterances wait or are under way; further calls wait for a place.
    async with AsyncBark.from_pretrained("demo", max_pending=64) as bark:
        impatient = asyncio.create_task(greet(bark, "Nobody", "v2/en_speaker_1"))
        await asyncio.sleep(0.01)
        impatient.cancel()  # gives the utterance up, wherever it is
        await asyncio.gather(
            greet(bark, "Anna", "v2/en_speaker_2"), greet(bark, "Peter", "v2/en_speaker_0")
        )


asyncio.run(main())
