"""Stage 1: text tokens in, semantic tokens out.

The prompt is 256 positions on which text and history are *summed*, then the infer token. The stage
ends at the end token or at a limit. (transformers: BarkSemanticModel.generate.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from bark_fast.checkpoint.config import SemanticRules
from bark_fast.models.gpt import GPT, Chunk, KVPages
from bark_fast.stages.draws import Draw, draw_tokens

SILENT = -1  # a stream that adds nothing at a position


def build_prompt(
    text_ids: Sequence[int], history: Sequence[int], rules: SemanticRules
) -> tuple[list[int], list[int]]:
    """The two summed streams of the prompt, each of max_input_semantic_length + 1 ids.

    Args:
        text_ids: the tokenizer's ids; beyond the prompt's length they are cut.
        history: semantic tokens of the voice; the last ones are used.
    """
    n = rules.max_input_semantic_length
    text = [i + rules.text_encoding_offset for i in text_ids[:n]]
    past = list(history[-n:])
    return (
        [*text, *[rules.text_pad_token] * (n - len(text)), rules.semantic_infer_token],
        # The semantic pad is the end token; pads are attended like anything else.
        [*past, *[rules.eos_token_id] * (n - len(past)), SILENT],
    )


def sampled_ids(rules: SemanticRules) -> list[int]:
    """The ids that may be sampled, the end token last: the columns of the stage's logits."""
    return [*range(rules.semantic_vocab_size), rules.eos_token_id]


@dataclass
class SemanticTask:
    """One utterance in this stage."""

    prompt: tuple[list[int], list[int]]
    max_tokens: int
    min_eos_p: float
    draw: Draw
    tokens: list[int] = field(default_factory=list)
    cached: int = 0  # positions whose keys and values are in the pages
    finish_reason: Literal["end", "length"] | None = None

    @property
    def max_length(self) -> int:
        """Positions that it can come to need; the last token is never fed back."""
        return len(self.prompt[0]) + self.max_tokens - 1

    def chunk(self, pages: Sequence[int]) -> Chunk:
        """What the model has not seen yet: the prompt, or the last token."""
        n_prompt = len(self.prompt[0])
        seen = max(self.cached - n_prompt, 0)
        new = self.tokens[seen:]
        return Chunk(
            ids=[
                self.prompt[0][self.cached :] + new,
                self.prompt[1][self.cached :] + [SILENT] * len(new),
            ],
            start=self.cached,
            pages=pages,
        )


class SemanticStage:
    """Runs one step of any number of tasks."""

    def __init__(self, model: GPT, rules: SemanticRules) -> None:
        """`model` must have been built with `head_ids=sampled_ids(rules)`."""
        self.model = model
        self._rules = rules

    def run(
        self, tasks: Sequence[SemanticTask], pages: Sequence[Sequence[int]], cache: KVPages
    ) -> None:
        """Add one token to every task, or end it."""
        chunks = [task.chunk(own) for task, own in zip(tasks, pages, strict=True)]
        chosen = draw_tokens(
            self.model.run(chunks, cache),
            [task.draw for task in tasks],
            [len(task.tokens) for task in tasks],
            stage="semantic",
            impl=self.model.impl,
            min_eos_p=[task.min_eos_p for task in tasks],
        )
        for task, chunk, token in zip(tasks, chunks, chosen.tolist(), strict=True):
            task.cached = chunk.start + len(chunk.ids[0])
            if token == self._rules.semantic_vocab_size:  # the column of the end token
                task.finish_reason = "end"
                continue
            task.tokens.append(token)
            if len(task.tokens) == task.max_tokens:
                task.finish_reason = "length"
