"""What a caller has set of torch, numpy and warnings changes nothing, whichever thread steps."""

from __future__ import annotations

import ast
import asyncio
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bark_fast import AsyncBark, Bark, BarkModel, BarkProcessor, GenerationParams, Speech, demo
from bark_fast.ambient import settled
from bark_fast.checkpoint.random import create_checkpoint
from bark_fast.compat.suno import SunoAPI
from helpers.checkpoints import Checkpoint

ROOT = Path(__file__).parent.parent
PARAMS = GenerationParams(seed=3, max_semantic_tokens=12)
TEXT = "Say this."


class _RefusesFunctions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} was called in the caller's mode")


class _RefusesOperations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} was called in the caller's mode")


@contextmanager
def _set(change: Callable[[Any], Any], value: Any, back: Any) -> Iterator[None]:
    try:
        change(value)
        yield
    finally:
        change(back)


def _default_device(device: str) -> AbstractContextManager[None]:
    return _set(torch.set_default_device, device, None)


def _default_dtype(dtype: torch.dtype) -> AbstractContextManager[None]:
    return _set(torch.set_default_dtype, dtype, torch.float32)


@contextmanager
def _meta_and_float64() -> Iterator[None]:
    with _default_device("meta"), _default_dtype(torch.float64):
        yield


@contextmanager
def _warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "default device": lambda: _default_device("meta"),
    "float64": lambda: _default_dtype(torch.float64),
    "float16": lambda: _default_dtype(torch.float16),
    "meta and float64": _meta_and_float64,
    "device context": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "grad": torch.enable_grad,
    "anomaly": torch.autograd.detect_anomaly,
    "deterministic": lambda: _set(torch.use_deterministic_algorithms, True, False),
    "denormals": lambda: _set(torch.set_flush_denormal, True, False),
    "function mode": _RefusesFunctions,
    "dispatch mode": _RefusesOperations,
    "fake tensors": FakeTensorMode,
    "numpy errors": lambda: np.errstate(all="raise"),
    "warnings": _warnings_are_errors,
}


@pytest.fixture(params=SETTINGS)
def ambient(request: pytest.FixtureRequest) -> AbstractContextManager[Any]:
    return SETTINGS[request.param]()


def _content(speech: Speech) -> list[np.ndarray]:
    return [speech.semantic_tokens, speech.coarse_tokens, speech.fine_tokens, speech.samples]


def _equal(one: Speech, other: Speech) -> bool:
    return all(map(np.array_equal, _content(one), _content(other)))


async def _in_asyncio(bark: Bark) -> Speech:
    async with AsyncBark(bark) as speaker:
        return await speaker.generate(TEXT, params=PARAMS)


@pytest.fixture(scope="module")
def expected(small: Checkpoint) -> Speech:
    return small.bark.generate(TEXT, params=PARAMS)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_speech_is_the_same(
    small: Checkpoint, expected: Speech, ambient: AbstractContextManager[Any]
) -> None:
    """In the caller's thread, in the engine's own, and from the first half's tokens."""
    bark = small.bark
    with ambient:
        for speech in (
            bark.generate(TEXT, params=PARAMS),
            next(iter(bark.stream(TEXT, params=PARAMS))),
            asyncio.run(_in_asyncio(bark)),
        ):
            assert _equal(speech, expected)
        again = bark.speak_tokens(expected.semantic_tokens, params=PARAMS)
    assert np.array_equal(again.samples, expected.samples)


@pytest.fixture(scope="module", params=["auto", "cpu", "torch"])
def loaded(request: pytest.FixtureRequest, small: Checkpoint) -> tuple[str, Speech]:
    """An implementation, and what a model that was loaded with it says."""
    bark = Bark.from_pretrained(small.folder, device="cpu", impl=request.param)
    return request.param, bark.generate(TEXT, params=PARAMS)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_loading_is_the_same(
    small: Checkpoint,
    tmp_path: Path,
    loaded: tuple[str, Speech],
    ambient: AbstractContextManager[Any],
) -> None:
    """... and leaves a model that does not depend on where it was loaded."""
    impl, expected = loaded
    with ambient:
        bark = Bark.from_pretrained(small.folder, device="cpu", impl=impl)
        voice = expected.to_voice()
        voice.save(tmp_path / "voice.npz")
        within = bark.generate(TEXT, params=PARAMS)
        assert bark.load_voice(tmp_path / "voice.npz").arrays().keys() == voice.arrays().keys()
    assert _equal(within, expected)
    assert _equal(bark.generate(TEXT, params=PARAMS), expected)
    assert _equal(next(iter(bark.stream(TEXT, params=PARAMS))), expected)


