"""On CUDA float32 is float32, whatever precision a caller has set, by any of torch's names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from bark_fast.ambient import exact_float32
from bark_fast.models.encodec import CodecDecoder
from bark_fast.request import Request
from helpers.checkpoints import Checkpoint
from helpers.emulated_gpu import GPU, EmulatedGPU, emulated_gpu
from helpers.emulated_graphs import EmulatedGraphs
from helpers.engines import make_engine, run_all

cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
HAS_NEW_NAMES = hasattr(matmul, "fp32_precision")


def _set(owner: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(owner, name, value)


OLD: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "convolutions on": _set(cudnn, "allow_tf32", True),
    "convolutions off": _set(cudnn, "allow_tf32", False),
    "products on": _set(matmul, "allow_tf32", True),
    "products high": lambda: torch.set_float32_matmul_precision("high"),
    "products medium": lambda: torch.set_float32_matmul_precision("medium"),
}
NEW: dict[str, Callable[[], None]] = {}
if HAS_NEW_NAMES:
    NEW = {
        f"{name} {precision}": _set(owner, "fp32_precision", precision)
        for name, owner in {
            "all": torch.backends, "cudnn": cudnn, "conv": cudnn.conv, "rnn": cudnn.rnn,
            "matmul": matmul,
        }.items()
        for precision in ("tf32", "ieee")
    }  # fmt: skip


def settings() -> dict[str, Any]:
    """All that can be read; what torch refuses to read is None."""
    asked: dict[str, Callable[[], Any]] = {
        "cudnn": lambda: cudnn.allow_tf32,
        "matmul": lambda: matmul.allow_tf32,
        "precision": torch.get_float32_matmul_precision,
    }
    if HAS_NEW_NAMES:
        for name, owner in {
            "all": torch.backends, "new cudnn": cudnn, "conv": cudnn.conv, "rnn": cudnn.rnn,
            "new matmul": matmul, "onednn": torch.backends.mkldnn,
        }.items():  # fmt: skip
            asked[name] = lambda owner=owner: owner.fp32_precision  # type: ignore[misc]
    found = {}
    for name, ask in asked.items():
        try:
            found[name] = ask()
        except RuntimeError:
            found[name] = None
    return found


def allowed() -> bool:
    """Whether anything may be computed in TF32 now."""
    if HAS_NEW_NAMES:
        return "tf32" in {owner.fp32_precision for owner in (cudnn.conv, cudnn.rnn, matmul)}
    return bool(cudnn.allow_tf32 or matmul.allow_tf32)


@pytest.fixture(params=[*OLD, *NEW])
def set_by_user(request: pytest.FixtureRequest) -> Iterator[None]:
    (OLD | NEW)[request.param]()
    try:
        yield
    finally:
        if HAS_NEW_NAMES:
            for owner in (torch.backends, cudnn, matmul):
                owner.fp32_precision = "none"  # type: ignore[union-attr]
        torch.set_float32_matmul_precision("highest")
        if HAS_NEW_NAMES:
            matmul.fp32_precision = "none"
            cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "tf32"
        cudnn.allow_tf32 = True


@pytest.mark.usefixtures("set_by_user")
def test_it_is_off_meanwhile_and_back_afterwards() -> None:
    before = settings()
    with exact_float32():
        assert not allowed()
        with exact_float32():  # another engine, in another thread
            assert not allowed()
        assert not allowed()
    assert settings() == before
    with pytest.raises(KeyboardInterrupt), exact_float32():
        raise KeyboardInterrupt
    assert settings() == before


def test_off_in_every_stage_of_a_gpu(
    small: Checkpoint, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    forward = CodecDecoder.forward

    def watched(self: CodecDecoder, codes: torch.Tensor) -> torch.Tensor:
        seen.append(allowed())
        return forward(self, codes)

    monkeypatch.setattr(CodecDecoder, "forward", watched)
    with emulated_gpu(monkeypatch):
        gpu = EmulatedGPU.current
        with gpu.lenient():
            engine = make_engine(
                small, impl="torch", device=GPU, graphs=EmulatedGraphs(), max_batch_size=1,
                max_codec_frames=64,
            )  # fmt: skip
        before = settings()
        assert before["cudnn"], "torch's default"
        run_all(engine, requests[:1])
        engine.runner.warm_ups()[-1]()  # of the codec
    assert seen == [False, False]
    assert settings() == before
