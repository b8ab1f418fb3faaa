"""suno's own checkpoint files: text_2.pt, coarse_2.pt and fine_2.pt, or the small text.pt,
coarse.pt and fine.pt.

Each is a dictionary that torch.save wrote. "model" holds the weights under the names of suno's code
(suno-ai/bark, model.py and model_fine.py; "_orig_mod." in front is torch.compile's) and
"model_args" the shape of the network. The rest is of training: the optimizer's state, which makes
two thirds of the file and is never read, and a loss as a numpy number, which is why torch refuses
the files unless told otherwise. The stages' sizes can be mixed.

Token ids, rates and windows are constants of suno's code, and the defaults of transformers'
generation configs have the same values. The codec and the tokenizer are not suno's: its code loads
EnCodec through the encodec package and BERT's tokenizer through transformers. They may lie in the
same folder, or where that code has left them (the folder of torch.hub, the cache of the hub's
files), and are taken from the hub otherwise.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from bark_fast.checkpoint.config import CODEC, CONFIG_FILE, NETWORKS
from bark_fast.checkpoint.layout import Checkpoint
from bark_fast.checkpoint.reading import parse_config
from bark_fast.checkpoint.section import Section
from bark_fast.checkpoint.source import Source, folder_as_absolute
from bark_fast.checkpoint.stored import (
    JoinedTensors,
    RenamedTensors,
    StoredTensors,
    TensorsInFiles,
    TensorsInPickle,
    read_pickle,
)
from bark_fast.errors import CheckpointError, InputError

Size = Literal["large", "small"]

FILES: Mapping[str, Mapping[Size, str]] = {
    "text": {"large": "text_2.pt", "small": "text.pt"},
    "coarse": {"large": "coarse_2.pt", "small": "coarse.pt"},
    "fine": {"large": "fine_2.pt", "small": "fine.pt"},
}
CODEC_FOLDER, CODEC_ID = "encodec_24khz", "facebook/encodec_24khz"
CODEC_FILE = "encodec_24khz-d7cc33bc.th"  # as torch.hub keeps what the encodec package loads
TOKENIZER_FOLDER = "bert-base-multilingual-cased"
TOKENIZER_ID = f"google-bert/{TOKENIZER_FOLDER}"
# suno's code asks for it by the old name, from before the hub's names had owners.
_TOKENIZER_NAMES = (TOKENIZER_ID, TOKENIZER_FOLDER)

# What suno calls the stages -> what transformers calls their networks.
_NETWORKS = {"text": NETWORKS["semantic"], "coarse": NETWORKS["coarse"], "fine": NETWORKS["fine"]}
# "model_args" -> config.json.
_ARGUMENTS = {
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "n_embd": "hidden_size",
    "block_size": "block_size",
    "input_vocab_size": "input_vocab_size",
    "output_vocab_size": "output_vocab_size",
    "n_codes_total": "n_codes_total",
    "n_codes_given": "n_codes_given",
}
# Parts of tensors' names: suno's -> transformers'.
_RENAMED = (
    ("transformer.wte.", "input_embeds_layer."),
    ("transformer.wtes.", "input_embeds_layers."),
    ("transformer.wpe.", "position_embeds_layer."),
    ("transformer.ln_f.", "layernorm_final."),
    ("transformer.h.", "layers."),
    (".ln_1.", ".layernorm_1."),
    (".ln_2.", ".layernorm_2."),
    (".attn.c_attn.", ".attn.att_proj."),
    (".attn.c_proj.", ".attn.out_proj."),
    (".mlp.c_fc.", ".mlp.in_proj."),
    (".mlp.c_proj.", ".mlp.out_proj."),
)
# A numpy number, as old and new numpy write it.
_UNREAD = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")


@dataclass(frozen=True)
class SunoFiles:
    """suno's files in a folder or a hub repository, and the size of each.

    `Bark.from_pretrained` takes one in place of the folder.

    Attributes:
        model: the folder, or a hub id: "suno/bark" has all six.
        text, coarse, fine: "large" or "small"; None takes the large one if it is there.

    Raises:
        InputError: a size is none of these.
    """

    model: str | os.PathLike[str]
    text: Size | None = None
    coarse: Size | None = None
    fine: Size | None = None

    def __post_init__(self) -> None:
        for stage in FILES:
            size = getattr(self, stage)
            if size not in (None, "large", "small"):
                raise InputError(f'{stage} must be "large", "small" or None, got {size!r}')
        # It may be opened later, in another working directory.
        object.__setattr__(self, "model", folder_as_absolute(self.model))

    def open(
        self, *, revision: str | None = None, local_files_only: bool = False, **options: Any
    ) -> Checkpoint:
        """Find the files and read all but the weights.

        Args:
            revision, local_files_only, options: those of `Source.open`.

        Raises:
            InputError: `model` is neither a folder nor a hub id.
            CheckpointError: a file is missing or damaged, or contradicts another.
        """
        source = Source.open(
            self.model, revision=revision, local_files_only=local_files_only, **options
        )
        if source.variant is not None:
            raise InputError(f"variant must be None for suno's own files, got {source.variant!r}")
        paths = {stage: _find(source, stage, getattr(self, stage)) for stage in FILES}
        sections = {f"{_NETWORKS[stage]}_config": _read_shape(paths[stage]) for stage in FILES}
        sections[f"{NETWORKS['fine']}_config"]["tie_word_embeddings"] = True
        codec = _find_codec(source, local_files_only)
        sections["codec_config"] = {} if codec.is_packages else codec.source.read_json(CONFIG_FILE)
        generation: dict[str, Any] = {f"{network}_config": {} for network in NETWORKS.values()}
        config = parse_config(sections, generation, where=source.name)

        def tensors() -> StoredTensors:
            parts = [_stage_tensors(paths[stage], _NETWORKS[stage]) for stage in FILES]
            parts.append(_codec_tensors(codec))
            return JoinedTensors(parts, source.name)

        return Checkpoint(source, config, _find_tokenizer(source, local_files_only), tensors)


def has_suno_files(source: Source) -> bool:
    """Return True for a checkpoint with one of these files and without config.json."""
    return source.find(CONFIG_FILE) is None and any(
        source.find(file) is not None for files in FILES.values() for file in files.values()
    )


def _find(source: Source, stage: str, size: Size | None) -> Path:
    sizes: tuple[Size, ...] = ("large", "small") if size is None else (size,)
    for each in sizes:
        path = source.find(FILES[stage][each])
        if path is not None:
            return path
    wanted = " or ".join(FILES[stage][each] for each in sizes)
    raise source.missing(f"{wanted} is missing")


def _read_shape(path: Path) -> dict[str, Any]:
    """Read the "model_args" of a file, as a section of transformers' config.json.

    What they leave out is the same in suno's code and in transformers' defaults.
    """
    content = read_pickle(path, unread=_UNREAD)
    found = content.get("model_args") if isinstance(content, Mapping) else None
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path}: must hold a dictionary model_args, got {found!r}")
    arguments = dict(found)
    if "vocab_size" in arguments:  # before the two could differ
        arguments.setdefault("input_vocab_size", arguments["vocab_size"])
        arguments.setdefault("output_vocab_size", arguments["vocab_size"])
    section = Section(arguments, f"{path}: model_args")
    shape: dict[str, Any] = {
        name: section.integer(argument, 1)
        for argument, name in _ARGUMENTS.items()
        if argument in arguments
    }
    if "bias" in arguments:
        shape["bias"] = section.boolean("bias")
    return shape


def _stage_tensors(path: Path, prefix: str) -> StoredTensors:
    def rename(name: str) -> str:
        name = name.removeprefix("_orig_mod.")
        for old, new in _RENAMED:
            name = name.replace(old, new)
        return f"{prefix}.{name}"

    return RenamedTensors(TensorsInPickle(path, key="model", unread=_UNREAD), rename)


@dataclass(frozen=True)
class _Codec:
    """The folder or repository of the codec, and whether it is the encodec package's own file."""

    source: Source
    is_packages: bool = False


