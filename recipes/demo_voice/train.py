"""Trains the networks, several at a time."""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import torch

from recipes.demo_voice.coarse import train_coarse
from recipes.demo_voice.codec import train_codec
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
NETWORKS = tuple(_TRAIN)


def train(names: list[str], arguments: argparse.Namespace) -> None:
    """One network after the other, in a process of its own."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    for name in names:
        own = _PLANS[name]
        plan = replace(
            own,
            rate=own.rate * arguments.rate,
            matrix_rate=None if own.matrix_rate is None else own.matrix_rate * arguments.rate,
            steps=arguments.steps or own.steps,
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
