"""suno's functions as methods of one model, and the one that this package's functions use."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeVar

from bark_fast.compat.suno.checks import most_semantic_tokens, sampling
from bark_fast.compat.suno.stages import Stages
from bark_fast.errors import InputError
from bark_fast.files import check_path
from bark_fast.text import normalise
from bark_fast.types import IntArray, Speech, Voice
from bark_fast.validation import check_temperature, check_tokens
from bark_fast.voices import VoiceLike

P = ParamSpec("P")
R = TypeVar("R")

FullGeneration = dict[str, IntArray]
"""An utterance's tokens: "semantic_prompt" [S], "coarse_prompt" [2, F], "fine_prompt" [8, F]."""

# What suno's api.py leaves at generation.py's defaults.
_FINE_TEMPERATURE, _MIN_EOS_P = 0.5, 0.2


class SunoAPI(Stages):
    """suno's functions on one model.

    Args:
        model: a folder, with suno's own files or in transformers' layout, or a hub id; None takes
            the files that suno's code has left in its cache, else "suno/bark".
        seed: that of every call, so that the same call gives the same speech; None draws one a
            stage from torch's global generator, which torch.manual_seed sets.
        options: keyword arguments of `Bark.from_pretrained`: device, dtype, engine, offload, ...

    Raises:
        InputError: the seed is out of its range.
        TypeError: `Bark.from_pretrained` has no such argument.
    """

    def generate_audio(
        self,
        text: str,
        history_prompt: VoiceLike | None = None,
        text_temp: float = 0.7,
        waveform_temp: float = 0.7,
        silent: bool = False,
        output_full: bool = False,
    ) -> Any:
        """Say a text.

        Args:
            text, history_prompt, silent: as in `generate_text_semantic`; all of the history prompt
                is read.
            text_temp: the temperature of the semantic tokens; 0 takes the most likely ones.
            waveform_temp: the temperature of the coarse tokens.
            output_full: return the tokens too, for `save_as_prompt` or the next history_prompt.

        Returns:
            float32 [T], 24 kHz; with `output_full` (tokens, samples).

        Raises:
            InputError: an argument is wrong.
        """
        check_temperature("text_temp", text_temp)
        check_temperature("waveform_temp", waveform_temp)
        bark = self.bark
        clean = normalise(text)
        text_ids = bark.requests.tokenizer.encode(clean)
        voice = self.history(history_prompt, *Voice.ARRAYS)
        # In the order in which the stages, called apart, draw theirs.
        semantic, coarse, fine = (self.draw_seed() for _ in range(3))
        request = self.request(
            "codec",
            text=clean,
            text_ids=text_ids,
            voice=voice,
            semantic=replace(sampling(semantic, text_temp), min_eos_p=_MIN_EOS_P),
            coarse=sampling(coarse, waveform_temp),
            fine=sampling(fine, _FINE_TEMPERATURE),
            max_semantic_tokens=most_semantic_tokens(None, bark.config),
        )
        return _result(self.run(request, silent), output_full)

    def text_to_semantic(
        self,
        text: str,
        history_prompt: VoiceLike | None = None,
        temp: float = 0.7,
        silent: bool = False,
    ) -> IntArray:
        """Return the semantic tokens of a text, int64 [S].

        This is the first half of `generate_audio`, and the arguments are the same.
        """
        return self.generate_text_semantic(text, history_prompt, temp, silent=silent)

    def semantic_to_waveform(
        self,
        semantic_tokens: IntArray,
        history_prompt: VoiceLike | None = None,
        temp: float = 0.7,
        silent: bool = False,
        output_full: bool = False,
    ) -> Any:
        """Say semantic tokens: the second half of `generate_audio`.

        With the same history_prompt, temperatures and seed the two halves together return what
        `generate_audio` returns.

        Args:
            semantic_tokens: integers [S]; none at all are an empty speech.
        """
        config = self.bark.config
        check_temperature("temp", temp)
        limit = config.semantic_rules.semantic_vocab_size
        tokens = check_tokens("semantic_tokens", semantic_tokens, (None,), limit, may_be_empty=True)
        voice = self.history(history_prompt, *Voice.ARRAYS)
        coarse, fine = (self.draw_seed() for _ in range(2))
        request = self.request(
            "codec",
            voice=voice,
            coarse=sampling(coarse, temp),
            fine=sampling(fine, _FINE_TEMPERATURE),
            given=tuple(tokens.tolist()),
        )
        return _result(self.run(request, silent), output_full)


def _result(speech: Speech, output_full: bool) -> Any:
    if not output_full:
        return speech.samples
    tokens: FullGeneration = {
        "semantic_prompt": speech.semantic_tokens,
        "coarse_prompt": speech.coarse_tokens,
        "fine_prompt": speech.fine_tokens,
    }
    return tokens, speech.samples


def save_as_prompt(
    filepath: str | os.PathLike[str], full_generation: Mapping[str, IntArray]
) -> None:
    """Write tokens, as `output_full` returns them, to a file that is a history_prompt.

    Raises:
        InputError: `filepath` does not end in .npz, or an array is missing or not of integers.
    """
    check_path(filepath, Voice.ENDINGS, name="filepath")
    if not isinstance(full_generation, Mapping):
        raise InputError(
            f"full_generation must be a dictionary, got {type(full_generation).__name__}"
        )

    def checked(key: str, *shape: None) -> IntArray:
        return check_tokens(f"full_generation: {key}", full_generation.get(key), shape, 2**31)

    Voice(
        checked("semantic_prompt", None),
        checked("coarse_prompt", None, None),
        checked("fine_prompt", None, None),
    ).save(filepath)


_current = SunoAPI()


def current() -> SunoAPI:
    """Return the `SunoAPI` that the functions of this package work on."""
    return _current


def on_current(method: Callable[Concatenate[Any, P], R], module: str) -> Callable[P, R]:
    """Return a method of `SunoAPI` as a function of `module` that works on the one in use."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        result: R = getattr(current(), method.__name__)(*args, **kwargs)
        return result

    # A pool of processes finds it by these.
    call.__module__, call.__qualname__ = module, method.__name__
    _, *parameters = inspect.signature(method).parameters.values()
    call.__signature__ = inspect.signature(method).replace(  # type: ignore[attr-defined]
        parameters=parameters
    )
    return call


def use(api: SunoAPI) -> None:
    """Let the functions of this package work on `api` from now on.

    Raises:
        InputError: `api` is something else.
    """
    global _current
    if not isinstance(api, SunoAPI):
        raise InputError(f"api must be a SunoAPI, got {type(api).__name__}")
    _current = api
