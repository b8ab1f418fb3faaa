"""The parameters of one call of `BarkModel.generate`, resolved as transformers resolves them.

What no keyword gives comes from the model's generation_config, then from that of the sub-model,
then from transformers' defaults (so a sampled stage keeps the 50 most likely tokens unless
something says otherwise).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import Any

import numpy as np
from transformers import (
    GenerationConfig,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bark_fast.checkpoint.config import NETWORKS
from bark_fast.checkpoint.reading import NEUTRAL
from bark_fast.errors import InputError
from bark_fast.hf.keywords import (
    GENERATION_CONFIGS,
    HONOURED,
    Given,
    Keywords,
    as_dict,
    check_neutral,
)
from bark_fast.hf.not_served import NotServedError
from bark_fast.types import TOKEN_STAGES, GenerationParams, TokenStage
from bark_fast.validation import check_integer, check_number, check_temperature

SECTIONS: Mapping[TokenStage, str] = {
    stage: f"{network}_config" for stage, network in NETWORKS.items()
}
"""The section of the model's generation_config for each stage."""

# Attributes that nobody has set: None, before transformers 5 the default.
_BLANK = GenerationConfig()
_DEFAULTS: Mapping[str, Any] = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}


def read_sections(generation_config: Any) -> dict[TokenStage, dict[str, Any]]:
    """Return what the model's generation_config says of each stage.

    Raises:
        InputError: it is not that of a Bark model.
    """
    sections: dict[TokenStage, dict[str, Any]] = {}
    for stage, name in SECTIONS.items():
        section = getattr(generation_config, name, None)
        if section is None:
            raise InputError(
                f"model.generation_config must be Bark's, which has {', '.join(SECTIONS.values())}"
                f", got a {type(generation_config).__name__} without {name}"
            )
        # An object where it was made in Python, a dictionary where it was read from a file.
        sections[stage] = dict(as_dict(f"model.generation_config.{name}", section))
    return sections


def resolve_params(
    keywords: Keywords,
    sections: Mapping[TokenStage, Mapping[str, Any]],
    submodels: Mapping[TokenStage, Any],
) -> GenerationParams:
    """Resolve the keywords and the model's configuration, as transformers does.

    Args:
        sections: what `read_sections` returned.
        submodels: the generation_config of each stage's sub-model.

    Returns:
        Parameters with nothing left open but the seed.

    Raises:
        InputError: a value is one that transformers refuses too.
        NotServedError: a value asks for something that this engine does not do.
    """
    semantic, coarse, fine = (
        _StageSettings(stage, keywords.stages[stage], sections[stage], submodels.get(stage))
        for stage in TOKEN_STAGES
    )
    for stage in (semantic, coarse):
        stage.check_configured()
    semantic.check_end_token()
    found: dict[str, Any] = {}
    for stage in (semantic, coarse):
        found |= stage.sampling()
    found["fine_temperature"] = fine.fine_temperature()
    found |= {"fine_top_k": 0, "fine_top_p": 1.0}
    return GenerationParams(**found, **_lengths(semantic))


def _lengths(semantic: _StageSettings) -> dict[str, Any]:
    """Return what ends the semantic stage, by GenerationParams' names."""
    name, most = semantic.get("max_new_tokens")
    if most is None:  # transformers then looks at max_length, which it does not otherwise
        raise NotServedError(f"{name} is None")
    with _left_to_transformers(unless=not _is_above(most, 0)):
        check_integer(name, most, "an integer >= 1", 1, math.inf)
    name, least = semantic.get("min_new_tokens")
    if least is not None:
        with _left_to_transformers(unless=not isinstance(least, Real)):
            check_integer(name, least, "an integer >= 0", 0, math.inf)
    # Not the configured one, which transformers replaces by None unless the keyword is given.
    name, min_eos_p = semantic.given.get("min_eos_p", ("", None))
    if min_eos_p is not None:
        with _left_to_transformers(unless=not _is_above(min_eos_p, 0)):
            check_number(name, min_eos_p, "a number above 0", 0, math.inf, low_open=True)
    return {
        "max_semantic_tokens": most,
        "min_semantic_tokens": least,
        # No probability is above 1, so then the end token has no such threshold.
        "min_eos_p": 0.0 if min_eos_p is None or min_eos_p > 1 else float(min_eos_p),
    }


@contextmanager
def _left_to_transformers(*, unless: bool) -> Iterator[None]:
    """Leave what is wrong for the engine to transformers, `unless` that refuses it too."""
    try:
        yield
    except InputError as error:
        if unless:
            raise
        raise NotServedError(str(error)) from error


def _is_above(value: Any, bound: float) -> bool:
    return isinstance(value, Real) and value > bound  # type: ignore[operator]


