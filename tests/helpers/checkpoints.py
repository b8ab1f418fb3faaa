"""Small checkpoints, written by transformers' own save_pretrained."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from bark_fast import Bark
from bark_fast.checkpoint.random import write_tokenizer
from bark_fast.checkpoint.reading import parse_config
from helpers.oracle import random_voice

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

try:
    from transformers.initialization import no_init_weights
except ImportError:  # transformers 4
    from transformers.modeling_utils import no_init_weights


def small_windows() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return settings of which none is Bark's own: vocabularies, rates, windows, biases, widths."""
    common = {"num_layers": 2, "num_heads": 3, "hidden_size": 48, "bias": True}
    config = {
        "model_type": "bark",
        "semantic_config": {
            **common,
            "block_size": 180,
            "input_vocab_size": 1100,
            "output_vocab_size": 128,
        },
        "coarse_acoustics_config": {
            **common,
            "block_size": 128,
            "input_vocab_size": 240,
            # Past the last codebook there are ids that transformers leaves possible.
            "output_vocab_size": 236,
        },
        "fine_acoustics_config": {
            **common,
            "block_size": 72,
            "input_vocab_size": 72,
            "output_vocab_size": 72,
            "n_codes_total": 5,
            "n_codes_given": 1,
        },
        "codec_config": {
            "model_type": "encodec",
            "num_filters": 2,
            "hidden_size": 16,
            "codebook_size": 64,
            "codebook_dim": 16,
            "upsampling_ratios": [4, 2],
            "target_bandwidths": [200.0],
        },
    }
    generation = {
        "semantic_config": {
            "eos_token_id": 100,
            "semantic_vocab_size": 100,
            "text_encoding_offset": 101,
            "text_pad_token": 1098,
            "semantic_infer_token": 1099,
            "max_input_semantic_length": 32,
            "max_new_tokens": 148,
            "semantic_rate_hz": 10.3,
        },
        "coarse_acoustics_config": {
            "coarse_semantic_pad_token": 230,
            "coarse_infer_token": 231,
            "coarse_rate_hz": 17,
            "n_coarse_codebooks": 2,
            "max_coarse_input_length": 32,
            "max_coarse_history": 60,
            "sliding_window_len": 12,
        },
        "fine_acoustics_config": {
            "n_fine_codebooks": 5,
            "max_fine_history_length": 32,
            "max_fine_input_length": 64,
        },
        "codebook_size": 64,
        "sample_rate": 8_000,
    }
    return config, generation


def bark_windows() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return settings of Bark's own token ids and windows on very narrow networks."""
    common = {
        "num_layers": 2,
        "num_heads": 2,
        "hidden_size": 32,
        "block_size": 1024,
        "bias": False,
    }
    config = {
        "model_type": "bark",
        "semantic_config": {**common, "input_vocab_size": 129_600, "output_vocab_size": 10_048},
        "coarse_acoustics_config": {
            **common,
            "input_vocab_size": 12_096,
            "output_vocab_size": 12_096,
        },
        "fine_acoustics_config": {
            **common,
            "input_vocab_size": 1056,
            "output_vocab_size": 1056,
            "n_codes_total": 8,
            "n_codes_given": 1,
        },
        "codec_config": {"model_type": "encodec", "num_filters": 2},
    }
    generation: dict[str, Any] = {
        "semantic_config": {"max_new_tokens": 768, "eos_token_id": 10_000},
        "coarse_acoustics_config": {},
        "fine_acoustics_config": {},
        "codebook_size": 1024,
        "sample_rate": 24_000,
    }
    return config, generation


def build_model(config: Mapping[str, Any], *, seed: int, std: float) -> transformers.BarkModel:
    """Build a BarkModel with logits so different that the most likely token is never a near tie."""
    with no_init_weights():  # transformers 4.57 cannot initialise layer norms without bias
        model = transformers.BarkModel(transformers.BarkConfig(**copy.deepcopy(dict(config))))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("attn.bias") and tensor.ndim == 4:
                tensor.copy_(torch.ones_like(tensor).tril())
            elif "layernorm" in name:
                offset = 1.0 if name.endswith("weight") else 0.0
                tensor.copy_(offset + 0.2 * torch.randn(tensor.shape, generator=generator))
            elif tensor.is_floating_point():
                scale = 0.3 if name.startswith("codec_model") else std
                tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
    model.tie_weights()
    return model.eval()


def write_checkpoint(
    folder: Path, model: transformers.BarkModel, generation: Mapping[str, Any], **save: Any
) -> Path:
    """Write a checkpoint with save_pretrained, and its generation_config.json by hand.

    transformers 5 fails on objects in that file where generate() wants dicts.
    """
    model.save_pretrained(folder, **save)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    write_tokenizer(folder)
    model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return folder


class Checkpoint:
    """A folder, transformers' model of it, and ours."""

    def __init__(self, folder: Path, settings: tuple[dict[str, Any], dict[str, Any]], std: float):
        config, generation = settings
        self.model = build_model(config, seed=1, std=std)
        self.folder = write_checkpoint(folder, self.model, generation)
        self.config = parse_config(config, generation)
        self.bark = Bark.from_pretrained(folder, device="cpu")

    def voice(self, n_semantic: int, seed: int = 0) -> dict[str, np.ndarray]:
        return random_voice(self.config, n_semantic, seed)
