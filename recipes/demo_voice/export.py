"""Writes the trained models as a checkpoint in transformers' layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from recipes.demo_voice import tokens
from recipes.demo_voice.coarse import COARSE
from recipes.demo_voice.codec import codec_settings
from recipes.demo_voice.data import Ragged
from recipes.demo_voice.fine import FINE
from recipes.demo_voice.network import Shape
from recipes.demo_voice.semantic import SEMANTIC
from recipes.demo_voice.teacher import SAMPLE_RATE_HZ, SPEAKERS

# What is measured to be best (`evaluate.temperatures`): the teacher says a text in one way, and a
# rare unit or code is a mistake rather than a variant.
_TEMPERATURES = {"semantic": 0.2, "coarse": 0.2, "fine": 0.2}
_SAME_DATA = 0.9  # of the tokens: a rounding may move a frame to the next code
_PRESET_UNITS = (44, 70)  # how long a voice's sentence is: 2.2 to 3.5 s


def _gpt(shape: Shape, n_in: int, n_out: int, **more: Any) -> dict[str, Any]:
    return {
        "num_layers": shape.layers,
        "num_heads": shape.heads,
        "hidden_size": shape.width,
        "block_size": shape.positions,
        "input_vocab_size": n_in,
        "output_vocab_size": n_out,
        "bias": False,
        "dropout": 0.0,
        **more,
    }


def config_json() -> dict[str, Any]:
    return {
        "model_type": "bark",
        "architectures": ["BarkModel"],
        "dtype": "float32",  # to compute in; the file is in float16 for its size
        "semantic_config": _gpt(SEMANTIC, tokens.SEMANTIC_IDS, tokens.N_UNITS + 1),
        "coarse_acoustics_config": _gpt(COARSE, tokens.COARSE_IDS, tokens.COARSE_PAD),
        "fine_acoustics_config": _gpt(
            FINE,
            tokens.FINE_IDS,
            tokens.FINE_IDS,
            n_codes_total=tokens.N_CODEBOOKS,
            n_codes_given=1,
            tie_word_embeddings=True,
        ),
        "codec_config": codec_settings(),
    }


def generation_config_json() -> dict[str, Any]:
    return {
        "semantic_config": {
            "do_sample": True,
            "temperature": _TEMPERATURES["semantic"],
            "eos_token_id": tokens.END,
            "max_input_semantic_length": tokens.PROMPT,
            "max_new_tokens": tokens.MAX_UNITS,
            "min_eos_p": 0.2,
            "semantic_infer_token": tokens.SEMANTIC_INFER,
            "semantic_pad_token": tokens.END,
            "semantic_rate_hz": tokens.SEMANTIC_RATE_HZ,
            "semantic_vocab_size": tokens.N_UNITS,
            "text_encoding_offset": tokens.TEXT_OFFSET,
            "text_pad_token": tokens.TEXT_PAD,
        },
        "coarse_acoustics_config": {
            "do_sample": True,
            "temperature": _TEMPERATURES["coarse"],
            "coarse_infer_token": tokens.COARSE_INFER,
            "coarse_rate_hz": tokens.FRAME_RATE_HZ,
            "coarse_semantic_pad_token": tokens.COARSE_PAD,
            "max_coarse_history": tokens.COARSE_HISTORY,
            "max_coarse_input_length": tokens.COARSE_PROMPT,
            "n_coarse_codebooks": tokens.N_COARSE,
            "sliding_window_len": tokens.COARSE_STEP,
        },
        "fine_acoustics_config": {
            "temperature": _TEMPERATURES["fine"],
            "max_fine_history_length": tokens.FINE_HISTORY,
            "max_fine_input_length": tokens.FINE_WINDOW,
            "n_fine_codebooks": tokens.N_CODEBOOKS,
        },
        "codebook_size": tokens.CODEBOOK,
        "sample_rate": SAMPLE_RATE_HZ,
    }


_LAYER_NAMES = {
    "norm_1": "layernorm_1",
    "qkv": "attn.att_proj",
    "out": "attn.out_proj",
    "norm_2": "layernorm_2",
    "up": "mlp.in_proj",
    "down": "mlp.out_proj",
}


def _body(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a Transformer by Bark's names."""
    named = {f"{prefix}.position_embeds_layer.weight": state["body.positions"]}
    for name, tensor in state.items():
        match name.split("."):
            case ["body", "blocks", i, part, kind]:
                named[f"{prefix}.layers.{i}.{_LAYER_NAMES[part]}.{kind}"] = tensor
            case ["body", "final_norm", kind]:
                named[f"{prefix}.layernorm_final.{kind}"] = tensor
            case _:
                pass
    return named


def named_tensors(models: Path) -> dict[str, Tensor]:
    """Every tensor by the name that transformers' BarkModel has for it."""

    def load(name: str) -> dict[str, Tensor]:
        state: dict[str, Tensor] = torch.load(
            models / f"{name}.pt", weights_only=True, map_location="cpu"
        )
        return state

    named: dict[str, Tensor] = {}
    for name, prefix in (("semantic", "semantic"), ("coarse", "coarse_acoustics")):
        state = load(name)
        named |= _body(prefix, state)
        named[f"{prefix}.input_embeds_layer.weight"] = state["embedding.weight"]
        named[f"{prefix}.lm_head.weight"] = state["head.weight"]
    fine = load("fine")
    named |= _body("fine_acoustics", fine)
    for k, table in enumerate(fine["embeddings"]):
        named[f"fine_acoustics.input_embeds_layers.{k}.weight"] = table
    codec = load("codec")
    for k, table in enumerate(codec.pop("codebooks")):
        named[f"codec_model.quantizer.layers.{k}.codebook.embed"] = table
    named |= {f"codec_model.{name}": tensor for name, tensor in codec.items()}
    return named


