"""The classes that a BarkModel is made of, and their methods as they were when this was imported.

An engine computes what these methods say, so it must notice when a program has replaced one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import transformers
from torch import nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.bark import modeling_bark as bark
from transformers.models.encodec import modeling_encodec as encodec

CAUSAL_MODELS: tuple[type, ...] = (bark.BarkSemanticModel, bark.BarkCoarseModel)

CONTAINERS: frozenset[type] = frozenset({nn.ModuleDict, nn.ModuleList, ParametrizationList})
"""The classes whose forward runs whatever is in them."""

MODULE_CLASSES: frozenset[type] = frozenset(
    {
        *CONTAINERS,
        *CAUSAL_MODELS,
        _WeightNorm,
        nn.Conv1d,
        nn.ConvTranspose1d,
        nn.Dropout,
        nn.ELU,
        nn.Embedding,
        nn.GELU,
        nn.GroupNorm,
        nn.Identity,
        nn.LSTM,
        nn.LayerNorm,
        nn.Linear,
        bark.BarkBlock,
        bark.BarkFineModel,
        bark.BarkMLP,
        bark.BarkSelfAttention,
        bark.BarkSelfFlashAttention2,
        encodec.EncodecConv1d,
        encodec.EncodecConvTranspose1d,
        encodec.EncodecDecoder,
        encodec.EncodecEuclideanCodebook,
        encodec.EncodecLSTM,
        encodec.EncodecModel,
        encodec.EncodecResidualVectorQuantizer,
        encodec.EncodecResnetBlock,
        encodec.EncodecVectorQuantization,
    }
)
"""The classes of the modules that speak."""

_BASES = (
    bark.BarkCausalModel,
    bark.BarkPreTrainedModel,
    transformers.BarkModel,
    transformers.GenerationMixin,
    GradientCheckpointingLayer,
)

# Of torch's base class only what runs a module: programs replace other methods of it to load
# weights in their own way, which changes nothing here.
_CALL = ("__call__", "_call_impl", "_wrapped_call_impl")


def _is_method(value: object) -> bool:
    return callable(value) or isinstance(value, (classmethod, property, staticmethod))


def _own_methods(cls: type) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(cls).items()
        if _is_method(value) and (cls is not nn.Module or name in _CALL)
    }


def _method_names(cls: type) -> frozenset[str]:
    """Return the names by which an instance could replace a method of its class."""
    return frozenset(
        name
        for base in cls.__mro__
        for name, value in vars(base).items()
        if _is_method(value) and not name.startswith("__") and name != "extra_repr"
    )


_CLASSES = (nn.Module, *_BASES, *sorted(MODULE_CLASSES, key=lambda cls: cls.__name__))
_ORIGINALS: Mapping[type, dict[str, Any]] = {cls: _own_methods(cls) for cls in _CLASSES}

METHOD_NAMES: Mapping[type, frozenset[str]] = {
    cls: _method_names(cls) for cls in (*MODULE_CLASSES, transformers.BarkModel)
}
"""The names of the methods of each class, its bases' included."""


def _replaced_before() -> Iterator[str]:
    """Yield the methods that run a module and that were not their class's own already."""
    for cls, methods in _ORIGINALS.items():
        for name in ("forward", "generate", "decode", "codec_decode"):
            module = getattr(methods.get(name), "__module__", cls.__module__)
            if module != cls.__module__:
                yield f"{cls.__name__}.{name}"


_REPLACED_BEFORE = tuple(_replaced_before())


def replaced_method() -> str | None:
    """Return a method of these classes that is not the original any more, None if all are."""
    for cls, methods in _ORIGINALS.items():
        now = vars(cls)
        for name, method in methods.items():
            if now.get(name) is not method:
                return f"{cls.__name__}.{name}"
        if cls is not nn.Module:
            for name in now.keys() - methods.keys():
                if _is_method(now[name]):
                    return f"{cls.__name__}.{name}"
    return _REPLACED_BEFORE[0] if _REPLACED_BEFORE else None
