"""Rows from files: what is read, what is wrong with which row, and that each ends as one line."""

from __future__ import annotations

import hashlib
import io
import json
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bark_fast import Bark, InputError
from bark_fast.bulk import read_rows, run
from bark_fast.bulk.rows import Unreadable, check_row

from .conftest import QUICK, manifest, quick, write_jsonl

# Any mix of rows ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A line of a JSONL file, and whether its row is right if its id is new."""

    content: bytes
    good: bool
    id: Any = None


def _line(good: bool, values: dict[str, Any]) -> Line:
    return Line(json.dumps(values).encode(), good, values.get("id"))


_IDS = st.one_of(
    st.sampled_from(["a", "b", "c", 1, 2, "1"]),
    st.text("äß漢🙂 xyz.-_%$", min_size=1, max_size=12).filter(lambda x: x[0] != "."),
)
_BAD_IDS = st.sampled_from(
    [None, "", "a/b", "../a", "/etc", "a\\b", "\0", "a\nb", ".", "..", ".a", "\ud800", "x" * 201,
     "漢" * 67, True, 1.5, math.nan, [], ["a"], {}, {"id": 1}]
)  # fmt: skip
_TEXTS = st.sampled_from(
    [
        "Hello.",
        "One. Two.",
        "漢字",
        "🙂🙂🙂",
        "a\0b",
        " x ",
        "...",
        "x " * 60,
        "\u202e abc",
        "MAN: Hi.",
    ]
)
_BAD_TEXTS = st.sampled_from([None, "", " ", "\n\t", "\ud800", 5, 1.5, True, [], ["Hi"], {"a": 1}])
_GOOD_VALUES = st.sampled_from(
    [{}, {"voice": None}, {"seed": 0}, {"seed": 2**64 - 1}, {"language": "de"}, {"top_k": 5},
     {"temperature": 0}, {"semantic_temperature": 0.5, "seed": None}]
)  # fmt: skip
_BAD_VALUES = st.sampled_from(
    [{"voice": "nobody"}, {"voice": 5}, {"voice": ""}, {"voice": "no.npz"}, {"voice": []},
     {"voice": "a\0.npz"}, {"voice": "\ud800.npz"}, {"seed": -1}, {"seed": 2**64}, {"seed": 0.5},
     {"seed": "7"}, {"seed": []}, {"temperature": -1}, {"temperature": math.nan}, {"top_p": 0},
     {"top_k": {}}, {"language": 5}, {"language": "e n"}, {"speed": 2}, {"": ""}, {"ID": "a"},
     {"\ud800": 1}, {"max_duration_s": -1}, {"normalize_text": "maybe"}]
)  # fmt: skip
_BROKEN = st.sampled_from(
    [b"{", b"nonsense", b"[]", b"5", b'"text"', b"null", b"\xff\xfe", b'{"id": "\xff"}', b"\0",
     b"[" * 100_000, b'{"id": "a" "text"}', b"9" * 5_000]
)  # fmt: skip
_LINES = st.one_of(
    st.builds(lambda i, t, v: _line(True, quick(i, t) | v), _IDS, _TEXTS, _GOOD_VALUES),
    st.builds(lambda i, t: _line(False, quick(i, t)), _BAD_IDS, _TEXTS),
    st.builds(lambda i, t: _line(False, quick(i, t)), _IDS, _BAD_TEXTS),
    st.builds(lambda i, t, v: _line(False, quick(i, t) | v), _IDS, _TEXTS, _BAD_VALUES),
    st.builds(lambda content: Line(content, False), _BROKEN),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(_LINES, max_size=12), shards=st.integers(1, 3), part=st.sampled_from([1, 5]))
