"""Run a program that was written for transformers: only its import has changed.

    python examples/from_transformers.py [FOLDER]

Writes two rows of one batch, 0.wav and 1.wav. The report of missing weights is about the codec's
encoder, which the demo voice ships without and `generate` does not use.
"""

import sys
from pathlib import Path

import soundfile

from bark_fast import AutoProcessor, BarkModel  # was: from transformers import ...
from bark_fast.demo import FOLDER as DEMO  # or "suno/bark-small"

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")

processor = AutoProcessor.from_pretrained(DEMO)
model = BarkModel.from_pretrained(DEMO)

# A voice and a seed for each row are bark-fast's; transformers has one of each for all.
inputs = processor(
    ["Hello, my dog is cute.", "Where did you put the key?"],
    voice_preset=["v2/en_speaker_0", "v2/en_speaker_1"],
)
audio, lengths = model.generate(
    **inputs,
    do_sample=True,
    fine_temperature=0.5,
    min_eos_p=0.2,
    seed=[7, 8],
    return_output_lengths=True,
)

sample_rate = model.generation_config.sample_rate
for i, (row, length) in enumerate(zip(audio, lengths, strict=True)):
    soundfile.write(folder / f"{i}.wav", row[:length].numpy(), sample_rate)
