"""From a checkpoint's name to an engine: what `Bark.from_pretrained` does."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from bark_fast.ambient import settled
from bark_fast.checkpoint.layout import Checkpoint
from bark_fast.checkpoint.opening import open_checkpoint
from bark_fast.checkpoint.suno import SunoFiles
from bark_fast.devices import check_offload, resolve_device, resolve_dtype, resolve_impl
from bark_fast.engine.build import load_engine
from bark_fast.engine.engine import Engine
from bark_fast.engine.options import EngineOptions
from bark_fast.errors import InputError
from bark_fast.request import RequestBuilder


@dataclass(frozen=True)
class Loaded:
    """A checkpoint, its engine, what makes its requests, and where, how and in which dtype its
    networks run."""

    checkpoint: Checkpoint
    engine: Engine
    requests: RequestBuilder
    device: torch.device
    dtype: torch.dtype
    impl: str


def load(
    model: str | os.PathLike[str] | SunoFiles,
    *,
    device: str | torch.device,
    dtype: str | torch.dtype,
    impl: str,
    engine: EngineOptions | None,
    offload: bool,
    revision: str | None,
    local_files_only: bool,
    **hub: Any,
) -> Loaded:
    """Check all arguments, then read the checkpoint.

    Args:
        hub: those of `Source.open`; the other arguments are those of `Bark.from_pretrained`.

    Raises:
        InputError: an argument is wrong.
        CheckpointError: the checkpoint cannot be read or contradicts itself.
    """
    with settled(inference=False):
        chosen_device = resolve_device(device)
        chosen_dtype = resolve_dtype(dtype, chosen_device)
        chosen_impl = resolve_impl(
            impl, chosen_device, chosen_dtype, int8=isinstance(dtype, str) and dtype == "int8"
        )
    check_offload(offload, chosen_device)
    if engine is not None and not isinstance(engine, EngineOptions):
        raise InputError(f"engine must be EngineOptions, got {type(engine).__name__}")
    checkpoint = open_checkpoint(model, revision, local_files_only, **hub)
    # Small and quick to fail first: the weights are the slow part.
    requests = RequestBuilder.of(checkpoint)
    loaded = load_engine(
        checkpoint.tensors(),
        checkpoint.config,
        dtype=chosen_dtype,
        device=chosen_device,
        impl=chosen_impl,
        options=engine or EngineOptions(),
        offload=offload,
    )
    return Loaded(checkpoint, loaded, requests, chosen_device, chosen_dtype, chosen_impl)
