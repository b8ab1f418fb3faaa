"""The keywords of `BarkModel.generate`: what transformers takes each for, and what we can honour.

transformers hands keywords without a prefix to all three stages, those that begin with "semantic_",
"coarse_" or "fine_" to one, where they come first. What is not given comes from the model's
generation_config, then from that of the sub-model, then from transformers' defaults (so a sampled
stage keeps the 50 most likely tokens unless something says otherwise).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import GenerationConfig
from transformers.models.bark.generation_configuration_bark import (
    BarkCoarseGenerationConfig,
    BarkFineGenerationConfig,
    BarkSemanticGenerationConfig,
)

from bark_fast.checkpoint.config import NEUTRAL
from bark_fast.errors import BarkFastWarning, InputError
from bark_fast.types import STAGES, GenerationParams
from bark_fast.validation import check_integer, check_number

SECTIONS = {
    "semantic": "semantic_config",
    "coarse": "coarse_acoustics_config",
    "fine": "fine_acoustics_config",
}
"""Where the model's generation_config says what holds for a stage."""

_CLASSES = {
    "semantic": BarkSemanticGenerationConfig,
    "coarse": BarkCoarseGenerationConfig,
    "fine": BarkFineGenerationConfig,
}
_DEFAULTS: Mapping[str, Any] = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}

SAMPLING = (
    "do_sample", "temperature", "top_k", "top_p", "min_new_tokens", "max_new_tokens", "min_eos_p",
)  # fmt: skip
"""What the keywords settle for each call."""

_HONOURED = {
    "semantic": set(SAMPLING),
    "coarse": {"do_sample", "temperature", "top_k", "top_p"},
    # BarkFineModel.generate takes any other keyword and looks at none.
    "fine": {"do_sample", "temperature"},
}
# A keyword for all stages that means something in one of them.
_ONE_STAGE = {"attention_mask", "max_new_tokens", "min_new_tokens", "min_eos_p"}

# What changes nothing in the audio whatever it is: how transformers keeps its cache, what it pads a
# batch with, what it returns between the stages, and options of ways of searching that are refused.
_WITHOUT_EFFECT = {
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "decoder_start_token_id",
    "disable_compile",
    "early_stopping",
    "length_penalty",
    "low_memory",
    "pad_token_id",
    "prefill_chunk_size",
    "remove_invalid_values",
    "renormalize_logits",
    "return_dict_in_generate",
    "return_legacy_cache",
    "use_cache",
}

# What would change something, with the values (None is always one) with which it does not.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    **NEUTRAL,
    "assistant_model": (),
    "assistant_tokenizer": (),
    "attention_mask": (),  # of another stage than the semantic
    "constraints": ([],),
    "custom_generate": (),
    "diversity_penalty": (0.0,),
    "dola_layers": (),
    "eos_token_id": (),
    "force_words_ids": ([],),
    "logits_processor": ([],),
    "max_length": (),
    "max_new_tokens": (),
    "max_time": (),
    "min_eos_p": (),
    "negative_prompt_attention_mask": (),
    "negative_prompt_ids": (),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "output_logits": (False,),
    "output_scores": (False,),
    "prefix_allowed_tokens_fn": (),
    "prompt_lookup_num_tokens": (),
    "stop_strings": ([],),
    "stopping_criteria": ([],),
    "streamer": (),
    "synced_gpus": (False,),
    "token_healing": (False,),
    "top_h": (),
    "top_k": (0,),
    "top_p": (1.0,),
    "use_model_defaults": (True,),
    "watermarking_config": (),
}


