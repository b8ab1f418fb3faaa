"""The keywords of `BarkModel.generate`, sorted by stage, and those that only transformers' own loop
can obey.

transformers hands keywords without a prefix to all three stages, and those that begin with
"semantic_", "coarse_" or "fine_" to one stage, where they come first. `hf.params` resolves them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import BarkCausalModel, BarkFineModel, GenerationConfig, GenerationMixin
from transformers.models.bark.generation_configuration_bark import (
    BarkCoarseGenerationConfig,
    BarkFineGenerationConfig,
    BarkSemanticGenerationConfig,
)

from bark_fast.checkpoint.reading import NEUTRAL
from bark_fast.errors import InputError, warn
from bark_fast.hf.not_served import NotServedError
from bark_fast.types import TOKEN_STAGES, TokenStage

Given = Mapping[str, tuple[str, Any]]
"""The keywords that are given for one stage: key -> (the keyword as written, its value)."""

GENERATION_CONFIGS: Mapping[TokenStage, type[GenerationConfig]] = {
    "semantic": BarkSemanticGenerationConfig,
    "coarse": BarkCoarseGenerationConfig,
    "fine": BarkFineGenerationConfig,
}
"""transformers' class of each section of the model's generation_config."""

SAMPLING = (
    "do_sample", "temperature", "top_k", "top_p", "min_new_tokens", "max_new_tokens", "min_eos_p",
)  # fmt: skip
"""The settings that keywords can change from call to call."""

HONOURED: Mapping[TokenStage, set[str]] = {
    "semantic": {*SAMPLING, "attention_mask", "eos_token_id", "max_length"},
    "coarse": {"do_sample", "temperature", "top_k", "top_p"},
    # BarkFineModel.generate takes any other keyword and looks at none.
    "fine": {"do_sample", "temperature"},
}
# Keywords for all stages that mean something in the semantic stage alone.
_SEMANTIC_ONLY = {"attention_mask", "max_new_tokens", "min_new_tokens", "min_eos_p"}

# Keywords that change nothing in the audio, whatever their value: what transformers returns between
# the stages, and options of ways of searching that are not the engine's.
_WITHOUT_EFFECT = {
    "bos_token_id",
    "cache_config",
    "compile_config",
    "decoder_start_token_id",
    "disable_compile",
    "early_stopping",
    "length_penalty",
    "low_memory",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "remove_invalid_values",
    "renormalize_logits",
    "return_dict_in_generate",
    "return_legacy_cache",
}
# And those that change nothing in one stage. What a batch is padded with after a row's end is no
# part of that row; but in the coarse stage transformers takes this id for padding of the prompt.
_WITHOUT_EFFECT_IN: Mapping[TokenStage, set[str]] = {
    "semantic": {"pad_token_id"},
    "coarse": {"max_length"},  # each window's length is given
    "fine": set(),
}

# Keywords that would change something, with the values (None is always one) that do not.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    **NEUTRAL,
    "cache_implementation": ("dynamic", "dynamic_full", "static", "offloaded", "offloaded_static"),
    "constraints": ([],),
    "diversity_penalty": (0.0,),
    "force_words_ids": ([],),
    "logits_processor": ([],),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "stop_strings": ([],),
    "stopping_criteria": ([],),
    "synced_gpus": (False,),
    "token_healing": (False,),
    "top_k": (0,),
    "top_p": (1.0,),
    "use_cache": (True,),
    "use_model_defaults": (True,),
}


@dataclass(frozen=True)
class Keywords:
    """The keywords of one call, sorted by stage.

    Attributes:
        stages: what is given for each stage.
        attention_mask: that of the prompt, which is the semantic stage's.
        ignored: those that transformers takes and does not look at.
    """

    stages: Mapping[TokenStage, Given]
    attention_mask: Any
    ignored: tuple[str, ...]

    @classmethod
    def sort(cls, keywords: Mapping[str, Any]) -> Keywords:
        """Sort keywords by stage.

        Raises:
            InputError: transformers has no such keyword either.
            NotServedError: a keyword asks for something that this engine does not do.
        """
        stages: dict[TokenStage, dict[str, tuple[str, Any]]] = {stage: {} for stage in TOKEN_STAGES}
        general, ignored = {}, []
        for name, value in keywords.items():
            stage, key = split_name(name)
            if stage is None:
                general[name] = value
                continue
            stages[stage][key] = name, value
            looked_at = stage != "fine" or key in _FINE_LOOKS_AT
            if not (looked_at or _is_neutral(value, _NEUTRAL.get(key, ()))):
                ignored.append(name)
        for name, value in general.items():
            for stage in TOKEN_STAGES:
                stages[stage].setdefault(name, (name, value))
        # A keyword that is unknown is said before one that is not served.
        for check in (_check_known, _check_served):
            for stage, given in stages.items():
                for key, (name, value) in given.items():
                    if name != key or stage != "fine":
                        check(stage, key, name, value)
        _, mask = stages["semantic"].get("attention_mask", ("", None))
        return cls(stages, mask, tuple(ignored))

    def warn_of_length(self, limit: int) -> None:
        """Warn of a keyword that asks for more tokens than the positions hold.

        Speech is cut there. transformers fails when it gets there.
        """
        name, most = self.stages["semantic"].get("max_new_tokens", ("", None))
        if most is not None and most > limit:
            warn(
                f"{name} is {most}, but the semantic model's positions hold {limit} tokens, and "
                "speech that does not end before is cut there",
                stacklevel=4,
            )

    def warn_of_ignored(self, model_config: Any) -> None:
        """Warn of keywords that transformers takes and does not look at: what is for the fine stage
        beside its temperature, and a generation_config that differs from the model's."""
        ignored = list(self.ignored)
        for given in self.stages.values():
            name, value = given.get("generation_config", ("", None))
            if not (value is None or value is model_config or _same_config(value, model_config)):
                ignored.append(name)
        if ignored:
            warn(
                f"{', '.join(dict.fromkeys(ignored))} is not looked at, as transformers' BarkModel "
                "does not look at it either; change model.generation_config, or give the keywords "
                "themselves",
                stacklevel=4,
            )


