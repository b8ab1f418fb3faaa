"""Stage 1: text tokens in, semantic tokens out.

The prompt is 256 positions on which text and history are *summed*, then the infer token. The stage
ends at the end token or at a limit. (transformers: BarkSemanticModel.generate.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bark_fast.checkpoint.config import SemanticRules
from bark_fast.kernels import TokenSpace
from bark_fast.models.gpt import GPT
from bark_fast.stages.causal import CausalStage, CausalTask
from bark_fast.types import STAGES

SILENT = -1  # a stream that adds nothing at a position


def build_prompt(
    text_ids: Sequence[int], history: Sequence[int], rules: SemanticRules
) -> tuple[list[int], list[int]]:
    """Return the two summed streams of the prompt, each of max_input_semantic_length + 1 ids.

    Args:
        text_ids: the tokenizer's ids, or -1 for a pad; beyond the prompt's length they are cut.
        history: semantic tokens of the voice; the last ones are used.
    """
    n = rules.max_input_semantic_length
    text = [
        i + rules.text_encoding_offset if i >= 0 else rules.text_pad_token for i in text_ids[:n]
    ]
    past = list(history[-n:])
    return (
        [*text, *[rules.text_pad_token] * (n - len(text)), rules.semantic_infer_token],
        # The semantic pad is the end token; pads are attended like anything else.
        [*past, *[rules.eos_token_id] * (n - len(past)), SILENT],
    )


def sampled_ids(rules: SemanticRules) -> list[int]:
    """Return the ids that may be sampled, the end token last: the columns of the logits."""
    return [*range(rules.semantic_vocab_size), rules.eos_token_id]


@dataclass(kw_only=True)
class SemanticTask(CausalTask):
    """One utterance in this stage; `limit` is the most tokens it may have.

    Attributes:
        finish_reason: why there will be no more tokens, None while there may: the end token, the
            limit, or that they were given and not drawn.
    """

    finish_reason: Literal["end", "length", "given"] | None = None

    def accept(self, tokens: Sequence[int], *, ended: bool) -> None:
        super().accept(tokens, ended=ended)
        if ended:
            self.finish_reason = "end"
        elif len(self.tokens) == self.limit:
            self.finish_reason = "length"


def build_stage(model: GPT, rules: SemanticRules) -> CausalStage:
    """Return the stage on a model that was built with `head_ids=sampled_ids(rules)`."""
    assert model.n_columns == rules.semantic_vocab_size + 1
    return CausalStage("semantic", model, TokenSpace(stage=STAGES.index("semantic"), has_end=True))