@dataclass(frozen=True)
class Keywords:
    """The keywords of one call, sorted by stage.

    Attributes:
        stages: for each stage, what is given for it: key -> (the keyword as written, its value).
        attention_mask: of the prompt, which is the semantic stage's.
    """

    stages: Mapping[str, Mapping[str, tuple[str, Any]]]
    attention_mask: Any

    @classmethod
    def sort(cls, keywords: Mapping[str, Any]) -> Keywords:
        """
        Raises:
            InputError: one cannot be honoured: it is not known, or asks for what is not done here.
        """
        stages: dict[str, dict[str, tuple[str, Any]]] = {stage: {} for stage in STAGES}
        general = {}
        for name, value in keywords.items():
            prefix, underscore, key = name.partition("_")
            if underscore and prefix in STAGES:
                _check(name, prefix, key, value)
                stages[prefix][key] = name, value
            else:
                general[name] = value
        for name, value in general.items():
            # The fine stage looks at the temperature alone, so nothing else can be wrong there.
            for stage in ("semantic", "coarse"):
                if stage == "semantic" or name not in _ONE_STAGE:
                    _check(name, stage, name, value)
            for stage in STAGES:
                stages[stage].setdefault(name, (name, value))
        _, mask = stages["semantic"].get("attention_mask", ("", None))
        return cls(stages, mask)

    def check_length(self, limit: int) -> None:
        """A configured length is cut to what the positions hold; one that is asked for is not.

        Raises:
            InputError: it is more than `limit`.
        """
        name, most = self.stages["semantic"].get("max_new_tokens", ("", None))
        if most is not None and most > limit:
            raise InputError(
                f"{name} must be at most {limit}, which is what the semantic model's positions "
                f"hold, got {most!r}"
            )

    def warn_of_ignored_config(self, own: Any) -> None:
        """transformers' BarkModel takes a generation_config and looks at its own.

        Raises:
            InputError: it is not even one.
        """
        for given in self.stages.values():
            name, value = given.get("generation_config", ("", None))
            if (
                value is None
                or value is own
                or _as_dict(name, value) == _as_dict("model.generation_config", own)
            ):
                continue
            warnings.warn(
                f"{name} is not looked at, as transformers' BarkModel does not look at it either; "
                "change model.generation_config, or give the keywords themselves",
                BarkFastWarning,
                stacklevel=3,
            )
            return


def _check(name: str, stage: str, key: str, value: Any) -> None:
    """Whether we can do what a keyword asks of a stage; values that we look at are checked when we
    do."""
    if key in _HONOURED[stage] or key in _WITHOUT_EFFECT or key == "generation_config":
        return
    if stage == "semantic" and key in ("attention_mask", "eos_token_id"):
        return
    if key not in _NEUTRAL:
        raise InputError(
            f"{name} must not be given, because generate() has no such keyword, got {value!r}"
        )
    _check_neutral(name, value, _NEUTRAL[key])


def _check_neutral(name: str, value: Any, neutral: tuple[object, ...]) -> None:
    plain = isinstance(value, (bool, int, float, str, list, tuple, dict, np.generic))
    if value is None or (plain and any(value == one for one in neutral)):
        return
    allowed = " or ".join(repr(one) for one in (*neutral, None))
    raise InputError(
        f"{name} must be left out or {allowed}, because this engine does nothing else, "
        f"got {value!r}"
    )


def read_sections(generation_config: Any) -> dict[str, dict[str, Any]]:
    """What the model's generation_config says of each stage.

    Raises:
        InputError: it is not that of a Bark model.
    """
    sections = {}
    for stage, name in SECTIONS.items():
        section = getattr(generation_config, name, None)
        if section is None:
            raise InputError(
                f"model.generation_config must be Bark's, which has {', '.join(SECTIONS.values())}"
                f", got a {type(generation_config).__name__} without {name}"
            )
        # As an object where it was made in Python, a dictionary where it was read from a file.
        sections[stage] = dict(_as_dict(f"model.generation_config.{name}", section))
    return sections


def resolve_params(
    keywords: Keywords, sections: Mapping[str, Mapping[str, Any]], submodels: Mapping[str, Any]
) -> GenerationParams:
    """What the keywords and the model's configuration come to, as transformers resolves them.

    Args:
        sections: from `read_sections`.
        submodels: the generation_config of each stage's own model.

    Returns:
        Parameters with nothing left open but the seed.

    Raises:
        InputError: a value is out of its range, or cannot be honoured.
    """
    stages = {
        stage: _Stage(stage, keywords.stages[stage], sections[stage], submodels.get(stage))
        for stage in STAGES
    }
    semantic, coarse, fine = (stages[stage] for stage in STAGES)
    for stage in (semantic, coarse):
        stage.check_configured()
    semantic.check_end_token()
    found: dict[str, Any] = {}
    for stage in (semantic, coarse):
        found |= stage.sampling()
    found["fine_temperature"] = fine.fine_temperature()
    found |= {"fine_top_k": 0, "fine_top_p": 1.0}

    name, most = semantic.get("max_new_tokens")
    if most is not None:
        check_integer(name, most, "an integer >= 1", 1, math.inf)
    name, least = semantic.get("min_new_tokens")
    if least is not None:
        check_integer(name, least, "an integer >= 0", 0, math.inf)
    # Not the configured one: transformers puts None in its place unless the keyword is given.
    name, min_eos_p = semantic.given.get("min_eos_p", ("", None))
    if min_eos_p is not None:
        check_number(name, min_eos_p, "a number above 0, at most 1", 0, 1, low_open=True)
    return GenerationParams(
        **found,
        max_semantic_tokens=most,
        min_semantic_tokens=least,
        min_eos_p=0.0 if min_eos_p is None else float(min_eos_p),
    )