def split_name(name: str) -> tuple[TokenStage | None, str]:
    """Return the stage that a keyword is for, None if it is for all, and its name there."""
    prefix, underscore, key = name.partition("_")
    stage = next((stage for stage in TOKEN_STAGES if stage == prefix), None)
    return (stage, key) if underscore and stage is not None else (None, name)


# What `BarkFineModel.generate` has arguments for, which `BarkModel.generate` gives.
_FINE_ARGUMENTS = inspect.signature(BarkFineModel.generate).parameters.keys() - {"kwargs"}
_FINE_LOOKS_AT = HONOURED["fine"] | _FINE_ARGUMENTS | {"generation_config"}


@functools.cache
def _known(stage: TokenStage) -> frozenset[str]:
    """Return the keywords that transformers' generate of a stage's model knows."""
    known = set(vars(GENERATION_CONFIGS[stage]())) | _WITHOUT_EFFECT | set(_NEUTRAL)
    for function in (
        GenerationMixin.generate,
        BarkCausalModel.forward,
        BarkCausalModel.prepare_inputs_for_generation,
    ):
        parameters = inspect.signature(function).parameters.values()
        known |= {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
    return frozenset(known - {"self"})


def _check_known(stage: TokenStage, key: str, name: str, value: Any) -> None:
    if stage == "fine":
        known = key not in _FINE_ARGUMENTS
    else:
        known = key in _known(stage) or key in HONOURED[stage]
        # What is for all stages is left out by transformers where only the semantic one has it.
        known = known or (key == name and key in _SEMANTIC_ONLY)
    if not known and value is not None:
        raise InputError(
            f"{name} must not be given, because generate() has no such keyword, got {value!r}"
        )


def _check_served(stage: TokenStage, key: str, name: str, value: Any) -> None:
    """Check that what a keyword asks of a stage can be done.

    The values of honoured keywords are checked where they are used.
    """
    if stage == "fine" or key in HONOURED[stage] or key == "generation_config":
        return
    if key in _WITHOUT_EFFECT or key in _WITHOUT_EFFECT_IN[stage]:
        return
    if not (key == name and key in _SEMANTIC_ONLY):
        check_neutral(name, value, _NEUTRAL.get(key, ()))


def check_neutral(name: str, value: Any, neutral: tuple[object, ...]) -> None:
    """Check that `value` changes nothing: that it is None or one of `neutral`.

    Raises:
        NotServedError: it is something else.
    """
    if not _is_neutral(value, neutral):
        raise NotServedError(f"{name} is {_short(value)}")


def _is_neutral(value: Any, neutral: tuple[object, ...]) -> bool:
    plain = isinstance(value, (bool, int, float, str, list, tuple, dict, np.generic))
    return value is None or (plain and any(value == one for one in neutral))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"a {type(value).__name__}"


def as_dict(name: str, config: Any) -> Mapping[str, Any]:
    """Return a generation config as a mapping, which it may be already.

    Raises:
        InputError: it is neither.
    """
    if isinstance(config, GenerationConfig):
        return config.to_dict()  # type: ignore[no-any-return]
    if not isinstance(config, Mapping):
        raise InputError(f"{name} must be a GenerationConfig or a mapping, got {config!r}")
    return config


def _same_config(given: Any, model_config: Any) -> bool:
    known = isinstance(given, (GenerationConfig, Mapping))
    return known and as_dict("", given) == as_dict("model.generation_config", model_config)
