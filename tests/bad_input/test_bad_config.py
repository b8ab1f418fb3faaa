"""Broken configuration files and tokenizers are our errors, which name the file and the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bark_fast import Bark, CheckpointError, GenerationParams
from bark_fast.checkpoint.config import CONFIG_FILE, GENERATION_FILE
from bark_fast.checkpoint.reading import read_config
from bark_fast.checkpoint.source import Source
from helpers.bad_files import read_weights

QUICK = GenerationParams(max_semantic_tokens=1, seed=0)


# config.json and generation_config.json


_ABSENT = object()
_CONFIG, _GENERATION = CONFIG_FILE, GENERATION_FILE


def _edit(folder: Path, file: str, key: str, value: Any) -> None:
    content = json.loads((folder / file).read_text())
    *sections, last = key.split(".")
    section = content
    for name in sections:
        section = section[name]
    if value is _ABSENT:
        del section[last]
    else:
        section[last] = value
    (folder / file).write_text(json.dumps(content))


@pytest.mark.parametrize("file", [_CONFIG, _GENERATION])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        (b"", "is not valid JSON"),
        (b'{"model_type": ', "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "must hold a JSON object, got a list"),
        (b"null", "must hold a JSON object, got a NoneType"),
        (b"{}", "semantic_config must be a JSON object, got None"),
    ],
)
def test_config_files(copy: Path, file: str, content: bytes | None, message: str) -> None:
    if content is None:
        (copy / file).unlink()
    else:
        (copy / file).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_config(Source.open(copy))
    assert message in str(caught.value)
    assert file in str(caught.value)


_SEMANTIC, _COARSE, _FINE = "semantic_config", "coarse_acoustics_config", "fine_acoustics_config"


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        (_CONFIG, "model_type", "gpt2", "model_type must be \"bark\", got 'gpt2'"),
        (_CONFIG, _SEMANTIC, _ABSENT, "semantic_config must be a JSON object, got None"),
        (_CONFIG, "codec_config", "encodec", "codec_config must be a JSON object, got 'encodec'"),
        (_CONFIG, f"{_SEMANTIC}.num_layers", -2, "num_layers must be an integer >= 1, got -2"),
        (_CONFIG, f"{_COARSE}.num_layers", 2.0, "num_layers must be an integer >= 1, got 2.0"),
        (_CONFIG, f"{_FINE}.num_heads", True, "num_heads must be an integer >= 1, got True"),
        (_CONFIG, f"{_FINE}.bias", "no", "bias must be true or false, got 'no'"),
        (_CONFIG, f"{_SEMANTIC}.hidden_size", 50, "hidden_size must be a multiple of num_heads"),
        (_CONFIG, f"{_SEMANTIC}.block_size", 100, "max_input_semantic_length + max_new_tokens"),
        (_CONFIG, f"{_SEMANTIC}.input_vocab_size", 90, "text_encoding_offset must be below"),
        (_CONFIG, f"{_SEMANTIC}.output_vocab_size", 100, "eos_token_id must be below"),
        (_CONFIG, f"{_COARSE}.input_vocab_size", 231, "coarse_infer_token must be below"),
        (_CONFIG, f"{_COARSE}.output_vocab_size", 200, "coarse_acoustics_config.output_vocab_size"),
        (_CONFIG, f"{_COARSE}.block_size", 100, "max_coarse_input_length + max_coarse_history"),
        (_CONFIG, f"{_FINE}.n_codes_total", 4, "n_fine_codebooks must be at most"),
        (_CONFIG, f"{_FINE}.n_codes_given", 3, "n_codes_given must be at most"),
        (_CONFIG, f"{_FINE}.input_vocab_size", 64, "codebook_size must be below"),
        (_CONFIG, f"{_FINE}.block_size", 63, "max_fine_input_length must be at most"),
        (_CONFIG, "codec_config.codebook_size", 63, "codec_config"),
        (_CONFIG, "codec_config.codebook_dim", 8, "codec_config"),
        (_CONFIG, "codec_config.audio_channels", 2, "audio_channels must be 1, got 2"),
        (_CONFIG, "codec_config.upsampling_ratios", [4, 0], "codec_config"),
        (_CONFIG, "codec_config.upsampling_ratios", "fast", "codec_config"),
        (_CONFIG, "codec_config.num_filters", -1, "codec_config"),
        (_CONFIG, "codec_config.num_lstm_layers", 0, "codec_config"),
        (_CONFIG, "codec_config.compress", 0, "codec_config"),
        (_GENERATION, _FINE, [], "fine_acoustics_config must be a JSON object, got []"),
        (_GENERATION, "codebook_size", 0, "codebook_size must be an integer >= 1, got 0"),
        (_GENERATION, "sample_rate", "24k", "sample_rate must be an integer >= 1, got '24k'"),
        (_GENERATION, f"{_SEMANTIC}.semantic_vocab_size", 101, "semantic_vocab_size must be at"),
        (_GENERATION, f"{_SEMANTIC}.text_pad_token", 1100, "text_pad_token must be below"),
        (_GENERATION, f"{_SEMANTIC}.semantic_rate_hz", 0, "semantic_rate_hz must be a number"),
        (_GENERATION, f"{_SEMANTIC}.temperature", -1, "temperature must be a number at least 0"),
        (_GENERATION, f"{_SEMANTIC}.temperature", float("nan"), "temperature must be a number"),
        (_GENERATION, f"{_COARSE}.temperature", 10**400, "temperature must be a number"),
        (_GENERATION, f"{_FINE}.temperature", "hot", "temperature must be a number"),
        (_GENERATION, f"{_SEMANTIC}.min_eos_p", 2, "min_eos_p must be a number at least 0 and at"),
        (_GENERATION, f"{_SEMANTIC}.do_sample", 1, "do_sample must be true or false, got 1"),
        (_GENERATION, f"{_COARSE}.top_k", -1, "top_k must be an integer >= 0, got -1"),
        (_GENERATION, f"{_COARSE}.top_p", 0, "top_p must be a number above 0 and at most 1"),
        (_GENERATION, f"{_SEMANTIC}.repetition_penalty", 1.2, "repetition_penalty is not supp"),
        (_GENERATION, f"{_COARSE}.num_beams", 2, "num_beams is not supported (leave it out)"),
        (_GENERATION, f"{_COARSE}.suppress_tokens", [1], "suppress_tokens is not supported"),
        (_GENERATION, f"{_COARSE}.sliding_window_len", 13, "sliding_window_len must be a multiple"),
        (_GENERATION, f"{_COARSE}.coarse_rate_hz", 1e6, "semantic_to_coarse_ratio"),
        (_GENERATION, f"{_COARSE}.n_coarse_codebooks", 5, "n_coarse_codebooks"),
        (_GENERATION, f"{_FINE}.n_fine_codebooks", 2, "n_coarse_codebooks must be below"),
        (_GENERATION, f"{_FINE}.max_fine_history_length", 64, "max_fine_history_length must be"),
    ],
)
def test_config_values(copy: Path, file: str, key: str, value: Any, message: str) -> None:
    _edit(copy, file, key, value)
    with pytest.raises(CheckpointError) as caught:
        read_weights(copy)  # EnCodec's own classes find some things only when they are built
    assert message in str(caught.value)


# Tokenizers


def test_no_tokenizer(copy: Path) -> None:
    (copy / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer found \(tokenizer\.json or vocab"):
        Bark.from_pretrained(copy, device="cpu")


def test_broken_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot load its tokenizer"):
        Bark.from_pretrained(copy, device="cpu")


def test_tokenizer_beyond_the_model(copy: Path) -> None:
    words = (copy / "vocab.txt").read_text(encoding="utf-8").splitlines()
    filler = [f"filler{i}" for i in range(1000)]
    (copy / "vocab.txt").write_text("\n".join([*words[:5], *filler, *words[5:]]), encoding="utf-8")
    bark = Bark.from_pretrained(copy, device="cpu")
    with pytest.raises(CheckpointError, match="room for 999 text tokens"):
        bark.generate("Hello", params=QUICK)
