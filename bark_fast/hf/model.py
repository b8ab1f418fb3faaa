"""transformers' BarkModel, with this library's engine under `generate`."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.bark.generation_configuration_bark import BarkSemanticGenerationConfig
from transformers.utils import is_flash_attn_2_available

from bark_fast.checkpoint.config import CODEC, NETWORKS
from bark_fast.devices import resolve_accelerator, resolve_dtype, resolve_impl
from bark_fast.engine.driver import Driver
from bark_fast.engine.options import EngineOptions
from bark_fast.errors import InputError, warn
from bark_fast.hf.engine_config import read_engine_config
from bark_fast.hf.fallback import generate_with_transformers
from bark_fast.hf.inputs import read_rows, read_seeds, read_voices
from bark_fast.hf.keywords import Keywords
from bark_fast.hf.not_served import NotServedError
from bark_fast.hf.params import SECTIONS, read_sections, resolve_params
from bark_fast.hf.serving import Serving, ServingConfig
from bark_fast.hf.structure import Structure
from bark_fast.request import Request
from bark_fast.types import TOKEN_STAGES, GenerationParams, TokenStage, Voice

_CAUSAL_STAGES: tuple[TokenStage, ...] = ("semantic", "coarse")
_ENCODER = f"{CODEC}.encoder."
_CODEBOOK = f"{CODEC}.quantizer.layers.0.codebook.embed"  # audio has its dtype


@dataclass(frozen=True)
class _Plan:
    """A call that the engine serves.

    Attributes:
        tensors: the module's, by the names that a checkpoint has for them.
        driver: None if an engine must be built first.
    """

    keywords: Keywords
    params: GenerationParams
    tensors: Mapping[str, Tensor]
    config: ServingConfig
    driver: Driver | None


class BarkModel(transformers.BarkModel):
    """transformers' BarkModel; `generate` is faster and says each row as if it were alone.

    The engine is built at the first `generate`, on the weights of this module, and again when they
    or the configuration have changed (load_state_dict, `.to`, edits in place; `reset_engine` says
    what goes unseen). Torch counts no edits of a module that was made under inference_mode, so
    there it is built at every `generate`. It shares the weights where it can use them as they are.
    Kernels that pack them (on CPUs) keep a copy, the fine model's embeddings are stacked into one
    tensor, and the codec is computed in float32 whatever its dtype.

    The engine serves where it gives what running the modules would give. Elsewhere `generate` is
    transformers' own, with a warning that names the reason: modules that were replaced, wrapped,
    quantised, parametrized or hooked, methods that were replaced, dropout in training, weights in
    float64 or in several dtypes or on several devices, a float32 module under autocast to a lower
    precision, and keywords that only transformers' loop knows (num_beams, repetition_penalty,
    stopping_criteria, ...). Compiled modules are served. `why_not_served` asks beforehand.

    What differs from transformers' `generate` where the engine serves:

    - A row does not depend on the others: nothing is drawn or decoded after its end, where
      transformers decodes noise up to the length of the longest, and it is the same in any batch.
    - A row of ids that is shorter than the prompt is padded, where transformers fails.
    - `history_prompt` may be a list, one voice (or None) for each row.
    - `seed` makes speech that can be made again, whatever the batch. Its random numbers do not come
      from torch's generator, so a seed of torch's gives other samples than in transformers.
    - float16 on a CPU is computed in float32.

    Attributes:
        engine_impl: the kernels, as in `Bark.from_pretrained(impl=...)`.
        engine_options: how rows share the machine; None is what suits the device.
        engine_int8: the engine has weights in 8 bits, as in `Bark.from_pretrained(dtype="int8")`,
            whatever the module's dtype.
        engine_strict: what the engine does not serve is an InputError, and transformers' own
            generate never runs.
    """

    # Missing weights that transformers need not report: masks, which it makes itself, and the
    # statistics of training the codec.
    _keys_to_ignore_on_load_missing = [  # noqa: RUF012 - transformers' name
        rf"^({'|'.join(NETWORKS.values())})\.layers\.\d+\.attn\.bias$",
        rf"^{CODEC}\.quantizer\.layers\.\d+\.codebook\.(inited|cluster_size|embed_avg)$",
    ]

    engine_impl: str = "auto"
    engine_options: EngineOptions | None = None
    engine_int8: bool = False
    engine_strict: bool = False
    _serving: Serving | None = None
    _structure: Structure | None = None
    _offload_device: torch.device | None = None

    def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        self._structure = Structure(self)
        self._codec_settings = copy.deepcopy(self.codec_model.config.to_dict())
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
            warn(
                'there is no flash-attn for attn_implementation="flash_attention_2", and generate '
                "needs none: the engine has kernels of its own. The forward of the sub-models is "
                '"eager"',
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

    def _adjust_missing_and_unexpected_keys(self, *loaded: Any) -> Any:
        """Leave the codec's encoder out of the report of missing weights, if it is missing as a
        whole.

        Speaking needs none; but where a part is there, the file has lost the rest.
        """
        missing = set(getattr(loaded[0], "missing_keys", loaded[0]))  # before transformers 5 a list
        encoder = {name for name in self.state_dict() if name.startswith(_ENCODER)}
        if encoder <= missing:
            ignored = set(self._keys_to_ignore_on_load_missing or ())
            self._keys_to_ignore_on_load_missing = [*ignored, f"^{re.escape(_ENCODER)}"]
        return super()._adjust_missing_and_unexpected_keys(*loaded)

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
                semantic stage. With others transformers' own generate runs. As in transformers the
                fine stage looks at its temperature alone (None and 1.0: the most likely code),
                min_eos_p is not used unless given here, and a generation_config given here is not
                looked at (with a warning if it differs).

        Returns:
            Audio [B, T] of the codec's dtype on `device`, rows padded with zeros; with
            `return_output_lengths` also a list of B lengths.

        Raises:
            InputError: an argument is wrong, or transformers has no such keyword; or the engine
                does not serve the call, and `engine_strict` is True.
        """
        if not isinstance(return_output_lengths, (bool, type(None))):
            raise InputError(
                f"return_output_lengths must be True, False or None, got {return_output_lengths!r}"
            )
        try:
            plan = self._plan(keywords)
        except NotServedError as reason:
            if self.engine_strict:
                raise InputError(
                    f"generate must be what the engine serves (engine_strict), but {reason}"
                ) from reason
            warn(
                f"transformers' own generate runs, without the engine, because {reason}",
                stacklevel=2,
            )
        else:
            return self._generate(plan, input_ids, history_prompt, return_output_lengths, seed)
        audio = generate_with_transformers(
            super().generate, input_ids, history_prompt, return_output_lengths, seed, keywords,
            width=self._prompt_width(),
            device=None if self._offload_device is None else torch.device("cpu"),
        )  # fmt: skip
        if self._offload_device is None:
            return audio  # type: ignore[no-any-return]
        waves, *lengths = audio if isinstance(audio, tuple) else (audio,)
        moved = waves.to(self.device)
        return (moved, *lengths) if lengths else moved

    def why_not_served(self, **keywords: Any) -> str | None:
        """Return why the engine does not serve `generate` with these keywords; None if it does.

        Raises:
            InputError: transformers has no such keyword.
        """
        try:
            self._plan(keywords)
        except NotServedError as reason:
            return str(reason)
        return None

    def _plan(self, keywords: Mapping[str, Any]) -> _Plan:
        """Return how the engine serves these keywords.

        Raises:
            NotServedError: the modules or the keywords ask for something that it does not do.
            InputError: an argument is wrong.
        """
        sorted_keywords = Keywords.sort(keywords)
        assert self._structure is not None
        assert self._serving is not None
        tensors = self._structure.check(self)
        parts = self._structure.parts(self)
        sections = read_sections(self.generation_config)
        submodels = {stage: parts[NETWORKS[stage]].generation_config for stage in _CAUSAL_STAGES}
        params = resolve_params(sorted_keywords, sections, submodels)
        config = ServingConfig(
            model=read_engine_config(
                self.generation_config, parts, tensors, sections, self._codec_settings
            ),
            impl=self.engine_impl,
            options=self.engine_options,
            device=self._offload_device,
            offload=self._offload_device is not None,
            int8=self.engine_int8,
        )
        driver = self._serving.find(tensors, config)
        return _Plan(sorted_keywords, params, tensors, config, driver)

    def _generate(
        self,
        plan: _Plan,
        input_ids: Any,
        history_prompt: Any,
        return_output_lengths: bool | None,
        seed: Any,
    ) -> Tensor | tuple[Tensor, list[int]]:
        """Say each row on the engine; arguments are those of `generate`."""
        config, keywords = plan.config.model, plan.keywords
        keywords.warn_of_length(config.semantic_rules.max_new_tokens)
        keywords.warn_of_ignored(self.generation_config)
        rows = read_rows(input_ids, keywords.attention_mask, config)
        voices = read_voices(history_prompt, len(rows), config)
        seeds = read_seeds(seed, len(rows), random=_is_random(plan.params))
        requests = [
            Request.resolve("", row, voice, replace(plan.params, seed=row_seed), config)
            for row, voice, row_seed in zip(rows, voices, seeds, strict=True)
        ]
        assert self._serving is not None
        driver = plan.driver or self._serving.build(plan.tensors, plan.config)
        futures = driver.finish(requests, [None] * len(requests))
        waves = [torch.from_numpy(future.result().samples) for future in futures]
        audio = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
        audio = audio.to(self.device, plan.tensors[_CODEBOOK].dtype)
        if return_output_lengths:
            return audio, [len(wave) for wave in waves]
        return audio

    def _prompt_width(self) -> int | None:
        """Return the length of the prompt; None if the configuration does not say it."""
        section = getattr(self.generation_config, SECTIONS["semantic"], None)
        if isinstance(section, Mapping):
            section = BarkSemanticGenerationConfig(**section)
        width = getattr(section, "max_input_semantic_length", None)
        return width if isinstance(width, int) else None

    def reset_engine(self) -> None:
        """Drop the engine, so that the next `generate` builds a new one.

        This is for writes that torch does not count, through `.data` or numpy: those of many
        elements of a tensor are seen, and those of a few may not be.
        """
        if self._serving is not None:
            self._serving.drop()

    def enable_cpu_offload(self, accelerator_id: int | None = 0, **options: Any) -> None:
        """Keep the weights on the host, except those of the stage that runs.

        `generate` then computes on the CUDA device of that number, and rows go through the stages
        together. The forward of the sub-models runs where their weights are, on the host, which
        then holds them twice: for the module and for the engine. It stays so until the model is
        loaded anew. Unlike transformers' method this one does not need accelerate.

        Args:
            options: `gpu_id` is an older name of `accelerator_id`, which it comes before if it is
                not 0. Others are not looked at, as in transformers, with a warning.

        Raises:
            InputError: there is no such device.
        """
        accelerator_id = options.pop("gpu_id", 0) or accelerator_id
        if options:
            warn(
                f"{', '.join(options)} is not looked at, as transformers' enable_cpu_offload does "
                "not look at it either",
                stacklevel=2,
            )
        device = resolve_accelerator(accelerator_id)
        self.to("cpu")
        if device.type == "cuda":
            torch.cuda.empty_cache()
        self.reset_engine()
        self._offload_device = device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Apply `fn` to every tensor, which `.to`, `.half` and `.cuda` do, and drop an engine that
        would keep the old ones."""
        result = super()._apply(fn, recurse)
        if self._serving is not None and self._structure is not None:
            structure = self._structure
            self._serving.drop_if_changed(lambda: structure.tensors(self))
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
