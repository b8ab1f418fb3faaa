"""Keywords: what reaches each stage is what transformers' own sub-models receive, and what only
transformers does, transformers does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
)

from bark_fast import BarkFastWarning, InputError
from bark_fast.hf.keywords import GENERATION_CONFIGS
from bark_fast.hf.params import SECTIONS
from helpers.hf_models import GREEDY, Seen, assert_left_to_transformers


class _EnoughError(Exception):
    """Raised when the fine stage has been reached, and what it was given is known."""


@pytest.fixture
def received(
    theirs: Any, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return the settings by which transformers' sub-models sample, for generate()'s keywords."""
    found: dict[str, dict[str, Any]] = {}
    sample = transformers.BarkCausalModel._sample

    def watch(self: Any, *arguments: Any, **keywords: Any) -> Any:
        config = keywords["generation_config"]
        end = [
            p.min_eos_p for p in keywords["logits_processor"] if type(p).__name__.startswith("Bark")
        ]
        found.setdefault(
            self.base_model_prefix,
            {
                "do_sample": config.do_sample,
                "temperature": config.temperature,
                "top_k": config.top_k,
                "top_p": config.top_p,
                "min_new_tokens": config.min_new_tokens,
                "max_new_tokens": config.max_new_tokens,
                "min_eos_p": end[0] if end else None,
            },
        )
        return sample(self, *arguments, **keywords)

    def fine(self: Any, coarse: Any, fine_generation_config: Any = None, **keywords: Any) -> Any:
        temperature = keywords.get("temperature", fine_generation_config.temperature)
        found["fine_acoustics"] = {"temperature": temperature}
        raise _EnoughError

    before = theirs.generation_config

    def receive(keywords: dict[str, Any], changes: dict[str, Any] | None = None) -> Any:
        found.clear()
        theirs.generation_config = copy.deepcopy(before)
        change(theirs, changes or {})
        try:
            # Ours does not serve where methods of transformers are replaced.
            with monkeypatch.context() as patch:
                patch.setattr(transformers.BarkCausalModel, "_sample", watch)
                patch.setattr(transformers.BarkFineModel, "generate", fine)
                with pytest.raises(_EnoughError):
                    theirs.generate(**processor("Hello", max_length=32), **keywords)
        finally:
            theirs.generation_config = before
        return found

    return receive


def change(model: Any, changes: dict[str, Any]) -> None:
    """Put values into the three sections of its generation_config."""
    for section, values in changes.items():
        getattr(model.generation_config, section).update(values)


def assert_same(request: Any, theirs: dict[str, dict[str, Any]]) -> None:
    """A request says what transformers' stages were told."""
    for stage, prefix in (("semantic", "semantic"), ("coarse", "coarse_acoustics")):
        ours, expected = getattr(request, stage), theirs[prefix]
        if not expected["do_sample"]:
            assert ours.temperature == 0, stage
            continue
        assert ours.temperature == (
            1.0 if expected["temperature"] is None else expected["temperature"]
        )
        assert ours.top_k == (expected["top_k"] or 0), stage
        assert ours.top_p == (1.0 if expected["top_p"] is None else expected["top_p"]), stage
    semantic, fine = theirs["semantic"], theirs["fine_acoustics"]
    assert request.max_semantic_tokens == semantic["max_new_tokens"]
    assert request.semantic.min_new_tokens == (semantic["min_new_tokens"] or 0)
    assert request.semantic.min_eos_p == (semantic["min_eos_p"] or 0)
    greedy = fine["temperature"] in (None, 1.0)
    assert request.fine.temperature == (0 if greedy else fine["temperature"])
    assert (request.fine.top_k, request.fine.top_p) == (0, 1.0)


