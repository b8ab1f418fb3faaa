"""The modules that speak, compared with those that the model was made of.

transformers runs modules; an engine has only their weights. It gives the same speech for as long as
every module is one of transformers' own, with the attributes it was made with, nothing hooked to it
and no method replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers import PreTrainedModel

from bark_fast.checkpoint.config import CODEC, NETWORKS
from bark_fast.hf.not_served import NotServedError
from bark_fast.hf.originals import CONTAINERS, METHOD_NAMES, MODULE_CLASSES, replaced_method

_PARTS = (*NETWORKS.values(), CODEC)
_NOT_RUN = f"{CODEC}.encoder"  # speaking needs no encoder, and programs drop it
_PARAMETRIZATIONS = "parametrizations"  # torch's name for the modules that compute a tensor

# Sizes follow from the weights, which are checked themselves, and dropout is looked at apart.
_FREE_ATTRIBUTES = {"embedding_dim", "in_features", "num_embeddings", "out_features", "training"}
_SIMPLE = (bool, int, float, str, tuple, type(None))
_STATISTICS = {"cluster_size", "embed_avg", "inited"}  # of training the codec
_MISSING = object()
_PLAIN = (nn.Parameter, Tensor)

# What transformers' generate runs of the whole model.
_MODEL_METHODS: Mapping[str, Any] = {
    name: getattr(transformers.BarkModel, name) for name in ("codec_decode", "forward")
}


@dataclass(frozen=True)
class _Node:
    """One module as it was made.

    Attributes:
        path: its name in the model.
        kind: its class; of a parametrized module the class that it had before.
        tensors: the names of its parameters and persistent buffers, and those in a checkpoint.
        attributes: what its forward may depend on besides.
        children: the modules in it, in order.
    """

    path: str
    kind: type
    tensors: Mapping[str, str]
    attributes: Mapping[str, Any]
    children: Mapping[str, _Node]


class Structure:
    """The modules of a BarkModel, recorded when it was made."""

    def __init__(self, model: nn.Module) -> None:
        self._nodes = {part: _record(part, getattr(model, part)) for part in _PARTS}

    def __deepcopy__(self, memo: dict[int, Any]) -> Structure:
        return self  # nothing in it changes

    def parts(self, model: nn.Module) -> dict[str, Any]:
        """Return the three transformers and the codec of `model`; of a compiled module the one
        that was compiled.

        Raises:
            NotServedError: one of them is not there.
        """
        return {part: _child(model, part, part) for part in self._nodes}

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the tensors of the modules, under the names that a checkpoint has for them.

        Raises:
            NotServedError: a module or a plain tensor is not there.
        """
        return dict(self._walk(model, lambda module, node: None))

    def check(self, model: nn.Module) -> dict[str, Tensor]:
        """Check that to run the modules is nothing but to compute with their tensors.

        Returns:
            What `tensors` returns.

        Raises:
            NotServedError: it is something else.
        """
        method = replaced_method()
        if method is not None:
            raise NotServedError(f"{method} is not the original one")
        if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
            raise NotServedError("there is a forward hook for all modules")
        _check_hooks(model, "the model")
        for name, original in _MODEL_METHODS.items():
            if name in vars(model) or getattr(type(model), name) is not original:
                raise NotServedError(f"the model's {name} is not the original one")
        return dict(self._walk(model, _check_module))

    def _walk(
        self, model: nn.Module, visit: Callable[[nn.Module, _Node], None]
    ) -> Iterator[tuple[str, Tensor]]:
        """Visit every module, and yield its tensors with their names."""
        waiting = [(_child(model, part, part), node) for part, node in self._nodes.items()]
        while waiting:
            module, node = waiting.pop()
            visit(module, node)
            for name, full_name in node.tensors.items():
                yield full_name, _tensor(module, name, full_name)
            for name, child in node.children.items():
                if name == _PARAMETRIZATIONS and name not in module._modules:
                    # It was removed, which leaves what it last computed.
                    yield f"{node.path}.weight", _tensor(module, "weight", f"{node.path}.weight")
                else:
                    waiting.append((_child(module, name, child.path), child))