class _Stage:
    """Where one stage's settings come from."""

    def __init__(
        self,
        name: str,
        given: Mapping[str, tuple[str, Any]],
        section: Mapping[str, Any],
        submodel: Any,
    ) -> None:
        self.name = name
        self.given = given
        self._where = f"generation_config.{SECTIONS[name]}"
        try:
            self._own = _CLASSES[name](**section)
        except (ValueError, TypeError) as error:  # transformers looks at some values itself
            raise InputError(f"{self._where} must be a whole one: {error}") from error
        self._submodel = submodel
        # What an attribute is where nobody has set it: None, before transformers 5 the default.
        self._blank = GenerationConfig()

    def get(self, key: str) -> tuple[str, Any]:
        """(what to call it, its value)"""
        return self.given[key] if key in self.given else self._configured(key)

    def _configured(self, key: str) -> tuple[str, Any]:
        blank = getattr(self._blank, key, None)
        own = getattr(self._own, key, None)
        if own != blank:
            return f"{self._where}.{key}", own
        behind = getattr(self._submodel, key, None)
        if behind is not None and behind != blank:
            return f"generation_config.{key} of the {self.name} model", behind
        return f"{self._where}.{key}", _DEFAULTS.get(key) if own is None else own

    def check_configured(self) -> None:
        """Nothing that transformers would do and we do not may be asked for by configuration."""
        for key, neutral in NEUTRAL.items():
            if key not in _HONOURED[self.name] and key not in self.given:
                _check_neutral(*self._configured(key), neutral)

    def check_end_token(self) -> None:
        """The end token is part of the model."""
        name, value = self.given.get("eos_token_id", ("", self._own.eos_token_id))
        if value != self._own.eos_token_id:
            raise InputError(
                f"{name} must be left out or {self._own.eos_token_id}, as {self._where} has it, "
                f"got {value!r}"
            )

    def sampling(self) -> dict[str, Any]:
        """temperature, top_k and top_p of a causal stage, by GenerationParams' names."""
        name, sampled = self.get("do_sample")
        if sampled is not None and not isinstance(sampled, (bool, np.bool_)):
            raise InputError(f"{name} must be True or False, got {sampled!r}")
        greedy = not sampled
        name, temperature = self.get("temperature")
        if temperature is None:
            temperature = 1.0
        elif greedy:
            check_number(name, temperature, "a finite number >= 0", 0, math.inf)
        else:
            check_number(
                name, temperature, "a finite number above 0 (greedy is do_sample=False)", 0,
                math.inf, low_open=True,
            )  # fmt: skip
        name, top_k = self.get("top_k")
        top_k = 0 if top_k is None else top_k
        check_integer(name, top_k, "an integer >= 0 (0: no limit)", 0, math.inf)
        name, top_p = self.get("top_p")
        top_p = 1.0 if top_p is None else top_p
        check_number(name, top_p, "a number from 0 to 1", 0, 1)
        if top_p == 0:  # only the most likely token is left
            greedy, top_p = True, 1.0
        return {
            f"{self.name}_temperature": 0.0 if greedy else float(temperature),
            f"{self.name}_top_k": int(top_k),
            f"{self.name}_top_p": float(top_p),
        }

    def fine_temperature(self) -> float:
        """0 for the most likely code, which transformers takes without a temperature and with 1."""
        name, sampled = self.given.get("do_sample", ("", None))
        if sampled is not None and not isinstance(sampled, (bool, np.bool_)):
            raise InputError(f"{name} must be True or False, got {sampled!r}")
        if "temperature" in self.given:
            name, temperature = self.given["temperature"]
        else:
            name, temperature = f"{self._where}.temperature", self._own.temperature
        if temperature is None:
            return 0.0
        check_number(
            name, temperature, "a finite number above 0 (the fine stage takes the most likely code "
            "with 1.0 or None)", 0, math.inf, low_open=True,
        )  # fmt: skip
        return 0.0 if temperature == 1.0 else float(temperature)


def _as_dict(name: str, config: Any) -> Mapping[str, Any]:
    if isinstance(config, GenerationConfig):
        return config.to_dict()  # type: ignore[no-any-return]
    if not isinstance(config, Mapping):
        raise InputError(f"{name} must be a GenerationConfig or a mapping, got {config!r}")
    return config
