"""Writes the demo voice's model card from what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.demo_voice import tokens
from recipes.demo_voice.espeak import SPEAKERS

_TEMPLATE = Path(__file__).with_name("card.md")


def write_card(
    folder: Path, evaluation: Mapping[str, Any], models: Path, *, n_held_out: int
) -> None:
    """Write `folder`/README.md; `models` holds what `fit` reports of the training."""
    reports = {
        name: json.loads((models / f"{name}.json").read_text())
        for name in ("semantic", "coarse", "fine", "codec")
    }
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc")
    machine = evaluation["machine"]
    text = _TEMPLATE.read_text().format(
        n_voices=len(SPEAKERS),
        n_parameters=sum(report["parameters"] for report in reports.values()) / 1e6,
        size=size / 2**20,
        machine=f"{machine['threads']} cores of an {machine['cpu']}, torch {machine['torch']}",
        n_held_out=n_held_out,
        n_units=tokens.N_UNITS,
        prompt=tokens.PROMPT,
        coarse_history=tokens.COARSE_HISTORY,
        fine_window=tokens.FINE_WINDOW,
        training="\n".join(
            f"| {name} | {r['parameters']:,} | {r['steps']} | {r['minutes']:.0f} |"
            for name, r in reports.items()
        ),
        sentences=evaluation["sentences"],
        words=evaluation["words"],
        errors="\n".join(
            f"| {name} | {100 * rate:.0f} % |"
            for name, rate in evaluation["word_error_rate"].items()
        ),
        within=100 * evaluation["length"]["within a quarter of espeak-ng's"],
        ratio=evaluation["length"]["median ratio"],
        ended=100 * evaluation["length"]["ended by itself"],
        pitches="\n".join(
            f"| {name} | {hz['espeak-ng']:.0f} | {hz['demo']:.0f} |"
            for name, hz in evaluation["pitch_hz"].items()
        ),
        same=100 * evaluation["same_units"]["same sentence, two voices"],
        other=100 * evaluation["same_units"]["two sentences"],
        threads=machine["threads"],
        speeds="\n".join(
            f"| {name} | {factor:.2f} |" for name, factor in evaluation["real_time_factor"].items()
        ),
    )
    (folder / "README.md").write_text(text)
