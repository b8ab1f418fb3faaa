"""The training loop: optimiser, schedule, progress, and going on after an interruption."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from recipes.demo_voice.muon import Muon

_WARM_UP_STEPS = 50
_DECAY = 0.6  # of the training, at its end
_SAVE_EVERY_S = 120.0
_LONGEST_STEP_S = 30.0


@dataclass(frozen=True)
class Plan:
    """The length and the learning rate of a training.

    Attributes:
        minutes: if not None, the end comes after so many at the latest, and the learning rate falls
            in time for it. Without it a run is the same whatever the machine's speed.
        matrix_rate: the rate of what Muon trains, if it is another.
        compiled: with torch.compile, which needs a C++ compiler (a third faster on a CPU).
    """

    steps: int
    rate: float
    minutes: float | None = None
    matrix_rate: float | None = None
    compiled: bool = False

    def done(self, step: int, spent_s: float) -> float:
        """The share of it that lies behind, 1 and more at the end."""
        share = step / self.steps
        return share if self.minutes is None else max(share, spent_s / 60 / self.minutes)


def fit(
    name: str,
    model: nn.Module,
    batches: Callable[[int], Iterator[Any]],
    loss_of: Callable[[Any], tuple[Tensor, dict[str, float]]],
    plan: Plan,
    folder: Path,
    *,
    check: Callable[[], dict[str, float]] | None = None,
    matrices: Callable[[str, Tensor], bool] = lambda name, p: "blocks" in name and p.ndim == 2,
) -> None:
    """Train, and leave the weights in `folder`/`name`.pt, the last ones all along. What was trained
    before goes on if the plan is longer now, and weights that lie there are where it starts: then
    the plan is what comes on top of their report, `folder`/`name`.json.

    Args:
        batches: an endless stream of them, from a seed.
        loss_of: the loss of one, and figures to show.
        check: figures from data that is not trained on.
        matrices: which weights Muon trains (Jordan 2024: about half the steps); AdamW the others.
    """
    target, resume = folder / f"{name}.pt", folder / f"{name}.resume.pt"
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [p for n, p in model.named_parameters() if matrices(n, p)]
    others = [p for n, p in model.named_parameters() if not matrices(n, p)]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=plan.rate, betas=(0.9, 0.98), weight_decay=0.0)
    ]
    if chosen:
        optimisers.append(Muon(chosen, lr=plan.matrix_rate or plan.rate))
    rates = [o.param_groups[0]["lr"] for o in optimisers]
    step, spent = 0, 0.0
    report = folder / f"{name}.json"
    before: dict[str, float] = {"steps": 0, "minutes": 0.0}
    if resume.exists():
        state = torch.load(resume, weights_only=True)
        model.load_state_dict(state["model"])
        for optimiser, own in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(own)
        step, spent, before = state["step"], state["spent_s"], state["before"]
        if plan.done(step, spent) >= 1:
            return
    elif target.exists():  # only weights: of a checkpoint, say
        model.load_state_dict(torch.load(target, weights_only=True))
        if report.exists():
            known = json.loads(report.read_text())
            before = {key: known[key] for key in before}

    def save(path: Path, content: Any) -> None:
        torch.save(content, path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path)

    def save_all() -> None:
        save(target, model.state_dict())
        state = {
            "model": model.state_dict(),
            "optimisers": [o.state_dict() for o in optimisers],
            "step": step,
            "spent_s": spent,
            "before": before,
        }
        save(resume, state)

    if plan.compiled and isinstance(body := getattr(model, "body", None), nn.Module):
        body.compile(dynamic=True)
    last = saved = time.monotonic()
    shown: dict[str, float] = {}
    stream = batches(int(before["steps"]) + step)  # others than it has seen
    with tqdm(total=plan.steps, initial=step, desc=name, mininterval=10) as bar:
        while True:
            now = time.monotonic()
            # A process that was stopped for a while has not trained.
            spent += min(now - last, _LONGEST_STEP_S)
            last = now
            done = plan.done(step, spent)
            if done >= 1:
                break
            share = min(1.0, (step + 1) / _WARM_UP_STEPS) * min(1.0, (1 - done) / _DECAY)
            for optimiser, rate in zip(optimisers, rates, strict=True):
                for group in optimiser.param_groups:
                    group["lr"] = rate * max(share, 0.01)
            loss, figures = loss_of(next(stream))
            for optimiser in optimisers:
                optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = float(nn.utils.clip_grad_norm_(model.parameters(), 1.0))
            if math.isfinite(norm):
                for optimiser in optimisers:
                    optimiser.step()
            step += 1
            bar.update()
            for key, value in figures.items():
                shown[key] = value if key not in shown else 0.98 * shown[key] + 0.02 * value
            if step % 50 == 0:
                bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items()}, refresh=False)
            if time.monotonic() - saved > _SAVE_EVERY_S:
                saved = time.monotonic()
                save_all()
                if check is not None:
                    checked = {k: round(v, 4) for k, v in check().items()}
                    tqdm.write(f"{name}: step {step}, {spent / 60:.1f} min, held out {checked}")
    save_all()
    figures = {} if check is None else check()
    parameters = sum(p.numel() for p in model.parameters())
    result = {
        "parameters": parameters,
        "steps": int(before["steps"]) + step,
        "minutes": before["minutes"] + spent / 60,
        "held out": figures,
    }
    report.write_text(json.dumps(result) + "\n")
    print(f"{name}: {result}", flush=True)
