"""A module is more than its weights: what changes how it computes is seen, and transformers' own
generate then says what the modules give. What changes nothing is served."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.models.bark.modeling_bark import BarkMLP, BarkSelfAttention
from transformers.models.encodec.modeling_encodec import EncodecLSTM, EncodecResnetBlock

from helpers.hf_models import GREEDY, Seen, assert_left_to_transformers

SHORT: dict[str, Any] = {**GREEDY, "semantic_max_new_tokens": 8, "semantic_min_new_tokens": 8}


@pytest.fixture
def inputs(processor: Any) -> Any:
    return processor("Hello, my dog!", max_length=32)


# What changes what the modules give.


class _Doubling(nn.Linear):
    """A linear layer whose forward is another one."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


class _Negated(nn.Module):
    """A parametrization."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return -weight


def hook(model: Any) -> None:
    model.semantic.layers[0].mlp.register_forward_hook(lambda module, given, result: result * 0)


def pre_hook(model: Any) -> None:
    model.coarse_acoustics.layers[1].attn.register_forward_pre_hook(lambda m, x: (x[0] * 2,))


def hook_with_keywords(model: Any) -> None:
    model.semantic.register_forward_pre_hook(lambda m, args, kwargs: None, with_kwargs=True)


def hook_on_codec(model: Any) -> None:
    model.codec_model.decoder.layers[0].register_forward_hook(lambda m, x, y: -y)


def forward_of_an_instance(model: Any) -> None:
    norm = model.semantic.layernorm_final
    norm.forward = types.MethodType(lambda self, x: -nn.LayerNorm.forward(self, x), norm)


def method_of_an_instance(model: Any) -> None:
    attention = model.fine_acoustics.layers[0].attn
    attend = attention._attn
    attention._attn = lambda *args, **kwargs: tuple(2 * out for out in attend(*args, **kwargs))


def decoding_of_an_instance(model: Any) -> None:
    decode = model.codec_decode
    model.codec_decode = lambda codes, lengths=None: decode(codes.flip(0), lengths)


def subclass(model: Any) -> None:
    old = model.semantic.layers[1].mlp.in_proj
    new = _Doubling(old.in_features, old.out_features)
    new.load_state_dict(old.state_dict())
    model.semantic.layers[1].mlp.in_proj = new


def other_activation(model: Any) -> None:
    model.coarse_acoustics.layers[0].mlp.gelu = nn.ELU()


def activation_by_tanh(model: Any) -> None:
    for layer in model.semantic.layers:
        layer.mlp.gelu.approximate = "tanh"


def no_attention(model: Any) -> None:
    model.fine_acoustics.layers[1].mlp = nn.Identity()


def wrapped(model: Any) -> None:
    model.semantic.layers[0].mlp = nn.Sequential(model.semantic.layers[0].mlp, nn.Tanh())


def parametrized(model: Any) -> None:
    nn.utils.parametrize.register_parametrization(model.semantic.lm_head, "weight", _Negated())


def weight_normed(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model.coarse_acoustics.layers[0].mlp.in_proj)


def pruned(model: Any) -> None:
    from torch.nn.utils import prune

    prune.l1_unstructured(model.semantic.layers[0].mlp.out_proj, "weight", amount=0.5)


def fewer_layers(model: Any) -> None:
    model.semantic.layers = model.semantic.layers[:1]


def a_layer_twice(model: Any) -> None:
    model.coarse_acoustics.layers[1] = model.coarse_acoustics.layers[0]


def layers_of_another_order(model: Any) -> None:
    model.fine_acoustics.layers = nn.ModuleList(reversed(model.fine_acoustics.layers))


def other_epsilon(model: Any) -> None:
    model.semantic.layers[0].layernorm_1.eps = 0.5


def other_heads(model: Any) -> None:
    attention = model.semantic.layers[0].attn
    attention.num_heads, attention.head_dim = 1, 48


def not_causal(model: Any) -> None:
    model.semantic.layers[0].attn.is_causal = False


def other_mask(model: Any) -> None:
    model.semantic.layers[0].attn.bias[..., :-1, 0] = False


def no_bias(model: Any) -> None:
    model.semantic.layers[0].mlp.out_proj.bias = None


def plain_tensor(model: Any) -> None:
    head = model.semantic.lm_head
    weight = -head.weight.detach()
    del head.weight
    head.weight = weight


def dropout(model: Any) -> None:
    for module in model.semantic.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.2
            module.train()


def double(model: Any) -> None:
    model.double()


def double_codec(model: Any) -> None:
    model.codec_model.double()


def one_part_in_half(model: Any) -> None:
    model.coarse_acoustics.to(torch.bfloat16)


def one_layer_in_half(model: Any) -> None:
    model.fine_acoustics.layers[0].to(torch.bfloat16)


def half_a_codec(model: Any) -> None:
    model.codec_model.decoder.to(torch.bfloat16)


def on_the_meta_device(model: Any) -> None:
    model.coarse_acoustics.to("meta")


def sparse(model: Any) -> None:
    head = model.semantic.lm_head
    head.weight = nn.Parameter(head.weight.detach().to_sparse(), requires_grad=False)


def resized_embeddings(model: Any) -> None:
    """More ids than the configuration says that there are logits of."""
    old = model.semantic.lm_head
    model.semantic.lm_head = nn.Linear(old.in_features, old.out_features + 8, bias=False)
    with torch.no_grad():
        model.semantic.lm_head.weight.zero_()[: old.out_features] = old.weight


def data_parallel(model: Any) -> None:
    model.semantic = nn.DataParallel(model.semantic)


def no_codec(model: Any) -> None:
    model.codec_model.decoder = nn.Identity()


def quantised(model: Any) -> None:
    linear = torch.ao.quantization.quantize_dynamic(
        model.semantic.layers, {nn.Linear}, dtype=torch.qint8
    )
    model.semantic.layers = linear


def other_embedding(model: Any) -> None:
    model.semantic.input_embeds_layer.max_norm = 0.5


CHANGES: list[tuple[Callable[[Any], None], str]] = [
    (hook, r"semantic\.layers\.0\.mlp has a forward hook"),
    (pre_hook, r"coarse_acoustics\.layers\.1\.attn has a forward hook"),
    (hook_with_keywords, "semantic has a forward hook"),
    (hook_on_codec, r"codec_model\.decoder\.layers\.0 has a forward hook"),
    (forward_of_an_instance, r"semantic\.layernorm_final\.forward is not the original one"),
    (method_of_an_instance, r"fine_acoustics\.layers\.0\.attn\._attn is not the original one"),
    (decoding_of_an_instance, "the model's codec_decode is not the original one"),
    (subclass, r"in_proj is a _Doubling, not the Linear that it was made with"),
    (other_activation, r"mlp\.gelu is a ELU, not the GELU"),
    (activation_by_tanh, r"mlp\.gelu\.approximate is 'tanh', not the 'none'"),
    (no_attention, r"fine_acoustics\.layers\.1\.mlp is a Identity, not the BarkMLP"),
    (wrapped, r"semantic\.layers\.0\.mlp is a Sequential"),
    (parametrized, r"semantic\.lm_head is a ParametrizedLinear"),
    (weight_normed, r"in_proj is a ParametrizedLinear"),
    (pruned, r"semantic\.layers\.0\.mlp\.out_proj has a forward hook"),
    (fewer_layers, r"semantic\.layers holds 1 modules, not the 2"),
    (a_layer_twice, r"coarse_acoustics\.layers\.1\.attn\.layer_idx is 0, not the 1"),
    (layers_of_another_order, r"layer_idx is"),
    (other_epsilon, r"layernorm_1\.eps is 0\.5, not the 1e-05"),
    (other_heads, r"attn\.num_heads is 1, not the 3"),
    (not_causal, r"attn\.is_causal is False"),
    (other_mask, r"attn\.bias is not the mask of what came before"),
    (no_bias, r"there is no tensor semantic\.layers\.0\.mlp\.out_proj\.bias"),
    (plain_tensor, r"there is no tensor semantic\.lm_head\.weight"),
    (dropout, r"is in training mode and drops 0\.2"),
    (double, "the weights of the transformers are in float64"),
    (double_codec, "the weights of the codec are in float64"),
    (one_part_in_half, "the weights of the transformers are in bfloat16, float32"),
    (one_layer_in_half, "the weights of the transformers are in bfloat16, float32"),
    (half_a_codec, "the weights of the codec are in bfloat16, float32"),
    (on_the_meta_device, "the weights are on cpu, meta"),
    (sparse, r"semantic\.lm_head\.weight is not a plain tensor but a torch\.sparse_coo"),
    (resized_embeddings, r"output_vocab_size is 128, and its head has 136 rows"),
    (data_parallel, "semantic is a DataParallel"),
    (no_codec, r"codec_model\.decoder is a Identity"),
    (quantised, r"is a torch\.ao\.\S*\.Linear, not the Linear that"),
    (other_embedding, r"input_embeds_layer\.max_norm is 0\.5"),
]


@pytest.mark.parametrize(
    ("change", "reason"), CHANGES, ids=[change.__name__ for change, _ in CHANGES]
)
@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated")
def test_what_the_modules_give(
    pair: tuple[Any, Any], inputs: Any, seen: Seen, change: Callable[[Any], None], reason: str
) -> None:
    """It is what transformers gives, or its error; after calls that the engine served, too."""
    ours, theirs = pair
    if change is not on_the_meta_device:  # an engine is built before
        ours.generate(**inputs, **SHORT)
        seen.requests.clear()
    for model in pair:
        change(model)
    assert_left_to_transformers(ours, theirs, inputs, reason, **SHORT)
    assert not seen.requests
    assert ours.why_not_served(**SHORT) is not None


def test_the_changes_change_something(pair: tuple[Any, Any], inputs: Any) -> None:
    """Or the test above would show nothing."""
    ours, theirs = pair
    before = ours.generate(**inputs, **SHORT)
    for change in (
        hook,
        forward_of_an_instance,
        other_epsilon,
        other_mask,
        decoding_of_an_instance,
    ):
        other = copy.deepcopy(theirs)
        change(other)
        assert not torch.equal(other.generate(**inputs, **SHORT), before), change.__name__


# What changes every model of the process.


@contextmanager
def global_hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, given, result: result * 0.5 if isinstance(module, nn.GELU) else None
    )
    with_hook = "a forward hook for all modules"
    try:
        yield with_hook
    finally:
        handle.remove()


@contextmanager
def global_pre_hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    handle = nn.modules.module.register_module_forward_pre_hook(lambda module, given: None)
    try:
        yield "a forward hook for all modules"
    finally:
        handle.remove()


def replacing(cls: type, name: str) -> Callable[[pytest.MonkeyPatch], Any]:
    @contextmanager
    def replaced(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        original = getattr(cls, name)

        def method(self: Any, *arguments: Any, **options: Any) -> Any:
            return original(self, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(cls, name, method)
            yield rf"{cls.__name__}\.{name} is not the original one"

    replaced.__name__ = f"{cls.__name__}.{name}"
    return replaced


@pytest.mark.parametrize(
    "around",
    [
        global_hook,
        global_pre_hook,
        replacing(BarkMLP, "forward"),
        replacing(BarkSelfAttention, "_attn"),
        replacing(transformers.BarkCausalModel, "_sample"),
        replacing(transformers.BarkModel, "codec_decode"),
        replacing(transformers.GenerationMixin, "_sample"),
        replacing(EncodecResnetBlock, "forward"),
        replacing(EncodecLSTM, "forward"),
        replacing(nn.LayerNorm, "forward"),
        replacing(nn.Module, "__call__"),
    ],
    ids=lambda around: around.__name__,
)
def test_what_holds_for_all_models(
    ours: Any, theirs: Any, inputs: Any, seen: Seen, monkeypatch: pytest.MonkeyPatch, around: Any
) -> None:
    """And it is served again afterwards."""
    before = ours.generate(**inputs, **SHORT)
    seen.requests.clear()
    with around(monkeypatch) as reason:
        assert_left_to_transformers(ours, theirs, inputs, reason, **SHORT)
    assert not seen.requests
    assert torch.equal(ours.generate(**inputs, **SHORT), before)
    assert seen.requests
