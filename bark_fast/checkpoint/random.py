"""Write checkpoints of random weights, for tests, benchmarks and trying the pipeline without a
download. They make noise, at exactly the cost of a trained model of the same size."""

from __future__ import annotations

import json
import math
import os
import shutil
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bark_fast.ambient import meta_device, settled
from bark_fast.checkpoint.config import CONFIG_FILE, GENERATION_FILE, Config
from bark_fast.checkpoint.reading import parse_config
from bark_fast.errors import InputError
from bark_fast.types import Voice
from bark_fast.validation import check_seed

# (layers, heads, width, EnCodec filters). small and large are suno/bark-small and suno/bark.
_SHAPES = {"tiny": (2, 2, 64, 4), "small": (12, 12, 768, 32), "large": (24, 16, 1024, 32)}
SIZES = tuple(_SHAPES)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PRESET_NAMES = ("v2/en_speaker_0", "v2/en_speaker_6")
_PRESET_SEMANTIC_TOKENS = 120

# BERT's special tokens, then characters: every word is spelled.
_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CHARACTERS = "".join(c for c in string.printable if not c.isspace()) + "".join(
    chr(i) for i in range(0xA1, 0x180) if chr(i).isprintable()
)


def create_checkpoint(
    folder: str | os.PathLike[str], *, size: str = "tiny", seed: int = 0, dtype: str = "float32"
) -> Path:
    """Write a checkpoint of random weights in transformers' layout.

    It has config.json, generation_config.json, model.safetensors, a tokenizer that spells, and two
    voice presets. `small` and `large` have the sizes and token ids of suno's models; `tiny` has
    smaller ids too.

    Args:
        folder: made if it does not exist; must be empty.
        size: "tiny", "small" or "large".
        seed: the same seed gives the same files.
        dtype: of the stored weights: "float32", "float16" or "bfloat16".

    Returns:
        The folder.

    Raises:
        InputError: an argument is not one of these, or the folder is not empty.
    """
    if size not in _SHAPES:
        raise InputError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    check_seed("seed", seed)
    seed = int(seed)  # numpy's too
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if not isinstance(folder, (str, os.PathLike)):
        raise InputError(f"folder must be a path, got {folder!r}")
    target = Path(os.fsdecode(folder))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"folder must be new or empty, got {str(target)!r}")
    new = not target.exists()
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"folder must be one that can be made, got {str(target)!r}: {error}"
        ) from error

    config, generation = settings_for(size)
    try:
        save_model(target, config, generation, seed=seed, dtype=DTYPES[dtype])
        write_tokenizer(target)
        _write_presets(target, parse_config(config, generation), seed)
    except BaseException:  # half a checkpoint could be taken for one
        _empty(target)
        if new:
            target.rmdir()
        raise
    return target


def _empty(folder: Path) -> None:
    """Remove all that a folder holds."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@settled(inference=False)
def save_model(
    folder: Path,
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    weight_std: float | None = None,
) -> None:
    """Write the two JSON files and model.safetensors of a random BarkModel with these settings.

    Args:
        weight_std: the standard deviation of the transformers' weights; None means Bark's own.
    """
    from safetensors.torch import save_file

    generator = torch.Generator(device="cpu").manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in stored_shapes(config).items():
        if not name.endswith(".original0"):
            tensor = _random_tensor(name, shape, generator, weight_std)
            tensors[name] = tensor if tensor.dtype == torch.bool else tensor.to(dtype)
    for name in [n for n in tensors if n.endswith(".original1")]:
        # A magnitude equal to the direction's length leaves the weight as it was drawn.
        length = torch.linalg.vector_norm(tensors[name].float(), dim=(1, 2), keepdim=True)
        tensors[name[:-1] + "0"] = length.to(dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    # transformers' own file of generation settings depends on its version; this one does not.
    for file, content in ((CONFIG_FILE, config), (GENERATION_FILE, generation)):
        _write_json(folder / file, content)


def stored_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that transformers' BarkModel stores, but for tied heads."""
    from transformers import BarkConfig, BarkModel

    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # transformers 4
        from transformers.modeling_utils import no_init_weights

    with meta_device(), no_init_weights():
        model = BarkModel(BarkConfig(**config))
    tied = config["fine_acoustics_config"]["tie_word_embeddings"]
    return {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not (tied and name.startswith("fine_acoustics.lm_heads."))
    }


