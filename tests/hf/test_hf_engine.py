"""The engine under the module: its weights, when it is built anew, precision, offloading."""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from bark_fast import (
    Bark,
    BarkFastWarning,
    BarkModel,
    EngineOptions,
    GenerationParams,
    InputError,
)
from bark_fast.checkpoint.stored import TensorsInMemory
from bark_fast.checkpoint.weights import load_weights
from bark_fast.devices import resolve_dtype
from bark_fast.engine.offload import OffloadedWeights
from bark_fast.hf.serving import Snapshot
from bark_fast.kernels import backend, why_not_native
from bark_fast.kernels.cpu import native
from helpers.checkpoints import Checkpoint, build_model, small_windows
from helpers.hf_models import GREEDY, Seen

CPU = torch.device("cpu")
SHORT: dict[str, Any] = {**GREEDY, "semantic_max_new_tokens": 12}


@pytest.fixture
def inputs(processor: Any) -> Any:
    return processor("Hello, my dog!", max_length=32)


def engine_of(model: Any) -> Any:
    return model._serving.engine


def networks(engine: Any) -> list[Any]:
    return [
        engine.runner.semantic.stage.model,
        engine.runner.coarse.stage.model,
        engine.runner.fine.model,
        engine.runner.codec.model,
    ]


def weights_of(network: Any) -> list[Tensor]:
    seen: list[Tensor] = []
    network.map_weights(lambda weight: seen.append(weight) or weight)
    return seen


# Whose weights they are.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_shared(fresh: Any, inputs: Any, dtype: torch.dtype) -> None:
    """All that the kernels take as they are: of the causal models everything but the rows of the
    head, of the fine one everything but its stacked embeddings."""
    fresh.engine_impl = "torch"
    fresh.to(dtype)
    fresh.generate(**inputs, **SHORT)
    theirs = {t.data_ptr() for t in fresh.state_dict().values()}
    for network, n_copied in zip(networks(engine_of(fresh))[:3], (1, 1, 1 + 4), strict=True):
        weights = weights_of(network)
        copied = [weight for weight in weights if weight.data_ptr() not in theirs]
        assert len(copied) == n_copied
        assert len(weights) > 20
        assert {weight.dtype for weight in weights} == {dtype}
    codec = [w for w in weights_of(networks(engine_of(fresh))[3]) if w.is_floating_point()]
    shared = [weight for weight in codec if weight.data_ptr() in theirs]
    # Its weight norm is folded; its biases and its LSTM are taken as they are.
    assert {weight.dtype for weight in codec} == {torch.float32}
    assert bool(shared) == (dtype == torch.float32)


def test_packed_weights_are_copies_and_the_rest_is_shared(ours: Any, inputs: Any) -> None:
    ours.generate(**inputs, **SHORT)
    theirs = {t.data_ptr() for t in ours.state_dict().values()}
    for network in networks(engine_of(ours))[:2]:
        assert network.embedding.data_ptr() in theirs
        assert network.positions.data_ptr() in theirs


def test_nobody_writes_to_shared_weights(fresh: Any, inputs: Any) -> None:
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    versions = {name: tensor._version for name, tensor in fresh.state_dict().items()}
    for impl in ("torch", "auto"):
        fresh.engine_impl = impl
        fresh.generate(**inputs, do_sample=True, semantic_max_new_tokens=12, seed=1)
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, before[name]), name
        assert tensor._version == versions[name], name
    assert all(p.requires_grad for p in fresh.semantic.parameters())