def test_any_mix_of_rows_ends_with_one_line_a_row_in_order(
    bark: Bark, monkeypatch: pytest.MonkeyPatch, lines: list[Line], shards: int, part: int
) -> None:
    monkeypatch.setattr("bark_fast.bulk.ledger.PART_ROWS", part)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        path = Path(folder, "rows.jsonl")
        path.write_bytes(b"\n\n".join(line.content for line in lines))
        summaries = [run(read_rows(path), out, bark=bark, shard=(i, shards)) for i in range(shards)]
        entries = manifest(out)
        if shards == 1:
            assert [entry["row"] for entry in entries] == list(range(len(lines)))
        entries.sort(key=lambda entry: entry["row"])
        assert [entry["row"] for entry in entries] == list(range(len(lines)))

        seen: set[str] = set()
        for entry, line in zip(entries, lines, strict=True):
            usable = isinstance(line.id, (str, int)) and not isinstance(line.id, bool)
            good = line.good and str(line.id) not in seen
            assert (entry["error"] is None) == good, (entry, line)
            if usable and (line.good or "id must" not in entry["error"]):
                seen.add(str(line.id))
            if not good:
                assert entry["path"] is entry["seconds"] is entry["sha256"] is None
                continue
            assert entry["id"] == str(line.id)
            content = (out / entry["path"]).read_bytes()
            assert content[:4] == b"RIFF"
            assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        audio = {path.name for path in out.iterdir() if path.suffix == ".wav"}
        assert audio == {entry["path"] for entry in entries if entry["path"]}
        assert sum(s.rows for s in summaries) == len(lines)
        assert sum(s.done for s in summaries) == len(audio)
        assert sum(s.failed for s in summaries) == len(lines) - len(audio)
        hidden = {path.name for path in (out / ".bark-fast").iterdir()}
        assert hidden == {"lock", *(f"{i}-of-{shards}.lock" for i in range(shards))}


def test_rows_of_a_program_need_not_be_rows(bulk: Any) -> None:
    summary, entries = bulk(["Hello", None, 5, quick("a"), quick("b", lang="en"), {5: 6, None: 7}])
    assert [entry["error"] is None for entry in entries] == [False] * 3 + [True, False, False]
    assert (summary.done, summary.failed) == (1, 5)
    assert "a row must be a mapping, got str" in entries[0]["error"]


def test_ignored_fields_mean_nothing(bulk: Any) -> None:
    rows = [quick("a", page=7), quick("b", source=8), quick("c")]
    assert bulk(rows, ignored=["page"])[0].failed == 1
    assert bulk(rows, ignored=None)[0].failed == 0
    _, entries = bulk(rows)
    assert "got 'page'" in entries[0]["error"]
    assert entries[2]["path"] == bulk([quick("c")], "other")[1][0]["path"]


def test_an_error_quotes_no_more_than_a_part_of_a_long_value(bulk: Any) -> None:
    _, entries = bulk([quick("a", b"x" * 100_000), quick(["y" * 100_000])])
    assert all(len(entry["error"]) < 1_100 for entry in entries)
    assert len(entries[1]["id"]) < 1_100


# Files ----------------------------------------------------------------------------------------

ROWS = [quick("a", "One."), quick("b", 'Two, "so to say".\nThree.', seed=7, voice=None)]


