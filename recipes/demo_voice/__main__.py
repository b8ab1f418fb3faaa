"""Makes the demo voice: data, codec, three transformers, checkpoint, evaluation.

    apt install wordnet-base && pip install -e '.[demo]'
    python -m recipes.demo_voice --work DIR

What a step has finished is kept in DIR, and an interrupted step goes on from its last two minutes.
A longer plan (--minutes, --steps) goes on from what was trained before. A GPU is used if there is
one.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from bark_fast.demo import FOLDER
from recipes.demo_voice.card import write_card
from recipes.demo_voice.coarse import train_coarse
from recipes.demo_voice.codec import train_codec
from recipes.demo_voice.data import make_data
from recipes.demo_voice.evaluate import evaluate, temperatures
from recipes.demo_voice.export import export, start_from
from recipes.demo_voice.fine import train_fine
from recipes.demo_voice.fit import Plan
from recipes.demo_voice.semantic import train_semantic

_PLANS = {
    "codec": Plan(20_000, 2e-3, matrix_rate=1e-2),
    "semantic": Plan(20_000, 2e-3),
    "coarse": Plan(10_000, 2e-3),
    "fine": Plan(5_000, 2e-3),
}
_TRAIN = {
    "fine": train_fine,
    "codec": train_codec,
    "semantic": train_semantic,
    "coarse": train_coarse,
}
_STEPS = ("data", *_TRAIN, "export", "evaluate")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.demo_voice",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument(
        "--checkpoint", type=Path, default=FOLDER, help="folder to export to (the package's)"
    )
    parser.add_argument(
        "--only", nargs="+", choices=(*_STEPS, "temperatures"), default=_STEPS, help="these steps"
    )
    parser.add_argument(
        "--from", type=Path, dest="start", metavar="CHECKPOINT", help="whose training goes on"
    )
    parser.add_argument("--minutes", type=float, help="of training a model, at most")
    parser.add_argument("--steps", type=int, help="of training a model, in place of the plan's")
    parser.add_argument("--sentences", type=int, default=27_000, help="spoken, for the codes")
    parser.add_argument("--compile", action="store_true", help="train with torch.compile")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    data, models = arguments.work / "data", arguments.work / "models"
    models.mkdir(parents=True, exist_ok=True)
    if arguments.start is not None:
        start_from(arguments.start, models)
    for step in arguments.only:
        if step == "data":
            make_data(
                data,
                seed=arguments.seed,
                n_acoustic=arguments.sentences,
                processes=arguments.threads or torch.get_num_threads(),
            )
        elif step == "export":
            export(data, models, arguments.checkpoint)
        elif step == "evaluate":
            figures = evaluate(data, arguments.checkpoint, seed=arguments.seed)
            text = json.dumps(figures, indent=2) + "\n"
            (arguments.checkpoint / "evaluation.json").write_text(text)
            print(text)
            write_card(arguments.checkpoint, figures, models, data, seed=arguments.seed)
        elif step == "temperatures":
            print(json.dumps(temperatures(arguments.checkpoint, seed=arguments.seed), indent=2))
        else:
            plan = _PLANS[step]
            plan = replace(
                plan,
                steps=arguments.steps or plan.steps,
                minutes=arguments.minutes,
                compiled=arguments.compile,
            )
            _TRAIN[step](data, models, plan, arguments.seed)


if __name__ == "__main__":
    main()
