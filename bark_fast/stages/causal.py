"""What the two causal stages have in common: a task that is a prompt and the tokens drawn after it,
and a transformer that draws one more for each task of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from bark_fast import kernels
from bark_fast.kernels import DecodeState
from bark_fast.models.gpt import GPT, Chunk, KVPages
from bark_fast.models.upload import upload
from bark_fast.stages.draws import STAGE_NUMBER, Draw, DrawTensors


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

    draw: Draw
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
        drawn = len(self.tokens) > self.prompt_end
        return self.tokens[-1] if drawn else self.prompt[0][-1]

    def positions_after(self, steps: int) -> int:
        """Positions that the pages must hold for the prompt to be run, or for so many steps; the
        last token before the limit is never run."""
        if not self.prefilled:
            return self.length
        return self.cached + min(steps, self.limit - len(self.tokens))

    def chunk(self, pages: Sequence[int]) -> Chunk:
        """What the model has not seen of the prompt."""
        return Chunk([stream[self.cached :] for stream in self.prompt], self.cached, pages)

    def accept(self, tokens: Sequence[int], *, ended: bool) -> None:
        """Take what a prefill or some steps drew; `ended` by the end token after them."""
        # All but the newest token have been run.
        self.cached = self.length - 1 + len(tokens)
        self.prefilled = True
        self.tokens.extend(tokens)


@dataclass(frozen=True)
class CausalStage:
    """A causal transformer and the ids that its columns stand for.

    Attributes:
        first_id: the id of column 0.
        has_end: the last column is the end token.
        n_ranges, range_size: as in `kernels.sample`.
    """

    name: str
    model: GPT
    first_id: int
    has_end: bool
    n_ranges: int = 1
    range_size: int = 0

    def prefill(
        self, tasks: Sequence[CausalTask], pages: Sequence[Sequence[int]], cache: KVPages
    ) -> Tensor:
        """Run the tasks' prompts, packed, and draw a token after each: columns int64 [B], on the
        device."""
        device = self.model.device
        chunks = [task.chunk(own) for task, own in zip(tasks, pages, strict=True)]
        return self._draw(
            self.model.prefill(chunks, cache),
            DrawTensors.of([task.draw for task in tasks], device),
            positions=upload([len(task.tokens) for task in tasks], device=device),
        )

    def step(
        self,
        state: DecodeState,
        draws: DrawTensors,
        cache: KVPages,
        *,
        workspace: Tensor | None = None,
        pdl: bool = False,
    ) -> None:
        """Run one token of every row of `state` and draw the next one into it."""
        logits = self.model.step(state, cache, workspace=workspace, pdl=pdl)
        self._draw(logits, draws, state=state)

    def token(self, column: int) -> int | None:
        """The id of a column, None for the end token."""
        if self.has_end and column == self.model.n_columns - 1:
            return None
        return self.first_id + column

    def _draw(
        self,
        logits: Tensor,
        draws: DrawTensors,
        *,
        positions: Tensor | None = None,
        state: DecodeState | None = None,
    ) -> Tensor:
        return kernels.sample(
            logits,
            temperature=draws.temperature,
            top_k=draws.top_k,
            top_p=draws.top_p,
            seeds=draws.seeds,
            min_eos_p=draws.min_eos_p if self.has_end else None,
            min_draws=draws.min_draws if self.has_end else None,
            stage=STAGE_NUMBER[self.name],
            positions=positions,
            state=state,
            first_id=self.first_id,
            n_ranges=self.n_ranges,
            range_size=self.range_size,
            impl=self.model.impl,
        )