def write_csv(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def write_parquet(path: Path, **columns: Any) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


CSV = (
    "\ufeffid,text,max_semantic_tokens,seed,voice\r\n"
    'a,One.,4,,\r\nb,"Two, ""so to say"".\nThree.",4,7,\r\n'
)


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    table = {name: [row.get(name) for row in ROWS] for name in ("id", "text", "seed", *QUICK)}
    folder = tmp_path / "folder"
    folder.mkdir()
    write_jsonl(folder / "1.jsonl", ROWS[:1])
    write_parquet(folder / "2.PARQUET", **{name: values[1:] for name, values in table.items()})
    (folder / "README").write_text("nothing")
    return [
        write_jsonl(tmp_path / "rows.jsonl", ROWS),
        write_csv(tmp_path / "rows.csv", CSV),
        write_parquet(tmp_path / "rows.parquet", **table),
        folder,
    ]


def test_all_kinds_of_files_say_the_same(
    sources: list[Path], tmp_path: Path, bark: Bark, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = [check_row(row, seed=0) for row in ROWS]
    for source in sources:
        assert [check_row(row, seed=0) for row in read_rows(str(source))] == checked, source
    stdin = io.TextIOWrapper(io.BytesIO(sources[0].read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert [check_row(row, seed=0) for row in read_rows("-")] == checked


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "No such file"),
        ("rows.txt", b"", "must end in .jsonl, .csv, .parquet or be a folder"),
        ("rows", b"", "must end in"),
        ("rows.csv", b"", "must have the columns id and text"),
        ("rows.csv", b"id,txt\na,Hi\n", "without text"),
        ("rows.csv", b"a,Hi\n", "without id"),
        ("rows.parquet", b"PAR1", "must be a Parquet file"),
        ("rows.parquet", b"", "must be a Parquet file"),
    ],
)
def test_a_file_that_is_none_is_an_error_at_once(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"^IN .*{message}"):
        read_rows(tmp_path / name)


def test_a_folder_without_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must hold files ending in"):
        read_rows(tmp_path)
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        read_rows(tmp_path)


def test_a_line_of_csv_is_only_itself(tmp_path: Path) -> None:
    long = "word " * 40_000  # csv's own limit is 131 072 characters
    text = f'id,text\na,One.\nb\nc,Two.,more\n\nd,"{long}"\ne,\udcff\nf,\ng,Last.\n'
    rows = list(read_rows(write_csv(tmp_path / "rows.csv", text)))
    assert rows[0] == {"id": "a", "text": "One."}
    assert rows[1] == Unreadable("line 3 must have 2 values")
    assert rows[2] == Unreadable("line 4 must have 2 values")
    assert rows[3] == {"id": "d", "text": long}
    assert rows[6] == {"id": "g", "text": "Last."}
    for row, message in ((rows[4], "valid Unicode"), (rows[5], "text must")):
        with pytest.raises(InputError, match=message):
            check_row(row, seed=0)


def test_numbers_in_csv_are_numbers(tmp_path: Path) -> None:
    text = (
        "id,text,seed,temperature,normalize_text,top_k\n"
        "7,5,18446744073709551615,0.5,FALSE,\nb,Hi,x,,,\nc,Hi,,nan,,\nd,Hi,,,in German,\n"
    )
    rows = list(read_rows(write_csv(tmp_path / "rows.csv", text)))
    row = check_row(rows[0], seed=0)
    assert (row.id, row.text, row.params.seed, row.params.temperature) == ("7", "5", 2**64 - 1, 0.5)
    assert row.params.normalize_text is False
    for raw, name in zip(rows[1:], ("seed", "temperature", "normalize_text"), strict=True):
        with pytest.raises(InputError, match=name):
            check_row(raw, seed=0)


def test_parquet_of_wrong_types_is_rows_with_errors(tmp_path: Path, bulk: Any) -> None:
    path = write_parquet(
        tmp_path / "rows.parquet",
        id=pyarrow.array([1.5, 2.0]),
        text=pyarrow.array([b"\xff", b"Hi"]),
        when=pyarrow.array([2**62, 0], pyarrow.timestamp("us")),  # no date of Python's
    )
    summary, entries = bulk(read_rows(path))
    assert (summary.rows, summary.failed) == (2, 2)
    assert "readable" in entries[0]["error"]
    assert "'when'" in entries[1]["error"]


def test_parquet_that_is_not_whole_ends_the_run_and_the_rows_before_stay(
    tmp_path: Path, bulk: Any
) -> None:
    whole = tmp_path / "whole.parquet"
    table = pyarrow.table({"id": [str(i) for i in range(2)], "text": ["Hi."] * 2})
    table = table.append_column("max_semantic_tokens", pyarrow.array([4, 4]))
    parquet.write_table(table, whole, row_group_size=1, compression="none", use_dictionary=False)
    content = bytearray(whole.read_bytes())
    offset = parquet.ParquetFile(whole).metadata.row_group(1).column(0).data_page_offset
    content[offset : offset + 40] = b"\xff" * 40
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(content)
    with pytest.raises(InputError, match="must be a whole Parquet file"):
        bulk(read_rows(broken))
    summary, _ = bulk(read_rows(whole))
    assert (summary.done, summary.failed) == (2, 0)
