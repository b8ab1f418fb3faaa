"""suno's stages one by one, against suno's loops in plain numpy on transformers' networks."""

from __future__ import annotations

import inspect
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bark_fast import Bark, InputError
from bark_fast.compat import suno
from bark_fast.compat.suno import SunoAPI, generation, session
from bark_fast.engine.options import EngineOptions
from helpers import suno_oracle
from helpers.checkpoints import Checkpoint
from helpers.suno_files import write_suno_folder


@pytest.fixture(scope="module")
def api(narrow: Checkpoint) -> SunoAPI:
    return SunoAPI(narrow.folder, seed=7, device="cpu")


@pytest.fixture(autouse=True)
def in_use(api: SunoAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_current", api)


REQUIRED = inspect.Parameter.empty
# suno-ai/bark: bark/generation.py
SIGNATURES: dict[str, dict[str, Any]] = {
    "generate_text_semantic": {
        "text": REQUIRED,
        "history_prompt": None,
        "temp": 0.7,
        "top_k": None,
        "top_p": None,
        "silent": False,
        "min_eos_p": 0.2,
        "max_gen_duration_s": None,
        "allow_early_stop": True,
        "use_kv_caching": False,
    },
    "generate_coarse": {
        "x_semantic": REQUIRED,
        "history_prompt": None,
        "temp": 0.7,
        "top_k": None,
        "top_p": None,
        "silent": False,
        "max_coarse_history": 630,
        "sliding_window_len": 60,
        "use_kv_caching": False,
    },
    "generate_fine": {
        "x_coarse_gen": REQUIRED,
        "history_prompt": None,
        "temp": 0.5,
        "silent": True,
    },
    "codec_decode": {"fine_tokens": REQUIRED},
    "load_model": {
        "use_gpu": True,
        "use_small": False,
        "force_reload": False,
        "model_type": "text",
    },
    "load_codec_model": {"use_gpu": True, "force_reload": False},
    "clean_models": {"model_key": None},
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str) -> None:
    function = getattr(generation, name)
    assert getattr(suno, name) is function
    parameters = inspect.signature(function).parameters
    assert {key: each.default for key, each in parameters.items()} == SIGNATURES[name]
    of_method = list(inspect.signature(getattr(SunoAPI, name)).parameters.values())
    assert of_method[1:] == list(parameters.values())


def test_names_and_constants(api: SunoAPI) -> None:
    """As suno's modules export them; those of the models are the checkpoint's too."""
    from bark_fast.compat.suno.api import generate_audio, save_as_prompt, semantic_to_waveform

    assert suno.generate_audio is generate_audio
    assert suno.save_as_prompt is save_as_prompt
    assert suno.semantic_to_waveform is semantic_to_waveform
    text, coarse, fine = (
        getattr(api.bark.config, f"{s}_rules") for s in ("semantic", "coarse", "fine")
    )
    assert (generation.SEMANTIC_RATE_HZ, generation.COARSE_RATE_HZ) == (49.9, 75)
    assert text.semantic_rate_hz == generation.SEMANTIC_RATE_HZ
    assert generation.SEMANTIC_VOCAB_SIZE == text.semantic_vocab_size == 10_000
    assert text.eos_token_id == generation.SEMANTIC_PAD_TOKEN
    assert text.semantic_infer_token == generation.SEMANTIC_INFER_TOKEN
    assert text.text_encoding_offset == generation.TEXT_ENCODING_OFFSET
    assert text.text_pad_token == generation.TEXT_PAD_TOKEN
    assert coarse.coarse_semantic_pad_token == generation.COARSE_SEMANTIC_PAD_TOKEN
    assert coarse.coarse_infer_token == generation.COARSE_INFER_TOKEN
    assert generation.N_COARSE_CODEBOOKS == coarse.n_coarse_codebooks == 2
    assert generation.N_FINE_CODEBOOKS == fine.n_fine_codebooks == 8
    assert api.bark.config.codebook_size == generation.CODEBOOK_SIZE
    assert api.bark.config.coarse.block_size == generation.CONTEXT_WINDOW_SIZE
    assert ("Polish", "pl") in generation.SUPPORTED_LANGS
    assert len(generation.SUPPORTED_LANGS) == 13
    assert len(generation.ALLOWED_PROMPTS) == 261
    assert {"announcer", "de_speaker_0", "v2/zh_speaker_9"} <= generation.ALLOWED_PROMPTS


# Semantic tokens


def text_ids(api: SunoAPI, text: str) -> list[int]:
    return api.bark.requests.tokenizer.encode(text)


SETTINGS: list[dict[str, Any]] = [
    {"temp": 0.7},
    {"temp": 0.0},
    {"temp": 0.4, "top_p": 0.5},
    {"temp": 1.6, "top_p": 0.5, "top_k": 9},
    {"temp": 1.3, "top_k": 3},
    {"temp": 0.9, "allow_early_stop": False},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("n_history", [0, 30, 300])
def test_semantic(
    api: SunoAPI, narrow: Checkpoint, settings: dict[str, Any], n_history: int
) -> None:
    history = narrow.voice(n_history) if n_history else None
    settings = {"max_gen_duration_s": 0.3, "min_eos_p": None, **settings}
    got = suno.generate_text_semantic("Hello", history, silent=True, **settings)
    past = None if history is None else history["semantic_prompt"]
    ids = text_ids(api, "Hello")
    expected, _ = suno_oracle.semantic(narrow.model.semantic, ids, past, seed=7, **settings)
    assert got.tolist() == expected
    assert (got.dtype, len(got)) == (np.int64, 15)


@pytest.mark.parametrize("temp", [0.4, 0.7, 1.0, 1.9])
@pytest.mark.parametrize("filters", [{}, {"top_k": 5000}, {"top_p": 0.97}])
def test_the_end_is_judged_after_temperature(
    api: SunoAPI, narrow: Checkpoint, temp: float, filters: dict[str, Any]
) -> None:
    """The end comes at the first step whose probability reaches the threshold, and not before."""
    settings = {"temp": temp, "max_gen_duration_s": 0.4, **filters}
    ids = text_ids(api, "Hello")
    tokens, p_ends = suno_oracle.semantic(
        narrow.model.semantic, ids, seed=7, min_eos_p=None, **settings
    )
    likeliest = max(p_ends)
    for threshold in (likeliest * 0.999, likeliest * 1.001, 0.0, 3.0):
        if threshold == 0 and min(p_ends) > 0:
            threshold = min(p_ends) / 2
        got = suno.generate_text_semantic("Hello", silent=True, min_eos_p=threshold, **settings)
        first = next((i for i, p in enumerate(p_ends) if p >= threshold), len(tokens))
        assert got.tolist() == tokens[:first]


def test_a_threshold_of_nothing_ends_at_once() -> None:
    """suno's >= is true of nothing; None never judges."""
    for temp in (0.0, 0.7):
        nothing = suno.generate_text_semantic("Hello", temp=temp, min_eos_p=0, silent=True)
        assert nothing.shape == (0,)
    for limits in ({"min_eos_p": None}, {"min_eos_p": 0, "allow_early_stop": False}):
        limits["max_gen_duration_s"] = 0.1
        assert len(suno.generate_text_semantic("Hello", silent=True, **limits)) == 5


@pytest.mark.parametrize(("seconds", "n"), [(0, 1), (0.01, 1), (0.1, 5), (0.5, 25), (1 / 49.9, 2)])
def test_max_gen_duration(api: SunoAPI, narrow: Checkpoint, seconds: float, n: int) -> None:
    """The token that makes it too long is the last."""
    limits: dict[str, Any] = {"max_gen_duration_s": seconds, "min_eos_p": None}
    got = suno.generate_text_semantic("Hello", silent=True, **limits)
    ids = text_ids(api, "Hello")
    expected, _ = suno_oracle.semantic(narrow.model.semantic, ids, seed=7, **limits)
    assert got.tolist() == expected
    assert len(got) == n


# Coarse tokens


@pytest.mark.parametrize("settings", SETTINGS[:5])
@pytest.mark.parametrize("n_history", [0, 61])
def test_coarse(narrow: Checkpoint, settings: dict[str, Any], n_history: int) -> None:
    history = narrow.voice(n_history) if n_history else None
    tokens = np.random.default_rng(3).integers(10_000, size=45)
    got = suno.generate_coarse(tokens, history, silent=True, **settings)
    expected = suno_oracle.coarse(
        narrow.model.coarse_acoustics, tokens, history, seed=7, **settings
    )
    assert np.array_equal(got, expected)
    assert (got.dtype, got.shape) == (np.int64, (2, 67))


@pytest.mark.parametrize(
    ("history", "window", "n_semantic"),
    [(60, 60, 70), (61, 7, 30), (200, 568, 200), (630, 138, 60), (333, 1, 6), (630, 60, 300)],
)
@pytest.mark.parametrize("n_voice", [0, 100])
def test_windows(
    narrow: Checkpoint, history: int, window: int, n_semantic: int, n_voice: int
) -> None:
    """max_coarse_history and sliding_window_len are what suno's code makes of them."""
    voice = narrow.voice(n_voice) if n_voice else None
    tokens = np.random.default_rng(n_semantic).integers(10_000, size=n_semantic)
    windows = {"max_coarse_history": history, "sliding_window_len": window}
    got = suno.generate_coarse(tokens, voice, silent=True, **windows)
    expected = suno_oracle.coarse(narrow.model.coarse_acoustics, tokens, voice, seed=7, **windows)
    assert np.array_equal(got, expected)


def test_windows_make_a_difference() -> None:
    tokens = np.random.default_rng(1).integers(10_000, size=60)
    usual = suno.generate_coarse(tokens, silent=True, max_coarse_history=90)
    for windows in (
        {"max_coarse_history": 60},
        {"max_coarse_history": 90, "sliding_window_len": 20},
    ):
        other = suno.generate_coarse(tokens, silent=True, **windows)
        assert other.shape == usual.shape
        assert not np.array_equal(other, usual)


def test_windows_that_the_pages_do_not_hold(narrow: Checkpoint) -> None:
    """An error, not an utterance that waits for ever."""
    options = EngineOptions(page_size=64, kv_cache_gib=1e-9, max_batch_size=1)
    with pytest.raises(InputError, match="kv_cache_gib must be at least") as caught:
        Bark.from_pretrained(narrow.folder, device="cpu", engine=options)
    least = float(str(caught.value).split()[5])
    options = EngineOptions(page_size=64, kv_cache_gib=least * 1.001, max_batch_size=1)
    api = SunoAPI(narrow.folder, device="cpu", engine=options)
    assert api.generate_coarse(np.arange(9), silent=True).shape == (2, 13)
    with pytest.raises(InputError, match="must fit into the 15 pages of 64 positions"):
        api.generate_coarse(np.arange(9), silent=True, sliding_window_len=138)


# Fine tokens and samples


@pytest.mark.parametrize("n_coarse", [1, 2, 5, 7])
@pytest.mark.parametrize("frames", [3, 40])
def test_fine(narrow: Checkpoint, n_coarse: int, frames: int) -> None:
    """Greedily and from any number of codebooks, against the fine model pass by pass."""
    codes = np.random.default_rng(5).integers(1024, size=(n_coarse, frames))
    history = narrow.voice(50)["fine_prompt"]
    buffer = np.full((8, 1024), 1024)
    n_history = history.shape[1]
    buffer[:, :n_history] = history
    buffer[:n_coarse, n_history : n_history + frames] = codes
    x = torch.from_numpy(buffer.T)[None].clone()
    with torch.no_grad():
        for k in range(n_coarse, 8):
            logits = narrow.model.fine_acoustics(k, x).logits[0, n_history:, :1024]
            x[0, n_history:, k] = logits.argmax(-1)
    expected = x[0, n_history : n_history + frames].T.numpy()
    for temp in (None, 0.0):
        got = suno.generate_fine(codes, {"fine_prompt": history}, temp=temp)
        assert np.array_equal(got, expected)
        assert got.dtype == np.int64
    assert np.array_equal(suno.generate_fine(codes)[:n_coarse], codes)


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("frames", [2, 7, 30])
def test_codec(narrow: Checkpoint, n: int, frames: int) -> None:
    codes = np.random.default_rng(n).integers(1024, size=(n, frames))
    codec = narrow.model.codec_model
    with torch.no_grad():
        expected = codec.decoder(codec.quantizer.decode(torch.from_numpy(codes)[:, None]))[0, 0]
    got = suno.codec_decode(codes.astype(np.int32))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)


def test_stages_apart_are_the_whole(narrow: Checkpoint) -> None:
    """Also a whole with a history."""
    voice = narrow.voice(40)
    tokens = suno.generate_text_semantic(
        "Hello", voice, temp=0.6, max_gen_duration_s=0.5, min_eos_p=None, silent=True
    )
    coarse = suno.generate_coarse(tokens, voice, temp=0.8, silent=True)
    fine = suno.generate_fine(coarse, voice)
    audio = suno.codec_decode(fine)
    full, whole = suno.semantic_to_waveform(tokens, voice, 0.8, True, True)
    assert np.array_equal(full["coarse_prompt"], coarse)
    assert np.array_equal(full["fine_prompt"], fine)
    np.testing.assert_array_equal(whole, audio)


def test_nothing_is_nothing_all_the_way() -> None:
    empty = suno.generate_text_semantic("Hello", min_eos_p=0, silent=True)
    coarse = suno.generate_coarse(empty, silent=True)
    fine = suno.generate_fine(coarse)
    audio = suno.codec_decode(fine)
    assert (coarse.shape, fine.shape, audio.shape) == ((2, 0), (8, 0), (0,))
    assert suno.semantic_to_waveform(empty, silent=True).shape == (0,)


# Seeds


def test_torch_seeds(narrow: Checkpoint) -> None:
    api = SunoAPI(narrow.folder, device="cpu")
    tokens = np.arange(12)

    def everything() -> list[np.ndarray]:
        return [
            api.generate_text_semantic("Hello", max_gen_duration_s=0.2, silent=True),
            api.generate_coarse(tokens, silent=True),
            api.generate_fine(tokens[None] % 1024),
            api.semantic_to_waveform(tokens, silent=True),
        ]

    torch.manual_seed(3)
    first, state = everything(), torch.get_rng_state()
    torch.manual_seed(3)
    again = everything()
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, everything(), strict=True))
    torch.set_rng_state(state)
    torch.manual_seed(4)
    assert not np.array_equal(everything()[1], first[1])


