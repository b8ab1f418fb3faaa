"""EnCodec's decoder as a torch module without numbers: its names and shapes, and how torch runs it.

Bark's kind, causal and with weight norm, is built here, because transformers' module takes two
seconds to import; every other kind is transformers' own. Names are the same.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from bark_fast.ambient import meta_device
from bark_fast.checkpoint.config import CodecConfig


def build_codec_decoder(config: CodecConfig) -> nn.Module:
    """Build the decoder without weight norm, on the meta device: its weights are still to come, and
    no random numbers are drawn for them.

    It takes float32 [B, C, F] and returns [B, channels, F * hop_length].

    Raises:
        Exception: of as many kinds as there are impossible values.
    """
    from transformers import EncodecConfig

    settings = EncodecConfig(**config.settings)
    with meta_device():
        build = CausalDecoder if _is_barks_kind(settings) else _transformers_decoder
        return build(settings).requires_grad_(False).eval()


def _is_barks_kind(config: Any) -> bool:
    return (
        config.use_causal_conv is True
        and config.norm_type == "weight_norm"
        and config.pad_mode == "reflect"
        and config.trim_right_ratio == 1.0
    )


class CausalDecoder(nn.Module):
    """SEANet's decoder (Défossez et al. 2022, section 3.1), where no frame hears a later one."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = 2 ** len(config.upsampling_ratios) * config.num_filters
        layers: list[nn.Module] = [
            Convolution(config.hidden_size, width, config.kernel_size),
            Recurrence(width, config.num_lstm_layers),
        ]
        for ratio in config.upsampling_ratios:
            layers += [nn.ELU(), Upsampling(width, width // 2, ratio)]
            width //= 2
            layers += [
                ResidualBlock(config, width, config.dilation_growth_rate**i)
                for i in range(config.num_residual_layers)
            ]
        layers += [
            nn.ELU(),
            Convolution(config.num_filters, config.audio_channels, config.last_kernel_size),
        ]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Convolution(nn.Module):
    """A convolution over each sample and those before it; before the first come its successors in
    reverse."""

    def __init__(self, channels: int, outputs: int, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, outputs, width, dilation=dilation)
        self.before = (width - 1) * dilation

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            length = x.shape[-1]
            if length <= self.before:  # too short to be reflected: zeros follow meanwhile
                x = F.pad(x, (0, self.before + 1 - length))
            x = F.pad(x, (self.before, 0), mode="reflect")[..., : self.before + length]
        y: Tensor = self.conv(x)
        return y


class Upsampling(nn.Module):
    """A transposed convolution: `ratio` samples of each and of the one before it."""

    def __init__(self, channels: int, outputs: int, ratio: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(channels, outputs, 2 * ratio, ratio)
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.conv(x)
        return made[..., : made.shape[-1] - self.ratio]


class Recurrence(nn.Module):
    """Layers of LSTM, and their input added."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, layers)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.permute(2, 0, 1)
        heard: Tensor = self.lstm(steps)[0]
        return (heard + steps).permute(1, 2, 0)


class ResidualBlock(nn.Module):
    """Two convolutions through a narrower middle, and a shortcut."""

    def __init__(self, config: Any, width: int, dilation: int) -> None:
        super().__init__()
        middle = width // config.compress
        self.block = nn.ModuleList(
            [
                nn.ELU(),
                Convolution(width, middle, config.residual_kernel_size, dilation),
                nn.ELU(),
                Convolution(middle, width, 1),
            ]
        )
        self.shortcut = Convolution(width, width, 1) if config.use_conv_shortcut else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.block:
            y = layer(y)
        shortcut: Tensor = self.shortcut(x)
        return shortcut + y


def _transformers_decoder(config: Any) -> nn.Module:
    from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations
    from transformers.models.encodec.modeling_encodec import EncodecConv1d, EncodecDecoder

    decoder: nn.Module = EncodecDecoder(config)
    for module in decoder.modules():
        if is_parametrized(module, "weight"):
            remove_parametrizations(module, "weight", leave_parametrized=True)
        if isinstance(module, EncodecConv1d):
            _pad_by_integers(module)
    return decoder


def _pad_by_integers(convolution: Any) -> None:
    """Let EnCodec's convolution count its padding in integers.

    transformers divides tensors of integers, which gives numbers of the default dtype; in float16
    they end at 65 504 samples. What it gives in exact numbers is the rest up to a whole stride.
    On a GPU its tensors would also be asked for their values, some 56 times a batch.
    """
    inner = convolution.conv
    stride, span = inner.stride[0], (inner.kernel_size[0] - 1) * inner.dilation[0] + 1
    for name, value in (
        ("stride", stride),
        ("kernel_size", span),
        ("padding_total", span - stride),
    ):
        delattr(convolution, name)
        setattr(convolution, name, value)

    def extra_padding(hidden_states: Tensor) -> int:
        rest: int = -hidden_states.shape[-1] % stride
        return rest

    convolution._get_extra_padding_for_conv1d = extra_padding
