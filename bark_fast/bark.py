"""Bark: text in, speech out. The front door of the library."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import torch

from bark_fast.checkpoint.config import Config
from bark_fast.checkpoint.random import demo_folder
from bark_fast.checkpoint.source import Source
from bark_fast.devices import resolve_device, resolve_dtype, resolve_impl
from bark_fast.engine.engine import Engine, Progress, Stages
from bark_fast.engine.request import Request
from bark_fast.text import Tokenizer, normalise, split_text
from bark_fast.types import (
    GenerationParams,
    InputError,
    Speech,
    Voice,
    check_integer,
)
from bark_fast.voices import VoiceLibrary, VoiceLike, long_enough


class Bark:
    """A Bark checkpoint, ready to speak. Make one with `Bark.from_pretrained`.

    Attributes:
        config: what the checkpoint says of itself.
        device, dtype: where the networks run and in what (the codec always in float32).
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        voices: VoiceLibrary,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.config: Config = engine.config
        self.device = device
        self.dtype = dtype
        self._engine = engine
        self._tokenizer = tokenizer
        self._voices = voices

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] = "demo",
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        impl: str = "auto",
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> Bark:
        """Load a checkpoint.

        Args:
            model: a folder in transformers' layout, a hub id ("suno/bark-small") or "demo".
            device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1".
            dtype: "auto" (float32 on the CPU; bfloat16 on CUDA, or float16 before sm_80),
                "float32", "bfloat16", "float16", or the torch dtype. float16 on a CPU runs as
                float32, with a warning.
            impl: who computes: "auto" ("triton" on CUDA, "cpu" on a CPU), "triton", "cpu" or
                "torch" (the plain reference, which runs anywhere).
            revision: of a hub repository; the newest if None.
            local_files_only: ask nothing of the network.

        Raises:
            InputError: an argument is not one of these.
            CheckpointError: the checkpoint cannot be read or contradicts itself.
        """
        chosen_device = resolve_device(device)
        chosen_dtype = resolve_dtype(dtype, chosen_device)
        chosen_impl = resolve_impl(impl, chosen_device)
        source, config = _open(model, revision, local_files_only)
        # Small and quick to fail first: the weights are the slow part.
        tokenizer = Tokenizer(
            source,
            limit=config.semantic.input_vocab_size - config.semantic_rules.text_encoding_offset,
            max_tokens=config.max_text_tokens,
        )
        voices = VoiceLibrary(source, config)
        stages = Stages.load(
            source, config, dtype=chosen_dtype, device=chosen_device, impl=chosen_impl
        )
        engine = Engine(stages, config, dtype=chosen_dtype, device=chosen_device)
        return cls(engine, tokenizer, voices, device=chosen_device, dtype=chosen_dtype)

    @property
    def sample_rate_hz(self) -> int:
        return self.config.sample_rate_hz

    @property
    def voices(self) -> list[str]:
        """The names of the checkpoint's own voices."""
        return self._voices.names

    def load_voice(self, voice: VoiceLike) -> Voice:
        """A preset, file or mapping as a checked Voice; `generate` takes the same things."""
        loaded = self._voices.get(voice)
        if loaded is None:
            raise InputError("voice must not be None")
        return loaded

    @overload  # a str is a Sequence[str] too; the first match holds
    def generate(  # type: ignore[overload-overlap]
        self,
        text: str,
        *,
        voice: VoiceLike | None = None,
        params: GenerationParams | None = None,
        progress: bool = False,
    ) -> Speech: ...

    @overload
    def generate(
        self,
        text: Sequence[str],
        *,
        voice: VoiceLike | Sequence[VoiceLike | None] | None = None,
        params: GenerationParams | Sequence[GenerationParams | None] | None = None,
        progress: bool = False,
    ) -> list[Speech]: ...

    def generate(
        self,
        text: str | Sequence[str],
        *,
        voice: VoiceLike | Sequence[VoiceLike | None] | None = None,
        params: GenerationParams | Sequence[GenerationParams | None] | None = None,
        progress: bool = False,
    ) -> Speech | list[Speech]:
        """Say a text, or each text of a list.

        Args:
            text: what to say; each text is one utterance of at most about 15 s (`stream` splits
                longer text).
            voice: a preset's name, the path of an .npz file, a mapping of its arrays or a Voice;
                with a list of texts also a list, one for each. None lets the model choose.
            params: GenerationParams, or with a list of texts a list, one for each.
            progress: show a progress bar on standard error.

        Returns:
            A Speech, or a list in the order of the texts. Each is exactly what its own text, voice,
            parameters and seed give, whatever else is in the list.

        Raises:
            InputError: an argument is wrong; nothing has been generated then.
        """
        single = isinstance(text, str)
        texts = [text] if isinstance(text, str) else _as_list("text", text)
        voices = (
            [voice]
            if single
            else _one_each("voice", voice, len(texts), (str, os.PathLike, Mapping, Voice))
        )
        all_params = (
            [params] if single else _one_each("params", params, len(texts), (GenerationParams,))
        )
        requests = [
            self._request(*arguments) for arguments in zip(texts, voices, all_params, strict=True)
        ]
        results = []
        with _ProgressBar(len(requests), enabled=progress) as bar:
            for request in requests:
                results.append(self._engine.generate(request, bar.report))
                bar.next_utterance()
        return results[0] if single else results

    def split(self, text: str, *, language: str = "en", max_tokens: int | None = None) -> list[str]:
        """The pieces that `stream` would say one after another: sentences, or parts of sentences
        that are too long for one utterance."""
        if not isinstance(language, str) or not language.isascii() or not language.isalpha():
            raise InputError(f'language must be a code such as "en", got {language!r}')
        rules = self.config.semantic_rules
        limit = rules.max_new_tokens
        if max_tokens is not None:
            check_integer("max_tokens", max_tokens, "an integer >= 1", 1, math.inf)
            limit = min(limit, max_tokens)
        pieces = split_text(
            text,
            max_tokens=self.config.max_text_tokens,
            max_duration_s=limit / rules.semantic_rate_hz,
            count_tokens=self._tokenizer.count,
            language=language,
        )
        # Invisible characters are no tokens; a piece of nothing else cannot be said.
        said = [piece for piece in pieces if self._tokenizer.count(piece)]
        if not said:
            raise InputError(f"text must hold something the tokenizer knows, got {text!r}")
        return said

    def stream(
        self,
        text: str,
        *,
        voice: VoiceLike | None = None,
        params: GenerationParams | None = None,
        language: str = "en",
        progress: bool = False,
    ) -> Iterator[Speech]:
        """Say a text of any length, one sentence at a time, in one voice throughout.

        Args:
            text: split at the ends of sentences; a sentence too long for one utterance is split
                further.
            voice: as in `generate`; None takes the first sentence's own voice for the others.
            params: as in `generate`; sentence i uses seed + i.
            language: a code such as "en" or "de", for the abbreviations that end no sentence.
            progress: show a progress bar on standard error.

        Yields:
            A Speech a sentence.

        Raises:
            InputError: an argument is wrong; raised by the call itself, before anything is said.
        """
        params = GenerationParams() if params is None else params
        # Everything that can be wrong is looked at here, not at the first next().
        first = self._request(normalise(text), voice, params, count_only=True)
        pieces = self.split(text, language=language, max_tokens=first.max_semantic_tokens)
        return self._stream(pieces, first.voice, replace(params, seed=first.seed), progress)

    def _stream(
        self, pieces: list[str], voice: Voice | None, params: GenerationParams, progress: bool
    ) -> Iterator[Speech]:
        with _ProgressBar(len(pieces), enabled=progress) as bar:
            for i, piece in enumerate(pieces):
                assert params.seed is not None
                own = replace(params, seed=(params.seed + i) % 2**64)
                speech = self._engine.generate(self._request(piece, voice, own), bar.report)
                if voice is None and long_enough(
                    speech.semantic_tokens, speech.coarse_tokens, self.config
                ):
                    voice = speech.to_voice()
                bar.next_utterance()
                yield speech

    def _request(
        self,
        text: str,
        voice: VoiceLike | None,
        params: GenerationParams | None,
        *,
        count_only: bool = False,
    ) -> Request:
        """Check one utterance's arguments; with `count_only` its text may be of any length."""
        if params is None:
            params = GenerationParams()
        elif not isinstance(params, GenerationParams):
            raise InputError(f"params must be GenerationParams, got {type(params).__name__}")
        clean = normalise(text)
        ids = [] if count_only else self._tokenizer.encode(clean)
        return Request.resolve(clean, ids, self._voices.get(voice), params, self.config)