_OWN_NAMES = {theirs: ours for ours, theirs in _LAYER_NAMES.items()}


def _own_body(prefix: str, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a Transformer by our names."""
    state = {"body.positions": named[f"{prefix}.position_embeds_layer.weight"]}
    for name, tensor in named.items():
        match name.removeprefix(f"{prefix}.").split("."):
            case ["layers", i, *part, kind] if name.startswith(prefix):
                state[f"body.blocks.{i}.{_OWN_NAMES['.'.join(part)]}.{kind}"] = tensor
            case ["layernorm_final", kind] if name.startswith(prefix):
                state[f"body.final_norm.{kind}"] = tensor
            case _:
                pass
    return state


def trained_states(named: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The four models' own tensors in float32, the reverse of `named_tensors`."""
    named = {name: tensor.float() for name, tensor in named.items()}
    states = {}
    for name, prefix in (("semantic", "semantic"), ("coarse", "coarse_acoustics")):
        states[name] = _own_body(prefix, named) | {
            "embedding.weight": named[f"{prefix}.input_embeds_layer.weight"],
            "head.weight": named[f"{prefix}.lm_head.weight"],
        }
    books = range(tokens.N_CODEBOOKS)
    tables = [named[f"fine_acoustics.input_embeds_layers.{k}.weight"] for k in books]
    states["fine"] = _own_body("fine_acoustics", named) | {"embeddings": torch.stack(tables)}
    tables = [named[f"codec_model.quantizer.layers.{k}.codebook.embed"] for k in books]
    states["codec"] = {"codebooks": torch.stack(tables)} | {
        name.removeprefix("codec_model."): tensor
        for name, tensor in named.items()
        if name.startswith("codec_model.decoder")
    }
    return states


def start_from(checkpoint: Path, models: Path) -> None:
    """Write a checkpoint's weights, and what its evaluation.json says of their training, where
    training finds them; models that are there stay."""
    evaluation = checkpoint / "evaluation.json"
    reports = json.loads(evaluation.read_text())["training"] if evaluation.exists() else {}
    for name, state in trained_states(load_file(checkpoint / "model.safetensors")).items():
        if not (models / f"{name}.pt").exists():
            torch.save(state, models / f"{name}.pt")
            if name in reports:
                (models / f"{name}.json").write_text(json.dumps(reports[name]) + "\n")


def check_data(data: Path, checkpoint: Path, *, codes: bool) -> None:
    """Raise ValueError if `data` has other tokens than `checkpoint` was trained on, by the
    sentences that are its voices: with another machine's rounding k-means finds other codebooks.

    Args:
        codes: look at the codes too, not at the units alone.
    """
    for key in ("semantic_prompt", *(("fine_prompt",) if codes else ())):
        shares = []
        for name, arrays in _presets(data).items():
            then, now = np.load(_preset_path(checkpoint, name, key)), arrays[key]
            shares.append(float((now == then).mean()) if now.shape == then.shape else 0.0)
        # A duration may have been rounded to another frame, and another sentence been chosen.
        if np.median(shares) < _SAME_DATA:
            raise ValueError(
                f"{data} has other tokens than {checkpoint} was trained on: of each voice's {key} "
                f"{', '.join(f'{share:.0%}' for share in shares)} are the same"
            )


def _preset_path(checkpoint: Path, name: str, key: str) -> Path:
    return checkpoint / f"speaker_embeddings/{name}_{key}.npy"


def export(data: Path, models: Path, folder: Path, *, start: Path | None = None) -> None:
    """Write the checkpoint into `folder`, weights in float16.

    Args:
        start: whose training went on; its voices stay the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    halves = {
        n: t.detach().to(torch.float16).contiguous() for n, t in named_tensors(models).items()
    }
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors lets nobody else read it
    _write_json(folder / "config.json", config_json())
    _write_json(folder / "generation_config.json", generation_config_json())
    (folder / "vocab.txt").write_text("\n".join(tokens.VOCABULARY) + "\n")
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 256},
    )
    if start is None:
        _write_presets(data, folder)
    elif start != folder:
        voices = "speaker_embeddings"
        shutil.copytree(start / voices, folder / voices, dirs_exist_ok=True)
        shutil.copy(start / f"{voices}_path.json", folder)


def _presets(data: Path) -> dict[str, dict[str, np.ndarray]]:
    """For each speaker, a sentence of the training data long enough to fill a history."""
    units, codes = Ragged.load(data / "spoken_units.npy"), Ragged.load(data / "codes.npy")
    speakers = np.load(data / "speakers.npy")
    presets = {}
    for number, speaker in enumerate(SPEAKERS):
        own = (
            int(i)
            for i in np.flatnonzero(speakers == number)
            if _PRESET_UNITS[0] <= len(units[int(i)]) <= _PRESET_UNITS[1]
        )
        chosen = next(own)
        fine = codes[chosen].astype(np.int64)
        n = fine.shape[1]
        presets[f"v2/{speaker.name}"] = {
            "semantic_prompt": units[chosen].astype(np.int64),
            # Bark drops the last frame.
            "coarse_prompt": fine[: tokens.N_COARSE, [*range(1, n), n - 1]],
            "fine_prompt": fine,
        }
    return presets


def _write_presets(data: Path, folder: Path) -> None:
    index: dict[str, Any] = {"repo_or_path": "demo"}
    for name, arrays in _presets(data).items():
        index[name] = {}
        for key, array in arrays.items():
            file = _preset_path(folder, name, key)
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, array)
            index[name][key] = str(file.relative_to(folder))
    _write_json(folder / "speaker_embeddings_path.json", index)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
