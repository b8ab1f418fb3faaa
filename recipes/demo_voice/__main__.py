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
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from bark_fast.demo import FOLDER
from recipes.demo_voice.card import training_of, write_card
from recipes.demo_voice.coarse import train_coarse
from recipes.demo_voice.codec import train_codec
from recipes.demo_voice.data import make_data
from recipes.demo_voice.evaluate import evaluate, temperatures
from recipes.demo_voice.export import check_data, export, start_from
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
# The codec learns from what the fine model makes; otherwise no network needs another.
_CHAINS = (("semantic",), ("coarse",), ("fine", "codec"))
_STEPS = ("data", *_TRAIN, "export", "evaluate")


def train(names: list[str], arguments: argparse.Namespace) -> None:
    """One network after the other, in a process of its own."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    for name in names:
        plan = replace(
            _PLANS[name],
            steps=arguments.steps or _PLANS[name].steps,
            minutes=arguments.minutes,
            compiled=arguments.compile,
        )
        data, models = arguments.work / "data", arguments.work / "models"
        _TRAIN[name](data, models, plan, arguments.seed)


def train_all(arguments: argparse.Namespace) -> None:
    chains = [own for chain in _CHAINS if (own := [n for n in chain if n in arguments.only])]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, spawn) as pool:
        for done in [pool.submit(train, chain, arguments) for chain in chains]:
            done.result()


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
    parser.add_argument("--texts", type=int, default=50_000, help="sentences to learn from")
    parser.add_argument("--sentences", type=int, default=27_000, help="spoken, for the codes")
    parser.add_argument("--compile", action="store_true", help="train with torch.compile")
    parser.add_argument("--jobs", type=int, default=1, help="networks that are trained at a time")
    parser.add_argument("--threads", type=int, help="of torch, in each job")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data, models = arguments.work / "data", arguments.work / "models"
    models.mkdir(parents=True, exist_ok=True)
    if arguments.start is not None:
        start_from(arguments.start, models)
    if "data" in arguments.only:
        make_data(
            data,
            seed=arguments.seed,
            n_texts=arguments.texts,
            n_acoustic=arguments.sentences,
            processes=arguments.jobs * (arguments.threads or torch.get_num_threads()),
        )
    if arguments.start is not None:
        check_data(data, arguments.start)
    train_all(arguments)
    if "export" in arguments.only:
        export(data, models, arguments.checkpoint)
    if "evaluate" in arguments.only:
        figures = evaluate(data, arguments.checkpoint, seed=arguments.seed)
        figures["training"] = training_of(models)
        text = json.dumps(figures, indent=2) + "\n"
        (arguments.checkpoint / "evaluation.json").write_text(text)
        print(text)
        write_card(arguments.checkpoint, figures, data, seed=arguments.seed)
    if "temperatures" in arguments.only:
        print(json.dumps(temperatures(arguments.checkpoint, seed=arguments.seed), indent=2))


if __name__ == "__main__":
    main()
