"""Reading a checkpoint's tensors: every one that is needed, none that is not expected.

Layouts: model.safetensors, model.safetensors.index.json with its shards, pytorch_model.bin and
pytorch_model.bin.index.json with its. Names are those of transformers' BarkModel.

Memory: files are mapped and copied tensor by tensor, and mapped anew every `_REMAP_BYTES`, because
pages that were read count as resident until their mapping ends.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bark_fast.checkpoint.config import (
    CONFIG_FILE,
    CodecConfig,
    Config,
    FineGPTConfig,
    GPTConfig,
)
from bark_fast.checkpoint.source import Source
from bark_fast.types import CheckpointError

_REMAP_BYTES = 64 * 2**20

Shapes = dict[str, tuple[int, ...]]

# Tensors that transformers stores and that speaking does not need: causal masks, the encoder half
# of the codec and its training statistics.
_UNUSED = re.compile(
    r"(semantic|coarse_acoustics)\.layers\.\d+\.attn\.bias"
    r"|codec_model\.encoder\..*"
    r"|codec_model\.quantizer\.layers\.\d+\.codebook\.(inited|cluster_size|embed_avg)"
)
_CODEBOOK = re.compile(r"codec_model\.quantizer\.layers\.(\d+)\.codebook\.embed")


def load_weights(
    source: Source, config: Config, *, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Every tensor that the four networks need, by transformers' names.

    Weight norm is folded: `...conv.weight` stands for the two tensors it is stored as. A tied fine
    head is left out. The codec stays in float32, where it costs little and is heard.

    Raises:
        CheckpointError: a tensor is missing, not expected, of another shape, or unreadable; or the
            stored weights contradict the configuration.
    """
    where = source.name
    stored = _StoredTensors(source)
    needed = {
        **_gpt_shapes("semantic", config.semantic),
        **_gpt_shapes("coarse_acoustics", config.coarse),
        **_fine_shapes("fine_acoustics", config.fine),
        **_codec_shapes("codec_model", config),
    }
    tied = _tied_heads("fine_acoustics", config.fine)

    normed: dict[str, tuple[str, str]] = {}  # a folded weight -> (magnitude, direction)
    for name in needed:
        pair = _weight_norm_pair(name, stored.names)
        if pair is not None:
            normed[name] = pair
    accounted = set(needed) | set(tied) | {part for pair in normed.values() for part in pair}

    for name in sorted(needed):
        if name not in stored.names and name not in normed:
            raise CheckpointError(
                f"{where}: tensor {name} {list(needed[name])} is missing from the weights"
            )
    for name in sorted(stored.names - accounted):
        codebook = _CODEBOOK.fullmatch(name)
        if not _UNUSED.fullmatch(name) and not codebook:
            raise CheckpointError(
                f"{where}: the weights hold {name}, which the config does not ask for"
            )

    tensors: dict[str, Tensor] = {}
    wanted = (set(needed) & stored.names) | {p for pair in normed.values() for p in pair}
    heads = {head: emb for head, emb in tied.items() if head in stored.names}
    for name, tensor in stored.read(wanted | set(heads)):
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{where}: tensor {name} must be floating point, got {tensor.dtype}"
            )
        expected = needed.get(name) or needed.get(heads.get(name, ""))
        if expected is not None and tuple(tensor.shape) != expected:
            raise CheckpointError(
                f"{where}: tensor {name} must have shape {list(expected)}, got {list(tensor.shape)}"
            )
        codec = name.startswith("codec_model.")
        target = torch.float32 if codec else dtype
        tensors[name] = torch.empty(tensor.shape, dtype=target, device=device).copy_(tensor)

    for head, embedding in heads.items():
        if not torch.equal(tensors.pop(head), tensors[embedding]):
            raise CheckpointError(
                f"{where}: {head} differs from {embedding}, "
                "but fine_acoustics_config.tie_word_embeddings says that they are one"
            )
    for name, (magnitude, direction) in normed.items():
        g, v = tensors.pop(magnitude), tensors.pop(direction)
        if tuple(v.shape) != needed[name] or tuple(g.shape) != (v.shape[0], 1, 1):
            raise CheckpointError(
                f"{where}: tensors {magnitude} and {direction} must have shapes "
                f"{[needed[name][0], 1, 1]} and {list(needed[name])}, "
                f"got {list(g.shape)} and {list(v.shape)}"
            )
        # Salimans & Kingma 2016, eq. 2, a norm for each slice of the first dimension.
        tensors[name] = v * (g / torch.linalg.vector_norm(v, dim=(1, 2), keepdim=True))
    return tensors


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
    """Head -> the embedding that it is, whatever n_codes_given is (BarkFineModel)."""
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
        with torch.device("meta"):
            decoder = build_codec_decoder(config.codec)
    except Exception as error:  # as many kinds as there are impossible values
        raise CheckpointError(
            f"{CONFIG_FILE}: codec_config: no decoder can be built from it: {error}"
        ) from error
    for name, tensor in decoder.state_dict().items():
        shapes[f"{prefix}.decoder.{name}"] = tuple(tensor.shape)
    return shapes


