"""Trains the codec's decoder, EnCodec's (Defossez et al. 2022) at reduced width, to make waves of
codes.

The encoder is no network: codes are those of `data.codes_of`, and their vectors start as what they
stand for. From there vectors and decoder learn together, from spectra at several resolutions
(Yamamoto et al. 2020, eq. 4 to 6) and, because the codes hold the phase, from the wave itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.demo_voice import features, tokens
from recipes.demo_voice.data import Ragged
from recipes.demo_voice.fine import build_fine, completed
from recipes.demo_voice.fit import Plan, fit
from recipes.demo_voice.network import FineModel
from recipes.demo_voice.teacher import HOP

WIDTH = 96  # of a frame's vector
_FRAMES, _LEAD = 36, 6  # of a training piece; the first ones only warm the decoder up
_PIECES = 5
_MADE = 0.7  # of the pieces are of codes that the fine model made, once there is one
_RESOLUTIONS = (2048, 640, 200)


def codec_settings() -> dict[str, Any]:
    """The arguments of transformers' EncodecConfig."""
    return {
        "model_type": "encodec",
        "target_bandwidths": [6.0],
        "sampling_rate": 24_000,
        "audio_channels": 1,
        "num_filters": 12,
        "hidden_size": WIDTH,
        "codebook_dim": WIDTH,
        "codebook_size": tokens.CODEBOOK,
        "upsampling_ratios": [5, 5, 4, 3, 2],
        "num_lstm_layers": 1,
    }


class Codec(nn.Module):
    """Codebooks [K, 1024, WIDTH] and the decoder."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import EncodecConfig
        from transformers.models.encodec.modeling_encodec import EncodecDecoder

        self.codebooks = nn.Parameter(torch.zeros(tokens.N_CODEBOOKS, tokens.CODEBOOK, WIDTH))
        self.decoder = EncodecDecoder(EncodecConfig(**codec_settings()))

    def start_from(self, books: dict[str, Tensor]) -> None:
        """Give every code the vector of what it stands for."""
        envelopes = books["envelopes"].clone()
        envelopes[0] -= books["mean"]
        scale = envelopes[0].std()
        n = envelopes.shape[-1]
        with torch.no_grad():
            self.codebooks[0, :, :n] = envelopes[0] / scale
            self.codebooks[1, :, n : n + features.N_PITCH_DIMENSIONS] = features.pitch_vectors()
            self.codebooks[2:, :, :n] = envelopes[1:] / scale

    def forward(self, codes: Tensor) -> Tensor:
        """Samples [B, F * HOP] of codes int64 [B, K, F]."""
        x = self.codebooks.new_zeros(())
        for k in range(tokens.N_CODEBOOKS):
            x = x + F.embedding(codes[:, k], self.codebooks[k])
        samples: Tensor = self.decoder(x.transpose(1, 2))[:, 0]
        return samples


class _Spectrum(torch.autograd.Function):
    """torch.fft.rfft, whose own backward takes twice as long."""

    @staticmethod
    def forward(ctx: Any, frames: Tensor) -> Tensor:
        ctx.size = frames.shape[-1]
        return torch.fft.rfft(frames)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every bin but the first and the last stands for two of a real signal's spectrum.
        half = torch.full((gradient.shape[-1],), 0.5, device=gradient.device)
        half[0] = half[-1] = 1.0
        back: Tensor = torch.fft.irfft(gradient * half, n=ctx.size, norm="forward")
        return back


def _magnitudes(samples: Tensor, size: int) -> Tensor:
    """[B, frames, bins] of samples [B, T]."""
    frames = samples.unfold(1, size, size // 3) * torch.hann_window(size, device=samples.device)
    spectrum = _Spectrum.apply(frames)
    result: Tensor = (spectrum.real**2 + spectrum.imag**2 + 1e-6).sqrt()
    return result


def spectral_loss(made: Tensor, real: Tensor) -> Tensor:
    """Distance of the magnitudes, relative and in logarithms, mean over the resolutions."""
    total = made.new_zeros(())
    for size in _RESOLUTIONS:
        ours = _magnitudes(made, size)
        with torch.no_grad():
            theirs = _magnitudes(real, size)
        relative = torch.linalg.vector_norm(theirs - ours) / torch.linalg.vector_norm(theirs)
        floor = 1e-2 * size**0.5 / 16
        logs = ((ours + floor).log() - (theirs + floor).log()).abs().mean()
        total = total + relative + logs
    return total / len(_RESOLUTIONS)


def _is_filter(name: str, weight: Tensor) -> bool:
    """Whether Muon trains it: three times fewer steps than Adam needed."""
    return name.startswith("decoder") and weight.ndim == 3 and weight.numel() > 1000


def trained_fine(models: Path) -> FineModel | None:
    """The fine model, if it is trained already."""
    if not (models / "fine.pt").exists():
        return None
    fine = build_fine()
    fine.load_state_dict(torch.load(models / "fine.pt", weights_only=True, map_location="cpu"))
    return fine


def train_codec(data: Path, out: Path, plan: Plan, seed: int) -> None:
    """Codes to waves."""
    torch.manual_seed(seed + 3)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    all_codes, waves = Ragged.load(data / "codes.npy"), Ragged.load(data / "waves.npy")
    n_held_out = min(200, len(all_codes) // 10)
    model = Codec()
    model.start_from(torch.load(data / "books.pt", weights_only=True))
    model.to(device)
    long_enough = np.diff(all_codes.offsets) > _FRAMES
    usable = np.flatnonzero(long_enough[: len(waves)])
    fine = trained_fine(out)
    usable, held_out = usable[usable >= n_held_out], usable[usable < n_held_out]

    def pieces(which: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        codes, samples = [], []
        for i in which:
            own = all_codes[int(i)].astype(np.int64)
            if fine is not None and own.shape[1] <= tokens.FINE_WINDOW and rng.random() < _MADE:
                own = completed(fine, torch.from_numpy(own)).numpy()
            start = int(rng.integers(own.shape[1] - _FRAMES + 1))
            codes.append(own[:, start : start + _FRAMES])
            span = slice(start * HOP, (start + _FRAMES) * HOP)
            samples.append(waves[int(i)][span].astype(np.float32) / 32767)
        return torch.from_numpy(np.stack(codes)), torch.from_numpy(np.stack(samples))

    def batches(skip: int) -> Iterator[tuple[Tensor, Tensor]]:
        rng = np.random.default_rng([seed, 3, skip])
        while True:
            yield pieces(rng.choice(usable, _PIECES), rng)

    def loss_of(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        codes, real = (part.to(device) for part in batch)
        lead = _LEAD * HOP
        made, real = model(codes)[:, lead:], real[:, lead:]
        spectral = spectral_loss(made, real)
        wave = (made - real).abs().mean() / real.abs().mean().clamp(min=1e-3)
        return spectral + 0.5 * wave, {"spectral": spectral.item(), "wave": wave.item()}

    fixed = pieces(held_out[:24], np.random.default_rng(0))

    def check() -> dict[str, float]:
        with torch.no_grad():
            return loss_of(fixed)[1]

    fit("codec", model, batches, loss_of, plan, out, check=check, matrices=_is_filter)
