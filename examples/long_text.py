"""Say a text of any length in one voice, and hear its beginning before its end is made.

    python examples/long_text.py [FOLDER]

Writes long.wav sentence by sentence, so a player can follow it while it grows.
"""

import sys
import time
from pathlib import Path

import soundfile

from bark_fast import Bark, GenerationParams

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
# As long as you like: a whole book's Path(...).read_text(), say.
text = "The weather is nice. We will go to the garden. The children play with a small dog."

bark = Bark.from_pretrained("demo")
start = time.perf_counter()
with soundfile.SoundFile(folder / "long.wav", "w", bark.sample_rate_hz, channels=1) as file:
    # The next sentences are made while this one is written (or played).
    for sentence in bark.stream(text, voice="v2/en_speaker_0", params=GenerationParams(seed=7)):
        file.write(sentence.samples)
        print(f"after {time.perf_counter() - start:.2f} s: {sentence.text}")
