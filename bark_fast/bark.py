"""Bark: text in, speech out. The front door of the library."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any, overload

import torch

from bark_fast.checkpoint.config import Config
from bark_fast.checkpoint.suno import SunoFiles
from bark_fast.engine.driver import Driver
from bark_fast.engine.engine import Engine
from bark_fast.engine.options import EngineOptions
from bark_fast.engine.stats import EngineStats
from bark_fast.engine.utterance import Progress
from bark_fast.engine.warm_up import warm_up
from bark_fast.errors import InputError
from bark_fast.loading import Loaded, load
from bark_fast.progress import counting_bar
from bark_fast.request import OneOrMoreParams, OneOrMoreVoices, Request, Tokens
from bark_fast.speaking import speak_all
from bark_fast.streaming import AHEAD_ON_CPU, AHEAD_ON_GPU, StreamPlan, speak
from bark_fast.types import GenerationParams, IntArray, Speech, Stage, Voice
from bark_fast.voices import VoiceLike


class Bark:
    """A Bark checkpoint, ready to speak. Make one with `Bark.from_pretrained`.

    Attributes:
        checkpoint: what was loaded; `config` is its configuration.
        requests: makes checked requests out of arguments.
        driver: steps the engine, in a caller's thread or its own.
        device, dtype: where the networks run, and their dtype (the codec is always float32).
        impl: who computes; see `from_pretrained`.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.driver = Driver(loaded.engine)  # the first, which tells pickle why this cannot be
        self.config: Config = loaded.engine.config
        self.checkpoint = loaded.checkpoint
        self.device = loaded.device
        self.dtype = loaded.dtype
        self.impl = loaded.impl
        self.requests = loaded.requests

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | SunoFiles = "demo",
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        impl: str = "auto",
        engine: EngineOptions | None = None,
        offload: bool = False,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        subfolder: str = "",
        variant: str | None = None,
    ) -> Bark:
        """Load a checkpoint.

        Args:
            model: a folder in transformers' layout or with suno's own files, a hub id
                ("suno/bark-small"), "demo", or `SunoFiles`, which say which sizes of suno's.
            device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1".
            dtype: "auto" (float32 on the CPU; bfloat16 on CUDA, or float16 before sm_80),
                "float32", "bfloat16", "float16" (on a CPU run as float32, with a warning), or the
                torch dtype. "int8", on CPUs with AVX-512: weights in 8 bits, the rest in bfloat16
                (without avx512_bf16 in float32).
            impl: who computes: "auto" ("triton" on CUDA, on a CPU "native" where it runs, else
                "cpu"), "triton", "native" (C for AVX2 or AVX-512, compiled at first use), "cpu"
                (torch and oneDNN) or "torch" (the plain reference, which runs anywhere).
            engine: how utterances share the machine; see `EngineOptions`.
            offload: keep the weights on the host but for those of the running stage, for GPUs with
                little memory. Utterances then go through the stages together.
            revision: of a hub repository; the newest if None.
            local_files_only: ask nothing of the network.
            cache_dir: where files from the hub are kept; None is the hub's own place.
            token: for private repositories of the hub; None and True take the stored one.
            subfolder: where the files are in the folder or repository. A tokenizer or voices that
                are not there are taken from beside it.
            variant: of the weights: "fp16" for model.fp16.safetensors.

        Raises:
            InputError: an argument is not one of these.
            CheckpointError: the checkpoint cannot be read or contradicts itself.
        """
        loaded = load(
            model, device=device, dtype=dtype, impl=impl, engine=engine, offload=offload,
            revision=revision, local_files_only=local_files_only, cache_dir=cache_dir, token=token,
            subfolder=subfolder, variant=variant,
        )  # fmt: skip
        return cls(loaded)

    @property
    def sample_rate_hz(self) -> int:
        """Samples a second of the audio."""
        return self.config.sample_rate_hz

    @property
    def voices(self) -> list[str]:
        """The names of the checkpoint's own voices."""
        return self.requests.voices.names

    @property
    def engine(self) -> Engine:
        """The engine underneath, for those who bring their own loop: requests from `request`."""
        return self.driver.engine

    def stats(self) -> EngineStats:
        """Return what the engine has done so far and what waits; cheap, from any thread."""
        return self.engine.stats()

    def warm_up(self, *, progress: bool = False) -> None:
        """Do now what otherwise happens when each batch size is first met on a GPU.

        CUDA graphs of all sizes are captured, and short utterances pass through every stage, so
        that their kernels are compiled; `stats` counts them.

        Args:
            progress: show a progress bar on standard error.
        """
        with counting_bar("warming up", enabled=progress) as report:
            warm_up(self.engine, report)

    def load_voice(self, voice: VoiceLike, *, name: str = "voice") -> Voice:
        """Return what `generate` takes for a voice as a checked Voice; `name` is for errors."""
        loaded = self.requests.voices.get(voice, name=name)
        if loaded is None:
            raise InputError(f"{name} must not be None")
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
        voice: OneOrMoreVoices | None = None,
        params: OneOrMoreParams | None = None,
        progress: bool = False,
    ) -> list[Speech]: ...

    def generate(
        self,
        text: str | Sequence[str],
        *,
        voice: OneOrMoreVoices | None = None,
        params: OneOrMoreParams | None = None,
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
            parameters and seed give, whatever else is in the list. Punctuation that the model says
            nothing for ("...") gives a Speech without samples, and a BarkFastWarning.

        Raises:
            InputError: an argument is wrong; nothing has been generated then.
            GenerationError: some texts of a list failed; it holds what the others gave.
        """
        requests, single = self.requests.from_texts(text, voice, params)
        spoken = speak_all(self.driver, requests, single=single, progress=progress)
        return spoken[0] if single else spoken

    @overload  # a str is a Sequence[str] too; the first match holds
    def semantic(  # type: ignore[overload-overlap]
        self,
        text: str,
        *,
        voice: VoiceLike | None = None,
        params: GenerationParams | None = None,
        progress: bool = False,
    ) -> IntArray: ...

    @overload
    def semantic(
        self,
        text: Sequence[str],
        *,
        voice: OneOrMoreVoices | None = None,
        params: OneOrMoreParams | None = None,
        progress: bool = False,
    ) -> list[IntArray]: ...

    def semantic(
        self,
        text: str | Sequence[str],
        *,
        voice: OneOrMoreVoices | None = None,
        params: OneOrMoreParams | None = None,
        progress: bool = False,
    ) -> IntArray | list[IntArray]:
        """Return the semantic tokens of a text, or of each text of a list.

        This is `generate` stopped after its first stage; `speak_tokens` goes on from there.

        Args and errors are those of `generate`.

        Returns:
            int64 [S], about 50 a second of speech, or a list of them.
        """
        requests, single = self.requests.from_texts(text, voice, params, last_stage="semantic")
        spoken = speak_all(self.driver, requests, single=single, progress=progress)
        tokens = [speech.semantic_tokens for speech in spoken]
        return tokens[0] if single else tokens

    @overload
    def speak_tokens(
        self,
        semantic_tokens: Tokens,
        *,
        voice: VoiceLike | None = None,
        params: GenerationParams | None = None,
        progress: bool = False,
    ) -> Speech: ...

    @overload
    def speak_tokens(
        self,
        semantic_tokens: Sequence[Tokens],
        *,
        voice: OneOrMoreVoices | None = None,
        params: OneOrMoreParams | None = None,
        progress: bool = False,
    ) -> list[Speech]: ...

    def speak_tokens(
        self,
        semantic_tokens: Tokens | Sequence[Tokens],
        *,
        voice: OneOrMoreVoices | None = None,
        params: OneOrMoreParams | None = None,
        progress: bool = False,
    ) -> Speech | list[Speech]:
        """Say semantic tokens, as `generate` does after its first stage.

        With the voice, params and seed that `semantic` got, tokens, codes and audio are those of
        `generate`. Of `params`, what concerns the text alone (`semantic_temperature`, `min_eos_p`)
        has no effect; limits hold.

        Args:
            semantic_tokens: integers [S] as an array or a list, from `semantic`, `Speech` or suno's
                `text_to_semantic`; or a list of such, which [] is too. They may be more than the
                model writes for one text, and none at all (an empty array), which gives an empty
                Speech as `generate` does for a text that the model says nothing for.
            voice, params, progress: as in `generate`.

        Returns:
            A Speech with text "" and finish_reason "given"; for a list a list.

        Raises:
            InputError, GenerationError: as `generate`.
        """
        requests, single = self.requests.from_token_lists(semantic_tokens, voice, params)
        spoken = speak_all(self.driver, requests, single=single, progress=progress)
        return spoken[0] if single else spoken

    def split(
        self,
        text: str,
        *,
        language: str = "en",
        max_tokens: int | None = None,
        normalize_text: bool | str | None = None,
    ) -> list[str]:
        """Return the pieces that `stream` would say one after another.

        They are sentences, which end with their line too, or parts of sentences that are too long
        for one utterance. Pieces after a speaker's tag ("MAN:", "WOMAN:", "[MAN]", "[WOMAN]") begin
        with it, up to the next one.

        Args:
            language, max_tokens: as `stream` has them.
            normalize_text: as in `GenerationParams`.
        """
        return self.requests.split(
            text, language=language, max_tokens=max_tokens, normalize_text=normalize_text
        )

    def stream(
        self,
        text: str,
        *,
        voice: VoiceLike | None = None,
        params: GenerationParams | None = None,
        language: str = "en",
        pause_s: float = 0.0,
        progress: bool = False,
    ) -> Iterator[Speech]:
        """Say a text of any length, one sentence at a time, in one voice throughout.

        The parts' samples can be joined as they are: each is what `generate` gives, but for a fade
        of 5 ms where it meets another, and for the pause behind it. The next sentences are made
        while one is listened to; on a CPU none is beside the first, so that it comes soon.

        Args:
            text: split at the ends of sentences and of lines; a sentence too long for one utterance
                is split further. What follows a speaker's tag ("MAN:", "WOMAN:") begins with it.
            voice: as in `generate`; None takes the first sentence's own voice for the others.
            params: as in `generate`; sentence i uses seed + i.
            language: a code such as "en" or "de", for the abbreviations that end no sentence.
            pause_s: silence behind each sentence but the last, from 0 to 60 seconds.
            progress: show a progress bar on standard error.

        Yields:
            A Speech a sentence.

        Raises:
            InputError: an argument is wrong; raised by the call itself, before anything is said.
        """
        # Everything that can be wrong is looked at here, not at the first next().
        plan = self.stream_plan(text, voice, params, language, pause_s=pause_s)
        self.driver.home.check()
        return speak(plan, self.submit, progress=progress)

    def stream_plan(
        self,
        text: str,
        voice: VoiceLike | None,
        params: GenerationParams | None,
        language: str,
        *,
        pause_s: float = 0.0,
    ) -> StreamPlan:
        """Return the plan by which `stream` says a text, for those who bring their own loop."""
        ahead = AHEAD_ON_GPU if self.device.type == "cuda" else AHEAD_ON_CPU
        return StreamPlan(
            self.requests, text, voice, params, language, pause_s=pause_s, ahead=ahead
        )

    def submit(
        self, request: Request, *, progress: Progress | None = None, urgent: bool = False
    ) -> Future[Speech]:
        """Begin a `request` and return at once. Cancelling the future gives it up.

        Args:
            progress: called with (stage, steps done, steps at most) from the engine's thread.
            urgent: someone waits for the audio; see `EngineOptions.policy`.

        Raises:
            InputError: `request` is none that `request` or `token_request` made.
        """
        if not isinstance(request, Request):
            raise InputError(f"request must be a Request, got {type(request).__name__}")
        return self.driver.begin(request, progress=progress, urgent=urgent)

    def request(
        self,
        text: str,
        voice: VoiceLike | None = None,
        params: GenerationParams | None = None,
        *,
        last_stage: Stage = "codec",
    ) -> Request:
        """Return the checked request of one utterance, for `engine.submit`.

        Args:
            text, voice, params: as in `generate`.
            last_stage: it stops after this stage ("semantic", "coarse", "fine" or "codec"), and its
                Speech has nothing of later ones.
        """
        return self.requests.from_text(text, voice, params, last_stage=last_stage)

    def token_request(
        self,
        semantic_tokens: Any,
        voice: VoiceLike | None = None,
        params: GenerationParams | None = None,
        *,
        name: str = "semantic_tokens",
    ) -> Request:
        """Return the checked request of semantic tokens; `name` is what errors call them."""
        return self.requests.from_tokens(semantic_tokens, voice, params, name=name)
