"""Load a checkpoint's tensors: every one that is needed must be there, and none but the expected.

Names are those of transformers' BarkModel, wherever the tensors are stored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from bark_fast.checkpoint.codec_module import build_codec_decoder
from bark_fast.checkpoint.config import (
    CODEC,
    CONFIG_FILE,
    NETWORKS,
    Config,
    FineGPTConfig,
    GPTConfig,
)
from bark_fast.checkpoint.stored import StoredTensors
from bark_fast.checkpoint.unreadable import in_one_line
from bark_fast.errors import CheckpointError

Shapes = dict[str, tuple[int, ...]]

# Tensors that transformers stores and that speaking does not need: causal masks, the encoder half
# of the codec, its training statistics, and the codebooks past those that Bark uses.
_UNUSED = re.compile(
    rf"({'|'.join(NETWORKS.values())})\.layers\.\d+\.attn\.bias"
    rf"|{CODEC}\.encoder\..*"
    rf"|{CODEC}\.quantizer\.layers\.\d+\.codebook\.(inited|cluster_size|embed_avg|embed)"
)


def _none(name: str) -> bool:
    return False


def _keep(tensor: Tensor) -> Tensor:
    return tensor


def load_weights(
    stored: StoredTensors,
    config: Config,
    *,
    dtype: torch.dtype,
    device: torch.device,
    is_packed: Callable[[str], bool] = _none,
    pack: Callable[[Tensor], Any] = _keep,
) -> dict[str, Any]:
    """Load every tensor that the four networks need, by transformers' names.

    Weight norm is folded: `...conv.weight` stands for the two tensors it is stored as. A tied fine
    head is left out. The codec stays in float32, where it costs little and is heard.

    They are new tensors, except that `stored` ones that are `shared` are taken as they are where
    their dtype and device are right: nobody may write to them.

    Args:
        is_packed: says of a name whether `pack` is given its tensor.
        pack: takes a tensor in its dtype and on its device, and returns what to keep in its place,
            either the tensor itself or what holds none of its memory.

    Raises:
        CheckpointError: a tensor is missing, not expected, of another shape, or unreadable, or
            holds NaN or infinity, in its own dtype or in `dtype`; or the stored weights contradict
            the configuration.
    """
    where = stored.where
    needed, tied, normed = _needed(stored, config)
    parts = {part for pair in normed.values() for part in pair}

    tensors: dict[str, Any] = {}
    extremes: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    # Where those are converted that are then packed: memory that is new takes longer than the
    # conversion. None if packing keeps them.
    spare: Tensor | None = torch.empty(0, dtype=dtype, device=device)
    heads = {head: embedding for head, embedding in tied.items() if head in stored.names}
    for name, tensor in stored.read((set(needed) & stored.names) | parts | set(heads)):
        shape = needed.get(name) or needed.get(heads.get(name, ""))
        _check_tensor(name, tensor, shape, where)
        target = torch.float32 if name.startswith(f"{CODEC}.") else dtype
        packed = is_packed(name)
        own = tensor
        if not (tensor.dtype == target and tensor.device == device and tensor.is_contiguous()):
            if spare is not None and packed:
                if len(spare) < tensor.numel() or spare.dtype != target:
                    spare = torch.empty(tensor.numel(), dtype=target, device=device)
                own = spare[: tensor.numel()].view(tensor.shape)
            else:
                own = torch.empty(tensor.shape, dtype=target, device=device)
            own.copy_(tensor)
        if own.numel():
            extremes[name] = torch.stack(torch.aminmax(own)).float()
            dtypes[name] = target
        kept = pack(own) if packed else own
        if packed and kept is own:
            spare = None
        tensors[name] = own.clone() if kept is tensor and not stored.shared else kept
    _check_numbers(extremes, dtypes, stored)

    for head, embedding in heads.items():
        if not torch.equal(tensors.pop(head), tensors[embedding]):
            raise CheckpointError(
                f"{where}: {head} differs from {embedding}, "
                "but fine_acoustics_config.tie_word_embeddings says that they are one"
            )
    for name, (magnitude, direction) in normed.items():
        g, v = tensors.pop(magnitude), tensors.pop(direction)
        _check_weight_norm(name, (magnitude, direction), (g, v), needed[name], where)
        # Salimans & Kingma 2016, eq. 2, a norm for each slice of the first dimension.
        tensors[name] = v * (g / torch.linalg.vector_norm(v, dim=(1, 2), keepdim=True))
        if not tensors[name].isfinite().all():
            raise CheckpointError(f"{where}: tensor {direction} has a row of zeros")
    return tensors


def _check_numbers(
    extremes: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype], stored: StoredTensors
) -> None:
    """Raise CheckpointError if a tensor holds NaN or infinity, by the least and the largest of its
    numbers: all are judged together, with one look at the device."""
    finite = torch.stack(list(extremes.values())).isfinite().all(dim=1)
    if finite.all():
        return
    name = list(extremes)[finite.tolist().index(False)]
    dtype = str(dtypes[name]).removeprefix("torch.")
    for _, original in stored.read({name}):
        if original.isfinite().all():
            largest = original.abs().max().item()
            raise CheckpointError(
                f"{stored.where}: tensor {name} has numbers too large for {dtype} (up to "
                f"{largest:.3g}): load it with another dtype"
            )
        n_bad = int((~original.isfinite()).sum())
        raise CheckpointError(
            f"{stored.where}: tensor {name} must hold finite numbers, got {n_bad} that are NaN or "
            "infinite: the file is damaged, or training went wrong"
        )


def check_tensors(stored: StoredTensors, config: Config) -> None:
    """Check the names and shapes of tensors that cost nothing to read.

    Raises:
        CheckpointError: `load_weights` would refuse one of them.
    """
    needed, tied, normed = _needed(stored, config)
    parts = {part for pair in normed.values() for part in pair}
    read = dict(stored.read((set(needed) | parts | set(tied)) & stored.names))
    for name, tensor in read.items():
        shape = needed.get(name) or needed.get(tied.get(name, ""))
        _check_tensor(name, tensor, shape, stored.where)
    for name, pair in normed.items():
        g, v = (read[part] for part in pair)
        _check_weight_norm(name, pair, (g, v), needed[name], stored.where)


def _needed(
    stored: StoredTensors, config: Config
) -> tuple[Shapes, dict[str, str], dict[str, tuple[str, str]]]:
    """Return the shapes of the tensors that are needed, the embedding that each tied head is, and
    the two tensors that each weight with a weight norm is stored as.

    Raises:
        CheckpointError: a tensor is missing, or not expected.
    """
    needed = {
        **_gpt_shapes(NETWORKS["semantic"], config.semantic),
        **_gpt_shapes(NETWORKS["coarse"], config.coarse),
        **_fine_shapes(NETWORKS["fine"], config.fine),
        **_codec_shapes(CODEC, config),
    }
    tied = _tied_heads(NETWORKS["fine"], config.fine)
    normed: dict[str, tuple[str, str]] = {}
    for name in needed:
        pair = _weight_norm_pair(name, stored.names)
        if pair is not None:
            normed[name] = pair
    parts = {part for pair in normed.values() for part in pair}
    _check_names(stored, needed, normed.keys(), set(tied) | parts)
    return needed, tied, normed


def _check_names(
    stored: StoredTensors, needed: Shapes, in_parts: Collection[str], optional: set[str]
) -> None:
    """Raise CheckpointError unless what is stored is what is needed.

    Args:
        in_parts: those of `needed` that are stored as two others.
        optional: what else may be stored and is looked at.
    """
    for name in sorted(needed):
        if name not in stored.names and name not in in_parts:
            raise CheckpointError(
                f"{stored.where}: tensor {name} {list(needed[name])} is missing from the weights"
            )
    for name in sorted(stored.names - set(needed) - optional):
        if not _UNUSED.fullmatch(name):
            raise CheckpointError(
                f"{stored.where}: the weights hold {name}, which the config does not ask for"
            )


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...] | None, where: str) -> None:
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise CheckpointError(
            f"{where}: tensor {name} must hold its numbers itself, got a {type(tensor).__name__}"
        )
    if not tensor.is_floating_point():
        raise CheckpointError(f"{where}: tensor {name} must be floating point, got {tensor.dtype}")
    if tensor.layout != torch.strided or tensor.is_meta:
        kind = "one without data" if tensor.is_meta else str(tensor.layout)
        raise CheckpointError(f"{where}: tensor {name} must be a dense one, got {kind}")
    if shape is not None and tuple(tensor.shape) != shape:
        raise CheckpointError(
            f"{where}: tensor {name} must have shape {list(shape)}, got {list(tensor.shape)}"
        )


def _check_weight_norm(
    name: str,
    pair: tuple[str, str],
    tensors: tuple[Tensor, Tensor],
    shape: tuple[int, ...],
    where: str,
) -> None:
    (magnitude, direction), (g, v) = pair, tensors
    if tuple(v.shape) != shape or tuple(g.shape) != (v.shape[0], 1, 1):
        raise CheckpointError(
            f"{where}: tensors {magnitude} and {direction} must have shapes "
            f"{[shape[0], 1, 1]} and {list(shape)}, got {list(g.shape)} and {list(v.shape)}"
        )


def _gpt_shapes(prefix: str, c: GPTConfig, *, norm_bias: bool | None = None) -> Shapes:
    width, norm_bias = c.hidden_size, c.bias if norm_bias is None else norm_bias
    shapes: Shapes = {
        f"{prefix}.position_embeds_layer.weight": (c.block_size, width),
    }
    linears = {
        "attn.att_proj": (3 * width, width),
        "attn.out_proj": (width, width),
        "mlp.in_proj": (4 * width, width),
        "mlp.out_proj": (width, 4 * width),
    }
    norms = [f"{prefix}.layernorm_final"]
    for i in range(c.num_layers):
        layer = f"{prefix}.layers.{i}"
        norms += [f"{layer}.layernorm_1", f"{layer}.layernorm_2"]
        for name, shape in linears.items():
            shapes[f"{layer}.{name}.weight"] = shape
            if c.bias:
                shapes[f"{layer}.{name}.bias"] = shape[:1]
    for norm in norms:
        shapes[f"{norm}.weight"] = (width,)
        if norm_bias:
            shapes[f"{norm}.bias"] = (width,)
    if not isinstance(c, FineGPTConfig):
        shapes[f"{prefix}.input_embeds_layer.weight"] = (c.input_vocab_size, width)
        shapes[f"{prefix}.lm_head.weight"] = (c.output_vocab_size, width)
    return shapes


def _fine_shapes(prefix: str, c: FineGPTConfig) -> Shapes:
    shapes = _gpt_shapes(prefix, c, norm_bias=True)
    for k in range(c.n_codes_total):
        shapes[f"{prefix}.input_embeds_layers.{k}.weight"] = (c.input_vocab_size, c.hidden_size)
    if not c.tie_word_embeddings:
        for k in range(c.n_codes_total - c.n_codes_given):
            shapes[f"{prefix}.lm_heads.{k}.weight"] = (c.output_vocab_size, c.hidden_size)
    return shapes


def _tied_heads(prefix: str, c: FineGPTConfig) -> dict[str, str]:
    """Return the embedding that each head is, whatever n_codes_given is (BarkFineModel)."""
    if not c.tie_word_embeddings:
        return {}
    return {
        f"{prefix}.lm_heads.{k}.weight": f"{prefix}.input_embeds_layers.{k + 1}.weight"
        for k in range(c.n_codes_total - c.n_codes_given)
    }


def _codec_shapes(prefix: str, config: Config) -> Shapes:
    shapes: Shapes = {
        f"{prefix}.quantizer.layers.{k}.codebook.embed": (
            config.codec.codebook_size,
            config.codec.codebook_dim,
        )
        for k in range(config.fine_rules.n_fine_codebooks)
    }
    try:
        decoder = build_codec_decoder(config.codec)
    except Exception as error:  # as many kinds as there are impossible values
        raise CheckpointError(
            f"{CONFIG_FILE}: codec_config: no decoder can be built from it: {in_one_line(error)}"
        ) from error
    for name, tensor in decoder.state_dict().items():
        shapes[f"{prefix}.decoder.{name}"] = tuple(tensor.shape)
    return shapes


def _weight_norm_pair(name: str, stored: set[str]) -> tuple[str, str] | None:
    """Return the (magnitude, direction) that `name` is stored as, in the new or the old form, else
    None."""
    stem, _, last = name.rpartition(".")
    if last != "weight":
        return None
    new = f"{stem}.parametrizations.weight.original"
    for pair in ((f"{new}0", f"{new}1"), (f"{name}_g", f"{name}_v")):
        if all(part in stored for part in pair):
            return pair
    return None