def test_load_weights_takes_tensors_as_they_are(small: Checkpoint, fresh: Any) -> None:
    state = fresh.state_dict()
    name = "semantic.layers.0.mlp.in_proj.weight"
    state[name] = state[name].T.contiguous().T  # no kernel takes this
    loaded = load_weights(
        TensorsInMemory(state, "memory"), small.config, dtype=torch.float32, device=CPU
    )
    same = {key for key, tensor in loaded.items() if tensor is state.get(key)}
    folded = {key for key in loaded if key not in state}
    assert same == set(loaded) - folded - {name}
    assert torch.equal(loaded[name], state[name])
    assert loaded[name].is_contiguous()
    low = load_weights(
        TensorsInMemory(state, "memory"), small.config, dtype=torch.bfloat16, device=CPU
    )
    same = {key for key, tensor in low.items() if tensor is state.get(key)}
    assert same
    assert all(key.startswith("codec_model.") for key in same)


# When it is built anew.


def edit_in_place(model: Any) -> None:
    with torch.no_grad():
        model.fine_acoustics.layers[1].mlp.out_proj.weight.mul_(-1)


def replace_parameter(model: Any) -> None:
    weight = model.semantic.lm_head.weight
    model.semantic.lm_head.weight = torch.nn.Parameter(-weight.detach())


def replace_module(model: Any) -> None:
    old = model.coarse_acoustics.layers[0].mlp.in_proj
    new = torch.nn.Linear(old.in_features, old.out_features)
    new.load_state_dict({name: -tensor for name, tensor in old.state_dict().items()})
    model.coarse_acoustics.layers[0].mlp.in_proj = new


def edit_codec(model: Any) -> None:
    with torch.no_grad():
        model.codec_model.quantizer.layers[2].codebook.embed.neg_()


def load_other_weights(model: Any) -> None:
    config, _ = small_windows()
    model.load_state_dict(build_model(config, seed=5, std=0.25).state_dict())


def assign_other_weights(model: Any) -> None:
    """Twice without a call between, so that the second may come to where the first were."""
    config, _ = small_windows()
    for seed in (6, 5):
        model.load_state_dict(build_model(config, seed=seed, std=0.25).state_dict(), assign=True)
        model.tie_weights()


def change_windows(model: Any) -> None:
    model.generation_config.coarse_acoustics_config["sliding_window_len"] = 6
    model.generation_config.fine_acoustics_config["max_fine_history_length"] = 20


def resize_embeddings(model: Any) -> None:
    torch.manual_seed(0)
    model.fine_acoustics.resize_token_embeddings(80, mean_resizing=False)
    model.fine_acoustics.config.input_vocab_size = 80


@pytest.mark.parametrize(
    "change",
    [
        edit_in_place,
        replace_parameter,
        replace_module,
        edit_codec,
        load_other_weights,
        assign_other_weights,
        change_windows,
    ],
)
def test_built_anew_when_something_changes(
    small: Checkpoint, fresh: Any, inputs: Any, change: Callable[[Any], None]
) -> None:
    """And then it says what transformers does with the same change."""
    keywords = {**GREEDY, "semantic_max_new_tokens": 40}
    before = fresh.generate(**inputs, **keywords)
    engine = engine_of(fresh)
    change(fresh)
    after = fresh.generate(**inputs, **keywords)
    assert engine_of(fresh) is not engine
    assert not torch.equal(before, after), "the change should have made a difference"
    theirs = transformers.BarkModel.from_pretrained(small.folder)
    change(theirs)
    torch.testing.assert_close(after, theirs.generate(**inputs, **keywords), rtol=0, atol=1e-5)


def test_resized_embeddings(small: Checkpoint, fresh: Any, inputs: Any) -> None:
    fresh.generate(**inputs, **SHORT)
    theirs = transformers.BarkModel.from_pretrained(small.folder)
    for model in (fresh, theirs):
        resize_embeddings(model)
    torch.testing.assert_close(
        fresh.generate(**inputs, **SHORT), theirs.generate(**inputs, **SHORT), rtol=0, atol=1e-5
    )
    assert networks(engine_of(fresh))[2].embeddings.shape[1] == 80


