"""Run bark-fast and transformers' BarkModel, the two engines that are compared, by one interface.

Both are greedy. Each makes exactly as many semantic tokens as it was asked for, because the
checkpoints of `bench.harness.checkpoint` never end a text, and raises an error if it made another
number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bark_fast import Bark, EngineOptions, GenerationParams
from bark_fast.stages.coarse import count_frames
from bark_fast.voices import open_voices
from bench.harness.checkpoint import read_config
from bench.harness.memory import PeakMemory
from bench.harness.timing import synchronize
from bench.harness.workload import Utterance, plan_batches


class LengthError(RuntimeError):
    """Raised if an engine made another length than it was asked for, so its time says nothing."""


@dataclass(frozen=True)
class Output:
    """The output of one request: semantic tokens [S], fine codes [n_fine, F], samples [T]."""

    semantic: np.ndarray
    fine: np.ndarray
    samples: np.ndarray


@dataclass(frozen=True)
class WorkloadRun:
    """One run of a workload.

    Attributes:
        seconds: until the last request was done.
        done_s: until each request was done.
        audio_s: length of all requests' audio, without anything that was not asked for.
        stage_s: seconds with each stage at work.
        peak_bytes: the most memory in use.
        outputs: the output of each request, if outputs were wanted.
    """

    seconds: float
    done_s: list[float]
    audio_s: float
    stage_s: dict[str, float]
    peak_bytes: int
    outputs: list[Output] | None = None


@dataclass(frozen=True)
class EngineSettings:
    """The settings of either engine.

    Attributes:
        exact: compute no float32 product in lower precision, because outputs are compared.
        impl: implementation of bark-fast's kernels.
        max_batch: largest batch of bark-fast, None for the default.
        attention: attention implementation of transformers.
    """

    checkpoint: Path
    dtype: str
    device: str
    threads: int | None = None
    exact: bool = False
    impl: str = "auto"
    max_batch: int | None = None
    attention: str = "eager"

    def begin(self) -> torch.device:
        """Apply the settings that hold for the whole process; return the device."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.exact:
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        device = torch.device(self.device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return device


class BarkFastEngine:
    """Runs workloads on bark-fast."""

    def __init__(self, options: EngineSettings) -> None:
        device = options.begin()
        self._memory = PeakMemory(device)
        self._bark = Bark.from_pretrained(
            options.checkpoint,
            device=options.device,
            dtype=options.dtype,
            impl=options.impl,
            engine=EngineOptions(max_batch_size=options.max_batch),
            local_files_only=True,
        )
        self._bark.warm_up()

    def run(self, utterances: Sequence[Utterance], *, keep: bool = False) -> WorkloadRun:
        """Run all utterances together, as `Bark.generate` does, and note when each is done."""
        engine = self._bark.engine
        self._memory.reset()
        before = engine.stats().stages
        done_s = [0.0] * len(utterances)
        start = time.perf_counter()

        def clock(i: int) -> Callable[[Future[Any]], None]:
            return lambda _: done_s.__setitem__(i, time.perf_counter() - start)

        futures = []
        for i, u in enumerate(utterances):
            future = engine.submit(self._bark.request(u.text, u.voice, _params(u)))
            future.add_done_callback(clock(i))
            futures.append(future)
        while engine.step():
            pass
        seconds = time.perf_counter() - start

        speeches = [future.result() for future in futures]
        for u, speech in zip(utterances, speeches, strict=True):
            _check(len(speech.semantic_tokens), u.n_tokens, "bark-fast")
        after = engine.stats().stages
        return WorkloadRun(
            seconds=seconds,
            done_s=done_s,
            audio_s=sum(speech.duration_s for speech in speeches),
            stage_s={stage: s.busy_s - before[stage].busy_s for stage, s in after.items()},
            peak_bytes=self._memory.n_bytes(),
            outputs=[Output(s.semantic_tokens, s.fine_tokens, s.samples) for s in speeches]
            if keep
            else None,
        )

    def first_audio_s(self, utterance: Utterance) -> float:
        """Return the seconds until the first sentence of a longer text is ready."""
        text = f"{utterance.text} {utterance.text}"
        start = time.perf_counter()
        stream = self._bark.stream(text, voice=utterance.voice, params=_params(utterance))
        speech = next(stream)
        seconds = time.perf_counter() - start
        _check(len(speech.semantic_tokens), utterance.n_tokens, "bark-fast")
        stream.close()
        while self._bark.engine.has_work:  # what comes next must not find this still going on
            time.sleep(0.01)
        return seconds


class TransformersEngine:
    """Runs workloads on transformers, in static batches."""

    def __init__(self, options: EngineSettings) -> None:
        import transformers

        self._device = options.begin()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self._model = transformers.BarkModel.from_pretrained(
            options.checkpoint,
            dtype=getattr(torch, options.dtype),
            attn_implementation=options.attention,
            local_files_only=True,
        ).to(self._device)
        tokenizer = transformers.AutoTokenizer.from_pretrained(options.checkpoint)
        self._processor = transformers.BarkProcessor(tokenizer)
        self._voices = open_voices(options.checkpoint, local_files_only=True)
        self._config = read_config(options.checkpoint)
        self._memory = PeakMemory(self._device)
        self._stage_s: dict[str, float] = {}
        self._last: dict[str, torch.Tensor] = {}
        for owner, method, stage in (
            (self._model.semantic, "generate", "semantic"),
            (self._model.coarse_acoustics, "generate", "coarse"),
            (self._model.fine_acoustics, "generate", "fine"),
            (self._model, "codec_decode", "codec"),
        ):
            setattr(owner, method, self._watched(getattr(owner, method), stage))

    @torch.inference_mode()
    def run(
        self, utterances: Sequence[Utterance], *, batch_size: int = 1, keep: bool = False
    ) -> WorkloadRun:
        """Run batch after batch, as `plan_batches` arranges them."""
        self._memory.reset()
        self._stage_s = dict.fromkeys(("semantic", "coarse", "fine", "codec"), 0.0)
        done_s = [0.0] * len(utterances)
        outputs: dict[int, Output] = {}
        start = time.perf_counter()
        for batch in plan_batches(utterances, batch_size):
            batch_outputs = self._generate([utterances[i] for i in batch])
            now = time.perf_counter() - start
            for i, output in zip(batch, batch_outputs, strict=True):
                done_s[i], outputs[i] = now, output
        seconds = time.perf_counter() - start
        samples = sum(len(output.samples) for output in outputs.values())
        return WorkloadRun(
            seconds=seconds,
            done_s=done_s,
            audio_s=samples / self._config.sample_rate_hz,
            stage_s=dict(self._stage_s),
            peak_bytes=self._memory.n_bytes(),
            outputs=[outputs[i] for i in range(len(utterances))] if keep else None,
        )

    def refusal(self, attention: str) -> str | None:
        """Return why transformers cannot run Bark with this attention here, None if it can."""
        import transformers

        try:
            with torch.device("meta"):
                transformers.AutoModel.from_config(
                    transformers.BarkConfig(), attn_implementation=attention, dtype=torch.bfloat16
                )
        except (ValueError, ImportError, KeyError) as error:
            return str(error).partition("\n")[0]
        return None

    def _generate(self, batch: Sequence[Utterance]) -> list[Output]:
        inputs = self._processor(
            [u.text for u in batch], max_length=self._config.max_text_tokens
        ).to(self._device)
        voice = self._voices.get(batch[0].voice)
        if voice is not None:
            arrays = voice.arrays().items()
            inputs["history_prompt"] = {
                key: torch.from_numpy(array).to(self._device) for key, array in arrays
            }
        longest = max(u.n_tokens for u in batch)
        waves = self._model.generate(
            **inputs, do_sample=False, fine_temperature=None, semantic_max_new_tokens=longest
        )
        host = waves.float().cpu().numpy()
        semantic, fine = self._last["semantic"].cpu().numpy(), self._last["fine"].cpu().numpy()
        spoken = (semantic < self._config.semantic_rules.semantic_vocab_size).sum(axis=1)
        outputs = []
        for row, u in enumerate(batch):
            _check(int(spoken[row]), longest, "transformers")
            # Cut off what the others have only because the longest request of the batch needed it.
            frames = count_frames(u.n_tokens, self._config)
            outputs.append(
                Output(
                    semantic[row, : u.n_tokens],
                    fine[row, :, :frames],
                    host[row, : frames * self._config.codec.hop_length],
                )
            )
            _check(outputs[-1].fine.shape[1], frames, "transformers")
            samples = frames * self._config.codec.hop_length
            _check(len(outputs[-1].samples), samples, "transformers")
        return outputs

    def _watched(self, run: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """Return `run`, wrapped so that its time and its result are kept."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            synchronize(self._device)
            start = time.perf_counter()
            result = run(*args, **kwargs)
            synchronize(self._device)
            self._stage_s[stage] += time.perf_counter() - start
            # The coarse stage writes into what it gets.
            self._last[stage] = result.clone() if stage == "semantic" else result
            return result

        return watched


def _params(utterance: Utterance) -> GenerationParams:
    return GenerationParams(temperature=0, min_eos_p=0, max_semantic_tokens=utterance.n_tokens)


def _check(made: int, asked: int, who: str) -> None:
    if made != asked:
        raise LengthError(f"{who} was asked for a length of {asked} and made {made}")
