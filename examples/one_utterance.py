"""Say one sentence.

    python examples/one_utterance.py [FOLDER]

Writes hello.wav, and the speaker as a voice for other programs, speaker.npz.
"""

import sys
from pathlib import Path

from bark_fast import Bark, GenerationParams

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")

bark = Bark.from_pretrained("demo")  # or a folder, or a hub id such as "suno/bark-small"
print("voices:", ", ".join(bark.voices))

# The same seed gives the same speech, on its own or among others.
speech = bark.generate(
    "Hello, my dog is cute.", voice="v2/en_speaker_0", params=GenerationParams(seed=7)
)
speech.save(folder / "hello.wav")
speech.to_voice().save(folder / "speaker.npz")

print(f"{speech.duration_s:.2f} s of audio; seconds in each stage:")
for stage, seconds in speech.timings.items():
    print(f"  {stage:<9} {seconds:.3f}")
