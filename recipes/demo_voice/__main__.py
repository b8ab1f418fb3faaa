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
from pathlib import Path

import torch

from bark_fast.demo import FOLDER
from recipes.demo_voice.card import training_of, write_card
from recipes.demo_voice.data import make_data, sizes_of
from recipes.demo_voice.evaluate import CODEC_ALONE, evaluate, temperatures
from recipes.demo_voice.export import check_data, export, start_from
from recipes.demo_voice.train import NETWORKS, train_all

_STEPS = ("data", *NETWORKS, "export", "evaluate")


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
    parser.add_argument("--rate", type=float, default=1.0, help="times the plan's learning rate")
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
    acoustic = not {"coarse", "fine", "codec"}.isdisjoint(arguments.only)
    if arguments.start is not None:
        check_data(data, arguments.start, codes=acoustic)
    train_all(arguments)
    if "export" in arguments.only:
        export(data, models, arguments.checkpoint, start=arguments.start)
    if "evaluate" in arguments.only:
        before = None
        if arguments.start is not None and not acoustic:
            before = json.loads((arguments.start / "evaluation.json").read_text())
        figures = evaluate(
            data,
            arguments.checkpoint,
            seed=arguments.seed,
            codec_alone=before and before["everyday"][CODEC_ALONE],
        )
        figures["training"] = training_of(models)
        figures["data"] = sizes_of(data)
        if before is not None:
            figures["data"]["spoken"] = before["data"]["spoken"]
        text = json.dumps(figures, indent=2) + "\n"
        (arguments.checkpoint / "evaluation.json").write_text(text)
        print(text)
        write_card(arguments.checkpoint, figures, seed=arguments.seed)
    if "temperatures" in arguments.only:
        print(json.dumps(temperatures(arguments.checkpoint, seed=arguments.seed), indent=2))


if __name__ == "__main__":
    main()
