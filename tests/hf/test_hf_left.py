"""Keywords that only transformers' own loop knows: it runs, and does what it does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MaxTimeCriteria,
    StoppingCriteriaList,
)

from bark_fast import BarkFastWarning, Voice
from helpers.checkpoints import Checkpoint
from helpers.hf_models import GREEDY, Seen, assert_left_to_transformers

SHORT = {"semantic_max_new_tokens": 6}


def everything(row: int, ids: Tensor) -> list[int]:
    """Allow every token, which a prefix_allowed_tokens_fn may."""
    return list(range(240))


class _Streamer:
    """Counts what it is given."""

    def __init__(self) -> None:
        self.n_put = 0

    def put(self, value: Tensor) -> None:
        self.n_put += 1

    def end(self) -> None: ...


LEFT: list[tuple[str, Any]] = [
    ("num_beams", 3),
    ("semantic_num_beams", 2),
    ("coarse_num_beams", 2),
    ("num_beam_groups", 2),
    ("num_return_sequences", 3),
    ("semantic_num_return_sequences", 2),
    ("repetition_penalty", 1.2),
    ("coarse_repetition_penalty", 1.2),
    ("encoder_repetition_penalty", 1.2),
    ("no_repeat_ngram_size", 2),
    ("encoder_no_repeat_ngram_size", 2),
    ("bad_words_ids", [[1]]),
    ("suppress_tokens", [1]),
    ("begin_suppress_tokens", [1]),
    ("semantic_sequence_bias", {(1,): 2.0}),
    ("typical_p", 0.9),
    ("min_p", 0.1),
    ("epsilon_cutoff", 1e-3),
    ("eta_cutoff", 1e-3),
    ("penalty_alpha", 0.6),
    ("guidance_scale", 3.0),
    ("min_length", 10),
    ("max_time", 100.0),
    ("stop_strings", ["x"]),
    ("eos_token_id", 100),
    ("eos_token_id", None),
    ("semantic_eos_token_id", 99),
    ("coarse_eos_token_id", 100),
    ("forced_eos_token_id", 100),
    ("exponential_decay_length_penalty", (2, 1.1)),
    ("semantic_streamer", _Streamer()),
    ("pad_token_id", 3),
    ("use_cache", False),
    ("use_model_defaults", False),
    ("logits_processor", LogitsProcessorList([lambda ids, scores: scores])),
    ("semantic_logits_processor", [lambda ids, scores: scores]),
    ("stopping_criteria", StoppingCriteriaList([MaxTimeCriteria(100.0)])),
    ("semantic_stopping_criteria", [lambda ids, scores: torch.ones(1, dtype=torch.bool)]),
    ("prefix_allowed_tokens_fn", everything),
    ("prompt_lookup_num_tokens", 2),
    ("assistant_model", object()),
    ("constraints", [object()]),
    ("coarse_attention_mask", torch.ones(1, 32)),
    ("coarse_max_new_tokens", 5),
    ("semantic_max_new_tokens", None),
    ("do_sample", 1),
    ("semantic_temperature", math.inf),
    ("fine_temperature", -1.0),
    ("top_p", math.nan),
    ("semantic_min_new_tokens", -3),
    ("semantic_max_new_tokens", 2.0),
]


@pytest.mark.parametrize(("name", "value"), LEFT, ids=[name for name, _ in LEFT])
def test_what_only_transformers_does(
    ours: Any, theirs: Any, processor: Any, seen: Seen, name: str, value: Any
) -> None:
    """It does it, in all detail, or refuses it itself; and one warning names the keyword."""
    keywords = {**SHORT, "do_sample": True, name: value}
    assert_left_to_transformers(ours, theirs, processor("Hello", max_length=32), name, **keywords)
    assert not seen.requests
    plain = {key: value for key, value in keywords.items() if key != name}
    reason = ours.why_not_served(**keywords)
    assert reason is not None
    assert name in reason
    assert ours.why_not_served(**plain) is None


def test_greedy_values_that_only_transformers_takes(
    ours: Any, theirs: Any, processor: Any, seen: Seen
) -> None:
    """Nothing but the fine stage looks at them then."""
    for name, value in [("top_k", -1), ("semantic_temperature", "hot"), ("coarse_top_k", 2.5)]:
        keywords = {**SHORT, **GREEDY, name: value}
        inputs = processor("Hello", max_length=32)
        assert_left_to_transformers(ours, theirs, inputs, name, **keywords)
    assert not seen.requests


def test_a_streamer_hears_the_tokens(ours: Any, processor: Any) -> None:
    streamer = _Streamer()
    with pytest.warns(BarkFastWarning, match="because streamer is"):
        ours.generate(**processor("Hello", max_length=32), **GREEDY, **SHORT, streamer=streamer)
    assert streamer.n_put > 6


def test_rows_left_to_transformers(small: Checkpoint, ours: Any, processor: Any) -> None:
    """With voices and seeds of their own they are said one by one, which transformers cannot."""
    voices, texts = [small.voice(20), None], ["Hello", "Hi"]
    keywords = {**SHORT, "do_sample": True, "repetition_penalty": 1.1}
    inputs = processor(texts, voice_preset=voices, max_length=32)

    def say(inputs: Any, **more: Any) -> Any:
        with pytest.warns(BarkFastWarning, match="because repetition_penalty"):
            return ours.generate(**inputs, **keywords, **more)

    before = torch.get_rng_state()
    audio, lengths = say(inputs, seed=7, return_output_lengths=True)
    again = say(inputs, seed=[7, 8])
    alone = say(processor(texts[1], max_length=20), seed=8, return_output_lengths=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert audio.shape == (2, max(lengths))
    assert torch.equal(audio, again)
    assert torch.equal(audio[1, : lengths[1]], alone[0][0])
    assert alone[1] == [lengths[1]]


def test_input_that_only_ours_takes_left_to_transformers(
    small: Checkpoint, ours: Any, theirs: Any, processor: Any
) -> None:
    """Arrays, flags, a Voice, a short row, and a length for all stages that is one stage's."""
    arrays = small.voice(20)
    inputs = processor("Hello", voice_preset=arrays, max_length=32)
    keywords = {**GREEDY, "repetition_penalty": 1.1}
    expected = theirs.generate(**inputs, **keywords, semantic_max_new_tokens=6)
    short = processor("Hello", max_length=20)
    for given in (
        {"input_ids": inputs["input_ids"].numpy(), "attention_mask": inputs["attention_mask"]},
        {
            "input_ids": short["input_ids"].tolist(),
            "attention_mask": short["attention_mask"].bool(),
        },
        {"input_ids": short["input_ids"], "semantic_attention_mask": short["attention_mask"]},
    ):
        for history in (arrays, Voice(**arrays)):
            with pytest.warns(BarkFastWarning, match="because repetition_penalty"):
                audio = ours.generate(**given, history_prompt=history, **keywords, max_new_tokens=6)
            assert torch.equal(audio, expected)
