"""Count the least that each network must move and compute, by formula from the config.

Bytes are those of weights, which must come from memory once for each call, and of state: keys,
values, embedding rows, samples. What passes from layer to layer is left out, because it may stay in
caches. A multiplication with its addition is two FLOPs; norms, activations and softmax are left
out. So a floor made of these is below what any implementation needs, bark-fast included.

B batch, T tokens, C width, F frames, V columns of the head that a step can draw from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from bark_fast.checkpoint.config import CodecConfig, Config, FineGPTConfig, GPTConfig

CODEC_SIZE = 4  # bytes of a number in the codec, which is float32 whatever the dtype


@dataclass(frozen=True)
class Cost:
    """The least work of a call.

    Attributes:
        weight_bytes: read once, however many utterances share the call.
        state_bytes: read or written for the utterances themselves.
    """

    weight_bytes: float = 0
    state_bytes: float = 0
    flops: float = 0

    @property
    def n_bytes(self) -> float:
        return self.weight_bytes + self.state_bytes

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.weight_bytes + other.weight_bytes,
            self.state_bytes + other.state_bytes,
            self.flops + other.flops,
        )

    def __mul__(self, times: float) -> Cost:
        return Cost(self.weight_bytes * times, self.state_bytes * times, self.flops * times)


def block_weights(config: GPTConfig) -> int:
    """Count the numbers in all blocks: 12 C^2 a block, and its two norms and four biases.

    The fine model's norms always have a bias, those of the causal models if the products have.
    """
    c = config.hidden_size
    norms = 2 * c * (2 if config.bias or isinstance(config, FineGPTConfig) else 1)
    biases = (3 + 1 + 4 + 1) * c if config.bias else 0
    return config.num_layers * (12 * c * c + norms + biases)


def block_flops(config: GPTConfig, tokens: int, *, wanted: int) -> int:
    """Return the FLOPs of the four products, 24 C^2 a token and block; in the last block 4 C^2, for
    keys and values, of tokens whose logits are not `wanted`."""
    of_all = config.num_layers * 24 * tokens - 20 * (tokens - wanted)
    return of_all * config.hidden_size**2


def attention_flops(config: GPTConfig, pairs: float, *, wanted: float) -> float:
    """Return the FLOPs of attention in all blocks, 4 C for each query and key that it sees; the
    last block has but the pairs of tokens whose logits are `wanted`."""
    return 4 * config.hidden_size * ((config.num_layers - 1) * pairs + wanted)


def head_columns(config: Config, stage: str) -> int:
    """Return the most ids that a step of a causal stage can draw from.

    Of the coarse stage's alternating codebooks the last has most, because transformers leaves the
    ids behind it possible.
    """
    rules = config.semantic_rules
    if stage == "semantic":
        return rules.semantic_vocab_size + 1
    acoustic = config.coarse.output_vocab_size - rules.semantic_vocab_size
    return acoustic - (config.coarse_rules.n_coarse_codebooks - 1) * config.codebook_size


def decode_step(config: GPTConfig, *, batch: int, context: float, columns: int, size: int) -> Cost:
    """Return the cost of one token of each of B sequences.

    Args:
        context: keys that each token sees, including itself; an average will do.
        size: bytes of a number.
    """
    return prefill(
        config, tokens=1, cached=context - 1, columns=columns, size=size, sequences=batch
    )


def prefill(
    config: GPTConfig,
    *,
    tokens: int,
    columns: int,
    size: int,
    cached: float = 0,
    sequences: int = 1,
    streams: int = 1,
) -> Cost:
    """Return the cost of T tokens of each sequence, and of the logits after the last of each.

    Args:
        cached: positions of each sequence that have been run before.
        streams: embeddings that are summed at each token.
    """
    c = config.hidden_size
    pairs = tokens * cached + tokens * (tokens + 1) / 2
    final_norm = 2 * c if config.bias else c
    weights = block_weights(config) + final_norm + columns * c
    # Keys and values of what is cached are read, of what is new written.
    state = 2 * config.num_layers * c * (cached + tokens) + (streams + 1) * tokens * c
    blocks = block_flops(config, tokens, wanted=1)
    attention = attention_flops(config, pairs, wanted=cached + tokens)
    flops = (blocks + attention + 2 * c * columns) * sequences
    return Cost(weights * size, state * sequences * size, flops)


def fine_pass(
    config: FineGPTConfig,
    *,
    batch: int,
    codebook: int,
    columns: int,
    size: int,
    frames: int,
    filled: int | None = None,
) -> Cost:
    """Return the cost of one pass over B windows of F frames, each frame seeing all others.

    Args:
        codebook: index of the predicted one; the codebooks up to it are read, itself included.
        columns: number of ids to choose from.
        filled: frames whose logits are needed; None is all.
    """
    c = config.hidden_size
    filled = frames if filled is None else filled
    weights = block_weights(config) + 2 * c + columns * c
    state = (codebook + 2) * frames * c * batch
    flops = (
        block_flops(config, frames, wanted=filled)
        + attention_flops(config, frames * frames, wanted=frames * filled)
        + 2 * c * columns * filled
    ) * batch
    return Cost(weights * size, state * size, flops)


def codec(config: CodecConfig, *, frames: int, codebooks: int, batch: int = 1) -> Cost:
    """Return the cost of EnCodec's decoder on B times F frames.

    Counted are codebook vectors, convolutions and the LSTM.
    """
    layers = list(_codec_layers(_encodec_settings(config)))
    rate = sum(layer.weights * layer.positions_per_frame for layer in layers)
    vectors = codebooks * config.codebook_dim * frames
    samples = config.hop_length * frames
    return Cost(
        sum(layer.weights + layer.biases for layer in layers) * CODEC_SIZE,
        (vectors + samples) * batch * CODEC_SIZE,
        2 * rate * frames * batch,
    )


@dataclass(frozen=True)
class _Layer:
    """A layer that uses each weight once at each of so many positions a frame."""

    weights: int
    biases: int
    positions_per_frame: int


def _convolution(inputs: int, outputs: int, kernel: int, positions: int) -> _Layer:
    return _Layer(inputs * outputs * kernel, outputs, positions)


def _codec_layers(settings: Any) -> Iterator[_Layer]:
    """Yield the decoder's layers in order, as transformers' EncodecDecoder has them."""
    width = settings.num_filters * 2 ** len(settings.upsampling_ratios)
    yield _convolution(settings.hidden_size, width, settings.kernel_size, 1)
    # Four gates, each of the input and of the state, and each with two biases.
    yield from [_Layer(8 * width * width, 8 * width, 1)] * settings.num_lstm_layers
    positions = 1
    for ratio in settings.upsampling_ratios:
        # A transposed convolution uses its weights once for each position that comes in.
        yield _convolution(width, width // 2, 2 * ratio, positions)
        width, positions = width // 2, positions * ratio
        hidden = width // settings.compress
        for _ in range(settings.num_residual_layers):
            yield _convolution(width, hidden, settings.residual_kernel_size, positions)
            yield _convolution(hidden, width, 1, positions)
            if settings.use_conv_shortcut:
                yield _convolution(width, width, 1, positions)
    yield _convolution(width, settings.audio_channels, settings.last_kernel_size, positions)


def _encodec_settings(config: CodecConfig) -> Any:
    """Return the settings, with transformers' defaults for those the checkpoint leaves open."""
    return _encodec_class()(**config.settings)


@cache
def _encodec_class() -> Any:
    from transformers import EncodecConfig  # takes a second to import

    return EncodecConfig