def open_voices(
    model: str | os.PathLike[str] = "demo",
    *,
    revision: str | None = None,
    local_files_only: bool = False,
) -> VoiceLibrary:
    """The voices of a checkpoint without its weights; arguments as in `Bark.from_pretrained`."""
    return VoiceLibrary(*_open(model, revision, local_files_only))


def _open(
    model: str | os.PathLike[str], revision: str | None, local_files_only: bool
) -> tuple[Source, Config]:
    folder: str | os.PathLike[str] = demo_folder() if model == "demo" else model
    source = Source.open(folder, revision=revision, local_files_only=local_files_only)
    return source, Config.read(source)


def _as_list(name: str, values: Any) -> list[Any]:
    if not isinstance(values, Sequence) or isinstance(values, (bytes, bytearray)):
        raise InputError(
            f"{name} must be a string or a list of strings, got {type(values).__name__}"
        )
    return list(values)


def _one_each(name: str, value: Any, count: int, single: tuple[type, ...]) -> list[Any]:
    """`value` for each of `count` texts, or the list of as many that it is."""
    if value is None or isinstance(value, single):
        return [value] * count
    if not isinstance(value, Sequence):
        raise InputError(f"{name} must be one value or a list of them, got {type(value).__name__}")
    if len(value) != count:
        raise InputError(
            f"{name} must have one entry for each of the {count} texts, got {len(value)}"
        )
    return list(value)


class _ProgressBar:
    """One tqdm bar for all utterances: which one, which stage, how far."""

    def __init__(self, n_utterances: int, *, enabled: bool) -> None:
        self._n = n_utterances
        self._index = 0
        self._stage = ""
        self._bar: Any = None
        if enabled and n_utterances:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=1, unit="step", leave=False)
        self.report: Progress | None = self._report if self._bar is not None else None

    def __enter__(self) -> _ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _report(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._stage = stage
            self._bar.reset(total=total)
            self._bar.set_description(f"{self._index + 1}/{self._n} {stage}", refresh=False)
        self._bar.update(done - self._bar.n)

    def next_utterance(self) -> None:
        self._index += 1
        self._stage = ""