def test_kept_when_nothing_changes(fresh: Any, inputs: Any) -> None:
    fresh.generate(**inputs, **SHORT)
    engine = engine_of(fresh)
    fresh.to("cpu")
    fresh.float()
    fresh.eval()
    fresh.generation_config.semantic_config.update(do_sample=True, temperature=0.3, top_k=7)
    fresh.generation_config.semantic_config.update(max_new_tokens=5, min_eos_p=0.5)
    fresh.generate(**inputs, do_sample=True, seed=0)
    fresh.semantic(inputs["input_ids"])
    fresh.load_state_dict({}, strict=False)
    fresh.generate(**inputs, **SHORT)
    assert engine_of(fresh) is engine


def test_what_data_hides(fresh: Any, inputs: Any) -> None:
    """torch counts no version of what is written through .data, so a small edit may go unseen."""
    before = fresh.generate(**inputs, **SHORT)
    fresh.semantic.lm_head.weight.data[:, 1] *= -9
    fresh.reset_engine()
    assert not torch.equal(fresh.generate(**inputs, **SHORT), before)


def test_a_snapshot_keeps_the_memory() -> None:
    """Or other weights could come to the same address, and be taken for the old ones."""
    tensor = torch.zeros(100_000)
    snapshot = Snapshot({"weight": tensor.detach()})
    assert snapshot.holds({"weight": tensor})
    assert not snapshot.holds({"weight": tensor.clone()})
    assert not snapshot.holds({"weight": tensor, "bias": tensor})
    assert not snapshot.holds({"weight": tensor.view(10, -1)})
    assert not snapshot.holds({"weight": tensor.view(torch.int32)})
    address = tensor.data_ptr()
    del tensor
    others = [torch.zeros(100_000) for _ in range(50)]
    assert all(other.data_ptr() != address for other in others)
    last = others[0]
    snapshot = Snapshot({"weight": last})
    last.add_(1)
    assert not snapshot.holds({"weight": last})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_a_snapshot_sees_what_torch_does_not_count(dtype: torch.dtype) -> None:
    whole = torch.zeros(300, 70, dtype=dtype)
    for tensor in (whole, whole.t(), whole[:, ::2], whole[7]):
        edits: list[Callable[[], Any]] = [lambda t=tensor: t.data.fill_(1)]
        if dtype != torch.bfloat16:  # which numpy does not have
            edits.append(lambda t=tensor: t.numpy().fill(0))
        for edit in edits:
            version, snapshot = tensor._version, Snapshot({"weight": tensor})
            assert snapshot.holds({"weight": tensor})
            edit()
            assert tensor._version == version
            assert not snapshot.holds({"weight": tensor})
        whole.zero_()
    not_numbers = torch.full((3, 5), torch.nan)
    assert Snapshot({"weight": not_numbers}).holds({"weight": not_numbers})


def test_options_are_the_engines(fresh: Any, inputs: Any) -> None:
    before = fresh.generate(**inputs, **SHORT)
    fresh.engine_options = EngineOptions(max_batch_size=3)
    fresh.engine_impl = "torch"
    torch.testing.assert_close(fresh.generate(**inputs, **SHORT), before, rtol=0, atol=1e-5)
    assert engine_of(fresh).runner.config.max_running == 3
    assert networks(engine_of(fresh))[0].ops is backend("torch")
    fresh.engine_impl = "abacus"
    with pytest.raises(InputError, match="impl must be"):
        fresh.generate(**inputs, **SHORT)


def test_moving_frees_the_old_weights(fresh: Any, inputs: Any) -> None:
    fresh.engine_impl = "torch"
    fresh.generate(**inputs, **SHORT)
    engine = weakref.ref(engine_of(fresh))
    fresh.to(torch.bfloat16)
    gc.collect()
    assert engine() is None


