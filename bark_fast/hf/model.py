"""transformers' BarkModel, with this library's engine under `generate`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.bark.generation_configuration_bark import BarkSemanticGenerationConfig
from transformers.utils import is_flash_attn_2_available

from bark_fast.checkpoint.config import Config
from bark_fast.checkpoint.reading import parse_config
from bark_fast.devices import resolve_accelerator, resolve_dtype, resolve_impl
from bark_fast.engine.options import EngineOptions
from bark_fast.errors import BarkFastWarning, InputError
from bark_fast.hf.inputs import read_rows, read_seeds, read_voices
from bark_fast.hf.keywords import SAMPLING, Keywords
from bark_fast.hf.params import SECTIONS, read_sections, resolve_params
from bark_fast.hf.serving import Serving, ServingConfig
from bark_fast.request import Request
from bark_fast.types import TOKEN_STAGES, GenerationParams, TokenStage, Voice


class BarkModel(transformers.BarkModel):
    """transformers' BarkModel; `generate` is faster and says each row as if it were alone.

    The engine is built at the first `generate`, on the weights of this module, and again when they
    or the configuration have changed (load_state_dict, `.to`, edits in place; not what is written
    through `.data`: see `reset_engine`). Torch counts no edits of a module that was made under
    inference_mode, so there it is built at every `generate`. It shares the weights where it can use
    them as they are. Kernels that pack them (on CPUs) keep a copy, the fine model's embeddings are
    stacked into one tensor, and the codec is computed in float32 whatever its dtype.

    What differs from transformers' `generate`:

    - A row does not depend on the others: nothing is drawn or decoded after its end, where
      transformers decodes noise up to the length of the longest, and it is the same in any batch.
    - A row of ids that is shorter than the prompt is padded, where transformers fails.
    - `history_prompt` may be a list, one voice (or None) for each row.
    - `seed` makes speech that can be made again, whatever the batch. Its random numbers do not come
      from torch's generator, so a seed of torch's gives other samples than in transformers.
    - Keywords that cannot be honoured are errors, before anything is computed.
    - Dropout is never applied, not in `train()` mode either.
    - float16 on a CPU is computed in float32.

    Attributes:
        engine_impl: the kernels, as in `Bark.from_pretrained(impl=...)`.
        engine_options: how rows share the machine; None is what suits the device.
        engine_int8: the engine has weights in 8 bits, as in `Bark.from_pretrained(dtype="int8")`,
            whatever the module's dtype.
    """

    engine_impl: str = "auto"
    engine_options: EngineOptions | None = None
    engine_int8: bool = False
    _serving: Serving | None = None
    _offload_device: torch.device | None = None

    def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        self._serving = Serving()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *arguments: Any,
        **options: Any,
    ) -> Any:
        """Load a model from a folder or the hub; arguments as in transformers.

        Args:
            options: also dtype="int8", with which the module has the dtype of its files and the
                engine weights in 8 bits (`engine_int8`). attn_implementation="flash_attention_2"
                is "eager" with a warning where there is no flash-attn: `generate` does not use it.

        Raises:
            InputError: this machine's CPU does not run int8.
        """
        if options.get("attn_implementation") == "flash_attention_2" and (
            not is_flash_attn_2_available()
        ):
            options["attn_implementation"] = "eager"
            warnings.warn(
                'there is no flash-attn for attn_implementation="flash_attention_2", and generate '
                "needs none: the engine has kernels of its own. The forward of the sub-models is "
                '"eager"',
                BarkFastWarning,
                stacklevel=2,
            )
        asked = options.get("dtype")
        if asked is None:
            asked = options.get("torch_dtype")
        int8 = isinstance(asked, str) and asked == "int8"
        if int8:
            # Only CPUs have it. Before the weights are read, which is the slow part.
            cpu = torch.device("cpu")
            resolve_impl("auto", cpu, resolve_dtype("int8", cpu), int8=True)
            options = {k: v for k, v in options.items() if k not in ("dtype", "torch_dtype")}
        loaded = super().from_pretrained(pretrained_model_name_or_path, *arguments, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # output_loading_info=True
        if int8:
            model.engine_int8 = True
        return loaded

    @property
    def device(self) -> torch.device:
        """The device on which `generate` computes and returns audio: that of the weights, unless
        `enable_cpu_offload` named another."""
        if self._offload_device is not None:
            return self._offload_device
        device: torch.device = super().device
        return device

    def generate(
        self,
        input_ids: Tensor | None = None,
        history_prompt: Mapping[str, Any] | Voice | Sequence[Any] | None = None,
        return_output_lengths: bool | None = None,
        *,
        seed: int | Sequence[int] | None = None,
        **keywords: Any,
    ) -> Tensor | tuple[Tensor, list[int]]:
        """Say each row.

        Args:
            input_ids: integers [B, T], the tokenizer's; `BarkProcessor` makes them. What is beyond
                the prompt's length (256) is cut; a shorter row is padded.
            history_prompt: the voice of all rows (semantic_prompt [S], coarse_prompt [n_coarse, F],
                fine_prompt [n_fine, F]), or a list with one for each row, None for no voice.
            return_output_lengths: also return how many samples each row has.
            seed: 0 .. 2**64 - 1; row i takes seed + i. Or a list, one for each row. Without it they
                are drawn from torch's global generator, so torch.manual_seed makes them repeat.
            keywords: attention_mask [B, T] (without it the pads' ids are taken for text);
                do_sample, temperature, top_k, top_p for all stages, with "semantic_", "coarse_" or
                "fine_" before them for one; max_new_tokens, min_new_tokens and min_eos_p of the
                semantic stage. As in transformers the fine stage looks at its temperature alone
                (None and 1.0: the most likely code), min_eos_p is not used unless given here, and
                a generation_config given here is not looked at (with a warning if it differs).

        Returns:
            Audio [B, T] of the codec's dtype on `device`, rows padded with zeros; with
            `return_output_lengths` also a list of B lengths.

        Raises:
            InputError: an argument or keyword is wrong, or asks for what this engine does not do.
            CheckpointError: the weights are not those that the configuration asks for.
        """
        if not isinstance(return_output_lengths, (bool, type(None))):
            raise InputError(
                f"return_output_lengths must be True, False or None, got {return_output_lengths!r}"
            )
        sorted_keywords = Keywords.sort(keywords)
        sections = read_sections(self.generation_config)
        params = resolve_params(
            sorted_keywords,
            sections,
            {
                "semantic": self.semantic.generation_config,
                "coarse": self.coarse_acoustics.generation_config,
            },
        )
        config = self._engine_config(sections)
        sorted_keywords.check_length(config.semantic_rules.max_new_tokens)
        sorted_keywords.warn_of_ignored_config(self.generation_config)
        rows = read_rows(input_ids, sorted_keywords.attention_mask, config)
        voices = read_voices(history_prompt, len(rows), config)
        seeds = read_seeds(seed, len(rows), random=_is_random(params))
        requests = [
            Request.resolve("", row, voice, replace(params, seed=row_seed), config)
            for row, voice, row_seed in zip(rows, voices, seeds, strict=True)
        ]
        assert self._serving is not None
        driver = self._serving.driver(
            self.state_dict(),
            ServingConfig(
                model=config,
                impl=self.engine_impl,
                options=self.engine_options,
                device=self._offload_device,
                offload=self._offload_device is not None,
                int8=self.engine_int8,
            ),
        )
        futures = driver.finish(requests, [None] * len(requests))
        waves = [torch.from_numpy(future.result().samples) for future in futures]
        audio = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
        audio = audio.to(self.device, self.codec_model.dtype)
        if return_output_lengths:
            return audio, [len(wave) for wave in waves]
        return audio

    def reset_engine(self) -> None:
        """Drop the engine, so that the next `generate` builds a new one.

        This is for weights that were changed in a way that torch does not count (through `.data`).
        """
        if self._serving is not None:
            self._serving.drop()

    def enable_cpu_offload(self, accelerator_id: int = 0) -> None:
        """Keep the weights on the host, except those of the stage that runs.

        `generate` then computes on the CUDA device of that number, and rows go through the stages
        together. The forward of the sub-models runs where their weights are, on the host, which
        then holds them twice: for the module and for the engine. It stays so until the model is
        loaded anew. Unlike transformers' method this one does not need accelerate.

        Raises:
            InputError: there is no such device.
        """
        device = resolve_accelerator(accelerator_id)
        self.to("cpu")
        if device.type == "cuda":
            torch.cuda.empty_cache()
        self.reset_engine()
        self._offload_device = device

    def _engine_config(self, sections: Mapping[TokenStage, Mapping[str, Any]]) -> Config:
        """Return the configuration that the engine is built for.

        Sampling settings are left out, because they may change from call to call, and the keywords
        settle them. The longest text is as long as the positions allow.
        """
        # Those of the modules, because transformers 4's pipeline overwrites those in self.config.
        shapes = {
            "semantic_config": self.semantic.config.to_dict(),
            "coarse_acoustics_config": self.coarse_acoustics.config.to_dict(),
            "fine_acoustics_config": self.fine_acoustics.config.to_dict(),
            "codec_config": self.codec_model.config.to_dict(),
        }
        generation: dict[str, Any] = {
            SECTIONS[stage]: {k: v for k, v in section.items() if k not in SAMPLING}
            for stage, section in sections.items()
        }
        for key in ("codebook_size", "sample_rate"):
            generation[key] = getattr(self.generation_config, key, None)
        semantic = generation[SECTIONS["semantic"]]
        width = semantic.get("max_input_semantic_length")
        if width is None:
            width = BarkSemanticGenerationConfig().max_input_semantic_length
        if isinstance(width, int):  # else the configuration is at fault
            semantic["max_new_tokens"] = max(1, self.semantic.config.block_size - width)
        return parse_config(shapes, generation, where="BarkModel")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Apply `fn` to every tensor, which `.to`, `.half` and `.cuda` do, and drop an engine that
        would keep the old ones."""
        result = super()._apply(fn, recurse)
        if self._serving is not None:
            self._serving.drop_if_changed(self.state_dict)
        return result


def _is_random(params: GenerationParams) -> bool:
    """Return True if a stage samples; False if all take the most likely token."""
    return any(getattr(params, f"{stage}_temperature") > 0 for stage in TOKEN_STAGES)


class AutoModel:
    """transformers' AutoModel for programs that load Bark with it; it loads nothing else."""

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | os.PathLike[str], *arguments: Any, **options: Any
    ) -> BarkModel:
        """Load a model, as `BarkModel.from_pretrained` does."""
        model: BarkModel = BarkModel.from_pretrained(
            pretrained_model_name_or_path, *arguments, **options
        )
        return model
