from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bark_fast.kernels.triton import schedules
from bark_fast.kernels.triton.device import Device
from bark_fast.kernels.triton.schedules import (
    ANY_ROWS,
    DEFAULTS,
    DecodeLaunch,
    Table,
    TileLaunch,
    candidates,
    choose,
    default,
    nearest,
    trying,
    with_rows,
)

H200 = Device("NVIDIA H200", (9, 0), 132)
FAST = DecodeLaunch(block_n=32, block_k=1024, num_warps=8)
KEY = ("DecodeLaunch", "torch.bfloat16", (1024, 1024))
X = torch.empty(1, dtype=torch.bfloat16)


def table(device: Device = H200, launch: DecodeLaunch = FAST) -> Table:
    wide = replace(launch, programs=264)
    return Table(device, {KEY: ((16, launch), (ANY_ROWS, wide))}, {"versions": {"triton": "x"}})


@pytest.fixture
def on_h200(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Take CPU tensors for those of an H200 whose tables are in the folder returned."""
    monkeypatch.setattr(schedules, "TABLES", tmp_path)
    monkeypatch.setattr(Device, "of", lambda device: H200)
    of = schedules._table_of.__wrapped__
    cuda = SimpleNamespace(type="cuda")
    monkeypatch.setattr(schedules, "_table_of", lambda device: of(cuda))
    return tmp_path


@pytest.mark.parametrize("kind", DEFAULTS)
@pytest.mark.parametrize("shape", [(1024, 1024), (1024, 4096), (768, 768), (64, 1)])
def test_the_default_is_the_first_candidate(
    kind: type[DecodeLaunch], shape: tuple[int, ...]
) -> None:
    found = candidates(kind, shape)
    assert found[0] == default(kind, torch.bfloat16)
    assert len(set(found)) == len(found)
    assert all(isinstance(launch, kind) for launch in found)


@pytest.mark.parametrize("shape", [(1024, 1024), (1024, 4096)])
def test_candidates_are_worth_timing(shape: tuple[int, ...]) -> None:
    assert 4 <= len(candidates(DecodeLaunch, shape)) <= 50
    assert 10 <= len(candidates(TileLaunch, shape)) <= 60
    # All of a row in one trip to memory is one of them.
    assert any(launch.block_k >= shape[1] for launch in candidates(DecodeLaunch, shape))


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    table().write(tmp_path / "h200.json")
    assert Table.read(tmp_path / "h200.json") == table()


def test_a_table_may_not_make_bits_depend_on_the_rows(tmp_path: Path) -> None:
    other = replace(FAST, block_k=512)
    broken = Table(H200, {KEY: ((16, FAST), (ANY_ROWS, other))}, {})
    broken.write(tmp_path / "h200.json")
    with pytest.raises(ValueError, match="one order"):
        Table.read(tmp_path / "h200.json")


def test_a_device_uses_its_table(on_h200: Path) -> None:
    assert choose(DecodeLaunch, (1024, 1024), X) == default(DecodeLaunch, X.dtype)
    table().write(on_h200 / "nvidia-h200.json")
    assert choose(DecodeLaunch, (1024, 1024), X, rows=16) == FAST
    assert choose(DecodeLaunch, (1024, 1024), X, rows=17) == replace(FAST, programs=264)
    # What was not measured: another shape, dtype or kind.
    assert choose(DecodeLaunch, (1024, 4096), X) == default(DecodeLaunch, X.dtype)
    assert choose(DecodeLaunch, (1024, 1024), X.half()) == default(DecodeLaunch, X.dtype)
    assert choose(TileLaunch, (1024, 1024), X) == default(TileLaunch, X.dtype)


def test_a_cpu_has_no_table() -> None:
    assert choose(DecodeLaunch, (1024, 1024), X) == default(DecodeLaunch, X.dtype)
    assert choose(TileLaunch, (8, 8), X.float()) == default(TileLaunch, torch.float32)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (H200, H200),
        (Device("NVIDIA H100 PCIe", (9, 0), 114), H200),
        (Device("NVIDIA B200", (10, 0), 148), H200),
        (Device("NVIDIA L4", (8, 9), 58), Device("NVIDIA RTX 4090", (8, 9), 128)),
        (Device("NVIDIA A10", (8, 6), 72), Device("NVIDIA A100", (8, 0), 108)),
    ],
)
def test_the_nearest_table_serves(device: Device, expected: Device) -> None:
    known = [Device("NVIDIA A100", (8, 0), 108), Device("NVIDIA RTX 4090", (8, 9), 128), H200]
    found = nearest(device, [table(of) for of in known])
    assert found is not None
    assert found.device == expected


def test_no_table_of_a_newer_architecture() -> None:
    assert nearest(Device("NVIDIA T4", (7, 5), 40), [table()]) is None


def test_a_launch_is_tried_where_its_kind_is_chosen() -> None:
    with trying(FAST):
        assert choose(DecodeLaunch, (3, 4), X) == FAST
        assert choose(TileLaunch, (3, 4), X) == default(TileLaunch, X.dtype)
    assert choose(DecodeLaunch, (3, 4), X) != FAST


def test_entries_are_merged_by_rows() -> None:
    wide = replace(FAST, programs=264)
    assert with_rows({1: FAST}) == ((ANY_ROWS, FAST),)
    assert with_rows({64: wide, 1: FAST, 16: FAST}) == ((16, FAST), (ANY_ROWS, wide))


def test_tables_in_the_package_are_sound() -> None:
    for path in schedules.TABLES.glob("*.json"):
        content = json.loads(path.read_text())
        assert content["device"] == json.loads(json.dumps(asdict(Table.read(path).device)))
