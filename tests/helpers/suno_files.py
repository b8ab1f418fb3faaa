"""Write suno's own checkpoint files from a transformers model: the reverse of how the library reads
them. Names: suno-ai/bark, model.py and model_fine.py; encodec, modules/."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from bark_fast.checkpoint.random import write_tokenizer

LARGE = {"text": "text_2.pt", "coarse": "coarse_2.pt", "fine": "fine_2.pt"}
SMALL = {"text": "text.pt", "coarse": "coarse.pt", "fine": "fine.pt"}
_NETWORKS = {"text": "semantic", "coarse": "coarse_acoustics", "fine": "fine_acoustics"}
_SUNO_NAMES = (
    (r"^input_embeds_layer\.", "transformer.wte."),
    (r"^input_embeds_layers\.", "transformer.wtes."),
    (r"^position_embeds_layer\.", "transformer.wpe."),
    (r"^layernorm_final\.", "transformer.ln_f."),
    (r"^layers\.(\d+)\.layernorm_([12])\.", r"transformer.h.\1.ln_\2."),
    (r"^layers\.(\d+)\.attn\.att_proj\.", r"transformer.h.\1.attn.c_attn."),
    (r"^layers\.(\d+)\.attn\.out_proj\.", r"transformer.h.\1.attn.c_proj."),
    (r"^layers\.(\d+)\.mlp\.in_proj\.", r"transformer.h.\1.mlp.c_fc."),
    (r"^layers\.(\d+)\.mlp\.out_proj\.", r"transformer.h.\1.mlp.c_proj."),
    (r"^layers\.(\d+)\.attn\.bias$", r"transformer.h.\1.attn.bias"),
)


def _suno_name(name: str) -> str:
    for pattern, replacement in _SUNO_NAMES:
        name, n = re.subn(pattern, replacement, name)
        if n:
            return name
    assert name.startswith(("lm_head.", "lm_heads.")), name
    return name


def suno_content(
    model: transformers.BarkModel, stage: str, *, compiled: bool = True
) -> dict[str, Any]:
    """Return what suno's file of a stage holds; `compiled` means that torch.compile was on."""
    network: Any = getattr(model, _NETWORKS[stage])
    config = network.config
    prefix = "_orig_mod." if compiled else ""
    tensors = {prefix + _suno_name(name): t for name, t in network.state_dict().items()}
    arguments = {
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_embd": config.hidden_size,
        "block_size": config.block_size,
        "bias": config.bias,
        "dropout": 0.0,
        "input_vocab_size": config.input_vocab_size,
        "output_vocab_size": config.output_vocab_size,
    }
    if stage == "fine":
        arguments["n_codes_total"] = config.n_codes_total
        arguments["n_codes_given"] = config.n_codes_given
    return {
        "model": tensors,
        "model_args": arguments,
        # As training leaves them; the numpy number is what torch refuses by default.
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]},
        "iter_num": 100,
        "best_val_loss": np.float64(2.5),
        "config": {"dataset": "speech", "compile": compiled},
    }


def write_suno_files(
    folder: Path,
    model: transformers.BarkModel,
    files: Mapping[str, str] = LARGE,
    change: Callable[[str, dict[str, Any]], Any] = lambda stage, content: content,
    **how: Any,
) -> Path:
    """Write the three files; `change` returns what is written in place of a content."""
    folder.mkdir(parents=True, exist_ok=True)
    for stage, file in files.items():
        torch.save(change(stage, suno_content(model, stage, **how)), folder / file)
    return folder


def write_suno_folder(folder: Path, model: transformers.BarkModel) -> Path:
    """Write the three large files, with a codec and a tokenizer beside them."""
    write_suno_files(folder, model)
    model.codec_model.save_pretrained(folder / "encodec_24khz")
    (folder / "bert-base-multilingual-cased").mkdir()
    write_tokenizer(folder / "bert-base-multilingual-cased")
    return folder


def encodec_tensors(codec: transformers.EncodecModel) -> dict[str, Tensor]:
    """Return what the encodec package's file holds of a model."""
    transposed = {
        name
        for name, module in codec.named_modules()
        if type(module).__name__ == "EncodecConvTranspose1d"
    }
    found = {}
    for name, tensor in codec.state_dict().items():
        new = name.replace(".parametrizations.weight.original0", ".weight_g")
        new = new.replace(".parametrizations.weight.original1", ".weight_v")
        match = re.fullmatch(r"(.*)\.conv\.(weight_g|weight_v|bias)", new)
        if match:
            wrapped = "convtr.convtr" if match[1] in transposed else "conv.conv"
            new = f"{match[1]}.{wrapped}.{match[2]}"
        new = re.sub(r"^(encoder|decoder)\.layers\.", r"\1.model.", new)
        new = re.sub(
            r"^quantizer\.layers\.(\d+)\.codebook\.", r"quantizer.vq.layers.\1._codebook.", new
        )
        found[new] = tensor
    return found