SHORT = {"semantic_max_new_tokens": 6}


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"do_sample": True},
        {"do_sample": False},
        {"do_sample": None},
        {"do_sample": True, "temperature": 0.6},
        {"do_sample": True, "temperature": 1.0},
        {"do_sample": True, "temperature": None},
        {"do_sample": True, "coarse_temperature": 0.4, "fine_temperature": 0.2},
        {"do_sample": True, "temperature": 0.6, "semantic_temperature": 0.9},
        {"semantic_temperature": 0.9, "do_sample": True, "temperature": 0.6},
        {"temperature": 0.6, "semantic_do_sample": True},
        {"coarse_do_sample": True, "do_sample": False},
        {"do_sample": False, "coarse_do_sample": True},
        {"do_sample": True, "fine_do_sample": False, "fine_temperature": 0.5},
        {"do_sample": True, "fine_temperature": None},
        {"do_sample": True, "temperature": 0.5, "fine_temperature": 1.0},
        {"do_sample": True, "top_k": 7, "coarse_top_k": 3},
        {"do_sample": True, "top_k": 0},
        {"do_sample": True, "top_k": None, "semantic_top_k": 4},
        {"do_sample": True, "top_p": 0.8, "semantic_top_p": 0.5},
        {"do_sample": True, "top_p": None, "coarse_top_p": 1.0},
        {"min_eos_p": 0.9},
        {"semantic_min_eos_p": 0.8},
        {"min_eos_p": 0.9, "semantic_min_eos_p": 0.8},
        {"semantic_min_eos_p": 0.8, "min_eos_p": 0.9},
        {"min_eos_p": None},
        {"min_new_tokens": 3},
        {"semantic_min_new_tokens": 4, "min_new_tokens": 3},
        {"pad_token_id": None, "use_cache": True, "num_beams": 1, "repetition_penalty": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "semantic_config": {
                "do_sample": True, "temperature": 0.7, "top_k": 11, "top_p": 0.95,
                "min_eos_p": 0.2,
            },
            "coarse_acoustics_config": {"do_sample": True, "temperature": 0.3},
            "fine_acoustics_config": {"temperature": 0.5},
        },
    ],
    ids=["bare", "configured"],
)  # fmt: skip
def test_precedence(
    ours: Any, processor: Any, received: Any, seen: Seen, keywords: Any, changes: Any
) -> None:
    expected = received({**SHORT, **keywords}, changes)
    change(ours, changes)
    ours.generate(**processor("Hello", max_length=32), **SHORT, **keywords, seed=0)
    assert_same(seen.requests[0], expected)


def test_the_sub_models_own_configuration(
    ours: Any, theirs: Any, processor: Any, received: Any, seen: Seen
) -> None:
    """It comes after the section, before transformers' defaults."""
    models = [m for bark in (ours, theirs) for m in (bark.semantic, bark.coarse_acoustics)]
    before = [copy.deepcopy(model.generation_config) for model in models]
    try:
        for model in models:
            model.generation_config.top_k = 9
            model.generation_config.top_p = 0.7
        changes = {"coarse_acoustics_config": {"top_k": 5}}
        keywords = {**SHORT, "do_sample": True, "semantic_top_p": 0.9}
        expected = received(keywords, changes)
        change(ours, changes)
        ours.generate(**processor("Hello", max_length=32), **keywords, seed=0)
        assert_same(seen.requests[0], expected)
        assert seen.requests[0].semantic.top_k == 9
        assert seen.requests[0].coarse.top_k == 5
        assert seen.requests[0].coarse.top_p == 0.7
        for model in (models[0], models[2]):
            model.generation_config.repetition_penalty = 1.5
        inputs = processor("Hello", max_length=32)
        reason = "repetition_penalty of the semantic model is 1.5"
        assert_left_to_transformers(ours, theirs, inputs, reason, **GREEDY, **SHORT)
    finally:
        for model, config in zip(models, before, strict=True):
            model.generation_config = config


def test_configured_length(ours: Any, processor: Any, received: Any, seen: Seen) -> None:
    changes = {"semantic_config": {"max_new_tokens": 5, "min_new_tokens": 2}}
    expected = received({}, changes)
    change(ours, changes)
    ours.generate(**processor("Hello", max_length=32))
    assert_same(seen.requests[0], expected)
    assert seen.requests[0].max_semantic_tokens == 5