def _random_tensor(
    name: str, shape: tuple[int, ...], generator: torch.Generator, weight_std: float | None
) -> torch.Tensor:
    codec = name.startswith("codec_model.")
    if name.endswith("attn.bias") and len(shape) == 4:
        return torch.ones(shape, dtype=torch.bool, device="cpu").tril()
    if len(shape) <= 1 or name.endswith("cluster_size"):
        # Norms start as the identity, biases and statistics at zero.
        value = float("layernorm" in name and name.endswith("weight"))
        return torch.full(shape, value, dtype=torch.float32, device="cpu")
    if name.endswith(("codebook.embed", "codebook.embed_avg")):
        std = 0.2  # keeps the noise within -1 .. 1
    elif codec:
        std = math.prod(shape[1:]) ** -0.5  # keeps the size of what passes through
    else:
        std = 0.02 if weight_std is None else weight_std  # BarkConfig.initializer_range
    drawn = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    return drawn * std


def settings_for(size: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the contents of config.json and generation_config.json for one of `SIZES`."""
    from transformers import BarkConfig
    from transformers.models.bark import generation_configuration_bark as g

    layers, heads, width, filters = _SHAPES[size]
    semantic = g.BarkSemanticGenerationConfig()
    coarse = g.BarkCoarseGenerationConfig()
    n_text = len(_vocabulary())
    if size == "tiny":
        vocab, codebook, longest = 500, 1024, 250
        eos, offset = vocab, vocab + 1
        text_pad, infer = offset + n_text, offset + n_text + 1
        semantic_in, semantic_out = infer + 1, offset
        coarse_pad = vocab + 2 * codebook
        coarse_infer, coarse_vocab = coarse_pad + 1, coarse_pad + 2
    else:
        vocab, codebook = semantic.semantic_vocab_size, 1024
        longest, eos = semantic.max_new_tokens, semantic.eos_token_id
        offset, text_pad = semantic.text_encoding_offset, semantic.text_pad_token
        infer = semantic.semantic_infer_token
        # As in suno's checkpoints: the rest of the vocabulary up to a multiple of 16.
        semantic_in, semantic_out = infer + 1, offset
        coarse_pad, coarse_infer = coarse.coarse_semantic_pad_token, coarse.coarse_infer_token
        coarse_vocab = coarse_pad + 48

    def gpt(input_vocab: int, output_vocab: int) -> dict[str, Any]:
        return {
            "num_layers": layers,
            "num_heads": heads,
            "hidden_size": width,
            "block_size": 1024,
            "input_vocab_size": input_vocab,
            "output_vocab_size": output_vocab,
            "bias": False,
        }

    config = {
        "model_type": BarkConfig.model_type,
        "architectures": ["BarkModel"],
        "semantic_config": gpt(semantic_in, semantic_out),
        "coarse_acoustics_config": gpt(coarse_vocab, coarse_vocab),
        "fine_acoustics_config": {
            **gpt(codebook + 32, codebook + 32),
            "n_codes_total": 8,
            "n_codes_given": 1,
            "tie_word_embeddings": True,
        },
        "codec_config": {"model_type": "encodec", "num_filters": filters},
    }
    generation = {
        "semantic_config": {
            "do_sample": True,
            "temperature": 0.7,
            "eos_token_id": eos,
            "max_new_tokens": longest,
            "min_eos_p": 0.2,
            "semantic_infer_token": infer,
            "semantic_vocab_size": vocab,
            "text_encoding_offset": offset,
            "text_pad_token": text_pad,
        },
        "coarse_acoustics_config": {
            "do_sample": True,
            "temperature": 0.7,
            "coarse_infer_token": coarse_infer,
            "coarse_semantic_pad_token": coarse_pad,
        },
        "fine_acoustics_config": {"temperature": 0.5},
        "codebook_size": codebook,
        "sample_rate": 24_000,
    }
    return config, generation


def _vocabulary() -> list[str]:
    return [*_SPECIAL_TOKENS, *_CHARACTERS, *(f"##{c}" for c in _CHARACTERS)]


def write_tokenizer(folder: Path) -> None:
    """Write the files of a tokenizer that spells."""
    # Plain files rather than save_pretrained, whose class names differ with the version.
    (folder / "vocab.txt").write_text("\n".join(_vocabulary()) + "\n", encoding="utf-8")
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "strip_accents": False},
    )


def _write_presets(folder: Path, config: Config, seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames = int(
        _PRESET_SEMANTIC_TOKENS
        * config.semantic_to_coarse_ratio
        / config.coarse_rules.n_coarse_codebooks
    )
    index: dict[str, Any] = {"repo_or_path": folder.name}
    for name in PRESET_NAMES:
        fine = rng.integers(config.codebook_size, size=(config.fine_rules.n_fine_codebooks, frames))
        semantic = rng.integers(
            config.semantic_rules.semantic_vocab_size, size=_PRESET_SEMANTIC_TOKENS
        )
        coarse = fine[: config.coarse_rules.n_coarse_codebooks]
        index[name] = {}
        for key, array in Voice(semantic, coarse, fine).arrays().items():
            file = f"speaker_embeddings/{name}_{key}.npy"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            np.save(folder / file, array)
            index[name][key] = file
    _write_json(folder / "speaker_embeddings_path.json", index)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
