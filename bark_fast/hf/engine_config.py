"""The configuration of an engine for a BarkModel, read off its modules.

Their own configurations say what they were made for. Programs change these afterwards, which
changes nothing in the modules, and resize embeddings, which the configurations do not always say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers.models.bark.generation_configuration_bark import BarkSemanticGenerationConfig

from bark_fast.checkpoint.config import NETWORKS, Config
from bark_fast.checkpoint.reading import parse_config
from bark_fast.errors import CheckpointError
from bark_fast.hf.keywords import SAMPLING
from bark_fast.hf.not_served import NotServedError
from bark_fast.hf.params import SECTIONS
from bark_fast.types import TokenStage


def read_engine_config(
    generation_config: Any,
    parts: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    sections: Mapping[TokenStage, Mapping[str, Any]],
    codec_settings: Mapping[str, Any],
) -> Config:
    """Return the configuration that an engine is built for.

    Sampling settings are left out, because they may change from call to call, and the keywords
    settle them. The longest text is as long as the positions allow.

    Args:
        parts: the modules of the four networks, by their names in the model.
        sections: what the generation config says of each stage.
        codec_settings: those that the codec was made with.

    Raises:
        NotServedError: an engine cannot be built for it.
    """
    shapes = {f"{name}_config": _read_shapes(parts[name], tensors) for name in NETWORKS.values()}
    shapes["codec_config"] = dict(codec_settings)
    semantic = parts[NETWORKS["semantic"]]
    n_ids = shapes[SECTIONS["semantic"]]["output_vocab_size"]
    if semantic.config.output_vocab_size != n_ids:  # which transformers' generate looks at
        raise NotServedError(
            f"{NETWORKS['semantic']}.config.output_vocab_size is "
            f"{semantic.config.output_vocab_size}, and its head has {n_ids} rows"
        )
    generation: dict[str, Any] = {
        SECTIONS[stage]: {k: v for k, v in section.items() if k not in SAMPLING}
        for stage, section in sections.items()
    }
    for key in ("codebook_size", "sample_rate"):
        generation[key] = getattr(generation_config, key, None)
    rules = generation[SECTIONS["semantic"]]
    width = rules.get("max_input_semantic_length")
    if width is None:
        width = BarkSemanticGenerationConfig().max_input_semantic_length
    if isinstance(width, int):  # else the configuration is at fault
        block_size = shapes[SECTIONS["semantic"]]["block_size"]
        rules["max_new_tokens"] = max(1, block_size - width)
    try:
        return parse_config(shapes, generation, where="BarkModel")
    except CheckpointError as error:
        raise NotServedError(str(error)) from error


def _read_shapes(module: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the sizes of one of the three transformers, as its config.json would say them.

    What neither its modules nor its tensors show is taken from its own configuration.
    """
    prefix = module.base_model_prefix
    positions = _matrix(tensors, f"{prefix}.position_embeds_layer.weight")
    names = [name for name in tensors if name.startswith(f"{prefix}.input_embeds_layer")]
    heads = [name for name in tensors if name.startswith(f"{prefix}.lm_head")]
    n_layers = len(module.layers)
    found = {
        "num_layers": n_layers,
        "num_heads": module.layers[0].attn.num_heads if n_layers else module.config.num_heads,
        "bias": f"{prefix}.layers.0.attn.att_proj.bias" in tensors,
        "block_size": positions.shape[0],
        "hidden_size": positions.shape[1],
        "input_vocab_size": _matrix(tensors, names[0]).shape[0],
        "output_vocab_size": _matrix(tensors, heads[0]).shape[0],
    }
    if prefix == NETWORKS["fine"]:
        found["n_codes_total"] = len(names)
        found["n_codes_given"] = module.config.n_codes_given
        found["tie_word_embeddings"] = all(
            _same_memory(
                tensors[f"{prefix}.lm_heads.{k}.weight"],
                tensors.get(f"{prefix}.input_embeds_layers.{k + 1}.weight"),
            )
            for k in range(len(heads))
        )
    return found


def _matrix(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if tensors[name].ndim != 2:
        raise NotServedError(f"{name} has the shape {list(tensors[name].shape)}")
    return tensors[name]


def _same_memory(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.data_ptr() == b.data_ptr() and a.shape == b.shape