def _refuses(warper: Callable[[Any], Any], value: Any) -> bool:
    """Return True if transformers' `warper` of logits cannot be made for a value."""
    try:
        warper(value)
    except (TypeError, ValueError):
        return True
    return False


class _StageSettings:
    """The settings of one stage, from its keywords, the model's section and the sub-model."""

    def __init__(
        self,
        name: TokenStage,
        given: Given,
        section: Mapping[str, Any],
        submodel: Any,
    ) -> None:
        self.name = name
        self.given = given
        self._where = f"generation_config.{SECTIONS[name]}"
        try:
            self._section = GENERATION_CONFIGS[name](**section)
        except (ValueError, TypeError) as error:  # transformers looks at some values itself
            raise InputError(f"{self._where} must be a whole one: {error}") from error
        self._submodel = submodel

    def get(self, key: str) -> tuple[str, Any]:
        """Return (the setting's name for error messages, its value)."""
        return self.given[key] if key in self.given else self._configured(key)

    def _configured(self, key: str) -> tuple[str, Any]:
        blank = getattr(_BLANK, key, None)
        value = getattr(self._section, key, None)
        if value != blank:
            return f"{self._where}.{key}", value
        of_submodel = getattr(self._submodel, key, None)
        if of_submodel is not None and of_submodel != blank:
            return f"generation_config.{key} of the {self.name} model", of_submodel
        return f"{self._where}.{key}", _DEFAULTS.get(key) if value is None else value

    def check_configured(self) -> None:
        """Check that the configuration asks for nothing that only transformers does."""
        # The coarse stage takes this id for padding of the prompt.
        more = {"pad_token_id": ()} if self.name == "coarse" else {}
        for key, neutral in {**NEUTRAL, **more}.items():
            if key not in HONOURED[self.name] and key not in self.given:
                check_neutral(*self._configured(key), neutral)

    def check_end_token(self) -> None:
        """Check that the end token is the configured one, which is part of the model."""
        configured = self._section.eos_token_id
        name, value = self.given.get("eos_token_id", ("", configured))
        if value != configured and value != [configured]:
            raise NotServedError(f"{name} is {value!r}, and {configured!r} in {self._where}")

    def sampling(self) -> dict[str, Any]:
        """Return temperature, top_k and top_p of a causal stage by GenerationParams' names."""
        name, sampled = self.get("do_sample")
        _check_flag(name, sampled)
        greedy = not sampled  # transformers then looks at none of the others
        temperature = self._number(
            "temperature", TemperatureLogitsWarper, 1.0, greedy,
            check_temperature if greedy else lambda name, value: check_number(
                name, value, "a finite number above 0 (greedy is do_sample=False)", 0, math.inf,
                low_open=True,
            ),
        )  # fmt: skip
        top_k = self._number(
            "top_k", TopKLogitsWarper, 0, greedy,
            lambda name, value: check_integer(
                name, value, "an integer >= 0 (0: no limit)", 0, math.inf
            ),
        )  # fmt: skip
        top_p = self._number(
            "top_p", TopPLogitsWarper, 1.0, greedy,
            lambda name, value: check_number(name, value, "a number >= 0", 0, math.inf),
        )  # fmt: skip
        if top_p == 0:  # only the most likely token is left
            greedy, top_p = True, 1.0
        return {
            f"{self.name}_temperature": 0.0 if greedy else float(temperature),
            f"{self.name}_top_k": int(top_k),
            f"{self.name}_top_p": min(1.0, float(top_p)),
        }

    def _number(
        self,
        key: str,
        warper: Callable[[Any], Any],
        default: float,
        greedy: bool,
        check: Callable[[str, Any], None],
    ) -> Any:
        """Return a setting that `check` takes.

        Args:
            warper: what transformers makes of the setting when it samples.
            default: stands for None.
        """
        name, value = self.get(key)
        if value is None:
            return default
        with _left_to_transformers(unless=not greedy and _refuses(warper, value)):
            check(name, value)
        return value

    def fine_temperature(self) -> float:
        """Return the fine stage's temperature.

        It is 0, which takes the most likely code, where transformers does so: with 1 and with None.
        """
        if "temperature" in self.given:
            name, temperature = self.given["temperature"]
        else:
            name, temperature = f"{self._where}.temperature", self._section.temperature
        if temperature is None:
            return 0.0
        divides = isinstance(temperature, Real) and temperature == temperature and temperature != 0
        with _left_to_transformers(unless=not divides):
            check_number(
                name, temperature, "a finite number above 0 (the fine stage takes the most likely "
                "code with 1.0 or None)", 0, math.inf, low_open=True,
            )  # fmt: skip
        return 0.0 if temperature == 1.0 else float(temperature)


def _check_flag(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, (bool, np.bool_)):
        raise NotServedError(f"{name} must be True or False, got {value!r}")
