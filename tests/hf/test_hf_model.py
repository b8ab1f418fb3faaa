"""The module itself: what transformers tests of its own models, for its class and for ours."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import is_flash_attn_2_available

import bark_fast
from bark_fast import BarkFastWarning
from helpers.checkpoints import Checkpoint
from helpers.hf_models import GREEDY

# The names of two arguments changed with transformers 5.
_PARAMETERS = inspect.signature(transformers.BarkCausalModel.forward).parameters
EMBEDS = "inputs_embeds" if "inputs_embeds" in _PARAMETERS else "input_embeds"
CACHE = "cache" if "cache" in _PARAMETERS else "past_key_values"

CLASSES = [transformers.BarkModel, bark_fast.BarkModel]
both_classes = pytest.mark.parametrize("cls", CLASSES, ids=["transformers", "bark_fast"])
causal = pytest.mark.parametrize("part", ["semantic", "coarse_acoustics"])


@pytest.fixture(scope="module")
def models(small: Checkpoint) -> dict[Any, Any]:
    return {cls: cls.from_pretrained(small.folder) for cls in CLASSES}


def tokens(config: Any, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.input_vocab_size, shape, generator=generator)


# The forward of the three transformers.


@both_classes
@pytest.mark.parametrize("part", ["semantic", "coarse_acoustics", "fine_acoustics"])
def test_hidden_states_and_attentions(models: Any, cls: Any, part: str) -> None:
    model = getattr(models[cls], part)
    config = model.config
    wanted = {"output_hidden_states": True, "output_attentions": True}
    if part == "fine_acoustics":
        out = model(2, tokens(config, 2, 9, config.n_codes_total), **wanted)
    else:
        out = model(tokens(config, 2, 9), **wanted)
    assert out.logits.shape == (2, 9, config.output_vocab_size)
    assert len(out.hidden_states) == config.num_layers + 1
    assert {tuple(h.shape) for h in out.hidden_states} == {(2, 9, config.hidden_size)}
    assert len(out.attentions) == config.num_layers
    for attention in out.attentions:
        assert attention.shape == (2, config.num_heads, 9, 9)
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, config.num_heads, 9))
        future = attention.triu(1)
        assert (future != 0).any() if part == "fine_acoustics" else (future == 0).all()


@both_classes
@causal
def test_inputs_embeds_equal_input_ids(models: Any, cls: Any, part: str) -> None:
    model = getattr(models[cls], part)
    ids = tokens(model.config, 2, 7)
    embeds = model.get_input_embeddings()(ids)
    torch.testing.assert_close(
        model(**{EMBEDS: embeds}).logits, model(input_ids=ids).logits, rtol=0, atol=0
    )
    with pytest.raises(ValueError, match="both"):
        model(input_ids=ids, **{EMBEDS: embeds})
    with pytest.raises(ValueError, match="either"):
        model()


@both_classes
def test_fine_inputs_embeds(models: Any, cls: Any) -> None:
    model = models[cls].fine_acoustics
    ids = tokens(model.config, 2, 7, model.config.n_codes_total)
    layers = model.get_input_embeddings()
    embeds = sum(layers[k](ids[:, :, k]) for k in range(4))
    torch.testing.assert_close(model(3, **{EMBEDS: embeds}).logits, model(3, ids).logits)
    with pytest.raises(ValueError, match="0th codebook"):
        model(0, ids)


@both_classes
@causal
def test_a_cache_gives_the_same_logits(models: Any, cls: Any, part: str) -> None:
    model = getattr(models[cls], part)
    ids = tokens(model.config, 2, 9)
    whole = model(ids).logits
    out = model(ids[:, :4], use_cache=True)
    torch.testing.assert_close(out.logits, whole[:, :4])
    for t in range(4, 9):
        cache = out[CACHE]
        assert cache.get_seq_length() == t
        out = model(ids[:, t : t + 1], use_cache=True, **{CACHE: cache})
        torch.testing.assert_close(out.logits[:, 0], whole[:, t])
    assert getattr(model(ids, use_cache=False), CACHE) is None


@both_classes
@causal
def test_masked_positions_change_nothing(models: Any, cls: Any, part: str) -> None:
    model = getattr(models[cls], part)
    ids, mask = tokens(model.config, 1, 8), torch.ones(1, 8, dtype=torch.int64)
    mask[0, 2] = 0
    other = ids.clone()
    other[0, 2] = (ids[0, 2] + 1) % model.config.input_vocab_size
    logits = [model(row, attention_mask=mask).logits[:, 3:] for row in (ids, other)]
    torch.testing.assert_close(*logits)
    assert not torch.equal(model(ids).logits[:, 3:], model(other).logits[:, 3:])


@both_classes
@causal
def test_tuples(models: Any, cls: Any, part: str) -> None:
    model = getattr(models[cls], part)
    ids = tokens(model.config, 1, 5)
    plain = model(ids, return_dict=False, use_cache=False, output_hidden_states=True)
    named = model(ids, use_cache=False, output_hidden_states=True)
    assert isinstance(plain, tuple)
    assert torch.equal(plain[0], named.logits)
    assert torch.equal(plain[-1][-1], named.hidden_states[-1])


@both_classes
@causal
def test_training_is_not_there(models: Any, cls: Any, part: str) -> None:
    model = getattr(models[cls], part)
    ids = tokens(model.config, 1, 5)
    with pytest.raises(NotImplementedError):
        model(ids, labels=ids)


def test_forward_is_transformers(models: Any) -> None:
    """Bit for bit, with every argument."""
    theirs, ours = (models[cls] for cls in CLASSES)
    for part in ("semantic", "coarse_acoustics", "fine_acoustics"):
        a, b = getattr(theirs, part), getattr(ours, part)
        assert inspect.signature(type(a).forward) == inspect.signature(type(b).forward)
        first: tuple[Any, ...] = () if part != "fine_acoustics" else (3,)
        shape = (2, 6) if part != "fine_acoustics" else (2, 6, a.config.n_codes_total)
        arguments = {
            "input_ids": tokens(a.config, *shape),
            "attention_mask": torch.ones(2, 6, dtype=torch.int64),
            "position_ids": torch.arange(5, 11)[None],
            "output_hidden_states": True,
            "output_attentions": True,
        }
        out_a, out_b = a(*first, **arguments), b(*first, **arguments)
        assert torch.equal(out_a.logits, out_b.logits)
        for name in ("hidden_states", "attentions"):
            assert all(map(torch.equal, getattr(out_a, name), getattr(out_b, name)))
    assert set(inspect.signature(bark_fast.BarkModel.generate).parameters) >= {
        "input_ids", "history_prompt", "return_output_lengths",
    }  # fmt: skip


# Files.


@both_classes
@pytest.mark.parametrize("reader", CLASSES, ids=["by_transformers", "by_bark_fast"])
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_save_and_load(
    models: Any, processor: Any, tmp_path: Path, cls: Any, reader: Any, sharded: bool
) -> None:
    model = models[cls]
    model.save_pretrained(tmp_path, **({"max_shard_size": "200KB"} if sharded else {}))
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == sharded
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BarkModel"]
    loaded = reader.from_pretrained(tmp_path)
    expected, found = model.state_dict(), loaded.state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    for config in ("semantic_config", "coarse_acoustics_config", "fine_acoustics_config"):
        assert getattr(loaded.config, config).to_dict() == getattr(model.config, config).to_dict()
        section = getattr(loaded.generation_config, config)
        assert section == getattr(model.generation_config, config)
    assert loaded.generation_config.sample_rate == model.generation_config.sample_rate == 8_000
    inputs = processor("Hello", max_length=32)
    keywords = {**GREEDY, "semantic_max_new_tokens": 10}
    torch.testing.assert_close(
        loaded.generate(**inputs, **keywords), model.generate(**inputs, **keywords),
        rtol=0, atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ((), False),
        (("codec_model.encoder.",), False),
        (("codec_model.encoder.layers.0.",), True),
        (("codec_model.encoder.", ".attn.bias", "cluster_size", "embed_avg", "inited"), False),
        (("codec_model.encoder.", "semantic.layers.1.mlp.in_proj.weight"), True),
        (("codec_model.quantizer.layers.1.codebook.embed",), True),
        (("coarse_acoustics.layernorm_final.bias",), True),
    ],
    ids=str,
)
def test_the_report_of_missing_weights(
    small: Checkpoint, tmp_path: Path, caplog: Any, missing: Any, told: bool
) -> None:
    """It leaves out what speaking needs none of: transformers tells of it, which logs it."""
    folder = tmp_path / "model"
    shutil.copytree(small.folder, folder)
    weights = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in weights.items() if not any(part in k for part in missing)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    logger = logging.getLogger("transformers")
    propagate, level = logger.propagate, logger.level
    logger.propagate = True
    logger.setLevel(logging.WARNING)
    try:
        _, info = bark_fast.BarkModel.from_pretrained(folder, output_loading_info=True)
    finally:
        logger.propagate = propagate
        logger.setLevel(level)
    assert bool(info["missing_keys"]) == told
    reports = [r for r in caplog.records if "from_pretrained" not in r.message]
    assert bool(reports) == told, [r.message for r in reports]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("BarkSemanticModel", "semantic"),
        ("BarkCoarseModel", "coarse_acoustics"),
        ("BarkFineModel", "fine_acoustics"),
    ],
)
def test_sub_models_alone(models: Any, tmp_path: Path, name: str, part: str) -> None:
    cls = getattr(bark_fast, name)
    model = getattr(models[bark_fast.BarkModel], part)
    assert isinstance(model, cls)
    model.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key]), key


def test_configurations_are_transformers() -> None:
    for name in ("BarkConfig", "BarkSemanticConfig", "BarkCoarseConfig", "BarkFineConfig"):
        assert getattr(bark_fast, name) is getattr(transformers, name)
    assert issubclass(bark_fast.BarkModel, transformers.BarkModel)
    assert issubclass(bark_fast.BarkProcessor, transformers.BarkProcessor)


def test_a_model_made_from_a_configuration(small: Checkpoint, processor: Any) -> None:
    """Without files: random weights, with which both say the same."""
    torch.manual_seed(0)
    model = bark_fast.BarkModel(copy.deepcopy(small.model.config)).eval()
    model.generation_config = copy.deepcopy(small.model.generation_config)
    theirs = transformers.BarkModel(copy.deepcopy(small.model.config)).eval()
    theirs.load_state_dict(model.state_dict())
    theirs.generation_config = model.generation_config
    inputs = processor("Hello", max_length=32)
    keywords = {**GREEDY, "semantic_max_new_tokens": 12}
    torch.testing.assert_close(
        model.generate(**inputs, **keywords), theirs.generate(**inputs, **keywords),
        rtol=0, atol=1e-5,
    )  # fmt: skip


@both_classes
def test_device_and_dtype(small: Checkpoint, cls: Any) -> None:
    model = cls.from_pretrained(small.folder)
    assert model.device == torch.device("cpu")
    assert model.dtype == torch.float32
    assert model.to("cpu") is model
    assert model.to(torch.bfloat16).dtype == torch.bfloat16
    assert model.half().dtype == model.semantic.dtype == torch.float16
    assert model.float().dtype == torch.float32
    assert not model.training


def test_flash_attention_is_not_needed(small: Checkpoint, ours: Any, processor: Any) -> None:
    if is_flash_attn_2_available():
        model = bark_fast.BarkModel.from_pretrained(
            small.folder, attn_implementation="flash_attention_2"
        )
        assert model.config._attn_implementation == "flash_attention_2"
    else:
        with pytest.warns(BarkFastWarning, match="there is no flash-attn .* kernels of its own"):
            model = bark_fast.BarkModel.from_pretrained(
                small.folder, attn_implementation="flash_attention_2"
            )
        assert model.semantic.config._attn_implementation == "eager"
        ids = tokens(model.semantic.config, 1, 5)
        assert torch.equal(model.semantic(ids).logits, ours.semantic(ids).logits)
    inputs = processor("Hello", max_length=32)
    keywords = {**GREEDY, "semantic_max_new_tokens": 12}
    assert torch.equal(model.generate(**inputs, **keywords), ours.generate(**inputs, **keywords))


def test_flash_attention_where_it_is(small: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def load(cls: Any, folder: Any, **options: Any) -> Any:
        asked.append(options)
        return small.model

    monkeypatch.setattr("bark_fast.hf.model.is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(transformers.BarkModel, "from_pretrained", classmethod(load))
    options = {"attn_implementation": "flash_attention_2", "dtype": torch.float16}
    bark_fast.BarkModel.from_pretrained(small.folder, **options)
    assert asked == [options]


def test_the_documented_example(small: Checkpoint, tmp_path: Path) -> None:
    """As transformers documents Bark; nothing differs but the module's name."""
    small.model.save_pretrained(tmp_path)
    arrays = {key: array[..., :30] for key, array in small.voice(30).items()}
    np.savez(tmp_path / "me.npz", **arrays)
    example = f"""
from MODULE import AutoProcessor, BarkModel

processor = AutoProcessor.from_pretrained({str(small.folder)!r})
model = BarkModel.from_pretrained({str(small.folder)!r})
inputs = processor(
    "Hello, my dog is cute", voice_preset={str(tmp_path / "me")!r}, max_length=32
)
audio_array = model.generate(**inputs, semantic_max_new_tokens=20)
audio_array = audio_array.cpu().numpy().squeeze()
sample_rate = model.generation_config.sample_rate
"""
    results = []
    for module in ("transformers", "bark_fast"):
        # transformers finds a processor by the class that wrote it; the small one has none.
        code = example.replace("MODULE", module)
        if module == "transformers":
            code = code.replace("AutoProcessor", "BarkProcessor")
        names: dict[str, Any] = {}
        exec(code, names)
        results.append(names)
    theirs, ours = results
    np.testing.assert_allclose(ours["audio_array"], theirs["audio_array"], rtol=0, atol=1e-5)
    assert ours["sample_rate"] == theirs["sample_rate"] == 8_000
    assert type(bark_fast.AutoModel.from_pretrained(small.folder)) is bark_fast.BarkModel


