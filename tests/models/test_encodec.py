"""The codec's decoder against transformers'."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations
from transformers import EncodecConfig
from transformers.models.encodec.modeling_encodec import EncodecDecoder

from bark_fast import kernels
from bark_fast.checkpoint.codec_module import CausalDecoder, build_codec_decoder
from bark_fast.checkpoint.config import CodecConfig
from bark_fast.kernels.reference import TorchCodec
from bark_fast.models.encodec import CodecDecoder
from bark_fast.models.seanet import SEANetDecoder
from helpers.checkpoints import Checkpoint


def decoder_of(checkpoint: Checkpoint) -> CodecDecoder:
    model: CodecDecoder = checkpoint.bark.engine.runner.codec.model  # type: ignore[attr-defined]
    return model


def random_codes(checkpoint: Checkpoint, batch: int, frames: int) -> torch.Tensor:
    n_books = checkpoint.config.fine_rules.n_fine_codebooks
    generator = torch.Generator().manual_seed(frames)
    size = checkpoint.config.codebook_size
    return torch.randint(0, size, (batch, n_books, frames), generator=generator)


def test_samples_are_those_of_transformers(small: Checkpoint) -> None:
    codes = random_codes(small, 2, 40)
    with torch.inference_mode():
        samples = decoder_of(small).forward(codes)
        expected = small.model.codec_decode(codes)
    assert samples.shape == (2, 40 * small.config.codec.hop_length)
    torch.testing.assert_close(samples, expected.reshape(samples.shape), rtol=0, atol=1e-5)
    assert samples.std() > 1e-4, "the audio does not depend on its codes"


def test_padding_behind_changes_nothing(small: Checkpoint) -> None:
    decoder = decoder_of(small)
    codes, hop = random_codes(small, 1, 30), small.config.codec.hop_length
    for frames in (decoder.least_frames, 20):
        with torch.inference_mode():
            alone = decoder.forward(codes[..., :frames])
            padded = decoder.forward(codes)[:, : frames * hop]
        torch.testing.assert_close(padded, alone, rtol=0, atol=1e-5)


def test_rows_give_the_samples_of_the_module(small: Checkpoint) -> None:
    """The decoder of operations, literally computed, and the module."""
    decoder = decoder_of(small)
    rows = SEANetDecoder(decoder._decoder, TorchCodec())
    assert SEANetDecoder.suits(decoder._decoder)
    for frames in (decoder.least_frames, 40):
        codes = random_codes(small, 1, frames)
        vectors = kernels.codebook_sum(codes, decoder.codebooks, impl="torch")
        with torch.inference_mode():
            expected = decoder._decoder(vectors)[0, 0]
            samples = rows.forward(vectors[0].T.contiguous())
        torch.testing.assert_close(samples, expected, rtol=0, atol=1e-5)


SUITED: list[dict[str, object]] = [
    {},
    {"num_residual_layers": 2, "dilation_growth_rate": 1},
    {"num_residual_layers": 0},
    {"use_conv_shortcut": False, "num_lstm_layers": 1},
    {"upsampling_ratios": [3, 2]},
]
CAUSAL: list[dict[str, object]] = [
    {"num_residual_layers": 2, "dilation_growth_rate": 2},
    {"kernel_size": 1},
    {"upsampling_ratios": []},
    {"compress": 1, "residual_kernel_size": 5, "last_kernel_size": 3},
]
OTHERS: list[dict[str, object]] = [
    {"use_causal_conv": False},
    {"norm_type": "time_group_norm"},
    {"pad_mode": "constant"},
    {"trim_right_ratio": 0.5},
]


@pytest.mark.parametrize("change", [*SUITED, *CAUSAL, *OTHERS], ids=str)
def test_the_module_is_that_of_transformers(change: dict[str, object]) -> None:
    """In names and numbers; most kinds it is built for itself, few are transformers' own."""
    theirs, ours = made_decoders(change)
    assert isinstance(ours, CausalDecoder) == (change not in OTHERS)
    for frames in (1, 3, 7, 20):
        x = torch.randn(2, 16, frames, generator=torch.Generator().manual_seed(frames))
        with torch.inference_mode():
            torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("change", SUITED, ids=str)
def test_rows_of_other_decoders(change: dict[str, object]) -> None:
    _, decoder = made_decoders(change)
    assert SEANetDecoder.suits(decoder)
    x = torch.randn(1, 16, 20, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = decoder(x)[0, 0]
        samples = SEANetDecoder(decoder, TorchCodec()).forward(x[0].T.contiguous())
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", [*CAUSAL[:-1], *OTHERS], ids=str)
def test_decoders_that_rows_do_not_suit(change: dict[str, object]) -> None:
    """The module serves them."""
    assert not SEANetDecoder.suits(made_decoders(change)[1])


def made_decoders(change: dict[str, object]) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return transformers' decoder and ours, of the same weights."""
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "num_filters": 4, "upsampling_ratios": [4, 2], **change}
    with torch.inference_mode():
        theirs = EncodecDecoder(EncodecConfig(**settings)).eval()
        for module in theirs.modules():
            if is_parametrized(module, "weight"):
                remove_parametrizations(module, "weight", leave_parametrized=True)
        ours = build_codec_decoder(CodecConfig(0, 0, 0, 0, 0, settings))
        ours.load_state_dict(theirs.state_dict(), assign=True)
    return theirs, ours