@pytest.mark.parametrize("name", ["meta and float64", "autocast", "inference mode", "float16"])
def test_transformers_face(small: Checkpoint, name: str) -> None:
    model = BarkModel.from_pretrained(small.folder)
    processor = BarkProcessor.from_pretrained(small.folder, speaker_embeddings_dict_path=None)
    ids = dict(processor(TEXT, max_length=32))
    expected = model.generate(**ids, seed=3, max_new_tokens=12)
    with SETTINGS[name]():
        torch.manual_seed(5)
        within = dict(processor(TEXT, max_length=32))
        assert within["input_ids"].device.type == "cpu"
        audio = model.generate(**within, seed=3, max_new_tokens=12)
        drawn = model.generate(**within, max_new_tokens=12)
    assert audio.device.type == "cpu"
    assert torch.equal(audio, expected)
    torch.manual_seed(5)
    assert torch.equal(model.generate(**ids, max_new_tokens=12), drawn)


@pytest.mark.filterwarnings("ignore:.*speaks at 8000 Hz")
def test_sunos_face(small: Checkpoint) -> None:
    api = SunoAPI(small.folder, seed=3, device="cpu")
    expected = api.generate_audio(TEXT, silent=True)
    with _meta_and_float64(), torch.autocast("cpu"), np.errstate(all="raise"):
        fresh = SunoAPI(small.folder, seed=3, device="cpu")
        assert np.array_equal(fresh.generate_audio(TEXT, silent=True), expected)
        assert np.array_equal(api.generate_audio(TEXT, silent=True), expected)


def test_long_audio_in_a_narrow_default_dtype() -> None:
    """EnCodec's padding is counted in integers: in float16 there are none past 65 504."""
    bark = Bark.from_pretrained(demo.FOLDER, device="cpu")
    tokens = np.arange(200) % 100
    expected = bark.speak_tokens(tokens, params=GenerationParams(seed=1))
    assert len(expected.samples) > 65_504
    with _default_dtype(torch.float16):
        assert _equal(bark.speak_tokens(tokens, params=GenerationParams(seed=1)), expected)


def test_random_checkpoints_are_the_same(tmp_path: Path) -> None:
    plain = create_checkpoint(tmp_path / "plain" / "model")
    with _meta_and_float64(), torch.inference_mode():
        made = create_checkpoint(tmp_path / "set" / "model")
    for file in plain.rglob("*.*"):
        assert file.read_bytes() == (made / file.relative_to(plain)).read_bytes(), file.name


def test_torchs_generator_is_left_alone(small: Checkpoint) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    bark = Bark.from_pretrained(small.folder, device="cpu")
    bark.generate(TEXT, params=PARAMS)
    list(bark.stream(TEXT, params=PARAMS))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["oneDNN off", "products in bfloat16"])
def test_what_is_one_for_all_threads_holds_in_all(small: Checkpoint, name: str) -> None:
    """Whichever thread steps, before and after loading."""
    ambient = {
        "oneDNN off": lambda: torch.backends.mkldnn.flags(enabled=False),
        "products in bfloat16": lambda: _set(
            torch.set_float32_matmul_precision, "medium", "highest"
        ),
    }[name]
    for impl in ("auto", "cpu", "torch"):
        bark = Bark.from_pretrained(small.folder, device="cpu", impl=impl)
        before = bark.generate(TEXT, params=PARAMS)
        with ambient():
            speech = bark.generate(TEXT, params=PARAMS)
            assert _equal(next(iter(bark.stream(TEXT, params=PARAMS))), speech)
            loaded = Bark.from_pretrained(small.folder, device="cpu", impl=impl)
            loaded.generate(TEXT, params=PARAMS)
        assert _equal(bark.generate(TEXT, params=PARAMS), before)
        assert _equal(loaded.generate(TEXT, params=PARAMS), before)