@pytest.mark.filterwarnings("ignore::bark_fast.errors.BarkFastWarning")
def test_transformers_pipeline(small: Checkpoint, processor: Any) -> None:
    """transformers 4's passes a generation_config, which the model warns that it ignores."""
    results = []
    for cls in CLASSES:
        model = cls.from_pretrained(small.folder)  # the pipeline changes its configuration
        speak = transformers.pipeline(
            "text-to-speech", model=model, tokenizer=processor.tokenizer, device="cpu"
        )
        results.append(
            speak(
                ["Hello"],
                forward_params={**GREEDY, "semantic_max_new_tokens": 12},
                preprocess_params={"padding": "max_length", "max_length": 32},
            )[0]
        )
    assert results[0]["sampling_rate"] == results[1]["sampling_rate"]
    np.testing.assert_allclose(results[1]["audio"], results[0]["audio"], rtol=0, atol=1e-5)


def test_a_copy_has_an_engine_of_its_own(fresh: Any, processor: Any) -> None:
    inputs = processor("Hello", max_length=32)
    keywords = {**GREEDY, "semantic_max_new_tokens": 12}
    expected = fresh.generate(**inputs, **keywords)
    other = copy.deepcopy(fresh)
    assert torch.equal(other.generate(**inputs, **keywords), expected)
    with torch.no_grad():
        other.semantic.lm_head.weight.neg_()
    assert not torch.equal(other.generate(**inputs, **keywords), expected)
    assert torch.equal(fresh.generate(**inputs, **keywords), expected)
