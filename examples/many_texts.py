"""Say many texts together, each with a voice and a seed of its own.

    python examples/many_texts.py [FOLDER]

Writes 0.wav, 1.wav, ... Each file is what its text, voice and seed give alone.
"""

import sys
from pathlib import Path

from bark_fast import Bark, EngineOptions, GenerationParams

TEXTS = [
    "How are you today?",
    "The train to the city was late.",
    "My brother has a new bicycle.",
    "It rained for three days.",
]

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")

bark = Bark.from_pretrained("demo", engine=EngineOptions(policy="throughput"))
speeches = bark.generate(
    TEXTS,
    voice=[bark.voices[i % len(bark.voices)] for i in range(len(TEXTS))],
    params=[GenerationParams(seed=i) for i in range(len(TEXTS))],
)
for i, speech in enumerate(speeches):
    speech.save(folder / f"{i}.wav")

stats = bark.stats()
print(f"{stats.audio_s:.1f} s of audio in {stats.busy_s:.1f} s")
print(f"utterances in a decode step: {stats.stages['semantic'].utterances_a_batch:.1f}")