def _find_codec(source: Source, local_files_only: bool) -> _Codec:
    """Find the codec: beside the checkpoint, where the encodec package left it, or on the hub."""
    folder = source.subfolder(CODEC_FOLDER)
    if folder is not None:
        return _Codec(folder)
    downloads = Path(torch.hub.get_dir()) / "checkpoints"
    for each in (source, Source(str(downloads), downloads)):
        if each.find(CODEC_FILE) is not None:
            return _Codec(each, is_packages=True)
    what = f"codec ({CODEC_FOLDER}/ or {CODEC_FILE})"
    return _Codec(_elsewhere(source, what, CODEC_ID, local_files_only))


def _codec_tensors(codec: _Codec) -> StoredTensors:
    if not codec.is_packages:
        return RenamedTensors(TensorsInFiles(codec.source), f"{CODEC}.{{}}".format)

    def rename(name: str) -> str:
        # The encodec package wraps each convolution twice, and each codebook once.
        name = re.sub(r"^(encoder|decoder)\.model\.", r"\1.layers.", name)
        name = re.sub(r"\.(conv\.conv|convtr\.convtr)\.", ".conv.", name)
        name = name.replace("quantizer.vq.layers.", "quantizer.layers.")
        return f"{CODEC}." + name.replace("._codebook.", ".codebook.")

    return RenamedTensors(TensorsInPickle(codec.source.require(CODEC_FILE)), rename)


def _find_tokenizer(source: Source, local_files_only: bool) -> Source:
    """Find the tokenizer: beside the checkpoint, downloaded under either name, or on the hub."""

    def holds_one(source: Source) -> bool:
        return any(source.find(file) is not None for file in ("tokenizer.json", "vocab.txt"))

    folder = source.subfolder(TOKENIZER_FOLDER)
    downloaded = [Source(name, None, local_files_only=True) for name in _TOKENIZER_NAMES]
    if holds_one(source):
        return source
    if folder is not None:
        return folder
    for each in downloaded:
        # Without config.json nobody knows which kind of tokenizer it is.
        if each.find(CONFIG_FILE) is not None and holds_one(each):
            return each
    return _elsewhere(source, f"tokenizer ({TOKENIZER_FOLDER}/)", TOKENIZER_ID, local_files_only)


def _elsewhere(source: Source, what: str, hub_id: str, local_files_only: bool) -> Source:
    """Open the hub repository that has what the checkpoint lacks."""
    other = Source.open(
        hub_id,
        local_files_only=local_files_only,
        cache_dir=source.cache_dir,
        token=source.token,
    )
    try:
        other.require(CONFIG_FILE)  # it says which kind of codec, and of tokenizer
    except CheckpointError as error:
        raise CheckpointError(f"{source.name}: it holds no {what}; {error}") from error
    return other
