"""Keywords: what reaches each stage is what transformers' own sub-models receive, and what cannot
be done is an error."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from bark_fast import BarkFastWarning, InputError
from bark_fast.hf.params import GENERATION_CONFIGS, SECTIONS
from helpers.hf_models import GREEDY, Seen


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

    monkeypatch.setattr(transformers.BarkCausalModel, "_sample", watch)
    monkeypatch.setattr(transformers.BarkFineModel, "generate", fine)
    before = theirs.generation_config

    def receive(keywords: dict[str, Any], changes: dict[str, Any] | None = None) -> Any:
        found.clear()
        theirs.generation_config = copy.deepcopy(before)
        change(theirs, changes or {})
        try:
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
        {"pad_token_id": 0, "use_cache": True, "num_beams": 1, "repetition_penalty": 1.0},
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
        models[0].generation_config.num_beams = 4
        with pytest.raises(InputError, match="num_beams of the semantic model must be left out"):
            ours.generate(**processor("Hello", max_length=32))
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
    inputs = processor("Hello", max_length=32)
    for length in (149, 10**30):
        with pytest.raises(InputError, match=f"^{name} must be at most 148, .* got {length}$"):
            ours.generate(**inputs, **GREEDY, **{name: length})
    assert not seen.requests


def test_the_length_that_transformers_can_do(theirs: Any, processor: Any) -> None:
    inputs = processor("Hello", max_length=32)
    theirs.generate(**inputs, **GREEDY, semantic_max_new_tokens=148)
    with pytest.raises(IndexError):
        theirs.generate(**inputs, **GREEDY, semantic_max_new_tokens=149)


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


REFUSED: list[tuple[str, Any]] = [
    ("num_beams", 4),
    ("semantic_num_beams", 2),
    ("coarse_num_beams", 2),
    ("fine_num_beams", 2),
    ("num_beam_groups", 2),
    ("num_return_sequences", 3),
    ("repetition_penalty", 1.2),
    ("coarse_repetition_penalty", 1.2),
    ("encoder_repetition_penalty", 1.2),
    ("no_repeat_ngram_size", 3),
    ("bad_words_ids", [[1]]),
    ("suppress_tokens", [1]),
    ("semantic_sequence_bias", {(1,): 2.0}),
    ("typical_p", 0.9),
    ("min_p", 0.1),
    ("epsilon_cutoff", 1e-3),
    ("eta_cutoff", 1e-3),
    ("penalty_alpha", 0.6),
    ("guidance_scale", 3.0),
    ("min_length", 10),
    ("max_length", 300),
    ("max_time", 1.0),
    ("stop_strings", ["x"]),
    ("eos_token_id", 100),
    ("semantic_eos_token_id", 99),
    ("coarse_eos_token_id", 100),
    ("forced_eos_token_id", 100),
    ("streamer", object()),
    ("use_model_defaults", False),
    ("logits_processor", LogitsProcessorList([lambda ids, scores: scores])),
    ("semantic_logits_processor", [lambda ids, scores: scores]),
    ("stopping_criteria", StoppingCriteriaList([lambda ids, scores: True])),
    ("prefix_allowed_tokens_fn", lambda row, ids: [1]),
    ("assistant_model", object()),
    ("output_scores", True),
    ("coarse_output_attentions", True),
    ("coarse_attention_mask", torch.ones(1, 32)),
    ("coarse_max_new_tokens", 5),
    ("fine_max_new_tokens", 5),
    ("coarse_min_eos_p", 0.2),
    ("fine_top_k", 10),
    ("fine_top_p", 0.5),
    ("semantic_history_prompt", {}),
    ("voice_preset", "v2/en_speaker_6"),
    ("temprature", 0.7),
    ("semantic_", 1),
    ("semantic", 1),
]


@pytest.mark.parametrize(("name", "value"), REFUSED, ids=[name for name, _ in REFUSED])
def test_what_cannot_be_honoured_is_an_error(
    ours: Any, processor: Any, seen: Seen, name: str, value: Any
) -> None:
    """One that names the keyword, what it must be, and what came; nothing was computed or drawn."""
    before = torch.get_rng_state()
    inputs = processor("Hello", max_length=32)
    with pytest.raises(InputError) as raised:
        ours.generate(**inputs, do_sample=True, **{name: value})
    message = str(raised.value)
    assert message.startswith((f"{name} must be left out or ", f"{name} must not be given"))
    assert message.endswith(f"got {value!r}")
    assert not seen.requests
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"do_sample": 1}, "do_sample must be True or False, got 1"),
        ({"fine_do_sample": "no"}, "fine_do_sample must be True or False, got 'no'"),
        ({"do_sample": True, "temperature": 0}, r"temperature must be a finite number above 0"),
        ({"do_sample": True, "coarse_temperature": -1.0}, r"coarse_temperature must .* got -1\.0"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature must be .* got nan"),
        ({"do_sample": False, "semantic_temperature": "hot"}, "semantic_temperature must be .*hot"),
        ({"fine_temperature": 0.0}, r"fine_temperature must be a finite number above 0"),
        ({"top_k": -1}, "top_k must be an integer >= 0"),
        ({"coarse_top_k": 2.5}, r"coarse_top_k must be an integer .* got 2\.5"),
        ({"top_p": 1.5}, r"top_p must be a number from 0 to 1, got 1\.5"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer >= 1, got 0"),
        ({"semantic_max_new_tokens": 2.0}, "semantic_max_new_tokens must be an integer"),
        ({"min_new_tokens": -3}, "min_new_tokens must be an integer >= 0, got -3"),
        ({"min_eos_p": 0}, "min_eos_p must be a number above 0, at most 1, got 0"),
        ({"semantic_min_eos_p": 2}, "semantic_min_eos_p must be a number above 0"),
    ],
)  # fmt: skip
def test_values_out_of_range(
    ours: Any, processor: Any, seen: Seen, keywords: Any, message: str
) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        ours.generate(**processor("Hello", max_length=32), **keywords)
    assert not seen.requests


@pytest.mark.parametrize(
    "keywords",
    [
        dict.fromkeys(["num_beams", "repetition_penalty", "streamer", "logits_processor"]),
        {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "typical_p": 1.0},
        {"logits_processor": LogitsProcessorList(), "stopping_criteria": StoppingCriteriaList()},
        {"pad_token_id": 10_000, "use_cache": False, "renormalize_logits": False},
        {"semantic_eos_token_id": 100, "return_dict_in_generate": True, "output_scores": False},
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
    ("section", "values", "message"),
    [
        ("semantic", {"num_beams": 3}, "semantic_config.num_beams must be left out or 1"),
        ("coarse", {"repetition_penalty": 2.0}, "repetition_penalty must be left out or 1.0"),
        ("semantic", {"temperature": -1.0, "do_sample": True}, "temperature must be a finite"),
        ("fine", {"temperature": 0.0}, "fine_acoustics_config.temperature must be a finite"),
        (
            "semantic",
            {"max_new_tokens": 0},
            "semantic_config must be .*max_new_tokens",
        ),
        ("semantic", {"top_k": "many"}, "semantic_config.* must be "),
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
    inputs = processor("Hello", max_length=32)
    with pytest.raises(InputError, match=f"^{name} must be a GenerationConfig .* got 5"):
        ours.generate(**inputs, **{name: 5})
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
