"""suno's functions: their signatures, what they give, and what may be asked of them."""

from __future__ import annotations

import inspect
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bark_fast import Bark, BarkFastWarning, CheckpointError, GenerationParams, InputError
from bark_fast.compat import suno
from bark_fast.compat.suno import SunoAPI, session, stages
from helpers.checkpoints import Checkpoint, bark_windows, build_model
from helpers.suno_files import SMALL, write_suno_files, write_suno_folder


@pytest.fixture(scope="module")
def folder(narrow: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """suno's files in both sizes, with a voice; the small ones have a layer less."""
    folder = write_suno_folder(tmp_path_factory.mktemp("api") / "bark_v0", narrow.model)
    config, _ = bark_windows()
    for name in ("semantic_config", "coarse_acoustics_config", "fine_acoustics_config"):
        config[name]["num_layers"] = 1
    write_suno_files(folder, build_model(config, seed=2, std=0.25), SMALL)
    (folder / "prompts" / "v2").mkdir(parents=True)
    np.savez(folder / "prompts" / "v2" / "en_speaker_1.npz", **narrow.voice(60))
    return folder


@pytest.fixture(scope="module")
def api(folder: Path) -> SunoAPI:
    return SunoAPI(folder, seed=7, device="cpu")


@pytest.fixture(autouse=True)
def default_is_put_back(api: SunoAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_current", api)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights do not know where a text ends."""
    for module in (session, stages):
        monkeypatch.setattr(module, "most_semantic_tokens", lambda *_: 40)


# suno-ai/bark: bark/api.py, bark/generation.py
SIGNATURES = {
    "generate_audio": {
        "text": inspect.Parameter.empty,
        "history_prompt": None,
        "text_temp": 0.7,
        "waveform_temp": 0.7,
        "silent": False,
        "output_full": False,
    },
    "text_to_semantic": {
        "text": inspect.Parameter.empty,
        "history_prompt": None,
        "temp": 0.7,
        "silent": False,
    },
    "semantic_to_waveform": {
        "semantic_tokens": inspect.Parameter.empty,
        "history_prompt": None,
        "temp": 0.7,
        "silent": False,
        "output_full": False,
    },
    "save_as_prompt": {
        "filepath": inspect.Parameter.empty,
        "full_generation": inspect.Parameter.empty,
    },
    "preload_models": {
        "text_use_gpu": True,
        "text_use_small": False,
        "coarse_use_gpu": True,
        "coarse_use_small": False,
        "fine_use_gpu": True,
        "fine_use_small": False,
        "codec_use_gpu": True,
        "force_reload": False,
    },
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str) -> None:
    parameters = inspect.signature(getattr(suno, name)).parameters
    assert {key: each.default for key, each in parameters.items()} == SIGNATURES[name]
    if hasattr(SunoAPI, name):  # as a method too
        of_method = list(inspect.signature(getattr(SunoAPI, name)).parameters.values())
        assert of_method[1:] == list(parameters.values())
    assert suno.SAMPLE_RATE == 24_000


# What is generated


def test_generate_audio(api: SunoAPI, capsys: pytest.CaptureFixture[str]) -> None:
    audio = suno.generate_audio("Hello", silent=True)
    assert (audio.dtype, audio.ndim) == (np.float32, 1)
    assert len(audio) == 60 * 320
    assert capsys.readouterr().err == ""
    full, again = suno.generate_audio("Hello", output_full=True)
    assert "100%" in capsys.readouterr().err
    assert np.array_equal(audio, again)
    assert {key: array.shape for key, array in full.items()} == {
        "semantic_prompt": (40,),
        "coarse_prompt": (2, 60),
        "fine_prompt": (8, 60),
    }
    # By Bark's own rules the end is judged otherwise, which is not met here.
    params = GenerationParams(temperature=0.7, max_semantic_tokens=40, seed=7)
    expected = api.bark.generate("Hello", params=params)
    assert np.array_equal(expected.semantic_tokens, full["semantic_prompt"])


@pytest.mark.parametrize("voice", [None, "v2/en_speaker_1"])
def test_the_two_halves_are_the_whole(voice: str | None) -> None:
    full, audio = suno.generate_audio("Hello", voice, 0.8, 0.6, True, True)
    tokens = suno.text_to_semantic("Hello", voice, temp=0.8, silent=True)
    assert tokens.dtype == np.int64
    assert np.array_equal(tokens, full["semantic_prompt"])
    again, samples = suno.semantic_to_waveform(
        tokens, voice, temp=0.6, silent=True, output_full=True
    )
    assert all(np.array_equal(again[key], full[key]) for key in full)
    assert np.array_equal(samples, audio)
    assert np.array_equal(
        suno.semantic_to_waveform(tokens, history_prompt=voice, temp=0.6, silent=True), audio
    )


def test_temperatures(api: SunoAPI) -> None:
    """Each is its own stage's, and the fine stage keeps suno's."""

    def tokens(**temps: float) -> dict[str, np.ndarray]:
        full, _ = api.generate_audio("Hello", silent=True, output_full=True, **temps)
        return full

    usual, text, waveform = tokens(), tokens(text_temp=0.0), tokens(waveform_temp=0.0)
    assert not np.array_equal(usual["semantic_prompt"], text["semantic_prompt"])
    assert np.array_equal(usual["semantic_prompt"], waveform["semantic_prompt"])
    assert not np.array_equal(usual["coarse_prompt"], waveform["coarse_prompt"])
    fine = [api.generate_fine(waveform["coarse_prompt"], temp=t) for t in (0.5, 0.0)]
    assert np.array_equal(fine[0], waveform["fine_prompt"])
    assert not np.array_equal(fine[1], waveform["fine_prompt"])


def test_seeds(folder: Path, api: SunoAPI) -> None:
    unseeded, other = SunoAPI(folder, device="cpu"), SunoAPI(folder, seed=8, device="cpu")
    audio = [each.generate_audio("Hello", silent=True) for each in (unseeded, unseeded, other)]
    assert not np.array_equal(audio[0], audio[1])
    assert not np.array_equal(audio[2], api.generate_audio("Hello", silent=True))
    assert np.array_equal(audio[2], other.generate_audio("Hello", silent=True))


# Voices


def test_history_prompts(api: SunoAPI, narrow: Checkpoint, tmp_path: Path, folder: Path) -> None:
    """A name, a file, a dictionary: the same voice."""
    arrays = narrow.voice(60)
    path = tmp_path / "me.npz"
    np.savez(path, **arrays)
    spoken = [
        api.generate_audio("Hello", voice, silent=True)
        for voice in ("v2/en_speaker_1", str(path), path, arrays, np.load(path))
    ]
    assert all(np.array_equal(audio, spoken[0]) for audio in spoken)
    assert not np.array_equal(spoken[0], api.generate_audio("Hello", silent=True))


@pytest.mark.parametrize("kind", [str, Path])
def test_saved_prompts(tmp_path: Path, kind: type) -> None:
    full, _ = suno.generate_audio("My voice", silent=True, output_full=True)
    suno.save_as_prompt(kind(tmp_path / "me.npz"), full)
    with np.load(tmp_path / "me.npz", allow_pickle=False) as stored:
        assert set(stored) == set(full)
        assert all(np.array_equal(stored[key], full[key]) for key in full)
    assert np.array_equal(
        suno.generate_audio("Hello", str(tmp_path / "me.npz"), silent=True),
        suno.generate_audio("Hello", full, silent=True),
    )


# Models


def layers(api: SunoAPI) -> tuple[int, int, int]:
    config = api.bark.config
    return config.semantic.num_layers, config.coarse.num_layers, config.fine.num_layers


def test_sizes(folder: Path) -> None:
    api = SunoAPI(folder, device="cpu")
    assert layers(api) == (2, 2, 2)
    api.preload_models(coarse_use_small=True)
    assert layers(api) == (2, 1, 2)
    mixed = api.bark
    api.preload_models(coarse_use_small=True)
    assert api.bark is mixed
    api.preload_models(coarse_use_small=True, force_reload=True)
    assert api.bark is not mixed
    api.preload_models(text_use_small=True, coarse_use_small=True, fine_use_small=True)
    assert layers(api) == (1, 1, 1)


class FakeBark:
    sample_rate_hz = 24_000


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Any]]:
    """Record what is to be loaded, instead of loading it."""
    models: list[Any] = []

    def load(model: Any, **options: Any) -> FakeBark:
        models.append((model, options))
        return FakeBark()

    monkeypatch.setattr(Bark, "from_pretrained", load)
    monkeypatch.chdir(tmp_path)
    return models


