"""What a listener would say of speech: the words by Moonshine, how it sounds by DNSMOS.

Both come as packages with their models inside (moonshine-voice 0.0.58, speechmos).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from recipes.demo_voice.texts import spell

Array = NDArray[np.float32]

_RATE_HZ = 16_000
_START, _END = 1, 2
_HEADS, _HEAD_SIZE = 8, 36
_TOKENS_A_SECOND = 6.5  # Moonshine's own limit
_WINDOW = 144_160  # samples of DNSMOS's, 9.01 s
_PEAK = 0.7  # DNSMOS hears how loud it is


def words_of(text: str) -> list[str]:
    """Lower-case words; hyphens part them, and numbers are spelled out, so that it doesn't matter
    how a recogniser writes them."""
    plain = re.sub(r"[’`]", "'", text.lower())
    plain = re.sub(r"(?<=\d),(?=\d{3})", "", plain)
    plain = re.sub(r"\$(\d+)", r"\1 dollars", plain).replace("%", " percent ")
    plain = re.sub(r"\bdr\.", "doctor", re.sub(r"(\d+)(st|nd|rd|th)\b", r"\1", plain))
    return re.findall(r"[a-z']+", re.sub(r"\d+", lambda m: f" {_spelled(m[0])} ", plain))


def _spelled(digits: str) -> str:
    number = int(digits)
    if digits.startswith("0") or number >= 1_000_000:
        return " ".join(spell(int(d)) for d in digits)
    if 1100 <= number < 2100 and number // 100 != 20 and number % 100 > 9:
        return f"{spell(number // 100)} {spell(number % 100)}"
    return spell(number).replace(" and ", " ")


def word_errors(said: Sequence[str], heard: Sequence[str]) -> int:
    """Levenshtein distance in words."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def at_16_khz(samples: Array) -> Array:
    """Samples [T] at 24 kHz, for both judges."""
    result: Array = resample_poly(samples, 2, 3).astype(np.float32)
    return result


class Moonshine:
    """The recogniser Moonshine tiny (Jeffries et al. 2024), greedy.

    Args:
        folder: its three files; None means those of the installed package.
    """

    def __init__(self, folder: Path | None = None) -> None:
        import onnxruntime

        folder = _packaged() if folder is None else folder
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1

        def load(name: str) -> Any:
            return onnxruntime.InferenceSession(str(folder / name), options)

        self._encoder = load("encoder_model.ort")
        self._decoder = load("decoder_model_merged.ort")
        self._pieces = read_pieces((folder / "tokenizer.bin").read_bytes())
        inputs = [value.name for value in self._decoder.get_inputs()]
        self._past = [name for name in inputs if name.startswith("past_")]
        self._has_mask = "encoder_attention_mask" in inputs

    def hear(self, samples: Array) -> str:
        """The text of samples float32 [T] at 24 kHz."""
        wave = np.pad(at_16_khz(samples), _RATE_HZ // 2)[None]
        mask = np.ones(wave.shape, np.int64)
        state = self._encoder.run(None, {"input_values": wave, "attention_mask": mask})[0]
        given = {"encoder_hidden_states": state}
        if self._has_mask:
            given["encoder_attention_mask"] = mask
        past = {name: np.zeros((1, _HEADS, 0, _HEAD_SIZE), np.float32) for name in self._past}
        ids = [_START]
        most = int(wave.shape[1] / _RATE_HZ * _TOKENS_A_SECOND) + 6
        while len(ids) <= most:
            first = len(ids) == 1
            logits, *present = self._decoder.run(
                None,
                {"input_ids": np.array([ids[-1:]]), "use_cache_branch": np.array([not first])}
                | given
                | past,
            )
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] == _END:
                break
            for name, value in zip(self._past, present, strict=True):
                # What is remembered of the sound is computed in the first step alone.
                if first or "decoder" in name:
                    past[name] = value
        text = b"".join(self._pieces[i] for i in ids if i not in (_START, _END))
        return text.decode("utf-8", "replace").replace("▁", " ").strip()


def read_pieces(data: bytes) -> list[bytes]:
    """The tokenizer's file: for each id its length, in one byte or two, and its bytes."""
    pieces, at = [], 0
    while at < len(data):
        length = data[at]
        at += 1
        if length >= 128:
            length += 128 * (data[at] - 1)
            at += 1
        pieces.append(data[at : at + length])
        at += length
    return pieces


def _packaged() -> Path:
    found = find_spec("moonshine_voice")
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("the recogniser is missing: pip install moonshine-voice==0.0.58")
    return Path(found.submodule_search_locations[0]) / "assets" / "tiny-en"


def error_rate(said: Sequence[str], heard: Sequence[str]) -> float:
    """Word error rate over all sentences."""
    pairs = [(words_of(a), words_of(b)) for a, b in zip(said, heard, strict=True)]
    return sum(word_errors(a, b) for a, b in pairs) / sum(len(a) for a, _ in pairs)


def naturalness(waves: Sequence[Array]) -> float:
    """The mean overall score of DNSMOS (Reddy et al. 2022), 1 to 5, of samples at 24 kHz."""
    from speechmos import dnsmos

    scores = []
    for wave in waves:
        narrow = at_16_khz(wave)
        level = narrow / max(1e-9, float(np.abs(narrow).max())) * _PEAK
        # What is shorter than a window DNSMOS doubles until it is longer, and then looks at it in
        # up to ten windows; to fill just one says as much.
        if len(level) < _WINDOW:
            level = np.resize(level, _WINDOW)
        scores.append(dnsmos.run(level.astype(np.float32), _RATE_HZ)["ovrl_mos"])
    return float(np.mean(scores))
