"""A configuration takes what it leaves out from transformers, and its sampling settings mean what
they mean there."""

from __future__ import annotations

import copy
import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.models.bark.generation_configuration_bark import (
    BarkCoarseGenerationConfig,
    BarkFineGenerationConfig,
    BarkSemanticGenerationConfig,
)

from bark_fast.checkpoint.config import Config, SamplingDefaults
from bark_fast.checkpoint.reading import parse_config, read_config
from bark_fast.checkpoint.source import Source
from helpers.checkpoints import bark_windows, small_windows

SEMANTIC, COARSE, FINE = "semantic_config", "coarse_acoustics_config", "fine_acoustics_config"


def read(**sections: dict[str, Any]) -> Config:
    """Small windows with more keys in the sections of generation_config.json."""
    config, generation = copy.deepcopy(small_windows())
    for name, values in sections.items():
        generation[name] |= values
    return parse_config(config, generation)


def test_values_are_read() -> None:
    config = read()
    assert (config.semantic.num_layers, config.semantic.num_heads) == (2, 3)
    assert (config.semantic.hidden_size, config.semantic.head_size) == (48, 16)
    assert config.coarse.output_vocab_size == 236
    assert (config.fine.n_codes_total, config.fine.n_codes_given) == (5, 1)
    assert config.codec.hop_length == 8
    assert config.semantic_rules.semantic_infer_token == 1099
    assert config.coarse_rules.sliding_window_len == 12
    assert config.fine_rules.max_fine_history_length == 32
    assert (config.codebook_size, config.sample_rate_hz) == (64, 8000)
    assert config.max_text_tokens == 32
    assert config.semantic_to_coarse_ratio == 17 / 10.3 * 2


def test_defaults_are_transformers() -> None:
    config, generation = bark_windows()
    config["codec_config"] = {}
    for name in (SEMANTIC, COARSE, FINE):
        config[name] = {}
        generation[name] = {}
    # transformers' default vocabularies hold the semantic codes alone.
    config[SEMANTIC] = {"input_vocab_size": 129_600, "output_vocab_size": 10_048}
    config[COARSE] = {"input_vocab_size": 12_096, "output_vocab_size": 12_096}
    config[FINE] = {"input_vocab_size": 1056, "output_vocab_size": 1056}
    del generation["codebook_size"], generation["sample_rate"]
    read = parse_config(config, generation)

    for ours, theirs in (
        (read.semantic, transformers.BarkSemanticConfig()),
        (read.fine, transformers.BarkFineConfig()),
    ):
        assert ours.num_layers == theirs.num_layers
        assert ours.hidden_size == theirs.hidden_size
        assert ours.block_size == theirs.block_size
        assert ours.bias == theirs.bias
    assert read.fine.tie_word_embeddings is True
    for rules, defaults in (
        (read.semantic_rules, BarkSemanticGenerationConfig()),
        (read.coarse_rules, BarkCoarseGenerationConfig()),
        (read.fine_rules, BarkFineGenerationConfig()),
    ):
        for name in vars(rules):
            if name not in ("sampling", "min_eos_p"):
                assert getattr(rules, name) == getattr(defaults, name), name
    codec = transformers.EncodecConfig()
    assert read.codec.hop_length == 320
    assert read.codec.codebook_size == codec.codebook_size
    assert (read.codebook_size, read.sample_rate_hz) == (1024, 24_000)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, SamplingDefaults(0.7, 0, 1.0)),
        (
            {"do_sample": None, "temperature": None, "top_k": None, "top_p": None},
            SamplingDefaults(0.7),
        ),
        ({"do_sample": True}, SamplingDefaults(0.7)),
        ({"do_sample": True, "temperature": 1.0}, SamplingDefaults(1.0)),
        ({"temperature": 1}, SamplingDefaults(1.0)),
        ({"temperature": 0}, SamplingDefaults(0.0)),
        ({"do_sample": False}, SamplingDefaults(0.0)),
        ({"do_sample": False, "temperature": 0.9}, SamplingDefaults(0.0)),
        ({"temperature": 0.9, "top_k": 50, "top_p": 0.95}, SamplingDefaults(0.9, 50, 0.95)),
    ],
)
@pytest.mark.parametrize("stage", [SEMANTIC, COARSE])
def test_sampling(stage: str, settings: dict[str, Any], expected: SamplingDefaults) -> None:
    config = read(**{stage: settings})
    sampling = {SEMANTIC: config.semantic_rules.sampling, COARSE: config.coarse_rules.sampling}
    assert sampling.pop(stage) == expected
    assert list(sampling.values()) == [SamplingDefaults(0.7)]  # the other stage's is its own


