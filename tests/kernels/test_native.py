"""The compiled CPU kernels: right, the same bits in every batch, honest about where they run."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from ctypes import CDLL
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bark_fast import kernels
from bark_fast.kernels.cpu import build, native, operations
from bark_fast.kernels.cpu.native_codec import NativeCodec
from helpers.kernel_cases import EXTRAS, Sequences, exact_bidirectional, exact_linear, extras_of
from helpers.kernels import assert_accurate, guarded_outputs, integers, randn
from helpers.native_library import HAS_AVX512, halves_library, whole_vectors

DTYPES = [torch.float32, torch.bfloat16]
FOUND_OUT = build.loaded
HAS_AVX2 = build.cpu_flags() >= {"avx2", "fma"}
IS_REAL = HAS_AVX512 and native.why_not(torch.float32) is None


@pytest.fixture(scope="module", autouse=True)
def library() -> Iterator[None]:
    """The library itself, or on a CPU without AVX-512 the one compiled against an emulation."""
    with whole_vectors():
        yield


@pytest.fixture(scope="session")
def halves() -> CDLL:
    """The library of CPUs with AVX2 and no AVX-512."""
    if not HAS_AVX2:
        pytest.skip("needs a CPU with AVX2 and FMA")
    return build.open_library(halves_library())


def available(dtype: torch.dtype) -> torch.dtype:
    if torch.cuda.is_available():
        pytest.skip("they serve machines without a GPU")
    if missing := native.why_not(dtype):
        pytest.skip(f"no native kernels here: {missing}")
    return dtype


@pytest.fixture(params=[*DTYPES, "AVX2"], ids=str)
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """One that this machine has native kernels for; "AVX2" is float32 by its own."""
    if request.param != "AVX2":
        return available(request.param)
    library = request.getfixturevalue("halves")
    monkeypatch.setattr(build, "loaded", lambda: library)
    return available(torch.float32)


def test_ci_runs_these() -> None:
    """Nothing below is skipped on a machine that has everything that the kernels need."""
    flags = build.cpu_flags()
    if flags >= {"avx2", "fma"} and not torch.cuda.is_available():
        assert isinstance(FOUND_OUT(), CDLL)
    if "avx512bw" in flags and not torch.cuda.is_available():
        assert IS_REAL
        assert (native.why_not(torch.bfloat16) is None) == ("avx512_bf16" in flags)


def test_structs_are_those_of_the_library(dtype) -> None:
    compiled = build.load().layouts().decode()
    assert operations.difference(compiled) is None
    swapped = compiled.replace(
        ";const char * x;const char * panels", ";const char * panels;const char * x"
    )
    assert swapped != compiled
    for other in (
        swapped,
        compiled.replace("double eps", "i64 eps"),
        compiled.replace(";i64 gelu", ""),
        compiled + "ANOTHER;i64 kind\n",
        compiled.replace("LINEAR", "linear"),
    ):
        assert operations.difference(other) is not None


def test_a_library_with_other_structs_is_not_used(dtype, monkeypatch) -> None:
    monkeypatch.setattr(operations, "layouts", lambda: "LINEAR;i64 kind\n")
    path = Path(build.load()._name)
    with pytest.raises(build.UnavailableError, match="compiled for other structs"):
        build.open_library(path)


@pytest.mark.parametrize("spec", EXTRAS, ids=lambda s: "+".join(s) or "plain")
@pytest.mark.parametrize(
    ("n", "m", "k"), [(1, 33, 48), (5, 64, 768), (12, 16, 2), (13, 31, 100), (37, 97, 600)]
)
def test_fused_linear(monkeypatch, dtype, spec, n: int, m: int, k: int) -> None:
    """Rows below, at and past the twelve that run at once, columns inside and past a panel, one to
    three blocks of k."""
    x = randn(n, k, dtype=dtype)
    weight = randn(m, k, seed=1, dtype=dtype) / math.sqrt(k)
    extras = extras_of(spec, n, m, k, dtype)
    packed = kernels.pack_weight(weight, impl="native")
    assert packed.shape == weight.shape
    with guarded_outputs(monkeypatch):
        got = kernels.fused_linear(x, packed, impl="native", **extras)
    plain = kernels.fused_linear(x, weight, impl="torch", **extras)
    assert_accurate(got, plain, exact_linear(x, weight, **extras))


@pytest.mark.parametrize("shape", [(2304, 768), (768, 3072), (1001, 768), (96, 32)])
def test_a_row_has_the_same_bits_in_every_batch(dtype, shape: tuple[int, int]) -> None:
    weight = kernels.pack_weight(randn(*shape, seed=1, dtype=dtype), impl="native")
    x, norm = randn(300, shape[1], seed=2, dtype=dtype), (randn(shape[1], dtype=dtype), None)
    together = kernels.fused_linear(x, weight, norm=norm, impl="native")
    for n in (1, 2, 3, 7, 11, 12, 13, 16, 17, 64, 257):
        for rows in (slice(0, n), slice(300 - n, 300)):
            alone = kernels.fused_linear(x[rows], weight, norm=norm, impl="native")
            assert torch.equal(alone, together[rows]), n


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_do_not_depend_on_the_number_of_threads(dtype, threads: int) -> None:
    weight = kernels.pack_weight(randn(200, 96, seed=1, dtype=dtype), impl="native")
    x, qkv = randn(30, 96, seed=2, dtype=dtype), randn(1, 70, 3, 2, 32, seed=3, dtype=dtype)
    y = kernels.fused_linear(x, weight, impl="native")
    attended = kernels.bidirectional_attention(*qkv.unbind(2), impl="native")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(kernels.fused_linear(x, weight, impl="native"), y)
        again = kernels.bidirectional_attention(*qkv.unbind(2), impl="native")
        assert torch.equal(again, attended)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("heads", "size"), [(3, 16), (2, 32), (1, 64), (4, 6)])
def test_qkv_to_pages(monkeypatch, dtype, heads: int, size: int) -> None:
    n, width, page_size = 5, heads * size, 4
    x, weight = randn(n, width, dtype=dtype), randn(3 * width, width, seed=1, dtype=dtype)
    weight = weight / math.sqrt(width)
    norm, bias = (randn(width, seed=2, dtype=dtype), None), randn(3 * width, seed=3, dtype=dtype)
    slots = torch.tensor([3, 8, -1, 27, 12])
    k_pages = torch.full((7, heads, page_size, size), math.nan, dtype=dtype)
    v_pages = k_pages.clone()
    with guarded_outputs(monkeypatch):
        q = kernels.qkv_to_pages(
            x, kernels.pack_weight(weight, impl="native"), bias, norm=norm, k_pages=k_pages,
            v_pages=v_pages, slot_mapping=slots, impl="native",
        )  # fmt: skip
    exact = exact_linear(x, weight, bias, norm=norm).view(n, 3, heads, size).unbind(1)
    plain = kernels.fused_linear(x, weight, bias, norm=norm).view(n, 3, heads, size).unbind(1)
    assert_accurate(q, plain[0], exact[0])
    kept = slots >= 0
    pages, offsets = slots[kept] // page_size, slots[kept] % page_size
    for stored, p, e in zip((k_pages, v_pages), plain[1:], exact[1:], strict=True):
        assert_accurate(stored[pages, :, offsets], p[kept], e[kept])
        written = (n - 1) * width
        assert int(stored.isnan().sum()) == stored.numel() - written, "a write outside the slots"


@pytest.mark.parametrize("page_size", [1, 16, 64, 1024])
@pytest.mark.parametrize("size", [10, 32, 64, 128])
def test_decode_attention(monkeypatch, dtype, page_size: int, size: int) -> None:
    s = Sequences([1, 16, 17, 0, 300, 33], page_size, size=size, dtype=dtype)
    q = randn(6, 2, size, seed=9, dtype=dtype)
    with guarded_outputs(monkeypatch):
        s.check(q, [1] * 6, "native", decode=True)
    together = s.run(q, [1] * 6, "native", decode=True)
    for i in range(6):
        alone = kernels.paged_attention(
            q[i : i + 1], s.k_pages, s.v_pages, block_tables=s.tables[i : i + 1],
            seq_lens=torch.tensor(s.lengths[i : i + 1]), max_queries=1, max_length=300,
            decode=True, impl="native",
        )  # fmt: skip
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("page_size", [1, 16, 1024])
@pytest.mark.parametrize("size", [16, 40, 64])
def test_prefill_and_extend(monkeypatch, dtype, page_size: int, size: int) -> None:
    """Whole prompts, extensions of what is in the pages, single steps and nothing, packed."""
    lengths, queries = [1, 7, 64, 33, 90, 20, 0, 300], [1, 7, 64, 5, 1, 0, 2, 300]
    s = Sequences(lengths, page_size, size=size, dtype=dtype)
    q = randn(sum(queries), 2, size, seed=9, dtype=dtype)
    with guarded_outputs(monkeypatch):
        s.check(q, queries, "native")
    together, parts = s.run(q, queries, "native").split(queries), q.split(queries)
    for i in (2, 4, 7):
        alone = kernels.paged_attention(
            parts[i], s.k_pages, s.v_pages, block_tables=s.tables[i : i + 1],
            cu_seqlens_q=torch.tensor([0, queries[i]]), seq_lens=torch.tensor([lengths[i]]),
            max_queries=queries[i], max_length=lengths[i], impl="native",
        )  # fmt: skip
        assert torch.equal(alone, together[i])


@pytest.mark.parametrize(("length", "size"), [(1, 16), (37, 32), (65, 64), (300, 10)])
def test_bidirectional(monkeypatch, dtype, length: int, size: int) -> None:
    q, k, v = randn(2, length, 3, 3, size, dtype=dtype).unbind(2)
    with guarded_outputs(monkeypatch):
        got = kernels.bidirectional_attention(q, k, v, impl="native")
    plain = kernels.bidirectional_attention(q, k, v, impl="torch")
    assert_accurate(got, plain, exact_bidirectional(q, k, v))
    apart = kernels.bidirectional_attention(*(t.contiguous() for t in (q, k, v)), impl="native")
    assert torch.equal(apart, got)


@pytest.mark.parametrize("streams", [1, 3])
def test_embedding_sum(monkeypatch, dtype, streams: int) -> None:
    tables, place = randn(streams, 20, 50, dtype=dtype), randn(9, 50, seed=1, dtype=dtype)
    ids = integers(20, 7, streams, low=-1).T  # as the fine model's codes lie: side by side
    positions = torch.tensor([0, 8, 3, 3, 1, 2, 5])
    for given, shared in ((ids, tables), (ids.contiguous(), tables[:1].expand(streams, -1, -1))):
        about = {"positions": positions, "position_table": place}
        with guarded_outputs(monkeypatch):
            got = kernels.embedding_sum(given, shared, **about, impl="native")
        exact = kernels.embedding_sum(
            given, shared.double(), positions=positions, position_table=place.double()
        )
        assert_accurate(got, kernels.embedding_sum(given, shared, **about), exact)


def test_gelu_over_its_range(dtype) -> None:
    x = torch.linspace(-12, 12, 4096).view(-1, 2).to(dtype)
    identity = kernels.pack_weight(torch.eye(2, dtype=dtype), impl="native")
    got = kernels.fused_linear(x, identity, gelu=True, impl="native")
    exact = torch.nn.functional.gelu(x.double())
    assert_accurate(got, torch.nn.functional.gelu(x), exact)


def of_every_operation() -> list[Tensor]:
    """What the library that is there makes of the same numbers, among them no numbers."""
    results = []
    for n, m, k in ((1, 33, 48), (5, 64, 768), (37, 97, 600)):
        weight = randn(m, k, seed=1) / math.sqrt(k)
        packed = kernels.pack_weight(weight, impl="native")
        for spec in EXTRAS:
            extras = extras_of(spec, n, m, k, torch.float32)
            results.append(kernels.fused_linear(randn(n, k), packed, impl="native", **extras))
    x = torch.cat([torch.linspace(-90, 90, 9000), torch.tensor([math.inf, -math.inf, math.nan])])
    identity = kernels.pack_weight(torch.ones(1, 1), impl="native")
    results.append(kernels.fused_linear(x.view(-1, 1), identity, gelu=True, impl="native"))
    for scale in (1, 30, 1e4):  # weights down to the least
        q, k, v = (scale * randn(2, 65, 3, 3, 32)).unbind(2)
        results.append(kernels.bidirectional_attention(q, k, v, impl="native"))
    s = Sequences([1, 16, 17, 0, 300, 33], 16, size=64, dtype=torch.float32)
    for scale in (1, 30):
        q = scale * randn(6, 2, 64, seed=9)
        results.append(s.run(q, [1] * 6, "native", decode=True))
        results.append(s.run(q, [1] * 6, "native"))
    codec = NativeCodec()
    for n, width in ((3, 7), (40, 24)):
        filter = codec.pack_filter(randn(n, 3 * width), randn(n), width=width)
        results.append(codec.convolution(randn(101, width), filter, elu=True))
    results.append(codec.elu(x, residual=x, out=torch.empty_like(x)))
    results.append(codec.lstm(randn(20, 4 * 24), codec.pack_weight(randn(4 * 24, 24))))
    rows, positions = 200, torch.arange(200) * 7
    metadata = kernels.SamplingMetadata(
        temperature=torch.full((rows,), 0.7),
        top_k=torch.tensor([0, 50] * (rows // 2)),
        top_p=torch.tensor([1.0, 1.0, 0.9, 0.5] * (rows // 4)),
        seeds=torch.arange(rows) * 2**33,
        min_eos_p=torch.zeros(rows),
        min_new_tokens=torch.zeros(rows, dtype=torch.int64),
        suno_rules=torch.tensor([0, 0, 1, 1] * (rows // 4)),
    )
    space = kernels.TokenSpace(stage=1)
    results.append(
        kernels.sample(randn(rows, 1000), metadata, space, positions=positions, impl="native")
    )
    results.append(
        kernels.random_words(metadata.seeds, positions, stage=1, n_ids=1001, impl="native")
    )
    return results


def test_avx2_has_the_bits_of_avx512(halves, monkeypatch) -> None:
    available(torch.float32)
    whole = of_every_operation()
    monkeypatch.setattr(build, "loaded", lambda: halves)
    for ours, theirs in zip(of_every_operation(), whole, strict=True):
        # Which NaN it is does not matter.
        assert ours.equal(theirs) or ours.nan_to_num(0.25).equal(theirs.nan_to_num(0.25))


def test_an_odd_width_is_refused_in_pairs() -> None:
    with pytest.raises(ValueError, match="even K, got 3"):
        kernels.pack_weight(torch.zeros(4, 3, dtype=torch.bfloat16), impl="native")
    q = torch.zeros(1, 4, 2, 5, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="even size, got 5"):
        kernels.bidirectional_attention(q, q, q, impl="native")


def test_a_recorded_step_is_the_step(dtype) -> None:
    """Repeats read what is in the tensors then; a copy that would not be repeated is refused."""
    weight = kernels.pack_weight(randn(64, 32, seed=1, dtype=dtype), impl="native")
    x, results = randn(3, 32, dtype=dtype), []

    def chain() -> None:
        y = kernels.fused_linear(x, weight, gelu=True, impl="native")
        results.append(kernels.fused_linear(y.view(6, 32), weight, residual=None, impl="native"))

    repeat = kernels.record_native(chain)
    first = results[0].clone()
    x.copy_(randn(3, 32, seed=5, dtype=dtype))
    repeat()
    again = results[0].clone()
    assert not torch.equal(first, again)
    chain()
    assert torch.equal(results[1], again)
    with pytest.raises(AssertionError, match="would not be repeated"):
        kernels.record_native(
            lambda: kernels.fused_linear(randn(32, 3, dtype=dtype).T, weight, impl="native")
        )


@pytest.mark.parametrize("factor", [100, 1e6])
def test_a_large_score_does_not_overflow(dtype, factor: float) -> None:
    q = randn(1, 40, 1, 32, dtype=dtype) * factor
    got = kernels.bidirectional_attention(q, q, q, impl="native")
    assert_accurate(got, kernels.bidirectional_attention(q, q, q), exact_bidirectional(q, q, q))


def test_what_is_missing_is_said(monkeypatch, tmp_path) -> None:
    """Each thing that they need, taken away."""
    assert "not torch.float16" in native.why_not(torch.float16)
    monkeypatch.setattr(build, "loaded", FOUND_OUT)

    def reason() -> str:
        FOUND_OUT.cache_clear()
        return native.why_not(torch.float32) or ""

    try:
        with monkeypatch.context() as patch:
            patch.setattr(build, "cpu_flags", lambda: frozenset({"avx2"}))
            assert "AVX2 and FMA, or AVX-512" in reason()
        with monkeypatch.context() as patch:
            patch.setattr(build, "cpu_flags", lambda: frozenset({"avx2", "fma", "avx512bw"}))
            patch.setattr(build.shutil, "which", lambda name: None)
            assert "compiler" in reason()
        with monkeypatch.context() as patch:
            patch.setattr(build, "cpu_flags", lambda: frozenset({"avx2", "fma", "avx512bw"}))
            patch.setattr(build.shutil, "which", lambda name: "/bin/false")
            patch.setenv("XDG_CACHE_HOME", str(tmp_path))
            assert "/bin/false failed" in reason()
            assert not list(tmp_path.glob("**/*.so")), "nothing half-made is left"
    finally:
        FOUND_OUT.cache_clear()


def test_it_is_compiled_once(monkeypatch, tmp_path) -> None:
    """Another process finds the library, and two that compile at once do not disturb each other."""
    if not HAS_AVX2:
        pytest.skip("other processes need a CPU with AVX2")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # Compiled without optimisation, which takes most of the time.
    code = """
from bark_fast.kernels.cpu import build
library = build.open_library(build.compiled_library(("-O0", "-march=native")))
print(library.packed_bytes(0, 0, 32, 1) > 0)
"""
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["True", "True"]
    (library,) = Path(tmp_path / "bark-fast").iterdir()
    made = library.stat().st_mtime_ns
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == "True"
    assert library.stat().st_mtime_ns == made


def test_a_thread_that_ends_keeps_no_memory(dtype) -> None:
    """Each has its own intermediate results; engines in the background come and go."""
    qkv = randn(1, 512, 3, 4, 64, dtype=dtype)

    def attend() -> None:
        kernels.bidirectional_attention(*qkv.unbind(2), impl="native")

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def in_threads(n: int) -> None:
        for _ in range(n):
            thread = threading.Thread(target=attend)
            thread.start()
            thread.join()

    in_threads(5)
    before = resident_bytes()
    in_threads(40)
    assert resident_bytes() - before < 20 * 2**20  # each needs about a megabyte and a half