def test_unprefixed_length_is_the_semantic_stages(ours: Any, processor: Any, seen: Seen) -> None:
    """transformers fails on it, because its coarse stage has a length of its own."""
    ours.generate(**processor("Hello", max_length=32), **GREEDY, max_new_tokens=4)
    keywords = {"max_new_tokens": 4, "semantic_max_new_tokens": 3}
    ours.generate(**processor("Hello", max_length=32), **GREEDY, **keywords)
    ours.generate(**processor("Hello", max_length=32), **GREEDY, max_new_tokens=148)
    assert [request.max_semantic_tokens for request in seen.requests] == [4, 3, 148]


@pytest.mark.parametrize("name", ["max_new_tokens", "semantic_max_new_tokens"])
def test_more_than_the_positions_hold(ours: Any, processor: Any, seen: Seen, name: str) -> None:
    """It is cut there, where transformers fails if it gets there."""
    inputs = processor("Hello", max_length=32)
    for length in (149, 10**30):
        with pytest.warns(BarkFastWarning, match=f"^{name} is {length}, .* hold 148 tokens"):
            ours.generate(**inputs, **GREEDY, **{name: length})
    assert {request.max_semantic_tokens for request in seen.requests} == {148}


def test_an_end_before_more_than_the_positions_hold(ours: Any, theirs: Any, processor: Any) -> None:
    inputs = processor("Hello", max_length=32)
    with pytest.raises(IndexError):
        theirs.generate(**inputs, **GREEDY, semantic_max_new_tokens=149)
    keywords = {**GREEDY, "semantic_max_new_tokens": 1000, "min_eos_p": 5e-3}
    with pytest.warns(BarkFastWarning, match="is 1000"):
        audio = ours.generate(**inputs, **keywords)
    torch.testing.assert_close(audio, theirs.generate(**inputs, **keywords), rtol=0, atol=1e-5)


def test_a_configured_length_is_cut(ours: Any, processor: Any, seen: Seen) -> None:
    change(ours, {"semantic_config": {"max_new_tokens": 10**6}})
    ours.generate(**processor("Hello", max_length=32), **GREEDY)
    assert seen.requests[0].max_semantic_tokens == 148


def test_top_p_zero_is_greedy(ours: Any, processor: Any, seen: Seen) -> None:
    inputs = processor("Hello", max_length=32)
    audio = ours.generate(**inputs, **SHORT, do_sample=True, top_p=0.0)
    assert torch.equal(audio, ours.generate(**inputs, **SHORT, do_sample=False))
    assert seen.requests[0].semantic.temperature == seen.requests[0].coarse.temperature == 0


