"""Read a checkpoint's config.json and generation_config.json, and check them.

Keys that a file leaves out take transformers' defaults for Bark, from transformers itself, so that
no token id and no rate stands in this code. Sampling defaults are the exception: where a
checkpoint is silent, Bark's own (suno-ai/bark, `generate_audio`) hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bark_fast.checkpoint.config import (
    CONFIG_FILE,
    GENERATION_FILE,
    NETWORKS,
    CoarseRules,
    CodecConfig,
    Config,
    FineGPTConfig,
    FineRules,
    GPTConfig,
    SamplingDefaults,
    SemanticRules,
)
from bark_fast.checkpoint.consistency import check_consistency
from bark_fast.checkpoint.section import Section
from bark_fast.checkpoint.source import Source
from bark_fast.checkpoint.unreadable import in_one_line
from bark_fast.errors import CheckpointError
from bark_fast.validation import is_language

# transformers is imported where it is needed, because its configurations take a second to import.

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "num_beams": (1,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "typical_p": (1.0,),
    "min_p": (0.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "guidance_scale": (1.0,),
    "min_new_tokens": (0,),
    "min_length": (0,),
    "penalty_alpha": (0.0,),
    "bad_words_ids": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({},),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
}
"""Settings of transformers' generate() beside temperature, top-k and top-p, with the values of each
that change nothing (None never does).

