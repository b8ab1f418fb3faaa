"""What decides about a row's audio, as one hash: the same hash is the same audio, to the bit."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from bark_fast import __version__
from bark_fast.bulk.rows import Row
from bark_fast.types import Voice

if TYPE_CHECKING:
    from bark_fast.bark import Bark


def model_hash(bark: Bark) -> str:
    """Return a hash of a checkpoint's weights and configuration, and of how they are run.

    All weights are read once more: about a second for a gigabyte that is in the system's cache.
    """
    how = (__version__, bark.device.type, str(bark.dtype), bark.impl, repr(bark.config))
    digest = hashlib.sha256(repr(how).encode())
    stored = bark.checkpoint.tensors()
    for name, tensor in stored.read(stored.names):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def row_key(row: Row, voice: Voice | None, *, model: str, how: str) -> str:
    """Return the hash of a row.

    Args:
        voice: that is named in it.
        model: see `model_hash`.
        how: everything else that decides: the format, the pause.
    """
    said = (row.id, row.text, row.voice, row.language, asdict(row.params), how, model)
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    if voice is not None:
        for name, array in voice.arrays().items():
            digest.update(f"{name} {list(array.shape)}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()[:32]