def _record(path: str, module: nn.Module) -> _Node:
    persistent = {
        name: tensor
        for name, tensor in module._buffers.items()
        if name not in module._non_persistent_buffers_set and name not in _STATISTICS
    }
    attributes = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, _SIMPLE) and not name.startswith("_") and name not in _FREE_ATTRIBUTES
    }
    # A model's forward depends on none of the attributes that transformers gives it; and how much
    # dropout there is matters in training alone.
    free = isinstance(module, (PreTrainedModel, nn.Dropout))
    return _Node(
        path=path,
        kind=type(module).__bases__[0] if _PARAMETRIZATIONS in module._modules else type(module),
        tensors={
            name: f"{path}.{name}"
            for name, tensor in {**module._parameters, **persistent}.items()
            if tensor is not None
        },
        attributes={} if free else attributes,
        children={
            name: _record(f"{path}.{name}", child)
            for name, child in module._modules.items()
            if child is not None and f"{path}.{name}" != _NOT_RUN
        },
    )


def _tensor(module: nn.Module, name: str, full_name: str) -> Tensor:
    tensor: Tensor | None = module._parameters.get(name)
    if tensor is None:
        tensor = module._buffers.get(name)
    if tensor is None:
        raise NotServedError(f"there is no tensor {full_name}")
    # Quantised and sharded ones are of other classes, sparse ones of another layout.
    if type(tensor) not in _PLAIN or tensor.layout != torch.strided:
        kind = tensor.layout if type(tensor) in _PLAIN else type(tensor).__name__
        raise NotServedError(f"{full_name} is not a plain tensor but a {kind}")
    return tensor


def _child(module: nn.Module, name: str, path: str) -> nn.Module:
    """Return a module in another one; of a compiled module the one that was compiled."""
    child = module._modules.get(name)
    if type(child) in MODULE_CLASSES:  # which nearly all are
        return child  # type: ignore[return-value]
    while child is not None and _is_compiled(child):
        _check_hooks(child, path)
        child = child._modules["_orig_mod"]
    if child is None:
        raise NotServedError(f"there is no module {path}")
    return child


def _is_compiled(module: nn.Module) -> bool:
    compiler = sys.modules.get("torch._dynamo.eval_frame")  # it takes a second to import
    return compiler is not None and isinstance(module, compiler.OptimizedModule)


def _check_hooks(module: nn.Module, path: str) -> None:
    # Nothing runs backwards in generate.
    if module._forward_hooks or module._forward_pre_hooks:
        raise NotServedError(f"{path} has a forward hook")


def _check_module(module: nn.Module, node: _Node) -> None:
    """Check that a module computes what it did when it was made.

    Raises:
        NotServedError: it does not, or may not.
    """
    kind, attributes = type(module), module.__dict__
    if kind is not node.kind:
        kind = _kind(module, node)
    if kind not in MODULE_CLASSES:
        raise NotServedError(f"{node.path} is a {kind.__name__}, which is not transformers' own")
    _check_hooks(module, node.path)
    if not METHOD_NAMES[kind].isdisjoint(attributes):
        _check_methods(module, METHOD_NAMES[kind], node.path)
    for name, value in node.attributes.items():
        now = attributes.get(name, _MISSING)
        if now is not value and now != value:
            raise NotServedError(
                f"{node.path}.{name} is {getattr(module, name, None)!r}, not the {value!r} that it "
                "was made with"
            )
    if isinstance(module, nn.Dropout) and module.training and module.p > 0:
        raise NotServedError(f"{node.path} is in training mode and drops {module.p:g}")
    if kind in CONTAINERS and len(module._modules) != len(node.children):
        raise NotServedError(
            f"{node.path} holds {len(module._modules)} modules, not the {len(node.children)} that "
            "it was made with"
        )


def _kind(module: nn.Module, node: _Node) -> type:
    """Return the class that a module has, or had before it was parametrized as it was made.

    Raises:
        NotServedError: it is not the class that the module was made with, or one that does the
            same.
    """
    kind = type(module)
    if _PARAMETRIZATIONS in node.children and _PARAMETRIZATIONS in module._modules:
        kind = kind.__bases__[0]
    if kind is node.kind or (kind is nn.Identity and node.kind is nn.Dropout):
        return kind
    now, before = type(module).__name__, node.kind.__name__
    if now == before:  # torch has several of the same name
        now = f"{type(module).__module__}.{now}"
    raise NotServedError(f"{node.path} is a {now}, not the {before} that it was made with")


def _check_methods(module: nn.Module, names: frozenset[str], path: str) -> None:
    """Check that the module has no methods of its own, but for its forward compiled."""
    for name in names & vars(module).keys():
        compiled_from = getattr(vars(module)[name], "_torchdynamo_orig_callable", None)
        if getattr(compiled_from, "__self__", None) is not module or getattr(
            compiled_from, "__func__", None
        ) is not getattr(type(module), name):
            raise NotServedError(f"{path}.{name} is not the original one")