@pytest.mark.parametrize("change", [edit_in_place, load_other_weights])
def test_made_in_inference_mode(
    small: Checkpoint, fresh: Any, inputs: Any, change: Callable[[Any], None]
) -> None:
    """Its tensors count no versions, so a change cannot be seen: the engine is built each time."""
    with torch.inference_mode():
        model = BarkModel(copy.deepcopy(small.model.config)).eval()
        model.generation_config = copy.deepcopy(small.model.generation_config)
        model.load_state_dict(small.model.state_dict())
        assert all(tensor.is_inference() for tensor in model.parameters())
        before = model.generate(**inputs, **SHORT)
        assert torch.equal(before, fresh.generate(**inputs, **SHORT))
        change(model)
        after = model.generate(**inputs, **SHORT)
    change(fresh)
    assert torch.equal(after, fresh.generate(**inputs, **SHORT))
    assert not torch.equal(before, after), "the change should have made a difference"


# Precision.


def test_bfloat16(small: Checkpoint, fresh: Any, inputs: Any, seen: Seen) -> None:
    """The tokens of our own engine in bfloat16 on the same weights; audio as the codec has it."""
    fresh.to(torch.bfloat16)
    audio, lengths = fresh.generate(
        **inputs, do_sample=True, semantic_max_new_tokens=30, seed=3, return_output_lengths=True
    )
    assert audio.dtype == torch.bfloat16
    assert audio.shape == (1, lengths[0])
    assert audio.isfinite().all()
    assert networks(engine_of(fresh))[0].embedding.dtype == torch.bfloat16
    bark = Bark.from_pretrained(small.folder, device="cpu", dtype="bfloat16")
    params = GenerationParams(
        temperature=1, fine_temperature=0, semantic_top_k=50, coarse_top_k=50, min_eos_p=0,
        max_semantic_tokens=30, seed=3,
    )  # fmt: skip
    expected = bark.generate("Hello, my dog!", params=params)
    np.testing.assert_array_equal(seen.speeches[0].fine_tokens, expected.fine_tokens)
    fresh.codec_model.float()
    assert fresh.generate(**inputs, **SHORT).dtype == torch.float32


@pytest.mark.parametrize("how", ["half", "from_pretrained"])
def test_float16_on_a_cpu(small: Checkpoint, fresh: Any, inputs: Any, seen: Seen, how: str) -> None:
    """It is computed in float32, on the weights as float16 has them."""
    if how == "half":
        model = fresh.half()
    else:
        model = BarkModel.from_pretrained(small.folder, torch_dtype=torch.float16)
    assert model.dtype == torch.float16
    with pytest.warns(BarkFastWarning, match="float16 is slower than float32 on CPUs"):
        audio = model.generate(**inputs, **SHORT)
    assert audio.dtype == torch.float16
    assert networks(engine_of(model))[0].embedding.dtype == torch.float32
    model.generate(**inputs, **SHORT)  # it is said once; warnings are errors here
    theirs = transformers.BarkModel.from_pretrained(small.folder).half().float()
    expected = theirs.generate(**inputs, **SHORT)
    torch.testing.assert_close(
        torch.from_numpy(seen.speeches[0].samples), expected[0], rtol=0, atol=1e-5
    )
    assert torch.equal(audio[0], torch.from_numpy(seen.speeches[0].samples).half())


@pytest.mark.parametrize("keyword", ["dtype", "torch_dtype"])
def test_weights_in_8_bits(small: Checkpoint, inputs: Any, seen: Seen, keyword: str) -> None:
    """Only in the engine; the module has the dtype of its files."""
    missing = why_not_native(CPU, resolve_dtype("int8", CPU), int8=True)
    if missing:
        for load in (Bark.from_pretrained, BarkModel.from_pretrained):
            with pytest.raises(InputError, match=f"dtype must be .* got 'int8': {missing}"):
                load(small.folder, **{keyword if load != Bark.from_pretrained else "dtype": "int8"})
        return
    model = BarkModel.from_pretrained(small.folder, **{keyword: "int8"})
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    audio = model.generate(**inputs, **SHORT)
    bark = Bark.from_pretrained(small.folder, device="cpu", dtype="int8")
    params = GenerationParams(
        temperature=0, fine_temperature=0, min_eos_p=0, max_semantic_tokens=12
    )
    expected = bark.generate("Hello, my dog!", params=params)
    np.testing.assert_array_equal(seen.speeches[0].fine_tokens, expected.fine_tokens)
    np.testing.assert_array_equal(audio[0].numpy(), expected.samples)
    model.engine_int8 = False
    assert not torch.equal(model.generate(**inputs, **SHORT), audio)


