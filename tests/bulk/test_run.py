"""A run over rows: seeds, sentences, shards, formats, errors, and a folder that takes no more."""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import soundfile

from bark_fast import Bark, GenerationParams, InputError
from bark_fast.bulk import Summary, run
from bark_fast.bulk.ledger import Entry, Ledger
from helpers.checkpoints import Checkpoint

from .conftest import manifest, quick, tree

LONG = "One is here. Two is here. Three is here. Four."


def samples_of(path: Path) -> Any:
    samples, _ = soundfile.read(path, dtype="int16")
    return samples


def test_a_long_text_is_what_stream_says_bit_for_bit(
    bulk: Any, small: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    commit = Ledger.commit

    def noted(self: Ledger, entry: Entry, content: bytes) -> None:
        written.append(entry.id)
        commit(self, entry, content)

    monkeypatch.setattr(Ledger, "commit", noted)
    small.bark.load_voice(small.voice(17)).save(tmp_path / "me.npz")
    for name, voice in (("a", str(tmp_path / "me.npz")), ("b", None)):
        params = GenerationParams(seed=2**64 - 2, max_semantic_tokens=30)
        parts = list(small.bark.stream(LONG, voice=voice, params=params, pause_s=0.1))
        assert len(parts) == 4
        row = {"id": name, "text": LONG, "voice": voice, "seed": params.seed}
        _, [entry] = bulk([row | {"max_semantic_tokens": 30}], name, pause_s=0.1)
        joined = io.BytesIO()
        samples = np.concatenate([part.samples for part in parts])
        soundfile.write(joined, samples, small.bark.sample_rate_hz, format="WAV")
        joined.seek(0)
        said = samples_of(tmp_path / name / entry["path"])
        assert np.array_equal(said, samples_of(joined))  # type: ignore[arg-type]
        assert entry["seconds"] == len(samples) / small.bark.sample_rate_hz
        assert entry["voice"] == voice
    assert written == ["a", "b"]


def test_a_row_without_a_seed_equals_the_one_with_the_manifests(bulk: Any, tmp_path: Path) -> None:
    rows = [quick(i, LONG) for i in range(3)]
    _, entries = bulk(rows, seed=5)
    assert len({entry["seed"] for entry in entries}) == 3
    _, again = bulk([row | {"seed": e["seed"]} for row, e in zip(rows, entries, strict=True)], "2")
    assert again == entries
    assert bulk(rows, "3", seed=6)[1][0]["sha256"] != entries[0]["sha256"]


def test_a_row_does_not_depend_on_its_neighbours(bulk: Any) -> None:
    rows = [quick(i, f"Number {i}.") for i in range(6)]
    _, together = bulk(rows)
    for row, entry in zip(rows, together, strict=True):
        _, [alone] = bulk([row], f"alone-{row['id']}")
        assert alone | {"row": entry["row"]} == entry


@pytest.mark.parametrize("format", ["wav", "flac", "mp3", "opus", "ogg", "aac", "pcm"])
def test_formats(bulk: Any, bark: Bark, tmp_path: Path, format: str) -> None:
    _, [entry, silent] = bulk([quick("a"), quick("b", "...")], format=format)
    assert entry["path"].endswith(f".{format}")
    assert entry["error"] is silent["error"] is None
    path = tmp_path / "out" / entry["path"]
    assert path.stat().st_size
    if format in ("wav", "flac"):
        assert soundfile.info(path).frames == round(entry["seconds"] * bark.sample_rate_hz) > 0


def test_the_manifest_as_parquet(bulk: Any, tmp_path: Path) -> None:
    rows = [quick("a"), quick("b", seed=2**64 - 1), quick("\ud800"), "row"]
    _, lines = bulk(rows, "jsonl")
    bulk(rows, manifest="parquet")
    table = parquet.read_table(tmp_path / "out" / "manifest-00000.parquet")
    assert table.to_pylist() == lines
    before = tree(tmp_path / "out")
    assert bulk(rows, manifest="parquet")[0].skipped == 2
    assert tree(tmp_path / "out") == before
    # The other kind takes its place, and what was done stays done.
    summary, entries = bulk(rows)
    assert (summary.skipped, entries) == (2, lines)
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_what_is_done_is_not_done_again(bulk: Any, tmp_path: Path) -> None:
    rows = [quick(i) for i in range(4)]
    bulk(rows[:3])
    summary, entries = bulk([rows[3], rows[1], rows[0]])
    assert (summary.done, summary.skipped) == (3, 2)
    assert [(entry["row"], entry["id"]) for entry in entries] == [(0, "3"), (1, "1"), (2, "0")]
    (tmp_path / "out" / entries[1]["path"]).unlink()
    assert bulk([rows[3], rows[1], rows[0]])[0].skipped == 2
    assert bulk([rows[3] | {"text": "Another."}])[0].skipped == 0
    assert bulk(rows[:1], format="flac")[0].skipped == 0


def test_rows_that_move_to_a_later_part_of_the_manifest_are_known_when_a_run_is_cut(
    bulk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bark_fast.bulk.ledger.PART_ROWS", 2)
    rows = [quick(i) for i in range(5)]
    bulk(rows)

    def cut() -> Iterator[Any]:
        yield from reversed(rows[2:])
        raise OSError("the input ends here")

    with pytest.raises(OSError, match="ends here"):
        bulk(cut())
    assert bulk(list(reversed(rows)))[0].skipped == 5
    assert [entry["id"] for entry in manifest(tmp_path / "out")] == ["4", "3", "2", "1", "0"]


def test_an_id_like_a_manifest_is_a_name_like_others(bulk: Any) -> None:
    rows = [quick("manifest-00000.jsonl"), quick("manifest-00001.a"), quick("lock")]
    assert bulk(rows)[0].done == 3
    summary, entries = bulk(rows)
    assert summary.skipped == 3
    assert [entry["id"] for entry in entries] == [row["id"] for row in rows]


# Errors ---------------------------------------------------------------------------------------


@pytest.fixture
def failing(bark: Bark, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Let sentences fail in the engine so many times; by text."""
    left = {"Fails": 1}  # a piece, where an utterance has four tokens
    submit = bark.submit

    def submit_or_fail(request: Any, **options: Any) -> Future[Any]:
        if left.get(request.text, 0):
            left[request.text] -= 1
            future: Future[Any] = Future()
            future.set_exception(RuntimeError("no memory"))
            return future
        return submit(request, **options)

    monkeypatch.setattr(bark, "submit", submit_or_fail)
    return left


def test_rows_that_failed_are_tried_again_only_when_asked(
    bulk: Any, failing: dict[str, int]
) -> None:
    rows = [quick("a", "Hello. Fails. More."), quick("b"), quick("c", voice="nobody")]
    summary, entries = bulk(rows)
    assert (summary.failed, entries[0]["error"]) == (2, "RuntimeError: no memory")
    assert bulk(rows)[1] == entries
    summary, retried = bulk(rows, retry_errors=True)
    assert (summary.done, summary.skipped, summary.failed) == (2, 1, 1)
    assert retried[0]["error"] is None
    assert bulk(rows)[1] == retried


def test_a_row_with_more_sentences_than_run_together_may_fail_as_any(
    bulk: Any, small: Checkpoint, bark: Bark, failing: dict[str, int], tmp_path: Path
) -> None:
    limit = 2 * bark.engine.runner.config.max_running
    text = " ".join(["Fails.", *(f"Sentence {i}." for i in range(limit + 5))])
    bark.load_voice(small.voice(17)).save(tmp_path / "me.npz")  # or they are said one by one
    first = quick("a", text, voice=str(tmp_path / "me.npz"))
    summary, entries = bulk([first, *(quick(i) for i in range(9))])
    assert (summary.failed, summary.done) == (1, 9)
    assert len(entries) == 10


def test_more_errors_than_allowed_end_the_run(bulk: Any, tmp_path: Path) -> None:
    rows = [quick("a"), {"id": "b"}, {"id": "c"}, quick("d")]
    summary, entries = bulk(rows, max_errors=1)
    assert (summary.ended_early, summary.failed, entries) == (True, 2, [])
    summary, entries = bulk(rows, max_errors=2)
    assert (summary.ended_early, summary.failed, len(entries)) == (False, 2, 4)
    assert summary.skipped >= 1


@pytest.mark.parametrize(
    "options",
    [{"format": "exe"}, {"manifest": "csv"}, {"seed": -1}, {"pause_s": 61}, {"shard": (2, 2)},
     {"shard": (0, 0)}, {"max_errors": -1}],
)  # fmt: skip
def test_wrong_arguments(bulk: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        bulk([quick("a")], **options)
    assert manifest(tmp_path / "out") == []


# The folder -----------------------------------------------------------------------------------


def test_shards_share_a_folder(bulk: Any, tmp_path: Path) -> None:
    rows = [quick(i) for i in range(12)] + [quick(3), {"text": "no id"}]
    summaries = [bulk(rows, shard=(i, 3))[0] for i in range(3)]
    assert sum(summary.rows for summary in summaries) == len(rows)
    assert max(summary.rows for summary in summaries) < len(rows)
    parts = [{e["row"] for e in manifest(tmp_path / "out", f"manifest-{i}-*")} for i in range(3)]
    assert set.union(*parts) == set(range(len(rows)))
    assert sum(map(len, parts)) == len(rows)
    # One run over all makes one manifest of theirs, and is as if there had been no other.
    summary, entries = bulk(rows)
    assert (summary.done, summary.skipped) == (12, 12)
    assert bulk(rows, "alone")[1] == entries
    assert tree(tmp_path / "out") == tree(tmp_path / "alone")


def test_one_run_a_folder_and_shard(bulk: Any, tmp_path: Path) -> None:
    with Ledger(tmp_path / "out", shard=(0, 2)):
        for shard in ((0, 2), (0, 3), (1, 3), (0, 1)):
            with pytest.raises(InputError, match="OUT must be a folder that no other run"):
                bulk([quick("a")], shard=shard)
        bulk([quick("a")], shard=(1, 2))
    bulk([quick("a")], shard=(0, 3))
    bulk([quick("a")])


def test_a_folder_that_cannot_be_written(
    bulk: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "file").write_text("")
    for name in ("file", "file/out"):
        with pytest.raises(InputError, match="OUT must be a folder that can be written"):
            bulk([quick("a")], name)
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o555)
    if os.geteuid() == 0:  # who may write anywhere
        for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
            folder.chmod(folder.stat().st_mode | 0o055)
        os.seteuid(65534)
        request.addfinalizer(lambda: os.seteuid(0))
    with pytest.raises(InputError, match=r"OUT must be a folder that can be written.*denied"):
        bulk([quick("a")])
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("place", ["fsync", "write", "replace"])
def test_a_full_disk_ends_the_run_and_what_was_done_stays(
    bulk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    rows = [quick(i, f"Number {i}.") for i in range(20)]
    left, lock = [7], threading.Lock()

    def full(function: Callable[..., Any]) -> Callable[..., Any]:
        def limited(*arguments: Any) -> Any:
            with lock:
                left[0] -= 1
                if left[0] < 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
            return function(*arguments)

        return limited

    with monkeypatch.context() as patch:
        if place == "write":
            patch.setattr("bark_fast.bulk.ledger.write_all", full(_write_half))
        else:
            patch.setattr(os, place, full(getattr(os, place)))
        with pytest.raises(OSError, match="No space left"):
            bulk(rows)
    out = tmp_path / "out"
    left_behind = [path.name for path in out.iterdir()]
    assert all(soundfile.info(out / name).frames for name in left_behind if name[0] != ".")
    summary, entries = bulk(rows)
    assert 0 < summary.skipped < len(rows)
    assert entries == bulk(rows, "undisturbed")[1]
    assert tree(out) == tree(tmp_path / "undisturbed")


def _write_half(file: Any, content: bytes) -> None:
    file.write(content)


def test_an_input_that_raises_gives_up_what_is_under_way(bulk: Any, bark: Bark) -> None:
    def rows() -> Iterator[Any]:
        yield quick("a", LONG)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bulk(rows())
    bark.generate("The engine goes on.", params=GenerationParams(max_semantic_tokens=4))
    assert not bark.engine.has_work


def test_a_run_in_a_thread_reports(bark: Bark, tmp_path: Path) -> None:
    seen: list[int] = []
    rows = [quick(i) for i in range(3)]

    def note(summary: Summary) -> None:
        seen.append(summary.done)

    thread = threading.Thread(target=lambda: run(rows, tmp_path / "o", bark=bark, report=note))
    thread.start()
    thread.join()
    assert seen == [1, 2, 3]