def test_sizes_on_the_hub(loaded: list[Any]) -> None:
    api = SunoAPI(dtype="bfloat16")
    assert loaded == []
    api.preload_models()
    api.preload_models(text_use_small=True, coarse_use_small=True, fine_use_small=True)
    api.preload_models(fine_use_small=True)
    options = {"dtype": "bfloat16", "device": "auto"}
    assert loaded == [
        ("suno/bark", options),
        ("suno/bark-small", options),
        (suno.SunoFiles("suno/bark", text="large", coarse="large", fine="small"), options),
    ]


def test_a_model_that_is_small_already(loaded: list[Any]) -> None:
    api = SunoAPI("suno/bark-small")
    api.preload_models()
    api.preload_models(text_use_small=True, coarse_use_small=True, fine_use_small=True)
    assert [model for model, _ in loaded] == ["suno/bark-small"]
    with pytest.raises(InputError, match="coarse_use_small must be False"):
        api.preload_models(coarse_use_small=True)


def test_what_was_chosen_outlives_a_failure(
    loaded: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Bark.from_pretrained

    def fail(model: Any, **options: Any) -> FakeBark:
        raise CheckpointError("half a file")

    api = SunoAPI()
    cpu = dict.fromkeys(("text_use_gpu", "coarse_use_gpu", "fine_use_gpu", "codec_use_gpu"), False)
    monkeypatch.setattr(Bark, "from_pretrained", fail)
    with pytest.raises(CheckpointError):
        api.preload_models(fine_use_small=True, **cpu)
    monkeypatch.setattr(Bark, "from_pretrained", load)
    assert api.bark is api.bark
    sizes = suno.SunoFiles("suno/bark", text="large", coarse="large", fine="small")
    assert loaded == [(sizes, {"device": "cpu"})]


def test_devices(loaded: list[Any]) -> None:
    none = dict.fromkeys(("text_use_gpu", "coarse_use_gpu", "fine_use_gpu", "codec_use_gpu"), False)
    api = SunoAPI("someone/bark", device="cuda:1")
    api.preload_models(**none)
    assert api.bark is api.bark
    api.preload_models()
    assert [options["device"] for _, options in loaded] == ["cpu", "cuda:1"]
    for name in none:
        with pytest.raises(InputError, match="must be the same: all stages run on one device"):
            api.preload_models(**{**none, name: True})
    assert len(loaded) == 2


def test_loaded_once_at_first_use(loaded: list[Any]) -> None:
    api = SunoAPI("someone/bark")
    suno.use(api)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(api.bark)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 1
    assert len(found) == 8
    suno.preload_models()
    assert len(loaded) == 1


def test_nothing_is_loaded_by_importing() -> None:
    assert vars(vars(SunoAPI())["_models"])["_loaded"] is None


def test_another_rate(small: Checkpoint) -> None:
    with pytest.warns(BarkFastWarning, match="speaks at 8000 Hz, and SAMPLE_RATE is 24000"):
        assert SunoAPI(small.folder, device="cpu").bark.sample_rate_hz == 8000


# What is wrong


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("generate_audio", ("",), "text must not be empty, got ''"),
        ("generate_audio", (["One", "Two"],), "text must be a string, got list"),
        ("text_to_semantic", (["One", "Two"],), "text must be a string, got list"),
        ("generate_audio", ("Hello", None, -1), "text_temp must be a finite number >= 0, got -1"),
        ("generate_audio", ("Hello", None, 0.7, None), "waveform_temp must be a finite number"),
        (
            "text_to_semantic",
            ("Hello", None, "hot"),
            "temp must be a finite number >= 0, got 'hot'",
        ),
        ("semantic_to_waveform", (np.array([1]), None, -1), "temp must be a finite number >= 0"),
        ("semantic_to_waveform", (np.array([0.5]),), "semantic_tokens must hold integers"),
        ("semantic_to_waveform", (None,), "semantic_tokens [*] is missing"),
        ("semantic_to_waveform", ("Hello",), "semantic_tokens must hold integers, got <U5"),
        ("semantic_to_waveform", (np.ones((2, 3), int),), "must have shape [*], got [2, 3]"),
        ("semantic_to_waveform", (np.array([3, 10_000]),), "from 0 to 9999, got 3 to 10000"),
        ("save_as_prompt", ("me.npy", {}), "filepath must end in .npz, got 'me.npy'"),
        ("save_as_prompt", ("me.npz", []), "full_generation must be a dictionary, got list"),
        ("save_as_prompt", ("me.npz", {}), "full_generation: semantic_prompt [*] is missing"),
        (
            "save_as_prompt",
            ("me.npz", {"semantic_prompt": np.array([object()])}),
            "full_generation: semantic_prompt must hold integers, got object",
        ),
        ("use", ("suno/bark",), "api must be a SunoAPI, got str"),
    ],
)
def test_bad_input(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    arguments: tuple[Any, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        getattr(suno, name)(*arguments)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["generate_audio", "text_to_semantic", "semantic_to_waveform"])
@pytest.mark.parametrize(
    ("voice", "message"),
    [
        ("nobody", "history_prompt must be a preset of this checkpoint (v2/en_speaker_1), the"),
        (5, "history_prompt must be a preset of this checkpoint"),
        ("absent.npz", "history_prompt must be a file that exists, got 'absent.npz'"),
        ("broken.npz", "history_prompt broken.npz is not a whole .npz file of plain arrays"),
        ({}, "history_prompt 'history_prompt': semantic_prompt [*] is missing"),
    ],
)
def test_bad_history_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, voice: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.npz").write_bytes(b"PK")
    what = np.array([1]) if name == "semantic_to_waveform" else "Hello"
    with pytest.raises(InputError) as caught:
        getattr(suno, name)(what, voice)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", SIGNATURES["preload_models"])
@pytest.mark.parametrize("value", ["no", 1, None])
def test_flags(loaded: list[Any], name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{name} must be True or False, got {value!r}"):
        SunoAPI("someone/bark").preload_models(**{name: value})
    assert loaded == []


def test_sizes_that_cannot_be_chosen(narrow: Checkpoint) -> None:
    for model in (narrow.folder, "someone/bark", "demo"):
        with pytest.raises(InputError, match=f"coarse_use_small must be False: .*{model}"):
            SunoAPI(model).preload_models(coarse_use_small=True)


def test_unknown_options() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'dtyp'"):
        SunoAPI(dtyp="bfloat16")
    with pytest.raises(InputError, match="seed must be an integer from 0"):
        SunoAPI(seed=-1)


@pytest.mark.parametrize("module", [suno.api, suno.generation], ids=lambda m: m.__name__)
def test_functions_can_be_sent_to_other_processes(module: Any) -> None:
    """As multiprocessing does: by name."""
    functions = [f for name in module.__all__ if callable(f := getattr(module, name))]
    assert functions
    for function in functions:
        assert pickle.loads(pickle.dumps(function)) is function
        assert "self" not in inspect.signature(function).parameters
        assert function.__doc__


def test_functions_are_those_of_the_api_in_use(folder: Path) -> None:
    """Also where it is a class of the user's."""

    class Loud(SunoAPI):
        def codec_decode(self, fine_tokens: Any) -> Any:
            return "loud"

    suno.use(Loud(folder, device="cpu"))
    assert suno.codec_decode([[1]]) == "loud"