def test_prefixed_mask_comes_first(ours: Any, processor: Any, seen: Seen) -> None:
    inputs = processor("Hello", max_length=32)
    mask = inputs.pop("attention_mask")
    expected = ours.generate(**inputs, **GREEDY, **SHORT, attention_mask=mask)
    for keywords in (
        {"attention_mask": mask * 0, "semantic_attention_mask": mask},
        {"semantic_attention_mask": mask, "attention_mask": mask * 0},
    ):
        assert torch.equal(ours.generate(**inputs, **GREEDY, **SHORT, **keywords), expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("voice_preset", "v2/en_speaker_6"),
        ("temprature", 0.7),
        ("coarse_temprature", 0.7),
        ("semantic_", 1),
        ("semantic", 1),
        ("coarse_min_eos_p", 0.2),
        ("codebook_size", 64),
        ("semantic_history_prompt", {}),
        ("fine_history_prompt", {}),
    ],
)
def test_what_transformers_does_not_know(
    ours: Any, theirs: Any, processor: Any, seen: Seen, name: str, value: Any
) -> None:
    """It is an error before anything is computed or drawn, and names the keyword and the value."""
    before = torch.get_rng_state()
    inputs = processor("Hello", max_length=32)
    with pytest.raises(InputError) as raised:
        ours.generate(**inputs, do_sample=True, **{name: value})
    assert str(raised.value).startswith(f"{name} must not be given")
    assert str(raised.value).endswith(f"got {value!r}")
    assert not seen.requests
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises((TypeError, ValueError)):
        theirs.generate(**inputs, **SHORT, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("fine_top_k", 10), ("fine_num_beams", 2), ("fine_max_new_tokens", 5), ("fine_temprature", 1)],
)
def test_what_the_fine_stage_does_not_look_at(
    ours: Any, theirs: Any, processor: Any, seen: Seen, name: str, value: Any
) -> None:
    inputs, keywords = processor("Hello", max_length=32), {**GREEDY, **SHORT, name: value}
    with pytest.warns(BarkFastWarning, match=f"^{name} is not looked at"):
        audio = ours.generate(**inputs, **keywords)
    assert seen.requests
    torch.testing.assert_close(audio, theirs.generate(**inputs, **keywords), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"do_sample": True, "temperature": 0}, r"temperature must be a finite number above 0"),
        ({"do_sample": True, "coarse_temperature": -1.0}, r"coarse_temperature must .* got -1\.0"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature must be .* got nan"),
        ({"do_sample": True, "semantic_temperature": "hot"}, "semantic_temperature must be .*hot"),
        ({"fine_temperature": 0.0}, r"fine_temperature must be a finite number above 0"),
        ({"fine_temperature": "hot"}, r"fine_temperature must be a finite number above 0"),
        ({"do_sample": True, "top_k": -1}, "top_k must be an integer >= 0"),
        ({"do_sample": True, "coarse_top_k": 2.5}, r"coarse_top_k must be an integer .* got 2\.5"),
        ({"do_sample": True, "top_p": -0.5}, r"top_p must be a number >= 0, got -0\.5"),
        ({"do_sample": True, "top_p": "x"}, "top_p must be a number >= 0, got 'x'"),
        ({"semantic_max_new_tokens": 0}, "semantic_max_new_tokens must be an integer >= 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer >= 1, got 0"),
        ({"max_new_tokens": "3"}, "max_new_tokens must be an integer >= 1, got '3'"),
        ({"semantic_min_new_tokens": "2"}, "semantic_min_new_tokens must be an integer >= 0"),
        ({"min_eos_p": 0}, "min_eos_p must be a number above 0, got 0"),
        ({"semantic_min_eos_p": -1.0}, "semantic_min_eos_p must be a number above 0"),
    ],
)  # fmt: skip
def test_values_that_transformers_refuses(
    ours: Any, theirs: Any, processor: Any, seen: Seen, keywords: Any, message: str
) -> None:
    """They are errors before anything is computed."""
    inputs = processor("Hello", max_length=32)
    with pytest.raises(InputError, match=f"^{message}"):
        ours.generate(**inputs, **keywords)
    assert not seen.requests
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        theirs.generate(**inputs, **{**SHORT, **keywords})


def test_thresholds_that_nothing_reaches(
    ours: Any, theirs: Any, processor: Any, seen: Seen
) -> None:
    inputs = processor("Hello", max_length=32)
    for keywords in ({"min_eos_p": 2}, {"top_p": 1.5}, {"max_length": 3}):
        keywords = {**SHORT, **GREEDY, **{f"semantic_{key}": v for key, v in keywords.items()}}
        audio = ours.generate(**inputs, **keywords)
        torch.testing.assert_close(audio, theirs.generate(**inputs, **keywords), rtol=0, atol=1e-5)
    assert len(seen.requests) == 3


@pytest.mark.parametrize(
    "keywords",
    [
        dict.fromkeys(["num_beams", "repetition_penalty", "streamer", "logits_processor"]),
        {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "typical_p": 1.0},
        {"logits_processor": LogitsProcessorList(), "stopping_criteria": StoppingCriteriaList()},
        {"semantic_pad_token_id": 10_000, "use_cache": True, "renormalize_logits": False},
        {"semantic_eos_token_id": 100, "return_dict_in_generate": True, "output_scores": True},
        {"output_attentions": True, "output_hidden_states": True, "coarse_max_length": 3},
        {"fine_top_k": None, "fine_top_p": 1.0, "fine_num_beams": 1, "length_penalty": 2.0},
        {"generation_config": None, "semantic_bad_words_ids": None, "synced_gpus": False},
        {"use_model_defaults": True},
    ],
    ids=str,
)
def test_values_that_change_nothing(ours: Any, processor: Any, keywords: Any) -> None:
    inputs = processor("Hello", max_length=32)
    expected = ours.generate(**inputs, **GREEDY, **SHORT)
    assert torch.equal(ours.generate(**inputs, **GREEDY, **SHORT, **keywords), expected)


