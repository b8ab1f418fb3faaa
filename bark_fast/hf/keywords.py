"""The keywords of `BarkModel.generate`, sorted by stage; one that cannot be honoured is an error.

transformers hands keywords without a prefix to all three stages, and those that begin with
"semantic_", "coarse_" or "fine_" to one stage, where they come first. `hf.params` resolves them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import GenerationConfig

from bark_fast.checkpoint.reading import NEUTRAL
from bark_fast.errors import BarkFastWarning, InputError
from bark_fast.types import TOKEN_STAGES, TokenStage

Given = Mapping[str, tuple[str, Any]]
"""The keywords that are given for one stage: key -> (the keyword as written, its value)."""

SAMPLING = (
    "do_sample", "temperature", "top_k", "top_p", "min_new_tokens", "max_new_tokens", "min_eos_p",
)  # fmt: skip
"""The settings that keywords can change from call to call."""

HONOURED: Mapping[TokenStage, set[str]] = {
    "semantic": set(SAMPLING),
    "coarse": {"do_sample", "temperature", "top_k", "top_p"},
    # BarkFineModel.generate takes any other keyword and looks at none.
    "fine": {"do_sample", "temperature"},
}
# Keywords for all stages that mean something in the semantic stage alone.
_SEMANTIC_ONLY = {"attention_mask", "max_new_tokens", "min_new_tokens", "min_eos_p"}

# Keywords that change nothing in the audio, whatever their value: how transformers keeps its cache,
# what it pads a batch with, what it returns between the stages, and options of ways of searching
# that are refused.
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

# Keywords that would change something, with the values (None is always one) that do not.
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
        stages: what is given for each stage.
        attention_mask: that of the prompt, which is the semantic stage's.
    """

    stages: Mapping[TokenStage, Given]
    attention_mask: Any

    @classmethod
    def sort(cls, keywords: Mapping[str, Any]) -> Keywords:
        """Sort keywords by stage.

        Raises:
            InputError: a keyword cannot be honoured, because it is not known or asks for something
                that this engine does not do.
        """
        stages: dict[TokenStage, dict[str, tuple[str, Any]]] = {stage: {} for stage in TOKEN_STAGES}
        general = {}
        for name, value in keywords.items():
            prefix, underscore, key = name.partition("_")
            stage = next((stage for stage in TOKEN_STAGES if stage == prefix), None)
            if underscore and stage is not None:
                _check(name, stage, key, value)
                stages[stage][key] = name, value
            else:
                general[name] = value
        for name, value in general.items():
            # The fine stage looks at the temperature alone, so nothing else can be wrong there.
            _check(name, "semantic", name, value)
            if name not in _SEMANTIC_ONLY:
                _check(name, "coarse", name, value)
            for stage in TOKEN_STAGES:
                stages[stage].setdefault(name, (name, value))
        _, mask = stages["semantic"].get("attention_mask", ("", None))
        return cls(stages, mask)

    def check_length(self, limit: int) -> None:
        """Check that the length that is asked for is at most `limit`, which the positions hold.

        A configured length is cut to that instead.

        Raises:
            InputError: more is asked for.
        """
        name, most = self.stages["semantic"].get("max_new_tokens", ("", None))
        if most is not None and most > limit:
            raise InputError(
                f"{name} must be at most {limit}, which is what the semantic model's positions "
                f"hold, got {most!r}"
            )

    def warn_of_ignored_config(self, model_config: Any) -> None:
        """Warn of a generation_config that differs from the model's.

        transformers' BarkModel takes the keyword and looks at the model's alone.

        Raises:
            InputError: it is not a generation config.
        """
        for given in self.stages.values():
            name, value = given.get("generation_config", ("", None))
            if (
                value is None
                or value is model_config
                or as_dict(name, value) == as_dict("model.generation_config", model_config)
            ):
                continue
            warnings.warn(
                f"{name} is not looked at, as transformers' BarkModel does not look at it either; "
                "change model.generation_config, or give the keywords themselves",
                BarkFastWarning,
                stacklevel=3,
            )
            return


def _check(name: str, stage: TokenStage, key: str, value: Any) -> None:
    """Check that what a keyword asks of a stage can be done.

    The values of honoured keywords are checked where they are used.
    """
    if key in HONOURED[stage] or key in _WITHOUT_EFFECT or key == "generation_config":
        return
    if stage == "semantic" and key in ("attention_mask", "eos_token_id"):
        return
    if key not in _NEUTRAL:
        raise InputError(
            f"{name} must not be given, because generate() has no such keyword, got {value!r}"
        )
    check_neutral(name, value, _NEUTRAL[key])


def check_neutral(name: str, value: Any, neutral: tuple[object, ...]) -> None:
    """Check that `value` changes nothing: that it is None or one of `neutral`."""
    plain = isinstance(value, (bool, int, float, str, list, tuple, dict, np.generic))
    if value is None or (plain and any(value == one for one in neutral)):
        return
    allowed = " or ".join(repr(one) for one in (*neutral, None))
    raise InputError(
        f"{name} must be left out or {allowed}, because this engine does nothing else, "
        f"got {value!r}"
    )


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
