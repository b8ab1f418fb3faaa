"""Writes the demo voice's model card from what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.demo_voice import tokens
from recipes.demo_voice.teacher import SPEAKERS

_TEMPLATE = Path(__file__).with_name("card.md")


def judged(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A table's rows of word error rate and DNSMOS."""
    return "\n".join(
        f"| {name} | {100 * row['word_error_rate']:.1f} % | {row['mos']:.2f} |"
        for name, row in rows.items()
    )


def training_of(models: Path) -> dict[str, dict[str, float]]:
    """What `fit` reports of each network's training."""
    keys = ("parameters", "steps", "minutes")
    found = {}
    for name in ("semantic", "coarse", "fine", "codec"):
        report = json.loads((models / f"{name}.json").read_text())
        found[name] = {key: report[key] for key in keys}
    return found


def write_card(folder: Path, evaluation: Mapping[str, Any], *, seed: int) -> None:
    """Write `folder`/README.md."""
    reports = evaluation["training"]
    rules = json.loads((folder / "generation_config.json").read_text())
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc")
    machine = evaluation["machine"]
    text = _TEMPLATE.read_text().format(
        n_voices=len(SPEAKERS),
        n_parameters=sum(report["parameters"] for report in reports.values()) / 1e6,
        size=size / 2**20,
        seed=seed,
        machine=f"an {machine['cpu']}, torch {machine['torch']}",
        n_texts=evaluation["data"]["texts"],
        n_spoken=evaluation["data"]["spoken"],
        n_words=len(tokens.WORDS),
        semantic_rate=tokens.SEMANTIC_RATE_HZ,
        frame_rate=tokens.FRAME_RATE_HZ,
        prompt=tokens.PROMPT,
        coarse_history=tokens.COARSE_HISTORY,
        fine_window=tokens.FINE_WINDOW,
        training="\n".join(
            f"| {name} | {r['parameters']:,} | {r['steps']} | {r['minutes']:.0f} |"
            for name, r in reports.items()
        ),
        sentences=evaluation["sentences"],
        words=evaluation["words"],
        temperatures=", ".join(
            str(rules[f"{stage}_config"]["temperature"])
            for stage in ("semantic", "coarse_acoustics", "fine_acoustics")
        ),
        everyday=judged(evaluation["everyday"]),
        n_digits=evaluation["sentences with digits"],
        digits=judged(evaluation["digits and names"]),
        within=100 * evaluation["length"]["within a quarter of the teacher's"],
        ratio=evaluation["length"]["median ratio"],
        ended=100 * evaluation["length"]["ended by itself"],
        pitches="\n".join(
            f"| {name} | {hz['teacher']:.0f} | {hz['demo']:.0f} |"
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
