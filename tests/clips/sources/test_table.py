"""Tables: the same rows give the same clips from CSV, JSON lines and Parquet."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from mmdit.clips.source import SourceClip, SourceRules, find_source
from mmdit.errors import Refused

KINDS = ["csv", "jsonl", "parquet"]
Row = dict[str, Any]


def write(folder: Path, kind: str, rows: list[Row], name: str = "captions") -> Path:
    path = folder / f"{name}.{kind}"
    if kind == "csv":
        columns = list(dict.fromkeys(column for row in rows for column in row))
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_one_table_in_three_formats(tmp_path: Path, kind: str) -> None:
    rows = [
        {"path": "deep/./c.webm", "caption": "coat, red 🧥\nlong", "label": "coat", "split": "test", "start": 1.5,
         "end": 4.0, "colour": "red"},
        {"path": "b.mp4", "caption": None, "label": None, "split": None, "start": None, "end": None, "colour": "blue"},
    ]  # fmt: skip
    found = find_source(write(tmp_path, kind, rows).parent)
    assert found.clips == [
        SourceClip("b.mp4", None, None, "train", {"colour": "blue"}),
        SourceClip("deep/c.webm", "coat, red 🧥\nlong", "coat", "test", {"colour": "red"}, 1.5, 4.0),
    ]
    assert found.kind == "table" and found.labels == ["coat"]
    assert found.notes == {"listed but not there": 2, "without a caption": 1, "without a label": 1}
    unit = "row 1" if kind == "parquet" else "line "
    assert unit in found.first["listed but not there"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_itself_is_the_root_or_lies_elsewhere(tmp_path: Path, kind: str) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"x")
    table = write(tmp_path, kind, [{"path": "videos/a.mp4"}], "mine")
    found = find_source(table)
    assert (found.folder, found.notes) == (tmp_path, {"without a caption": 1})
    other = write(tmp_path, kind, [{"path": "a.mp4"}], "other")
    assert find_source(tmp_path / "videos", table=other).folder == tmp_path / "videos"


def test_attributes_are_text(tmp_path: Path) -> None:
    row = {"path": "a.mp4", "n": 3, "x": 0.5, "yes": True, "none": None, "tags": ["é", {"a": 1}]}
    clip = find_source(write(tmp_path, "jsonl", [row])).clips[0]
    assert clip.attributes == {"n": "3", "x": "0.5", "yes": "true", "tags": '["é", {"a": 1}]'}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"path": "a.mp4", "start": "1.5"}, ["bad start", "'1.5'"]),
        ({"path": "a.mp4", "end": True}, ["bad end", "True"]),
        ({"path": "a.mp4", "start": -0.5}, ["bad start", "-0.5"]),
        ({"path": "a.mp4", "start": 2, "end": 2}, ["an empty span"]),
        ({"path": "a.mp4", "caption": 7}, ["bad caption", "7", "expected text"]),
        ({"path": "a.mp4", "caption": ["x"]}, ["bad caption", "['x']"]),
        ({"path": "a.mp4", "split": 1}, ["bad split"]),
        ({"path": 5}, ["bad path", "5"]),
        ({"path": None}, ["bad path", "None"]),
        ({"path": "a.mp4", "label": 1.0}, ["neither name nor whole number", "1.0"]),
        ({"path": "a.mp4", "label": True}, ["neither name nor whole number", "True"]),
    ],
)
def test_types_are_checked(tmp_path: Path, kind: str, row: Row, words: list[str]) -> None:
    table = write(tmp_path, kind, [row])
    with pytest.raises(Refused) as error:
        find_source(tmp_path)
    place = f"{table}, {'row' if kind == 'parquet' else 'line'} 1"
    assert all(word in str(error.value) for word in [*words, place]), error.value


def test_bytes_are_no_attribute(tmp_path: Path) -> None:
    write(tmp_path, "parquet", [{"path": "a.mp4", "thumb": b"\x89PNG"}])
    with pytest.raises(Refused, match=r"bytes where text is expected.*row 1.*thumb of 4 bytes"):
        find_source(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"path": "a.mp4"}\n{"path": "b.mp4"\n', ["not JSON", "line 2"]),
        ('{"path": "a.mp4"}\n\n["b.mp4"]\n', ["not a JSON object", "line 3"]),
        ('{"path": "a.mp4", "path": "b.mp4"}', ["a key twice", "line 1"]),
        ('{"path": "a.mp4", "start": NaN}', ["NaN is no number", "line 1"]),
        ('{"caption": "x"}', ["bad path", "line 1"]),
        ("[" * 100_000, ["not JSON", "line 1"]),
        ("\n\n", ["no videos", "captions.jsonl", "0 clips"]),
    ],
)
def test_refuses_bad_json_lines(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "captions.jsonl").write_text(text)
    with pytest.raises(Refused) as error:
        find_source(tmp_path)
    assert all(word in str(error.value) for word in words), error.value


def test_a_parquet_table_of_several_row_groups_keeps_its_row_numbers(tmp_path: Path) -> None:
    rows = [{"path": f"{number}.mp4", "start": 0.0 if number < 11 else -1.0} for number in range(12)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "captions.parquet", row_group_size=5)
    with pytest.raises(Refused, match="row 12"):
        find_source(tmp_path)


def test_refuses_damaged_and_headless_parquet(tmp_path: Path) -> None:
    table = write(tmp_path, "parquet", [{"file": "a.mp4"}])
    with pytest.raises(Refused, match=r"no column 'path'.*captions\.parquet.*'file'"):
        find_source(tmp_path)
    whole = table.read_bytes()
    table.write_bytes(whole.replace(b"file", b"fil\xe9"))
    with pytest.raises(Refused, match="a damaged Parquet table"):
        find_source(tmp_path)
    table.write_bytes(whole[:-20])
    with pytest.raises(Refused, match="a damaged Parquet table"):
        find_source(tmp_path)


def test_which_table(tmp_path: Path) -> None:
    write(tmp_path, "csv", [{"path": "a.mp4"}])
    write(tmp_path, "jsonl", [{"path": "b.mp4"}])
    with pytest.raises(Refused, match=r"more than one table.*captions\.csv, captions\.jsonl"):
        find_source(tmp_path)
    assert find_source(tmp_path, table=tmp_path / "captions.jsonl").clips[0].path == "b.mp4"
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    with pytest.raises(Refused, match=r"not a table.*rows\.xlsx.*\.parquet"):
        find_source(tmp_path, table=tmp_path / "rows.xlsx")
    with pytest.raises(Refused, match=r"labels by folder"):
        find_source(tmp_path, table=tmp_path / "captions.csv", rules=SourceRules(labels="folder"))
