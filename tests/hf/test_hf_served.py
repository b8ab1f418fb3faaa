"""What leaves the modules as they were is served, and so are other weights in them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bark_fast import BarkFastWarning, InputError
from bark_fast.hf.keywords import GENERATION_CONFIGS
from bark_fast.hf.params import SECTIONS
from helpers.checkpoints import Checkpoint
from helpers.hf_models import GREEDY, Seen, assert_left_to_transformers

SHORT: dict[str, Any] = {**GREEDY, "semantic_max_new_tokens": 8, "semantic_min_new_tokens": 8}


@pytest.fixture
def inputs(processor: Any) -> Any:
    return processor("Hello, my dog!", max_length=32)


def compiled_part(model: Any) -> None:
    model.semantic = torch.compile(model.semantic, backend="eager")


def compiled_layers(model: Any) -> None:
    for i, layer in enumerate(model.coarse_acoustics.layers):
        model.coarse_acoustics.layers[i] = torch.compile(layer, backend="eager")
    model.fine_acoustics.lm_heads[0] = torch.compile(model.fine_acoustics.lm_heads[0])


def compiled_in_place(model: Any) -> None:
    model.compile(backend="eager")
    model.semantic.compile(backend="eager")


def compiled_forward(model: Any) -> None:
    model.semantic.forward = torch.compile(model.semantic.forward, backend="eager")


def backward_hook(model: Any) -> None:
    model.semantic.layers[0].register_full_backward_hook(lambda module, given, result: None)


def no_encoder(model: Any) -> None:
    model.codec_model.encoder = None


def hooked_encoder(model: Any) -> None:
    model.codec_model.encoder.register_forward_hook(lambda module, given, result: None)


def training_without_dropout(model: Any) -> None:
    model.train()


def no_dropout_at_all(model: Any) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, nn.Identity())


def gradients(model: Any) -> None:
    model.gradient_checkpointing = True
    model.semantic.requires_grad_(False)
    model.semantic.layers[0].requires_grad_(True)


def folded_weight_norm(model: Any) -> None:
    for module in model.codec_model.decoder.modules():
        if nn.utils.parametrize.is_parametrized(module, "weight"):
            nn.utils.parametrize.remove_parametrizations(module, "weight")


def unused_module(model: Any) -> None:
    model.semantic.layers[0].mlp.adapter = nn.Linear(2, 2)
    model.vocoder = nn.Linear(2, 2)
    model.coarse_acoustics.scale = nn.Parameter(torch.ones(1))


def changed_configuration(model: Any) -> None:
    """The modules were made before."""
    model.semantic.config.num_heads = 6
    model.semantic.config.bias = False
    model.coarse_acoustics.config.hidden_size = 96
    model.codec_model.config.upsampling_ratios = [8, 2]
    model.codec_model.config.use_causal_conv = False


def untied_head(model: Any) -> None:
    head = model.fine_acoustics.lm_heads[1]
    head.weight = nn.Parameter(-head.weight.detach())


def data_elsewhere(model: Any) -> None:
    """What replaces .data is a new tensor at another place."""
    weight = model.semantic.layers[1].mlp.in_proj.weight
    weight.data = -weight.data


def written_through_data(model: Any) -> None:
    model.coarse_acoustics.layers[1].mlp.in_proj.weight.data *= -1


def written_through_numpy(model: Any) -> None:
    array = model.semantic.layers[0].mlp.out_proj.weight.detach().numpy()
    array *= -1


def resized(model: Any) -> None:
    torch.manual_seed(0)
    model.fine_acoustics.resize_token_embeddings(80, mean_resizing=False)


def state_dict_hook(model: Any) -> None:
    """It changes what is saved, and nothing that is said."""
    model.semantic.register_state_dict_post_hook(lambda module, state, *rest: state.clear())


SAME = [
    compiled_part,
    compiled_layers,
    compiled_in_place,
    compiled_forward,
    backward_hook,
    no_encoder,
    hooked_encoder,
    training_without_dropout,
    no_dropout_at_all,
    gradients,
    folded_weight_norm,
    unused_module,
    changed_configuration,
    state_dict_hook,
    resized,
]
OTHER_WEIGHTS = [
    untied_head,
    data_elsewhere,
    written_through_data,
    written_through_numpy,
]


@pytest.mark.parametrize("change", [*SAME, *OTHER_WEIGHTS], ids=lambda change: change.__name__)
@pytest.mark.filterwarnings("ignore:.*get_submodule")
def test_what_the_engine_serves(
    pair: tuple[Any, Any], inputs: Any, seen: Seen, change: Callable[[Any], None]
) -> None:
    """Without a warning, which would be an error here."""
    ours, theirs = pair
    before = ours.generate(**inputs, **SHORT)
    seen.requests.clear()
    for model in pair:
        change(model)
    audio = ours.generate(**inputs, **SHORT)
    assert seen.requests
    if change in SAME:
        torch.testing.assert_close(audio, before, rtol=0, atol=1e-5)
    else:
        assert not torch.equal(audio, before)
    # transformers would compile these now.
    if change not in (compiled_forward, compiled_in_place, compiled_layers):
        torch.testing.assert_close(audio, theirs.generate(**inputs, **SHORT), rtol=0, atol=1e-5)


def test_a_compiled_model(pair: tuple[Any, Any], inputs: Any, seen: Seen) -> None:
    expected = pair[0].generate(**inputs, **SHORT)
    assert torch.equal(torch.compile(pair[0]).generate(**inputs, **SHORT), expected)
    assert len(seen.requests) == 2


def test_a_hooked_compiled_module(pair: tuple[Any, Any], inputs: Any) -> None:
    ours, theirs = pair
    for model in pair:
        compiled_part(model)
        model.semantic.register_forward_hook(lambda module, given, result: None)
    assert_left_to_transformers(ours, theirs, inputs, "semantic has a forward hook", **SHORT)


def test_a_copy_that_runs_the_forward_of_its_original(fresh: Any) -> None:
    compiled_forward(fresh)
    assert fresh.why_not_served() is None
    other = copy.deepcopy(fresh)
    assert "semantic.forward is not the original" in other.why_not_served()


def test_a_quantised_model(pair: tuple[Any, Any], inputs: Any) -> None:
    """torch's quantize_dynamic makes a copy with other layers, also of a model that has spoken."""
    pair[0].generate(**inputs, **SHORT)
    with pytest.warns(DeprecationWarning, match="quantization"):
        ours, theirs = (
            torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
            for model in pair
        )
    assert_left_to_transformers(ours, theirs, inputs, r"is a torch\.\S*\.Linear, not", **SHORT)
    ours.to("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(fresh: Any, inputs: Any, seen: Seen, dtype: torch.dtype) -> None:
    """The model speaks in the dtype of its weights."""
    fresh.to(dtype)
    expected = fresh.generate(**inputs, **SHORT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fresh.generate(**inputs, **SHORT), expected)
    assert len(seen.requests) == 2


def test_a_subclass_is_served(small: Checkpoint, fresh: Any, inputs: Any, seen: Seen) -> None:
    """Unless it decodes in a way of its own."""

    class Logging(type(fresh)):  # type: ignore[misc]
        def generate(self, *arguments: Any, **keywords: Any) -> Any:
            return super().generate(*arguments, **keywords)

    class Silent(type(fresh)):  # type: ignore[misc]
        def codec_decode(self, fine_output: Any, output_lengths: Any = None) -> Any:
            return super().codec_decode(fine_output, output_lengths) * 0

    expected = fresh.generate(**inputs, **SHORT)
    assert torch.equal(Logging.from_pretrained(small.folder).generate(**inputs, **SHORT), expected)
    silent = Silent.from_pretrained(small.folder)
    with pytest.warns(BarkFastWarning, match="codec_decode is not the original"):
        assert not silent.generate(**inputs, **SHORT).any()


def test_the_parts_are_transformers(pair: tuple[Any, Any], inputs: Any) -> None:
    """Each stage's own generate, which is transformers', whatever the engine is for."""
    results = []
    for model in pair:
        rules = model.generation_config
        semantic_rules, coarse_rules, fine_rules = (
            GENERATION_CONFIGS[stage](**getattr(rules, section))
            for stage, section in SECTIONS.items()
        )
        semantic = model.semantic.generate(
            inputs["input_ids"], semantic_rules, attention_mask=inputs["attention_mask"],
            max_new_tokens=8,
        )  # fmt: skip
        coarse = model.coarse_acoustics.generate(semantic, semantic_rules, coarse_rules, 64)
        fine = model.fine_acoustics.generate(coarse, semantic_rules, coarse_rules, fine_rules, 64)
        results.append((semantic, coarse, fine, model.codec_decode(fine)))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_strict_says_it_before_anything_is_computed(fresh: Any, inputs: Any) -> None:
    ran = []
    fresh.semantic.register_forward_hook(lambda module, given, result: ran.append(module))
    fresh.engine_strict = True
    before = torch.get_rng_state()
    with pytest.raises(InputError, match=r"engine_strict.*semantic has a forward hook"):
        fresh.generate(**inputs, do_sample=True)
    assert not ran
    assert torch.equal(torch.get_rng_state(), before)