@pytest.mark.parametrize("name", ["generation_config", "coarse_generation_config"])
def test_a_generation_config_is_not_looked_at(
    ours: Any, theirs: Any, processor: Any, received: Any, seen: Seen, name: str
) -> None:
    """As in transformers; with a warning, unless it is the model's own or equal to it."""
    inputs = processor("Hello", max_length=32)
    other = GenerationConfig(do_sample=True, temperature=0.2, max_new_tokens=3)
    with pytest.warns(BarkFastWarning, match=f"^{name} is not looked at"):
        ours.generate(**inputs, **SHORT, **{name: other})
    assert_same(seen.requests[0], received({**SHORT, name: other}))
    config = ours.generation_config
    for same in (config, copy.deepcopy(config)):
        ours.generate(**inputs, **SHORT, **{name: same})  # warnings are errors here


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("semantic", {"num_beams": 3}),
        ("coarse", {"repetition_penalty": 2.0}),
        ("semantic", {"no_repeat_ngram_size": 2}),
        ("coarse", {"pad_token_id": 3}),
        ("fine", {"temperature": -1.0}),
    ],
)
def test_what_is_configured_for_transformers_alone(
    ours: Any, theirs: Any, processor: Any, seen: Seen, section: str, values: Any
) -> None:
    before = copy.deepcopy(theirs.generation_config)
    inputs, (name,) = processor("Hello", max_length=32), values
    try:
        for model in (ours, theirs):
            change(model, {SECTIONS[section]: values})
        reason = rf"{SECTIONS[section]}\.{name}"
        assert_left_to_transformers(ours, theirs, inputs, reason, do_sample=True, **SHORT)
    finally:
        theirs.generation_config = before
    assert not seen.requests


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("semantic", {"temperature": -1.0, "do_sample": True}, "temperature must be a finite"),
        ("fine", {"temperature": 0.0}, "fine_acoustics_config.temperature must be a finite"),
        (
            "semantic",
            {"max_new_tokens": 0},
            "semantic_config must be .*max_new_tokens",
        ),
        ("semantic", {"top_k": "many", "do_sample": True}, "semantic_config.* must be "),
    ],
)
def test_what_is_configured_is_checked_too(
    ours: Any, processor: Any, seen: Seen, section: str, values: Any, message: str
) -> None:
    change(ours, {SECTIONS[section]: values})
    with pytest.raises(ValueError, match=message):
        ours.generate(**processor("Hello", max_length=32))
    assert not seen.requests


@pytest.mark.parametrize("name", ["generation_config", "fine_generation_config"])
def test_what_is_no_generation_config(ours: Any, processor: Any, seen: Seen, name: str) -> None:
    """transformers does not look at it."""
    inputs = processor("Hello", max_length=32)
    with pytest.warns(BarkFastWarning, match=f"^{name} is not looked at"):
        ours.generate(**inputs, **SHORT, **{name: 5})
    seen.requests.clear()
    ours.generation_config.semantic_config = [1]
    with pytest.raises(
        InputError, match=r"model\.generation_config\.semantic_config must be a Gen"
    ):
        ours.generate(**inputs)
    assert not seen.requests


def test_a_model_without_barks_generation_config(ours: Any, processor: Any) -> None:
    ours.generation_config = GenerationConfig()
    with pytest.raises(InputError, match=r"generation_config must be Bark's.*without semantic_co"):
        ours.generate(**processor("Hello", max_length=32))


def test_sections_made_in_python(ours: Any, processor: Any) -> None:
    """Objects, which transformers cannot generate with."""
    inputs = processor("Hello", max_length=32)
    expected = ours.generate(**inputs, **GREEDY, **SHORT)
    config = ours.generation_config
    for section, kind in GENERATION_CONFIGS.items():
        name = SECTIONS[section]
        setattr(config, name, kind(**getattr(config, name)))
    assert torch.equal(ours.generate(**inputs, **GREEDY, **SHORT), expected)
