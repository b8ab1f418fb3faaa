"""suno's stages in plain numpy and torch on transformers' networks: ours must give the same.

What is written here is what suno-ai/bark's generation.py does, one utterance at a time, with two
differences: the noise of a draw is ours, so that draws can be compared, and a temperature of 0 is
the limit of low ones.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from bark_fast.kernels import reference

SEMANTIC, COARSE = 0, 1  # the stages' numbers, which keep their noise apart


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def filtered(
    logits: np.ndarray, *, temp: float, top_k: int | None = None, top_p: float | None = None
) -> np.ndarray:
    """Return logits after top-p, top-k and temperature, in this order; -inf is out."""
    kept = np.ones(len(logits), dtype=bool)
    if top_p is not None:
        order = np.argsort(-logits)
        mass_before = np.concatenate([[0.0], np.cumsum(softmax(logits)[order])[:-1]])
        kept[order] = mass_before <= top_p
    left = np.where(kept, logits, -math.inf)
    if top_k is not None:
        left = np.where(left >= np.sort(left)[-min(top_k, len(left))], left, -math.inf)
    if temp == 0:
        return np.where(np.arange(len(left)) == left.argmax(), 0.0, -math.inf)
    return left / temp


def draw(scores: np.ndarray, *, seed: int, position: int, stage: int, first: int = 0) -> int:
    """Draw from filtered logits with our noise, which counts columns from `first` on."""
    noise = reference.gumbel_noise(
        torch.tensor([seed]), torch.tensor([position]), stage=stage, n_ids=first + len(scores)
    )
    return int((scores + noise[0, first:].numpy()).argmax())


def _logits(network: Any, inputs: dict[str, torch.Tensor]) -> Iterator[np.ndarray]:
    """Yield the logits after a prompt, and after each id that is sent."""
    names = inspect.signature(network.forward).parameters
    # As versions of transformers call them.
    cache = "cache" if "cache" in names else "past_key_values"
    if "inputs_embeds" in names and "input_embeds" in inputs:
        inputs = {"inputs_embeds": inputs["input_embeds"]}
    past = None
    while True:
        with torch.no_grad():
            out = network(**inputs, use_cache=True, **{cache: past})
        past = out[cache]
        following = yield out.logits[0, -1].numpy()
        inputs = {"input_ids": torch.tensor([[following]])}


def semantic(
    network: Any,
    text_ids: list[int],
    history: np.ndarray | None = None,
    *,
    seed: int,
    temp: float = 0.7,
    top_k: int | None = None,
    top_p: float | None = None,
    min_eos_p: float | None = 0.2,
    max_gen_duration_s: float | None = None,
    allow_early_stop: bool = True,
    steps: int = 768,
) -> tuple[list[int], list[float]]:
    """Return the tokens, and the end token's probability at each step."""
    text = [i + 10_048 for i in text_ids[:256]]
    past = [] if history is None else history.astype(np.int64).tolist()[-256:]
    streams = (
        torch.tensor(text + [129_595] * (256 - len(text))),
        torch.tensor(past + [10_000] * (256 - len(past))),
    )
    embed = network.input_embeds_layer
    prompt = torch.cat([embed(streams[0]) + embed(streams[1]), embed(torch.tensor([129_599]))])
    steps_of = _logits(network, {"input_embeds": prompt[None]})
    tokens: list[int] = []
    p_ends: list[float] = []
    duration_s, logits = 0.0, next(steps_of)
    for position in range(steps):
        relevant = logits[:10_000]
        if allow_early_stop:
            relevant = np.append(relevant, logits[10_000])
        scores = filtered(relevant, temp=temp, top_k=top_k, top_p=top_p)
        token = draw(scores, seed=seed, position=position, stage=SEMANTIC)
        p_ends.append(float(softmax(scores)[-1]) if allow_early_stop else 0.0)
        if allow_early_stop and (
            token == 10_000 or (min_eos_p is not None and p_ends[-1] >= min_eos_p)
        ):
            break
        tokens.append(token)
        duration_s += 1 / 49.9
        if max_gen_duration_s is not None and duration_s > max_gen_duration_s:
            break
        logits = steps_of.send(token)
    return tokens, p_ends


def coarse(
    network: Any,
    x_semantic: np.ndarray,
    history: dict[str, np.ndarray] | None = None,
    *,
    seed: int,
    temp: float = 0.7,
    top_k: int | None = None,
    top_p: float | None = None,
    max_coarse_history: int = 630,
    sliding_window_len: int = 60,
) -> np.ndarray:
    """Return the codes [2, F]."""
    ratio = 75 / 49.9 * 2
    most = math.floor(max_coarse_history / ratio)
    past_semantic: list[int] = []
    ids: list[int] = []
    if history is not None:
        codes = history["coarse_prompt"].astype(np.int64)
        flat = (codes + np.array([[10_000], [11_024]])).T.ravel().tolist()
        spoken = history["semantic_prompt"].astype(np.int64).tolist()
        n = min(most, len(spoken) - len(spoken) % 2, math.floor(len(flat) / ratio))
        past_semantic, ids = spoken[-n:], flat[-round(n * ratio) :][:-2]
    n_history = len(ids)
    n_steps = round(math.floor(len(x_semantic) * ratio / 2) * 2)
    spoken = past_semantic + x_semantic.tolist()
    step = 0
    while step < n_steps:
        now = len(past_semantic) + round(step / ratio)
        window = spoken[max(0, now - most) :][:256]
        prompt = [*window, *[12_048] * (256 - len(window)), 12_050, *ids[-max_coarse_history:]]
        steps_of = _logits(network, {"input_ids": torch.tensor([prompt])})
        logits = next(steps_of)
        for _ in range(min(sliding_window_len, n_steps - step)):
            first = step % 2 * 1024
            relevant = logits[10_000 + first : 10_000 + first + 1024]
            scores = filtered(relevant, temp=temp, top_k=top_k, top_p=top_p)
            code = draw(scores, seed=seed, position=step, stage=COARSE, first=first)
            ids.append(10_000 + first + code)
            step += 1
            logits = steps_of.send(ids[-1])
    drawn = np.array(ids[n_history:]).reshape(-1, 2).T
    return drawn - np.array([[10_000], [11_024]])
