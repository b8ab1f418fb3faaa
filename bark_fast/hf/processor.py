"""transformers' BarkProcessor, which here also takes a voice for each text."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import transformers
from torch import Tensor
from transformers import BatchFeature

from bark_fast.ambient import settled
from bark_fast.checkpoint.source import Source, folder_as_absolute
from bark_fast.checkpoint.unreadable import in_one_line
from bark_fast.errors import InputError
from bark_fast.text import check_tokenizer, check_unicode, tokenizer_folder, unreadable_tokenizer
from bark_fast.types import Voice
from bark_fast.voices import read_npz

_ENDING = ".npz"
_DIMENSIONS = {"semantic_prompt": 1, "coarse_prompt": 2, "fine_prompt": 2}


class BarkProcessor(transformers.BarkProcessor):
    """transformers' BarkProcessor, with more kinds of `voice_preset`.

    It may also be a Voice, or a list with one voice for each text. Presets are read without
    unpickling anything.
    """

    @classmethod
    def from_pretrained(
        cls,
        pretrained_processor_name_or_path: str | os.PathLike[str],
        speaker_embeddings_dict_path: str | None = "speaker_embeddings_path.json",
        **options: Any,
    ) -> BarkProcessor:
        """Load a processor from a folder or the hub; arguments as in transformers.

        Args:
            speaker_embeddings_dict_path: the file that lists the presets; None loads none.

        Raises:
            CheckpointError: there is no tokenizer, or a file of the folder is damaged.
            InputError: it is neither a folder nor a hub id.
        """
        where = str(pretrained_processor_name_or_path)
        if not isinstance(pretrained_processor_name_or_path, (str, os.PathLike)) or not where:
            raise InputError(
                "pretrained_processor_name_or_path must be a folder or a hub id, got "
                f"{pretrained_processor_name_or_path!r}"
            )
        folder = Path(pretrained_processor_name_or_path, options.get("subfolder") or "")
        presets = speaker_embeddings_dict_path
        if folder.is_dir():  # transformers reads these without a check
            tokenizer_folder(Source(where, folder))
            if presets is not None and os.path.isfile(folder / presets):
                Source(where, folder).read_json(presets)
        try:
            processor: BarkProcessor = super().from_pretrained(
                pretrained_processor_name_or_path, presets, **options
            )
        except Exception as error:  # many kinds, by tokenizer and by version
            if not folder.is_dir():  # transformers says what is wrong with the name, or the hub
                raise
            raise unreadable_tokenizer(where, error) from error
        check_tokenizer(processor.tokenizer, where)
        if processor.speaker_embeddings is not None:
            # Where the list does not have this, transformers looks for presets in the root folder.
            # They are read when they are first asked for, perhaps in another working directory.
            folder = folder_as_absolute(pretrained_processor_name_or_path)
            processor.speaker_embeddings["repo_or_path"] = str(folder)
        return processor

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *arguments: Any, **options: Any
    ) -> Any:
        """Write what `from_pretrained` reads, here and in transformers; arguments as there."""
        # transformers writes the name into a JSON file, which a Path cannot be.
        return super().save_pretrained(os.fspath(save_directory), *arguments, **options)

    def __call__(
        self,
        text: Any = None,
        voice_preset: Any = None,
        return_tensors: str | None = "pt",
        max_length: int = 256,
        add_special_tokens: bool = False,
        return_attention_mask: bool = True,
        return_token_type_ids: bool = False,
        **options: Any,
    ) -> Any:
        """Return tokens of one or more texts, and voices for them, for `BarkModel.generate`.

        Args:
            text: a string, or a list of them.
            voice_preset: a preset's name, the path of an .npz file (its ending may be left out), a
                mapping of its arrays (semantic_prompt [S], coarse_prompt [n_coarse, F],
                fine_prompt [n_fine, F]) or a Voice; or a list with one of these, or None, for each
                text.
            return_tensors: "pt" or "np".
            max_length: texts are padded to this many tokens; the model's prompt holds 256.
            options: the tokenizer's.

        Returns:
            A BatchEncoding: input_ids and attention_mask [B, max_length], and history_prompt, a
            BatchFeature of the voice's arrays (with a list of voices a list), if there is one.

        Raises:
            InputError: there is no text or no such voice, its arrays have other shapes, or the
                tokenizer does not take an option.
        """
        _check_text(text, in_words=bool(options.get("is_split_into_words")))
        history: Any = None
        if isinstance(voice_preset, (list, tuple)):
            n_texts = 1 if isinstance(text, str) else len(text)
            if len(voice_preset) != n_texts:
                raise InputError(
                    f"voice_preset must have an entry for each of the {n_texts} texts, "
                    f"got {len(voice_preset)}"
                )
            history = [
                None if voice is None else self._history(voice, return_tensors)
                for voice in voice_preset
            ]
        elif voice_preset is not None:
            history = self._history(voice_preset, return_tensors)
        try:
            with settled(inference=False):  # on the CPU, whatever device is the default
                encoded = super().__call__(
                    text,
                    return_tensors=return_tensors,
                    max_length=max_length,
                    add_special_tokens=add_special_tokens,
                    return_attention_mask=return_attention_mask,
                    return_token_type_ids=return_token_type_ids,
                    **options,
                )
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"text and its options must be what the tokenizer takes: {error}"
            ) from error
        if history is not None:
            encoded["history_prompt"] = history
        return encoded

    def _history(self, voice: Any, return_tensors: str | None) -> Any:
        """Return a voice's arrays, as generate() takes them."""
        arrays = self._arrays(voice)
        found = {}
        for key, n_dimensions in _DIMENSIONS.items():
            value = arrays.get(key)
            if value is None:
                held = ", ".join(map(str, arrays)) or "none"
                raise InputError(f"voice_preset must hold {key}, got {held}")
            requirement = f"must be an array of numbers with {n_dimensions} dimensions"
            try:
                array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
            except (ValueError, TypeError, RuntimeError) as error:  # numpy has no bfloat16
                raise InputError(f"voice_preset: {key} {requirement}: {error}") from error
            if array.ndim != n_dimensions or array.dtype == object:
                raise InputError(
                    f"voice_preset: {key} {requirement}, got {array.dtype} {list(array.shape)}"
                )
            found[key] = array
        with settled(inference=False):
            return BatchFeature(data=found, tensor_type=return_tensors)

    def _arrays(self, voice: Any) -> Mapping[str, Any]:
        if isinstance(voice, Voice):
            return voice.arrays()
        if isinstance(voice, Mapping):
            return voice
        if isinstance(voice, str) and voice in self.available_voice_presets:
            return self._preset(voice)
        if isinstance(voice, (str, os.PathLike)):
            path = Path(voice)
            # os.path's isfile, because a name that is too long for a file is none.
            if not os.path.isfile(path) and not path.name.endswith(_ENDING):
                path = Path(f"{path}{_ENDING}")
            if os.path.isfile(path):
                return read_npz(path, "voice_preset")
        names = self.available_voice_presets
        known = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise InputError(
            f"voice_preset must be a preset ({known or 'there are none'}), the path of an .npz "
            f"file that exists, a mapping of arrays, a Voice or a list of these, got {voice!r}"
        )

    def _preset(self, name: str) -> Mapping[str, Any]:
        files = self.speaker_embeddings[name]
        for key in _DIMENSIONS:
            file = files.get(key) if isinstance(files, Mapping) else None
            path = PurePosixPath(file) if isinstance(file, str) else None
            if path is None or path.is_absolute() or ".." in path.parts:
                raise InputError(
                    f"voice_preset {name!r} must name a file in the folder for {key}, got {file!r}"
                )
        try:
            arrays: Mapping[str, Any] = self._load_voice_preset(name)
        except Exception as error:  # missing, damaged, or pickled
            reason = in_one_line(error)
            raise InputError(f"voice_preset {name!r} cannot be read: {reason}") from error
        return arrays


def _check_text(text: Any, *, in_words: bool) -> None:
    """Check that `text` is a string or a list of them; of lists of words, if it is `in_words`.

    Raises:
        InputError: it is something else, or there is nothing in it.
    """
    if not isinstance(text, (str, list, tuple)):
        raise InputError(f"text must be a string or a list of them, got {text!r}")
    if not isinstance(text, str) and not text:
        raise InputError(f"text must hold at least one text, got {text!r}")
    for i, one in enumerate([text] if isinstance(text, str) else text):
        words = one if in_words and isinstance(one, (list, tuple)) else [one]
        for word in words:
            if not isinstance(word, str):
                raise InputError(f"text[{i}] must be a string, got {word!r}")
            check_unicode(word)


class AutoProcessor:
    """transformers' AutoProcessor for programs that load Bark with it; it loads nothing else."""

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | os.PathLike[str], **options: Any
    ) -> BarkProcessor:
        """Load a processor, as `BarkProcessor.from_pretrained` does."""
        return BarkProcessor.from_pretrained(pretrained_model_name_or_path, **options)