A checkpoint that asks for more must not be obeyed in part.
"""


def read_config(source: Source) -> Config:
    """Read and check both files.

    Raises:
        CheckpointError: a file or key is missing, of the wrong type, or contradicts another.
    """
    config = source.read_json(CONFIG_FILE)
    generation = source.read_json(GENERATION_FILE)
    return parse_config(config, generation, where=source.name)


def parse_config(
    config: Mapping[str, Any], generation: Mapping[str, Any], *, where: str = "config"
) -> Config:
    """Check the contents of both files and return what they say.

    Args:
        where: the name of the checkpoint in error messages.

    Raises:
        CheckpointError: a key is missing, of the wrong type, or contradicts another.
    """
    from transformers import BarkCoarseConfig, BarkFineConfig, BarkSemanticConfig
    from transformers.models.bark import generation_configuration_bark as g

    model = Section(config, f"{where}: {CONFIG_FILE}")
    rules = Section(generation, f"{where}: {GENERATION_FILE}", g.BarkGenerationConfig())
    if model.raw.get("model_type", "bark") != "bark":
        model.fail("model_type", 'must be "bark"', model.raw["model_type"])
    semantic, coarse, fine = (f"{network}_config" for network in NETWORKS.values())

    codebook_size = rules.integer("codebook_size", 1)
    result = Config(
        semantic=_gpt(model.section(semantic, BarkSemanticConfig())),
        coarse=_gpt(model.section(coarse, BarkCoarseConfig())),
        fine=_fine_gpt(model.section(fine, BarkFineConfig())),
        codec=_codec(model.section("codec_config")),
        semantic_rules=_semantic_rules(rules.section(semantic, g.BarkSemanticGenerationConfig())),
        coarse_rules=_coarse_rules(rules.section(coarse, g.BarkCoarseGenerationConfig())),
        fine_rules=_fine_rules(rules.section(fine, g.BarkFineGenerationConfig())),
        codebook_size=codebook_size,
        sample_rate_hz=rules.integer("sample_rate", 1),
        normalize_text=_normalize_text(rules),
    )
    check_consistency(result, where)
    return result


def _normalize_text(section: Section) -> bool | str:
    value = section.raw.get("normalize_text")
    if value is not None and not isinstance(value, bool) and not is_language(value):
        section.fail("normalize_text", 'must be true, false or a code such as "en"', value)
    return False if value is None else value


def _gpt_fields(section: Section) -> dict[str, Any]:
    found: dict[str, Any] = {
        key: section.integer(key, 1)
        for key in (
            "num_layers",
            "num_heads",
            "hidden_size",
            "block_size",
            "input_vocab_size",
            "output_vocab_size",
        )
    }
    found["bias"] = section.boolean("bias")
    if found["hidden_size"] % found["num_heads"]:
        section.fail(
            "hidden_size",
            f"must be a multiple of num_heads ({found['num_heads']})",
            found["hidden_size"],
        )
    return found


def _gpt(section: Section) -> GPTConfig:
    return GPTConfig(**_gpt_fields(section))


def _fine_gpt(section: Section) -> FineGPTConfig:
    return FineGPTConfig(
        **_gpt_fields(section),
        n_codes_total=section.integer("n_codes_total", 2),
        n_codes_given=section.integer("n_codes_given", 1),
        tie_word_embeddings=section.boolean("tie_word_embeddings"),
    )


def _codec(section: Section) -> CodecConfig:
    from transformers import EncodecConfig

    settings = {k: v for k, v in section.raw.items() if k not in ("model_type", "dtype")}
    try:
        codec = EncodecConfig(**settings)
        found = CodecConfig(
            sampling_rate_hz=int(codec.sampling_rate),
            hop_length=math.prod(codec.upsampling_ratios),
            codebook_size=int(codec.codebook_size),
            codebook_dim=int(codec.codebook_dim),
            num_quantizers=int(codec.num_quantizers),
            settings=settings,
        )
    except Exception as error:  # transformers' versions raise different ones for a bad value
        raise CheckpointError(f"{section.where}: {in_one_line(error)}") from error
    if codec.audio_channels != 1:
        section.fail("audio_channels", "must be 1", codec.audio_channels)
    if codec.codebook_dim != codec.hidden_size:
        section.fail(
            "codebook_dim", f"must equal hidden_size ({codec.hidden_size})", codec.codebook_dim
        )
    return found


def _sampling(section: Section, temperature: float) -> SamplingDefaults:
    for key, neutral in NEUTRAL.items():
        value = section.raw.get(key)
        if value is not None and value not in neutral:
            section.fail(key, "is not supported (leave it out)", value)
    do_sample = section.raw.get("do_sample")
    if do_sample is not None and not isinstance(do_sample, bool):
        section.fail("do_sample", "must be true or false", do_sample)
    temperature = section.number("temperature", 0, default=temperature)
    return SamplingDefaults(
        temperature=0.0 if do_sample is False else temperature,
        top_k=section.integer("top_k", 0, default=0),
        top_p=section.number("top_p", 0, 1, low_open=True, default=1.0),
    )


def _semantic_rules(section: Section) -> SemanticRules:
    return SemanticRules(
        text_encoding_offset=section.integer("text_encoding_offset", 0),
        text_pad_token=section.integer("text_pad_token", 0),
        semantic_vocab_size=section.integer("semantic_vocab_size", 1),
        eos_token_id=section.integer("eos_token_id", 0),
        semantic_infer_token=section.integer("semantic_infer_token", 0),
        max_input_semantic_length=section.integer("max_input_semantic_length", 1),
        max_new_tokens=section.integer("max_new_tokens", 1),
        semantic_rate_hz=section.number("semantic_rate_hz", 0, low_open=True),
        min_eos_p=section.number("min_eos_p", 0, 1, default=0.2),
        sampling=_sampling(section, 0.7),
    )


def _coarse_rules(section: Section) -> CoarseRules:
    return CoarseRules(
        coarse_semantic_pad_token=section.integer("coarse_semantic_pad_token", 0),
        coarse_infer_token=section.integer("coarse_infer_token", 0),
        coarse_rate_hz=section.number("coarse_rate_hz", 0, low_open=True),
        n_coarse_codebooks=section.integer("n_coarse_codebooks", 1),
        max_coarse_input_length=section.integer("max_coarse_input_length", 1),
        max_coarse_history=section.integer("max_coarse_history", 1),
        sliding_window_len=section.integer("sliding_window_len", 1),
        sampling=_sampling(section, 0.7),
    )


def _fine_rules(section: Section) -> FineRules:
    # transformers takes the most likely code if the temperature is null or 1, and looks at
    # nothing else (BarkFineModel.generate).
    if "temperature" in section.raw and section.raw["temperature"] in (None, 1.0):
        temperature = 0.0
    else:
        temperature = section.number("temperature", 0, default=0.5)
    return FineRules(
        n_fine_codebooks=section.integer("n_fine_codebooks", 2),
        max_fine_history_length=section.integer("max_fine_history_length", 1),
        max_fine_input_length=section.integer("max_fine_input_length", 2),
        sampling=SamplingDefaults(temperature),
    )
