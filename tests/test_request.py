"""Requests: users' arguments checked, with every default filled in."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bark_fast import BarkFastWarning, GenerationParams, InputError
from bark_fast.checkpoint.config import Config, SamplingDefaults
from bark_fast.request import Request, RequestBuilder
from bark_fast.stages.coarse import count_frames
from bark_fast.types import STAGES
from helpers.checkpoints import Checkpoint

FRAME_S = 0.001  # of the small checkpoint: 8 samples of 8 000 a second


@pytest.fixture(scope="module")
def builder(small: Checkpoint) -> RequestBuilder:
    """A builder on its own, made from the checkpoint as `Bark` makes one."""
    made = small.bark.requests
    return RequestBuilder(made.config, made.tokenizer, made.voices)


def with_rules(config: Config) -> Config:
    """Return the configuration of a checkpoint that says how it wants to be sampled."""
    semantic = replace(
        config.semantic_rules, min_eos_p=0.3, sampling=SamplingDefaults(0.9, 50, 0.8)
    )
    coarse = replace(config.coarse_rules, sampling=SamplingDefaults(0.6, 7))
    fine = replace(config.fine_rules, sampling=SamplingDefaults(0.0))
    return replace(config, semantic_rules=semantic, coarse_rules=coarse, fine_rules=fine)


def samplings(request: Request) -> list[tuple[float, int, float]]:
    """Return (temperature, top_k, top_p) of each stage that samples."""
    return [
        (s.temperature, s.top_k, s.top_p) for s in (request.semantic, request.coarse, request.fine)
    ]


# From a text


def test_a_text(builder: RequestBuilder) -> None:
    request = builder.from_text("  Hello,\n my  dog ")
    assert request.text == "Hello, my dog"
    assert request.text_ids == builder.tokenizer.encode("Hello, my dog")
    assert (request.voice, request.given) == (None, None)
    assert request.stages == STAGES


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("你好，世界。", "'你', '好', '，', '世', '界', '。'"),
        ("Hi Пp Пq Пr", "'П'"),  # of the words' other letters it knows each
        ("αα βγδ εζ ηθικ", "'α', 'β', 'γ', 'δ', 'ε', 'ζ', 'η', 'θ' and 2 more"),
    ],
)
def test_text_that_the_tokenizer_does_not_know(
    builder: RequestBuilder, text: str, names: str
) -> None:
    with pytest.warns(BarkFastWarning, match=f"tokens are unknown \\({re.escape(names)}\\)"):
        builder.from_text(text)


def test_a_word_that_is_unknown_for_its_length(builder: RequestBuilder) -> None:
    with pytest.warns(BarkFastWarning, match="1 of 1 tokens are unknown \\(whole words\\)"):
        builder.from_text("a" * 300)


def test_a_little_may_be_unknown(builder: RequestBuilder) -> None:
    builder.from_text("It costs 5 €.")  # a warning would be an error here


def test_defaults_are_the_checkpoints(builder: RequestBuilder) -> None:
    plain = builder.from_text("a")
    assert samplings(plain) == [(0.7, 0, 1.0), (0.7, 0, 1.0), (0.5, 0, 1.0)]
    assert (plain.semantic.min_eos_p, plain.semantic.min_new_tokens) == (0.2, 0)
    assert plain.max_semantic_tokens == 148
    other = RequestBuilder(with_rules(builder.config), builder.tokenizer, builder.voices)
    request = other.from_text("a")
    assert samplings(request) == [(0.9, 50, 0.8), (0.6, 7, 1.0), (0.0, 0, 1.0)]
    assert request.semantic.min_eos_p == 0.3


def test_a_stage_can_be_asked_for_by_name(builder: RequestBuilder) -> None:
    params = GenerationParams(
        temperature=0.4, coarse_temperature=0.9, fine_temperature=0, top_k=5, fine_top_k=0,
        top_p=0.5, semantic_top_p=0.25,
    )  # fmt: skip
    request = builder.from_text("a", None, params)
    assert samplings(request) == [(0.4, 5, 0.25), (0.9, 5, 0.5), (0.0, 0, 0.5)]


def test_the_end_concerns_the_semantic_stage_alone(builder: RequestBuilder) -> None:
    params = GenerationParams(min_eos_p=0, min_semantic_tokens=10**30)
    request = builder.from_text("a", None, params)
    assert request.semantic.min_eos_p == 0
    # No sequence is longer, and an int64 has to hold it.
    assert request.semantic.min_new_tokens == 148
    assert request.coarse.min_new_tokens == request.fine.min_new_tokens == 0
    assert request.coarse.min_eos_p == request.fine.min_eos_p == 0


@pytest.mark.parametrize(("asked", "used"), [(1e-300, 0.0), (9e-6, 0.0), (1e-5, 1e-5), (2, 2.0)])
def test_a_tiny_temperature_is_greedy(builder: RequestBuilder, asked: float, used: float) -> None:
    request = builder.from_text("a", None, GenerationParams(temperature=asked))
    assert [t for t, _, _ in samplings(request)] == [used] * 3


def test_seeds(builder: RequestBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    request = builder.from_text("a", None, GenerationParams(seed=2**64 - 1))
    assert request.seed == 2**64 - 1
    assert {s.seed for s in (request.semantic, request.coarse, request.fine)} == {2**64 - 1}
    monkeypatch.setattr("secrets.randbits", lambda n_bits: 2**n_bits - 5)
    drawn = builder.from_text("a")
    assert drawn.seed == drawn.semantic.seed == drawn.fine.seed == 2**64 - 5


def test_a_voice(small: Checkpoint, builder: RequestBuilder) -> None:
    arrays = small.voice(17)
    request = builder.from_text("a", arrays)
    assert request.voice is not None
    for name, array in arrays.items():
        assert np.array_equal(getattr(request.voice, name), array)


# How long it may become


@pytest.mark.parametrize(("asked", "limit"), [(1, 1), (148, 148), (149, 148), (10**30, 148)])
def test_semantic_tokens_at_most(builder: RequestBuilder, asked: int, limit: int) -> None:
    params = GenerationParams(max_semantic_tokens=asked)
    assert builder.from_text("a", None, params).max_semantic_tokens == limit


@pytest.mark.parametrize("n_frames", [1, 2, 9, 10, 41, 100, 243])
def test_a_duration_is_as_many_tokens_as_last_for_it(
    builder: RequestBuilder, n_frames: int
) -> None:
    for duration_s in (n_frames * FRAME_S, (n_frames + 0.999) * FRAME_S):
        params = GenerationParams(max_duration_s=duration_s)
        limit = builder.from_text("a", None, params).max_semantic_tokens
        assert count_frames(limit, builder.config) <= n_frames
        assert count_frames(limit + 1, builder.config) > n_frames


def test_the_shorter_limit_counts(builder: RequestBuilder) -> None:
    for tokens, frames, expected in ((5, 100, 5), (100, 10, 6), (None, 10**9, 148)):
        params = GenerationParams(max_semantic_tokens=tokens, max_duration_s=frames * FRAME_S)
        assert builder.from_text("a", None, params).max_semantic_tokens == expected


def test_less_than_a_frame(builder: RequestBuilder) -> None:
    message = r"max_duration_s must allow at least one frame \(0.001 s\), got 0.0009"
    with pytest.raises(InputError, match=message):
        builder.from_text("a", None, GenerationParams(max_duration_s=0.0009))


# From semantic tokens


def test_tokens(builder: RequestBuilder) -> None:
    request = builder.from_tokens(np.array([3, 1, 2]), None, GenerationParams(seed=4))
    assert request.given == (3, 1, 2)
    assert all(type(token) is int for token in request.given)
    assert (request.text, request.text_ids, request.seed) == ("", [], 4)
    assert request.stages == ("coarse", "fine", "codec")


def test_more_tokens_than_the_model_would_make(builder: RequestBuilder) -> None:
    """Only what the user asks for limits them."""
    tokens = [1] * 200
    assert builder.from_tokens(tokens).given == (1,) * 200
    with pytest.raises(InputError, match=r"at most max_semantic_tokens \(199\), got 200"):
        builder.from_tokens(tokens, None, GenerationParams(max_semantic_tokens=199))


def test_tokens_and_a_duration(builder: RequestBuilder) -> None:
    n_frames = count_frames(50, builder.config)
    exact = GenerationParams(max_duration_s=n_frames * FRAME_S)
    assert len(builder.from_tokens([1] * 50, None, exact).given or ()) == 50
    message = r"tokens must last at most max_duration_s \(0.081\), got 50 tokens, which last 0.082"
    assert n_frames == 82
    with pytest.raises(InputError, match=message):
        builder.from_tokens([1] * 50, None, GenerationParams(max_duration_s=0.081))


@pytest.mark.parametrize("last", [*STAGES, "wave", None])
@pytest.mark.parametrize("given", [None, [1]])
def test_the_last_stage_is_one_of_those_to_come(
    builder: RequestBuilder, given: list[int] | None, last: Any
) -> None:
    def make() -> Request:
        params, config = GenerationParams(), builder.config
        return Request.resolve("a", [1], None, params, config, given=given, last_stage=last)

    possible = STAGES if given is None else STAGES[1:]
    if last in possible:
        request = make()
        assert request.stages == possible[: possible.index(last) + 1]
        assert request.last_stage == last
    else:
        with pytest.raises(InputError, match=f"last_stage must be one of .*, got {last!r}"):
            make()


def test_given_tokens_have_passed_the_first_stage(small: Checkpoint) -> None:
    params, message = GenerationParams(), "one of coarse, fine, codec, got 'semantic'"
    with pytest.raises(InputError, match=f"last_stage must be {message}"):
        Request.resolve("", [], None, params, small.config, given=[1], last_stage="semantic")


# Lists


def test_one_text_or_a_list_of_them(builder: RequestBuilder) -> None:
    requests, single = builder.from_texts("a", None, GenerationParams(seed=3))
    assert single
    assert [(r.text, r.seed) for r in requests] == [("a", 3)]
    for texts in (["a", "b"], ("a", "b")):
        requests, single = builder.from_texts(texts, None, GenerationParams(seed=3))
        assert not single
        assert [(r.text, r.seed) for r in requests] == [("a", 3), ("b", 3)]
    requests, single = builder.from_texts(["a"], None, None)
    assert (len(requests), single) == (1, False)
    assert builder.from_texts([], None, None) == ([], False)


def test_one_argument_for_each_text(small: Checkpoint, builder: RequestBuilder) -> None:
    voice = small.voice(17)
    params = [GenerationParams(seed=1), None, GenerationParams(seed=2)]
    requests, _ = builder.from_texts(["a", "b", "c"], [None, voice, None], params)
    assert [r.voice is not None for r in requests] == [False, True, False]
    assert (requests[0].seed, requests[2].seed) == (1, 2)
    for_all, _ = builder.from_texts(["a", "b"], voice, None, last_stage="semantic")
    assert all(r.voice is not None and r.stages == ("semantic",) for r in for_all)


@pytest.mark.parametrize(
    ("texts", "voice", "params", "message"),
    [
        (5, None, None, "text must be a string or a list of strings, got int"),
        (b"a", None, None, "text must be a string or a list of strings, got bytes"),
        (["a", "b"], [None], None, "voice must have one entry for each of the 2 texts, got 1"),
        (["a"], None, [None] * 2, "params must have one entry for each of the 1 texts, got 2"),
        (["a"], 5, None, "voice must be one value or a list of them, got int"),
        (["a"], None, {}, "params must be one value or a list of them, got dict"),
        ("a", None, [None], "params must be GenerationParams, got list"),
        (["a"], None, [5], "params must be GenerationParams, got int"),
    ],
)
def test_lists_that_do_not_fit(
    builder: RequestBuilder, texts: Any, voice: Any, params: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        builder.from_texts(texts, voice, params)


@pytest.mark.parametrize(
    ("tokens", "single", "expected"),
    [
        ([1, 2], True, [(1, 2)]),
        (np.array([1, 2]), True, [(1, 2)]),
        ([np.int64(1), 2], True, [(1, 2)]),
        ([[1, 2]], False, [(1, 2)]),
        ([np.array([1]), (2, 3)], False, [(1,), (2, 3)]),
        ([], False, []),
    ],
)
def test_one_utterance_of_tokens_or_a_list(
    builder: RequestBuilder, tokens: Any, single: bool, expected: list[tuple[int, ...]]
) -> None:
    requests, is_single = builder.from_token_lists(tokens, None, None)
    assert is_single == single
    assert [r.given for r in requests] == expected


def test_errors_say_which_tokens(builder: RequestBuilder) -> None:
    with pytest.raises(InputError, match=r"^semantic_tokens\[1\] must hold values from 0 to 99"):
        builder.from_token_lists([[1], [100]], None, None)
    with pytest.raises(InputError, match=r"^semantic_tokens must hold values from 0 to 99"):
        builder.from_token_lists([1, 100], None, None)
    with pytest.raises(InputError, match="each of the 2 entries of semantic_tokens, got 3"):
        builder.from_token_lists([[1], [2]], None, [None] * 3)


# Long texts


def test_split(builder: RequestBuilder) -> None:
    text = "First there is this. Then there is that."
    assert builder.split(text) == ["First there is this.", "Then there is that."]
    # A piece that takes longer than so many tokens last is split further.
    shorter = builder.split(text, max_tokens=12)
    assert len(shorter) > 2
    assert " ".join(shorter) == text
    # What cannot be said is left out, and is an error where nothing else is there.
    invisible = "\u200b"
    assert builder.split(f"{text}\n\n{invisible}") == builder.split(text)
    with pytest.raises(InputError, match="text must hold something the tokenizer knows"):
        builder.split(invisible)
    with pytest.raises(InputError, match='language must be a code such as "en", got 5'):
        builder.split(text, language=5)  # type: ignore[arg-type]
