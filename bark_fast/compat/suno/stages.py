"""The functions of suno's bark/generation.py, as methods."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from bark_fast.bark import Bark
from bark_fast.compat.suno.checks import (
    check_codes,
    check_flags,
    coarse_windows,
    least_end_probability,
    most_semantic_tokens,
    sampling,
)
from bark_fast.compat.suno.history import load_history
from bark_fast.compat.suno.models import STAGES, Model, Models
from bark_fast.devices import resolve_device
from bark_fast.errors import InputError
from bark_fast.request import Request
from bark_fast.speaking import speak_all
from bark_fast.stages.sampling import NEVER_AT_ONCE
from bark_fast.text import normalise
from bark_fast.types import FloatArray, IntArray, Speech, Stage, Voice
from bark_fast.validation import check_seed, check_tokens
from bark_fast.voices import VoiceLike


class Stages:
    """The functions of suno's bark/generation.py; `SunoAPI` says what they work on."""

    def __init__(
        self, model: Model | None = None, *, seed: int | None = None, **options: Any
    ) -> None:
        if seed is not None:
            check_seed("seed", seed)
        self._seed = seed
        self._device = options.get("device", "auto")
        self._models = Models(model, options)

    @property
    def bark(self) -> Bark:
        """The model underneath, which is loaded now if it was not."""
        return self._models.bark

    # Models -------------------------------------------------------------------------------------

    def preload_models(
        self,
        text_use_gpu: bool = True,
        text_use_small: bool = False,
        coarse_use_gpu: bool = True,
        coarse_use_small: bool = False,
        fine_use_gpu: bool = True,
        fine_use_small: bool = False,
        codec_use_gpu: bool = True,
        force_reload: bool = False,
    ) -> None:
        """Load the model, unless the one that is asked for is loaded.

        Args:
            text_use_small, coarse_use_small, fine_use_small: take the small model for that stage;
                sizes can be mixed where suno's own files are, in a folder or on the hub.
            text_use_gpu, coarse_use_gpu, fine_use_gpu, codec_use_gpu: all or none, where there is a
                GPU. False means the CPU; True means what `device` says, else a GPU if there is one.
            force_reload: load it even if it is loaded.

        Raises:
            InputError: the model does not come in these sizes, the stages are on different devices,
                or an argument is not a bool.
            CheckpointError: the model cannot be loaded; the next use tries again.
        """
        on_gpu = {
            "text_use_gpu": text_use_gpu,
            "coarse_use_gpu": coarse_use_gpu,
            "fine_use_gpu": fine_use_gpu,
            "codec_use_gpu": codec_use_gpu,
        }
        small = {"text": text_use_small, "coarse": coarse_use_small, "fine": fine_use_small}
        flags = {f"{stage}_use_small": use for stage, use in small.items()}
        check_flags(**on_gpu, **flags, force_reload=force_reload)
        if len(set(on_gpu.values())) > 1 and not self._is_on_cpu:
            raise InputError(
                "text_use_gpu, coarse_use_gpu, fine_use_gpu and codec_use_gpu must be the same: "
                f"all stages run on one device; got {on_gpu}"
            )
        self._models.choose(small, on_gpu=text_use_gpu, force_reload=force_reload, now=True)

    def load_model(
        self,
        use_gpu: bool = True,
        use_small: bool = False,
        force_reload: bool = False,
        model_type: str = "text",
    ) -> Stages:
        """Choose the size of one stage.

        All stages are loaded together: at the first use, or when "text", "coarse" and "fine" have
        been chosen. The device is that of the last call.

        Args:
            model_type: "text", "coarse" or "fine".

        Returns:
            This object; suno's code returns the network, which the engine does not have apart.

        Raises:
            InputError, CheckpointError: as `preload_models`.
        """
        check_flags(use_gpu=use_gpu, use_small=use_small, force_reload=force_reload)
        if model_type not in STAGES:
            raise InputError(f"model_type must be one of {', '.join(STAGES)}, got {model_type!r}")
        small = {model_type: use_small}
        self._models.choose(small, on_gpu=use_gpu, force_reload=force_reload, now=False)
        return self

    def load_codec_model(self, use_gpu: bool = True, force_reload: bool = False) -> Stages:
        """Load nothing before the other stages are: the codec comes with them, on their device."""
        check_flags(use_gpu=use_gpu, force_reload=force_reload)
        return self

    def clean_models(self, model_key: str | None = None) -> None:
        """Give the model's memory back; the next use loads it again.

        Args:
            model_key: a stage whose size is forgotten; None forgets all sizes. The memory is that
                of all stages either way.
        """
        if model_key is not None and model_key not in (*STAGES, "codec"):
            raise InputError(
                f"model_key must be {', '.join(STAGES)}, codec or None, got {model_key!r}"
            )
        self._models.clean(model_key)

    @property
    def _is_on_cpu(self) -> bool:
        device = str(self._device)
        return device == "cpu" or (device == "auto" and resolve_device("auto").type == "cpu")

    # Stages -------------------------------------------------------------------------------------

    def generate_text_semantic(
        self,
        text: str,
        history_prompt: VoiceLike | None = None,
        temp: float = 0.7,
        top_k: int | None = None,
        top_p: float | None = None,
        silent: bool = False,
        min_eos_p: float | None = 0.2,
        max_gen_duration_s: float | None = None,
        allow_early_stop: bool = True,
        use_kv_caching: bool = False,
    ) -> IntArray:
        """Return the semantic tokens of a text, int64 [S].

        Args:
            text: about 13 s of speech at most; beyond 256 tokens it is cut, with a warning.
            history_prompt: the voice: a preset's name, the path of an .npz file, a dictionary as
                `output_full` returns it, or anything else that `Bark.generate` takes as a voice.
                Only its semantic_prompt is read.
            temp: divides the logits, after top_p and top_k; 0 takes the most likely token.
            top_k: keep the k most likely tokens of those that top_p has left; None keeps all.
            top_p: keep the fewest most likely tokens whose probabilities exceed p; None keeps all.
            silent: show no progress bar.
            min_eos_p: end as soon as the end token's probability, after temp, is at least this;
                None never does.
            max_gen_duration_s: end with the token that makes it longer than this.
            allow_early_stop: False goes on to a limit and never ends the text.
            use_kv_caching: has no effect: keys and values are always kept.

        Raises:
            InputError: an argument is wrong.
        """
        bark, seed = self.bark, self.draw_seed()
        most = most_semantic_tokens(max_gen_duration_s, bark.config)
        drawing = replace(
            sampling(seed, temp, top_k, top_p),
            min_eos_p=least_end_probability(min_eos_p) if allow_early_stop else NEVER_AT_ONCE,
            min_new_tokens=0 if allow_early_stop else most,
        )
        clean = normalise(text)
        request = self.request(
            "semantic",
            text=clean,
            text_ids=bark.requests.tokenizer.encode(clean),
            voice=self.history(history_prompt, "semantic_prompt"),
            semantic=drawing,
            max_semantic_tokens=most,
        )
        return self.run(request, silent).semantic_tokens

    def generate_coarse(
        self,
        x_semantic: IntArray,
        history_prompt: VoiceLike | None = None,
        temp: float = 0.7,
        top_k: int | None = None,
        top_p: float | None = None,
        silent: bool = False,
        max_coarse_history: int = 630,
        sliding_window_len: int = 60,
        use_kv_caching: bool = False,
    ) -> IntArray:
        """Return the coarse codes of semantic tokens, int64 [2, F].

        Args:
            x_semantic: integers [S], or floats that are whole numbers.
            history_prompt: as in `generate_text_semantic`; its semantic_prompt and coarse_prompt
                are read.
            temp, top_k, top_p, silent, use_kv_caching: as in `generate_text_semantic`.
            max_coarse_history: the coarse tokens that a window sees at most: less is faster.
            sliding_window_len: the coarse tokens that a window adds.

        Raises:
            InputError: an argument is wrong.
        """
        config = self.bark.config
        rules = coarse_windows(max_coarse_history, sliding_window_len, config)
        limit = config.semantic_rules.semantic_vocab_size
        tokens = check_tokens("x_semantic", x_semantic, (None,), limit, may_be_empty=True)
        drawing = sampling(self.draw_seed(), temp, top_k, top_p)
        request = self.request(
            "coarse",
            voice=self.history(history_prompt, "semantic_prompt", "coarse_prompt"),
            coarse=drawing,
            given=tuple(tokens.tolist()),
            coarse_rules=rules,
        )
        return self.run(request, silent).coarse_tokens

    def generate_fine(
        self,
        x_coarse_gen: IntArray,
        history_prompt: VoiceLike | None = None,
        temp: float | None = 0.5,
        silent: bool = True,
    ) -> IntArray:
        """Return the codes of all codebooks, int64 [8, F].

        Args:
            x_coarse_gen: the codes of the first codebooks, integers [1 to 7, F].
            history_prompt: as in `generate_text_semantic`; its fine_prompt is read.
            temp: None and 0 take the most likely codes.

        Raises:
            InputError: an argument is wrong.
        """
        config = self.bark.config
        codes = check_codes(
            "x_coarse_gen", x_coarse_gen, config.fine_rules.n_fine_codebooks - 1, config
        )
        drawing = sampling(self.draw_seed(), 0.0 if temp is None else temp)
        request = self.request(
            "fine",
            voice=self.history(history_prompt, "fine_prompt"),
            fine=drawing,
            given_codes=codes,
        )
        return self.run(request, silent).fine_tokens

    def codec_decode(self, fine_tokens: IntArray) -> FloatArray:
        """Return the samples of codes, float32 [T], 24 kHz.

        Args:
            fine_tokens: the codes of the first codebooks, or of all: integers [1 to 8, F].

        Raises:
            InputError: `fine_tokens` are no such codes.
        """
        config = self.bark.config
        codes = check_codes("fine_tokens", fine_tokens, config.fine_rules.n_fine_codebooks, config)
        if not codes.size:
            return np.empty(0, dtype=np.float32)
        return self.run(self.request("codec", given_codes=codes), silent=True).samples

    # What they share ----------------------------------------------------------------------------

    def draw_seed(self) -> int:
        """Return the seed of the next stage that is run."""
        if self._seed is not None:
            return self._seed
        return int(torch.randint(2**63 - 1, (1,), dtype=torch.int64, device="cpu"))

    def history(self, history_prompt: VoiceLike | None, *parts: str) -> Voice | None:
        """Return a history prompt as a voice; `parts` are the arrays of it that are read."""
        return load_history(
            history_prompt,
            parts,
            self.bark.requests.voices,
            suno_presets=lambda: self._models.have_suno_presets,
        )

    def request(self, last_stage: Stage, **what: Any) -> Request:
        """Return a request whose stages, except for `what` it says, have nothing to do."""
        greedy = sampling(0, 0.0)
        nothing: dict[str, Any] = {
            "text": "",
            "text_ids": [],
            "voice": None,
            **dict.fromkeys(("semantic", "coarse", "fine"), greedy),
            "max_semantic_tokens": 0,
        }
        filled = {**nothing, **what}
        first = next((filled[s] for s in ("semantic", "coarse", "fine") if s in what), greedy)
        return Request(**filled, seed=first.seed, last_stage=last_stage)

    def run(self, request: Request, silent: bool) -> Speech:
        """Return what a request becomes; warns of a text that nothing is said for."""
        # The caller of the function that called this is whom a warning concerns.
        return speak_all(
            self.bark.driver, [request], single=True, progress=not silent, stacklevel=4
        )[0]
