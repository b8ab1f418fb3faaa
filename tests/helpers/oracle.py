"""Run transformers' BarkModel, one utterance at a time, stage by stage: ours must equal it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.models.bark.generation_configuration_bark import (
    BarkCoarseGenerationConfig,
    BarkFineGenerationConfig,
    BarkSemanticGenerationConfig,
)

from bark_fast.checkpoint.config import Config


@dataclass
class OracleSpeech:
    semantic: np.ndarray  # [S], the end token cut off
    coarse: np.ndarray  # [n_coarse, F]
    fine: np.ndarray  # [n_fine, F]
    samples: np.ndarray  # [T]
    ended: bool


@torch.no_grad()
def greedy(
    model: Any,
    text_ids: list[int],
    voice: dict[str, np.ndarray] | None = None,
    *,
    max_new_tokens: int,
    min_eos_p: float | None = None,
) -> OracleSpeech:
    """Do what BarkModel.generate does for a batch of one, and keep every stage's result."""
    g = model.generation_config
    semantic_config = BarkSemanticGenerationConfig(**g.semantic_config)
    coarse_config = BarkCoarseGenerationConfig(**g.coarse_acoustics_config)
    fine_config = BarkFineGenerationConfig(**g.fine_acoustics_config)
    width = semantic_config.max_input_semantic_length
    ids = torch.zeros(1, max(width, len(text_ids)), dtype=torch.int64)
    ids[0, : len(text_ids)] = torch.tensor(text_ids)
    mask = torch.zeros_like(ids)
    mask[0, : len(text_ids)] = 1
    history = None if voice is None else {k: torch.from_numpy(v) for k, v in voice.items()}

    semantic = model.semantic.generate(
        ids,
        history_prompt=history,
        semantic_generation_config=semantic_config,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        min_eos_p=min_eos_p,
    )
    ended = int(semantic[0, -1]) == semantic_config.eos_token_id
    spoken = semantic[0, :-1] if ended else semantic[0]
    tokens = spoken.clone().numpy()
    coarse = model.coarse_acoustics.generate(
        semantic,  # changed in place
        history_prompt=history,
        semantic_generation_config=semantic_config,
        coarse_generation_config=coarse_config,
        codebook_size=g.codebook_size,
        do_sample=False,
    )
    fine = model.fine_acoustics.generate(
        coarse,
        history_prompt=history,
        semantic_generation_config=semantic_config,
        coarse_generation_config=coarse_config,
        fine_generation_config=fine_config,
        codebook_size=g.codebook_size,
        temperature=None,
    )
    samples = model.codec_decode(fine)
    codes = (coarse[0] - semantic_config.semantic_vocab_size) % g.codebook_size
    return OracleSpeech(
        semantic=tokens,
        coarse=codes.view(-1, coarse_config.n_coarse_codebooks).T.numpy(),
        fine=fine[0].numpy(),
        samples=samples[0].numpy(),
        ended=ended,
    )


def random_voice(config: Config, n_semantic: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return the arrays of a random voice that fits `config`."""
    rng = np.random.default_rng(seed)
    n_coarse = config.coarse_rules.n_coarse_codebooks
    frames = int(n_semantic * config.semantic_to_coarse_ratio / n_coarse)
    fine = rng.integers(config.codebook_size, size=(config.fine_rules.n_fine_codebooks, frames))
    return {
        "semantic_prompt": rng.integers(config.semantic_rules.semantic_vocab_size, size=n_semantic),
        "coarse_prompt": fine[:n_coarse].copy(),
        "fine_prompt": fine,
    }