def build_codec_decoder(config: CodecConfig) -> torch.nn.Module:
    """transformers' EnCodec decoder with weight norm taken off; its weights are still to come."""
    from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations
    from transformers import EncodecConfig
    from transformers.models.encodec.modeling_encodec import EncodecDecoder

    decoder: torch.nn.Module = EncodecDecoder(EncodecConfig(**config.settings))
    for module in decoder.modules():
        if is_parametrized(module, "weight"):
            remove_parametrizations(module, "weight", leave_parametrized=True)
    return decoder.requires_grad_(False).eval()


def _weight_norm_pair(name: str, stored: set[str]) -> tuple[str, str] | None:
    """(magnitude, direction) that `name` is stored as, in the new or the old form; else None."""
    stem, _, last = name.rpartition(".")
    if last != "weight":
        return None
    new = f"{stem}.parametrizations.weight.original"
    for pair in ((f"{new}0", f"{new}1"), (f"{name}_g", f"{name}_v")):
        if all(part in stored for part in pair):
            return pair
    return None


class _StoredTensors:
    """The tensors of one file or of several shards, by name."""

    def __init__(self, source: Source) -> None:
        self.where = source.name
        self.files = self._locate(source)
        self.names: set[str] = set(self.files)

    def _locate(self, source: Source) -> dict[str, Path]:
        """Tensor name -> file."""
        for file in ("model.safetensors", "pytorch_model.bin"):
            path = source.find(file)
            if path is not None:
                with self._mapped(path) as (names, _):
                    return dict.fromkeys(names, path)
            if source.find(f"{file}.index.json") is not None:
                return self._locate_shards(source, f"{file}.index.json")
        raise CheckpointError(
            f"{source.name}: no weights found (model.safetensors, pytorch_model.bin, or either "
            "with .index.json and its shards)"
        )

    def _locate_shards(self, source: Source, index: str) -> dict[str, Path]:
        weight_map = source.read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(shard, str) for shard in weight_map.values()
        ):
            raise CheckpointError(f"{source.name}: {index}: weight_map must map tensors to files")
        paths = {shard: source.require(shard) for shard in sorted(set(weight_map.values()))}
        stored: dict[str, Path] = {}
        for path in paths.values():
            with self._mapped(path) as (names, _):
                stored.update(dict.fromkeys(names, path))
        for name, shard in weight_map.items():
            if stored.get(name) != paths[shard]:
                raise CheckpointError(
                    f"{source.name}: {index} says that {shard} holds {name}; it does not"
                )
        return stored

    def read(self, names: set[str]) -> Iterator[tuple[str, Tensor]]:
        """Each of `names` with its tensor, which is valid until the next one is asked for."""
        for path in sorted({self.files[name] for name in names}):
            todo = sorted(name for name in names if self.files[name] == path)
            # torch's format before 1.6 cannot be mapped: it is read whole, and should be once.
            limit = _REMAP_BYTES if _can_be_mapped(path) else math.inf
            while todo:
                read_bytes = 0
                with self._mapped(path) as (_, get):
                    while todo and read_bytes < limit:
                        name = todo.pop(0)
                        try:
                            tensor = get(name)
                        except Exception as error:  # each library and version has its own
                            raise CheckpointError(
                                f"{path}: tensor {name} is unreadable: {error}"
                            ) from error
                        read_bytes += tensor.numel() * tensor.element_size()
                        yield name, tensor
                        del tensor

    def _mapped(
        self, path: Path
    ) -> AbstractContextManager[tuple[list[str], Callable[[str], Tensor]]]:
        return _map_safetensors(path) if path.suffix == ".safetensors" else _map_pickle(path)


class _map_safetensors:  # noqa: N801 - a context manager, named as a verb
    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            self._open = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: is not a whole safetensors file: {error}") from error

    def __enter__(self) -> tuple[list[str], Callable[[str], Tensor]]:
        file = self._open.__enter__()
        return list(file.keys()), file.get_tensor

    def __exit__(self, *exception: Any) -> None:
        self._open.__exit__(*exception)


def _can_be_mapped(path: Path) -> bool:
    return path.suffix == ".safetensors" or zipfile.is_zipfile(path)


def _map_pickle(path: Path) -> AbstractContextManager[tuple[list[str], Callable[[str], Tensor]]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path))
    except Exception as error:  # damage raises whatever the unpickler stumbles over
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: is not a whole file of plain tensors: {reason}") from error
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise CheckpointError(f"{path}: must hold a mapping of names to tensors")
    return nullcontext((list(content), content.__getitem__))
