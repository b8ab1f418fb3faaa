"""The common part of the two causal stages.

A task is a prompt and the tokens drawn after it; a stage is a transformer that draws one more token
for each task of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from bark_fast.kernels import NO_TOKEN, DecodeState, SamplingMetadata, TokenSpace
from bark_fast.models.gpt import GPT, Chunk, KVPages, PackedPrompts
from bark_fast.models.transfer import to_device
from bark_fast.stages.sampling import SamplingParams, batch_sampling
from bark_fast.types import Stage


@dataclass(kw_only=True)
class CausalTask:
    """One utterance in a causal stage.

    Attributes:
        prompt: [K][n], the streams of ids that are summed.
        tokens: drawn so far.
        limit: it stops, for good or for a new prompt, when it has drawn so many.
        prompt_end: how many tokens had been drawn when this prompt was made.
        cached: positions whose keys and values are in the pages.
        prefilled: the prompt has been run; what is left is the last token.
    """

    sampling: SamplingParams
    prompt: tuple[list[int], ...] = ([],)
    tokens: list[int] = field(default_factory=list)
    limit: int = 0
    prompt_end: int = 0
    cached: int = 0
    prefilled: bool = False

    @property
    def length(self) -> int:
        """Positions of the prompt and of what was drawn after it."""
        return len(self.prompt[0]) + len(self.tokens) - self.prompt_end

    @property
    def last_id(self) -> int:
        """The id that the next step runs."""
        has_drawn = len(self.tokens) > self.prompt_end
        return self.tokens[-1] if has_drawn else self.prompt[0][-1]

    def positions_after(self, steps: int) -> int:
        """Return how many positions the pages must hold for the prompt, or for so many steps.

        The last token before the limit is never run.
        """
        if not self.prefilled:
            return self.length
        return self.cached + min(steps, self.limit - len(self.tokens))

    def chunk(self, pages: Sequence[int]) -> Chunk:
        """Return the part of the prompt that the model has not seen."""
        return Chunk([stream[self.cached :] for stream in self.prompt], self.cached, pages)

    def accept(self, tokens: Sequence[int], *, ended: bool) -> None:
        """Take the tokens that a prefill or some steps drew; `ended` if the end token followed."""
        # All but the newest token have been run.
        self.cached = self.length - 1 + len(tokens)
        self.prefilled = True
        self.tokens.extend(tokens)


@dataclass(frozen=True)
class CausalStage:
    """A causal transformer and the ids that the columns of its logits stand for."""

    name: Stage
    model: GPT
    space: TokenSpace

    def prefill(
        self, tasks: Sequence[CausalTask], pages: Sequence[Sequence[int]], cache: KVPages
    ) -> Tensor:
        """Run the tasks' prompts, packed, and draw a token after each.

        Returns:
            The drawn columns, int64 [B], on the device.
        """
        device = self.model.device
        chunks = [task.chunk(table) for task, table in zip(tasks, pages, strict=True)]
        return self.draw_after(
            PackedPrompts.pack(chunks, cache.page_size).on(device),
            batch_sampling([task.sampling for task in tasks], device),
            to_device([len(task.tokens) for task in tasks], device=device),
            cache,
        )

    def draw_after(
        self,
        prompts: PackedPrompts,
        sampling: SamplingMetadata,
        positions: Tensor,
        cache: KVPages,
    ) -> Tensor:
        """Run packed prompts and draw a token after each, all on the device.

        Args:
            positions: int64 [B], how many tokens each has drawn before.

        Returns:
            The drawn columns, int64 [B].
        """
        logits = self.model.prefill(prompts, cache)
        return self.model.ops.sample(logits, sampling, self.space, positions=positions)

    def step(
        self,
        state: DecodeState,
        sampling: SamplingMetadata,
        cache: KVPages,
        *,
        workspace: Tensor | None = None,
    ) -> None:
        """Run one token of every row of `state` and draw the next one into it."""
        logits = self.model.step(state, cache, workspace=workspace)
        self.model.ops.sample(logits, sampling, self.space, state=state)

    def token(self, column: int) -> int | None:
        """Return the id of a column, None for the end token; NO_TOKEN stays what it is."""
        if column == NO_TOKEN:
            return NO_TOKEN
        if self.space.has_end and column == self.model.n_columns - 1:
            return None
        return self.space.first_id + column