def test_what_was_set_is_there_again(small: Checkpoint) -> None:
    """... after an interrupt too."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with _RefusesNothing() as mode, torch.autocast("cpu", dtype=torch.bfloat16):
        torch.set_flush_denormal(True)
        try:
            with pytest.raises(KeyboardInterrupt):
                small.bark.driver.finish([small.bark.request(TEXT, None, PARAMS)], [interrupt])
            assert torch.is_autocast_enabled("cpu")
            assert 5e-324 * 1.0 == 0.0
            calls = mode.calls
            torch.ones(2)
            assert mode.calls > calls
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
        finally:
            torch.set_flush_denormal(False)


class _RefusesNothing(TorchFunctionMode):
    calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def test_it_costs_little() -> None:
    start = time.thread_time()
    for _ in range(1000):
        with settled(inference=True):
            pass
    assert time.thread_time() - start < 0.2  # 0.2 ms each, and a step takes several


# Threads ------------------------------------------------------------------------------------------


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _counts(bark: Bark, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each step adds the number of threads that it has."""
    seen: list[int] = []
    launch = type(bark.engine.runner).launch

    def watched(self: Any, batch: Any) -> Any:
        seen.append(torch.get_num_threads())
        return launch(self, batch)

    monkeypatch.setattr(type(bark.engine.runner), "launch", watched)
    return seen


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_holds_in_every_thread(
    small: Checkpoint, expected: Speech, monkeypatch: pytest.MonkeyPatch
) -> None:
    bark = small.bark
    seen = _counts(bark, monkeypatch)
    for n in (2, 1):
        torch.set_num_threads(n)
        assert _equal(bark.generate(TEXT, params=PARAMS), expected)
        assert _equal(next(iter(bark.stream(TEXT, params=PARAMS))), expected)
        assert _equal(asyncio.run(_in_asyncio(bark)), expected)
        assert set(seen) == {n}
        seen.clear()


@pytest.mark.usefixtures("threads")
def test_a_number_that_is_set_in_another_thread(
    small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in torch, it is that of threads which start afterwards."""
    seen = _counts(small.bark, monkeypatch)
    torch.set_num_threads(1)
    other = threading.Thread(target=torch.set_num_threads, args=(2,))
    other.start()
    other.join()
    list(small.bark.stream(TEXT, params=PARAMS))
    assert set(seen) == {2}


@pytest.mark.usefixtures("threads")
def test_a_number_that_is_set_while_the_engine_works(
    small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's thread makes room for one with the new number; nothing is lost."""
    bark = small.bark
    seen = _counts(bark, monkeypatch)
    torch.set_num_threads(2)
    started, go_on = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        started.set()
        assert go_on.wait(60)

    first = bark.submit(bark.request(TEXT, None, PARAMS), progress=hold)
    assert started.wait(60)
    torch.set_num_threads(1)
    second = bark.submit(bark.request(TEXT, None, PARAMS))
    go_on.set()
    assert _equal(first.result(60), second.result(60))
    assert seen[0] == 2
    assert seen[-1] == 1


# Allocations --------------------------------------------------------------------------------------

_FACTORIES = {
    "arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn",
    "randperm", "tensor", "zeros",
}  # fmt: skip


def _python_files() -> list[Path]:
    return [p for folder in ("bark_fast", "kernels") for p in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", _python_files(), ids=lambda p: os.fspath(p.relative_to(ROOT)))
def test_every_allocation_names_its_device_and_dtype(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        of = node.func.value
        if isinstance(of, ast.Name) and of.id == "torch" and node.func.attr in _FACTORIES:
            named = {keyword.arg for keyword in node.keywords}
            assert named >= {"device", "dtype"} or None in named, f"{path}:{node.lineno}"