def test_torch_seeds_and_the_two_halves(
    narrow: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in suno's code, the halves draw in the order in which the whole does."""
    from bark_fast.compat.suno import stages

    for module in (session, stages):
        monkeypatch.setattr(module, "most_semantic_tokens", lambda *_: 15)
    api = SunoAPI(narrow.folder, device="cpu")
    torch.manual_seed(5)
    whole = api.generate_audio("Hello", silent=True)
    torch.manual_seed(5)
    halves = api.semantic_to_waveform(api.text_to_semantic("Hello", silent=True), silent=True)
    np.testing.assert_array_equal(whole, halves)


# Histories


def test_each_stage_reads_its_own_arrays(narrow: Checkpoint, tmp_path: Path) -> None:
    """A file or a dictionary with these alone is enough, and others are not looked at."""
    voice = narrow.voice(40)
    parts = {
        "generate_text_semantic": ("semantic_prompt",),
        "generate_coarse": ("semantic_prompt", "coarse_prompt"),
        "generate_fine": ("fine_prompt",),
    }
    arguments: dict[str, tuple[Any, dict[str, Any]]] = {
        "generate_text_semantic": ("Hello", {"max_gen_duration_s": 0.2, "min_eos_p": None}),
        "generate_coarse": (np.arange(20), {}),
        "generate_fine": (np.arange(40).reshape(2, 20), {}),
    }
    for name, keys in parts.items():
        first, more = arguments[name]
        function = getattr(suno, name)
        expected = function(first, voice, silent=True, **more)
        assert not np.array_equal(expected, function(first, silent=True, **more))
        some = {key: voice[key] for key in keys}
        np.savez(tmp_path / f"{name}.npz", **some)
        wrong = {key: np.array(["no"]) for key in voice if key not in keys}
        for history in (some, some | wrong, str(tmp_path / f"{name}.npz")):
            assert np.array_equal(function(first, history, silent=True, **more), expected)
        for key in keys:
            with pytest.raises(InputError, match=f"{key} .*is missing"):
                function(first, {k: voice[k] for k in voice if k != key}, silent=True, **more)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int16, np.uint16])