def test_8_bits_where_they_do_not_run(
    small: Checkpoint, fresh: Any, inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bark's own error, before the weights are read."""
    monkeypatch.setattr(
        native, "why_not", lambda dtype, int8=False: "no avx512_vnni" if int8 else None
    )
    with pytest.raises(InputError) as barks:
        Bark.from_pretrained(small.folder, device="cpu", dtype="int8")
    with monkeypatch.context() as patch:
        patch.setattr(transformers.BarkModel, "from_pretrained", None)
        for keyword in ("dtype", "torch_dtype"):
            with pytest.raises(InputError) as ours:
                BarkModel.from_pretrained(small.folder, **{keyword: "int8"})
            assert str(ours.value) == str(barks.value)
    fresh.engine_int8 = True
    with pytest.raises(InputError) as ours:
        fresh.generate(**inputs, **SHORT)
    assert str(ours.value) == str(barks.value)
    fresh.engine_impl = "torch"
    with pytest.raises(InputError, match='impl must be "auto" with dtype="int8", got \'torch\''):
        fresh.generate(**inputs, **SHORT)


# Weights on the host.


def test_the_same_is_built_as_by_bark(
    small: Checkpoint, fresh: Any, inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[dict[str, Any]] = []

    def load(stored: Any, config: Any, **options: Any) -> Any:
        # How tokens are drawn is for the keywords to say.
        built.append({"shapes": (config.semantic, config.coarse, config.fine), **options})
        raise _BuiltError

    monkeypatch.setattr("bark_fast.hf.serving.load_engine", load)
    monkeypatch.setattr("bark_fast.loading.load_engine", load)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    fresh.enable_cpu_offload(1)
    with pytest.raises(_BuiltError):
        fresh.generate(**inputs, **SHORT)
    with pytest.raises(_BuiltError):
        Bark.from_pretrained(small.folder, device="cuda:1", dtype="float32", offload=True)
    ours, barks = built
    assert ours == barks
    assert ours["offload"] is True
    assert ours["device"] == torch.device("cuda", 1)


class _BuiltError(Exception):
    """Raised in place of building an engine, when what it is built from is known."""


def test_offloading_needs_a_device(
    fresh: Any, inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match=r"needs a CUDA device .* got accelerator_id=0"):
        fresh.enable_cpu_offload()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for wrong in (2, -1, None, "cuda:0"):
        with pytest.raises(InputError, match=r"accelerator_id must be .* of the 2 CUDA devices"):
            fresh.enable_cpu_offload(wrong)
    with pytest.raises(InputError, match=r"of the 2 CUDA devices, got 3"):
        fresh.enable_cpu_offload(gpu_id=3)
    assert fresh.device == CPU
    assert fresh.generate(**inputs, **SHORT).shape[0] == 1


@pytest.mark.parametrize(
    ("arguments", "keywords", "number"),
    [
        ((), {}, 0),
        ((1,), {}, 1),
        ((), {"accelerator_id": 1}, 1),
        ((), {"gpu_id": 1}, 1),
        ((), {"gpu_id": 0}, 0),
        ((1,), {"gpu_id": 0}, 1),
        ((0,), {"gpu_id": 1}, 1),
    ],
)
def test_the_accelerator_is_named_as_in_transformers(
    fresh: Any, monkeypatch: pytest.MonkeyPatch, arguments: Any, keywords: Any, number: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    fresh.enable_cpu_offload(*arguments, **keywords)
    assert fresh.device == torch.device("cuda", number)
    with pytest.warns(BarkFastWarning, match="^offload_buffers is not looked at"):
        fresh.enable_cpu_offload(*arguments, **keywords, offload_buffers=True)


def test_offloading_left_to_transformers(
    offloaded: Any, ours: Any, processor: Any, small: Checkpoint
) -> None:
    """It runs where the weights are."""
    model, brought = offloaded
    rows = processor("Hello", voice_preset=small.voice(17), max_length=32)
    keywords = {**SHORT, "repetition_penalty": 1.2}
    with pytest.warns(BarkFastWarning, match="because repetition_penalty"):
        audio = model.generate(**rows, **keywords)
    assert not brought
    with pytest.warns(BarkFastWarning, match="because repetition_penalty"):
        assert torch.equal(audio, ours.generate(**rows, **keywords))


@pytest.fixture
def offloaded(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[str]]:
    """A model whose "device" is other memory of the CPU, and the stages that are brought there;
    what is not there is NaN."""
    brought: list[str] = []
    bring = OffloadedWeights.bring

    def watch(self: OffloadedWeights, name: str) -> None:
        if self.on_device != name:
            brought.append(name)
            self._place.view(torch.float32).fill_(torch.nan)
        bring(self, name)

    monkeypatch.setattr(OffloadedWeights, "bring", watch)
    monkeypatch.setattr("bark_fast.hf.model.resolve_accelerator", lambda accelerator_id: CPU)
    monkeypatch.setitem(sys.modules, "accelerate", None)  # importing it fails
    fresh.engine_impl = "torch"
    fresh.enable_cpu_offload(accelerator_id=0)
    return fresh, brought


def test_offloading(
    small: Checkpoint, offloaded: Any, ours: Any, processor: Any, inputs: Any
) -> None:
    """Audio is the same, each stage's weights come once, and the model keeps its own."""
    model, brought = offloaded
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    rows = processor(["Hello", "Hi", "Good day"], voice_preset=small.voice(17), max_length=32)
    audio = model.generate(**rows, **SHORT)
    assert brought == ["semantic", "coarse", "fine", "codec"]
    torch.testing.assert_close(audio, ours.generate(**rows, **SHORT), rtol=0, atol=1e-5)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before
    assert all(not tensor.is_floating_point() or tensor.isfinite().all() for tensor in
               model.state_dict().values())  # fmt: skip
    engine = engine_of(model)
    place = engine.runner.before_stage.__self__._place.untyped_storage().data_ptr()
    for network in networks(engine):
        for weight in weights_of(network):
            assert weight.untyped_storage().data_ptr() == place
    model.generate(**inputs, **SHORT)
    assert engine_of(model) is engine


def test_the_device_of_an_offloaded_model(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the device that inputs may be on and audio is on; its weights stay on the host."""
    device = torch.device("cuda", 1)
    monkeypatch.setattr("bark_fast.hf.model.resolve_accelerator", lambda accelerator_id: device)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    fresh.enable_cpu_offload(1)
    assert fresh.device == device
    assert fresh.semantic.device == CPU
    assert {tensor.device for tensor in fresh.state_dict().values()} == {CPU}


def test_offloading_after_generating(offloaded: Any, inputs: Any) -> None:
    """Other weights are brought when they have changed."""
    model, brought = offloaded
    first = model.generate(**inputs, **SHORT)
    with torch.no_grad():
        model.semantic.lm_head.weight.neg_()
    brought.clear()
    assert not torch.equal(model.generate(**inputs, **SHORT), first)
    assert brought == ["semantic", "coarse", "fine", "codec"]


def test_a_deep_copy_of_the_configuration_is_the_same_engine(fresh: Any, inputs: Any) -> None:
    fresh.generate(**inputs, **SHORT)
    engine = engine_of(fresh)
    fresh.generation_config = copy.deepcopy(fresh.generation_config)
    fresh.config = copy.deepcopy(fresh.config)
    fresh.generate(**inputs, **SHORT)
    assert engine_of(fresh) is engine