@pytest.mark.parametrize(
    ("settings", "temperature"),
    [
        ({}, 0.5),
        ({"temperature": None}, 0.0),
        ({"temperature": 1.0}, 0.0),
        ({"temperature": 1}, 0.0),
        ({"temperature": 0}, 0.0),
        ({"temperature": 0.9}, 0.9),
        # BarkFineModel.generate never looks at these.
        ({"temperature": 0.9, "do_sample": False, "top_k": 3, "top_p": 0.1}, 0.9),
        ({"temperature": 0.9, "num_beams": 4}, 0.9),
    ],
)
def test_fine_sampling(settings: dict[str, Any], temperature: float) -> None:
    assert read(**{FINE: settings}).fine_rules.sampling == SamplingDefaults(temperature, 0, 1.0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, 0.2), ({"min_eos_p": None}, 0.2), ({"min_eos_p": 0}, 0.0), ({"min_eos_p": 0.05}, 0.05)],
)
def test_min_eos_p(settings: dict[str, Any], expected: float) -> None:
    assert read(**{SEMANTIC: settings}).semantic_rules.min_eos_p == expected


def test_unknown_keys_and_neutral_settings_are_ignored() -> None:
    config, generation = copy.deepcopy(small_windows())
    config |= {"invented": 1, "torch_dtype": "float32", "initializer_range": 0.02}
    config[SEMANTIC] |= {"invented": [1], "dropout": 0.1, "use_cache": True}
    config["codec_config"] |= {"torch_dtype": "float32"}
    generation |= {"invented": None, "transformers_version": "0"}
    neutral = {
        "num_beams": 1,
        "repetition_penalty": 1.0,
        "typical_p": 1.0,
        "no_repeat_ngram_size": 0,
        "bad_words_ids": None,
        "suppress_tokens": None,
        "min_length": 0,
    }
    generation[SEMANTIC] |= neutral | {"invented": {}}
    generation[COARSE] |= neutral
    changed, plain = parse_config(config, generation), read()
    assert changed.semantic == plain.semantic
    assert changed.semantic_rules == plain.semantic_rules
    assert changed.coarse_rules == plain.coarse_rules


def test_null_is_not_said() -> None:
    config, generation = copy.deepcopy(small_windows())
    config["model_type"] = "bark"
    generation["codebook_size"] = 1024
    generation[COARSE]["coarse_rate_hz"] = None
    generation["sample_rate"] = None
    config[FINE] |= {"input_vocab_size": 1030, "output_vocab_size": 1030}
    config[COARSE] |= {"input_vocab_size": 2200, "output_vocab_size": 2150}
    config["codec_config"] |= {"codebook_size": 1024}
    read = parse_config(config, generation)
    assert read.coarse_rules.coarse_rate_hz == BarkCoarseGenerationConfig().coarse_rate_hz
    assert read.sample_rate_hz == 24_000


def test_files(tmp_path: Path) -> None:
    config, generation = small_windows()
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert read_config(Source.open(tmp_path)) == parse_config(config, generation)


def test_as_transformers_writes_it(tmp_path: Path) -> None:
    """transformers adds every key it knows, most of them null."""
    config, generation = copy.deepcopy(small_windows())
    transformers.BarkConfig(**copy.deepcopy(config)).save_pretrained(tmp_path)
    for name, values in ((SEMANTIC, BarkSemanticGenerationConfig), (COARSE, None), (FINE, None)):
        if values is not None:
            generation[name] = values(**generation[name]).to_dict()
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    written, plain = read_config(Source.open(tmp_path)), read()
    assert written.semantic == plain.semantic
    assert written.coarse == plain.coarse
    assert written.fine == plain.fine
    assert written.codec.hop_length == plain.codec.hop_length
    assert written.codec.codebook_dim == plain.codec.codebook_dim


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        read().codebook_size = 3  # type: ignore[misc]