def test_floats_and_other_lengths(
    narrow: Checkpoint, tmp_path: Path, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bark_fast.compat.suno import stages

    for module in (session, stages):
        monkeypatch.setattr(module, "most_semantic_tokens", lambda *_: 10)
    voice = narrow.voice(40)
    stored = {key: array.astype(dtype) for key, array in voice.items()}
    expected = suno.generate_audio("Hello", voice, silent=True)
    np.savez(tmp_path / "me.npz", **stored)
    for history in (stored, str(tmp_path / "me.npz")):
        assert np.array_equal(suno.generate_audio("Hello", history, silent=True), expected)
    for frames in (1, 20, 200):
        fine = np.resize(voice["fine_prompt"], (8, frames))
        assert len(suno.generate_audio("Hello", voice | {"fine_prompt": fine}, silent=True)) == len(
            expected
        )
    tokens = np.arange(15).astype(dtype)
    assert np.array_equal(
        suno.generate_coarse(tokens, silent=True), suno.generate_coarse(np.arange(15), silent=True)
    )
    codes = np.arange(20).reshape(2, 10)
    assert np.array_equal(suno.generate_fine(codes.astype(dtype)), suno.generate_fine(codes))


# Models


def test_load_and_clean(narrow: Checkpoint, tmp_path: Path) -> None:
    api = SunoAPI(write_suno_folder(tmp_path / "bark_v0", narrow.model), device="cpu")
    assert api.load_model(model_type="text") is api
    assert api.load_codec_model() is api
    models = vars(api)["_models"]
    assert vars(models)["_loaded"] is None  # nothing for two stages that nobody chose
    api.load_model(model_type="coarse")
    api.load_model(model_type="fine")
    first = vars(models)["_loaded"]
    assert first is not None
    api.load_model(model_type="fine")
    api.preload_models()
    assert api.bark is first
    api.load_model(model_type="fine", force_reload=True)
    assert api.bark is not first
    for key in ("text", "codec", None):
        api.clean_models(key)
        assert vars(models)["_loaded"] is None
        assert api.bark is api.bark


def test_from_many_threads(api: SunoAPI) -> None:
    expected = api.generate_coarse(np.arange(20), silent=True)
    found: list[np.ndarray] = []

    def run() -> None:
        found.append(suno.generate_coarse(np.arange(20), silent=True))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(np.array_equal(each, expected) for each in found)


# What is wrong


@pytest.mark.parametrize(
    ("name", "argument", "options", "message"),
    [
        ("generate_text_semantic", "", {}, "text must not be empty"),
        ("generate_text_semantic", "Hi", {"top_k": 0}, "top_k must be an integer >= 1, or None"),
        ("generate_text_semantic", "Hi", {"top_p": 1.5}, "top_p must be a number from 0 to 1"),
        ("generate_text_semantic", "Hi", {"min_eos_p": "x"}, "min_eos_p must be a finite number"),
        ("generate_text_semantic", "Hi", {"temp": -1}, "temp must be a finite number >= 0"),
        (
            "generate_text_semantic",
            "Hi",
            {"max_gen_duration_s": -1},
            "max_gen_duration_s must be a number >= 0, or None, got -1",
        ),
        ("generate_coarse", np.array([10_000]), {}, "x_semantic must hold values from 0 to 9999"),
        ("generate_coarse", np.array([0.5]), {}, "x_semantic must hold integers"),
        (
            "generate_coarse",
            np.arange(9),
            {"max_coarse_history": 59},
            "max_coarse_history must be an integer from 60 to 630, got 59",
        ),
        (
            "generate_coarse",
            np.arange(9),
            {"sliding_window_len": 139},
            "sliding_window_len must be an integer from 1 to 138 with max_coarse_history=630",
        ),
        ("generate_coarse", np.arange(9), {"sliding_window_len": 0}, "sliding_window_len must be"),
        ("generate_fine", np.zeros((8, 3), int), {}, "the codebooks of x_coarse_gen must be"),
        ("generate_fine", np.full((2, 3), 1024), {}, "must hold values from 0 to 1023"),
        ("codec_decode", np.zeros((9, 3), int), {}, "the codebooks of fine_tokens must be an"),
        ("codec_decode", np.zeros(3, int), {}, "fine_tokens must have shape [*, *], got [3]"),
        ("load_model", False, {"model_type": "codec"}, "model_type must be one of text, coarse"),
        ("clean_models", "everything", {}, "model_key must be text, coarse, fine, codec or None"),
    ],
)
def test_bad_input(name: str, argument: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        getattr(suno, name)(argument, **options)
    assert message in str(caught.value)
