"""Bad input by every kind of source that can bring it: captions, labels, paths, doubles, nothing at all."""

import csv
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from mmdit.clips.source import Found, SourceRules, find_source
from mmdit.errors import Refused

Row = dict[str, Any]


def as_csv(folder: Path, rows: list[Row]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    (folder / "captions.csv").write_bytes(text.getvalue().encode("utf-8", "surrogateescape"))


def as_jsonl(folder: Path, rows: list[Row]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "captions.jsonl").write_bytes(lines.encode("utf-8", "surrogateescape"))


def as_parquet(folder: Path, rows: list[Row]) -> None:
    arrays = {}
    for column in dict.fromkeys(column for row in rows for column in row):
        values = [row.get(column) for row in rows]
        if any(isinstance(value, str) for value in values):
            data = [None if value is None else str(value).encode("utf-8", "surrogateescape") for value in values]
            binary = pyarrow.array(data, pyarrow.binary())
            arrays[column] = pyarrow.Array.from_buffers(pyarrow.string(), len(data), binary.buffers())
        else:
            arrays[column] = pyarrow.array(values)
    pyarrow.parquet.write_table(pyarrow.table(arrays), folder / "captions.parquet")


def as_tar(folder: Path, rows: list[Row]) -> None:
    with tarfile.open(folder / "x.tar", "w") as tar:
        for number, row in enumerate(rows):
            about = {name: value for name, value in row.items() if name not in ("path", "caption")}
            members = {"mp4": b"v", "json": json.dumps(about).encode()}
            if row.get("caption") is not None:
                members["txt"] = row["caption"].encode("utf-8", "surrogateescape")
            for ending, data in members.items():
                info = tarfile.TarInfo(f"{number}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def as_folder(folder: Path, rows: list[Row]) -> None:
    for number, row in enumerate(rows):
        (folder / f"{number}.mp4").write_bytes(b"v")
        if row.get("caption") is not None:
            (folder / f"{number}.txt").write_bytes(row["caption"].encode("utf-8", "surrogateescape"))


TABLES = [as_csv, as_jsonl, as_parquet]
ALL = [*TABLES, as_tar, as_folder]
Write = Callable[[Path, list[Row]], None]
NOT_UTF8 = "caf\udce9"  # the byte 0xe9
GOOD = [{"path": "a.mp4", "caption": "a"}, {"path": "b.mp4", "caption": "b"}]


def read(folder: Path, write: Write, captions: list[str | None], **rules: Any) -> Found:
    write(folder, [{"path": f"{number}.mp4", "caption": caption} for number, caption in enumerate(captions)])
    return find_source(folder, rules=SourceRules(**rules))


@pytest.mark.parametrize("write", ALL)
@pytest.mark.parametrize(("bad", "fault"), [(NOT_UTF8, r"not UTF-8 \(byte 0xe9\)"), ("a\0b", "a NUL character")])
def test_captions_that_cannot_be_stored(tmp_path: Path, write: Write, bad: str, fault: str) -> None:
    with pytest.raises(Refused, match=fault) as error:
        read(tmp_path, write, ["fine", bad, "fine"])
    assert {as_csv: "line 3", as_jsonl: "line 2", as_parquet: "row 2"}.get(write, "1.") in str(error.value)
    found = read(tmp_path, write, ["fine", bad, "fine", bad], bad_captions="drop")
    assert [clip.caption for clip in found.clips] == ["fine", None, "fine", None]
    assert found.notes["caption dropped: a NUL character or no UTF-8"] == found.notes["without a caption"] == 2


@pytest.mark.parametrize("write", ALL)
def test_missing_and_empty_captions_are_counted(tmp_path: Path, write: Write) -> None:
    captions = [None, "", " \n", "given"]
    found = read(tmp_path, write, captions)
    assert [clip.caption for clip in found.clips] == [None, None, None, "given"]
    assert found.notes["without a caption"] == 3
    found = read(tmp_path, write, captions, no_caption="skip")
    assert [clip.caption for clip in found.clips] == ["given"] and found.notes["left out: without a caption"] == 3
    with pytest.raises(Refused, match="a clip without a caption"):
        read(tmp_path, write, captions, no_caption="refuse")


@pytest.mark.parametrize("write", ALL)
def test_marks_emoji_and_length(tmp_path: Path, write: Write) -> None:
    found = read(tmp_path, write, ["\ufeffa coat", "🧥 👩‍🦰", "w" * 100_000])
    assert [clip.caption for clip in found.clips] == ["a coat", "🧥 👩‍🦰", "w" * 100_000]
    # a mark at the beginning of a file is how some programs save UTF-8; within a table it is out of the ordinary
    assert ("byte order mark removed from a caption" in found.notes) == (write in TABLES)
    found = read(tmp_path, write, ["fits", "w" * 100_000, "two words"], max_caption=4)
    assert [clip.caption for clip in found.clips] == ["fits", "wwww", "two"]
    assert found.notes["caption cut to 4 characters"] == 2
    with pytest.raises(Refused, match="no room for a caption, got 0"):
        SourceRules(max_caption=0)


@pytest.mark.parametrize("write", [*TABLES, as_tar])
@pytest.mark.parametrize("column", ["colour", "label", "split"])
@pytest.mark.parametrize("bad", [NOT_UTF8, "a\0b"])
def test_other_texts_that_cannot_be_stored(tmp_path: Path, write: Write, column: str, bad: str) -> None:
    write(tmp_path, [{"path": "0.mp4", column: "fine"}, {"path": "1.mp4", column: bad}])
    with pytest.raises(
        Refused, match=r"(not UTF-8|a NUL character|not JSON|half a character).*(line 2|line 3|row 2|1\.mp4)"
    ):
        find_source(tmp_path, rules=SourceRules(bad_captions="drop"))


def test_names_of_attributes_that_cannot_be_stored(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_bytes(b'{"path": "a.mp4", "caf\xe9": "x"}\n')
    with pytest.raises(Refused, match=r"not UTF-8 \(byte 0xe9\).*line 1"):
        find_source(tmp_path)


def test_half_an_emoji_in_json(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text('{"path": "a.mp4", "caption": "\\ud83e"}\n')
    with pytest.raises(Refused, match="half a character.*line 1"):
        find_source(tmp_path)


@pytest.mark.parametrize("write", [*TABLES, as_tar])
@pytest.mark.parametrize(
    ("labels", "place", "words"),
    [
        ([0, 1, 3], 3, ["out of range", "0 to 2"]),
        ([0, 1, -1], 3, ["got ", "-1", "0 to 2"]),
        ([0, 99], 2, ["out of range", "0 to 2"]),
        (["dog", "rat"], 2, ["'rat'", "one of the 3 names"]),
        ([0.0, 1.0], 1, ["0.0"]),
        ([0.5], 1, ["0.5"]),
    ],
)
def test_labels_beyond_the_names(tmp_path: Path, write: Write, labels: list[Any], place: int, words: list[str]) -> None:
    (tmp_path / "classes.txt").write_text("dog\ncat\nbird\n")
    write(tmp_path, [{"path": f"{number}.mp4", "label": label} for number, label in enumerate(labels)])
    with pytest.raises(Refused) as error:
        find_source(tmp_path)
    where = f"line {place + 1}" if write is as_csv else f"line {place}" if write is as_jsonl else f"row {place}"
    assert all(word in str(error.value) for word in [*words, f"{place - 1}.mp4" if write is as_tar else where])


@pytest.mark.parametrize("write", [as_csv, as_jsonl, as_tar])
@pytest.mark.parametrize("labels", [[3, "cat"], ["cat", "4"], [0, 1, "cat"]])
def test_a_name_where_numbers_are(tmp_path: Path, write: Write, labels: list[Any]) -> None:
    write(tmp_path, [{"path": f"{number}.mp4", "label": label} for number, label in enumerate(labels)])
    with pytest.raises(Refused, match=r"names and labels that are numbers.*'cat' and \d"):
        find_source(tmp_path)


OUT = "../out.mp4 deep/../../out.mp4 /etc/passwd http://host/a.mp4 pipe:0 file:a.mp4 concat:a|b . ./ caf\udce9.mp4"


@pytest.mark.parametrize("write", TABLES)
@pytest.mark.parametrize("path", ["", *OUT.split()])
def test_paths_out_of_the_folder(tmp_path: Path, write: Write, path: str) -> None:
    write(tmp_path, [{"path": "a.mp4"}, {"path": path}])
    with pytest.raises(Refused, match=r"bad path|not UTF-8") as error:
        find_source(tmp_path)
    assert any(place in str(error.value) for place in ("line 2", "line 3", "row 2"))


def test_a_nul_in_a_path(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text('{"path": "a.mp4\\u0000.txt"}\n')
    with pytest.raises(Refused, match="bad path.*line 1"):
        find_source(tmp_path)


@pytest.fixture
def traps(tmp_path: Path) -> Path:
    folder, outside = tmp_path / "folder", tmp_path / "folder-outside"  # a name that begins like the folder's
    (folder / "deep").mkdir(parents=True)
    outside.mkdir()
    for place in (outside / "secret.mp4", outside / "secret.txt", folder / "a.mp4"):
        place.write_bytes(b"secret")
    return folder


# The listed path, and the links that are laid: where from, where to.
TRAPS: dict[str, dict[str, str]] = {
    "link.mp4": {"link.mp4": "../folder-outside/secret.mp4"},
    "linked/secret.mp4": {"linked": "../folder-outside"},
    "deep/up/folder-outside/secret.mp4": {"deep/up": "../.."},
    "two.mp4": {"one.mp4": "../folder-outside/secret.mp4", "two.mp4": "one.mp4"},
    "dev.mp4": {"dev.mp4": "/dev/zero"},
    "pipe.mp4": {},
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("write", [*TABLES, None])
@pytest.mark.parametrize("path", TRAPS)
def test_links_out_and_what_is_no_file(traps: Path, write: Write | None, path: str) -> None:
    for name, target in TRAPS[path].items():
        (traps / name).symlink_to(target)
    if not TRAPS[path]:
        os.mkfifo(traps / path)
    if write is not None:
        write(traps, [{"path": "a.mp4"}, {"path": path}])
    with pytest.raises(Refused, match="leads out of the folder|not a regular file"):
        find_source(traps)


def test_a_sidecar_that_leads_out_is_not_read(traps: Path) -> None:
    (traps / "a.txt").symlink_to("../folder-outside/secret.txt")
    with pytest.raises(Refused, match=r"leads out of the folder.*secret\.txt"):
        find_source(traps)


def test_a_tar_that_leads_out_is_not_read(traps: Path) -> None:
    (traps / "a.mp4").unlink()
    as_tar(traps.parent / "folder-outside", GOOD)
    (traps / "x.tar").symlink_to("../folder-outside/x.tar")
    with pytest.raises(Refused, match="leads out of the folder"):
        find_source(traps)


def test_links_within_the_folder_are_fine(traps: Path) -> None:
    (traps / "again.mp4").symlink_to("a.mp4")
    (traps / "same").symlink_to("deep")
    (traps / "deep" / "b.mp4").write_bytes(b"v")
    as_jsonl(traps, [{"path": "again.mp4"}, {"path": "same/b.mp4"}, {"path": "deep/b.mp4"}])
    assert "listed but not there" not in find_source(traps).notes


@pytest.mark.parametrize("write", TABLES)
@pytest.mark.parametrize(
    ("first", "second", "twice"),
    [
        ({}, {}, True),
        ({"path": "./a.mp4"}, {}, True),
        ({"path": "deep//a.mp4"}, {"path": "deep/a.mp4"}, True),
        ({"start": 0.0}, {"start": None}, True),
        ({"start": 0.0, "end": 1.0}, {"start": None, "end": 1.0}, True),
        ({"start": 0.0, "end": 1.0}, {"start": 0.0, "end": 2.0}, False),
        ({"start": 1.0}, {"start": None}, False),
    ],
)
def test_the_same_span_twice(tmp_path: Path, write: Write, first: Row, second: Row, twice: bool) -> None:
    base = {"path": "a.mp4", "start": None, "end": None}
    write(tmp_path, [base | first, {"path": "b.mp4"}, base | second])
    if twice:
        places = "lines 2 and 4" if write is as_csv else "lines 1 and 3" if write is as_jsonl else "rows 1 and 3"
        with pytest.raises(Refused, match=rf"the same span of the same video twice.*{places}.*a\.mp4"):
            find_source(tmp_path)
    else:
        assert len(find_source(tmp_path).clips) == 3


@pytest.mark.parametrize("write", [*TABLES, as_tar])
def test_nothing_in_it(tmp_path: Path, write: Write) -> None:
    write(tmp_path, [] if write in (as_jsonl, as_tar) else GOOD[:1])
    if write is as_csv:
        (tmp_path / "captions.csv").write_text("path,caption\n")
    elif write is as_parquet:
        table = pyarrow.parquet.read_table(tmp_path / "captions.parquet")
        pyarrow.parquet.write_table(table[:0], tmp_path / "captions.parquet")
    with pytest.raises(Refused, match="no videos or images.*got 0 clips, expected at least one"):
        find_source(tmp_path)


def test_nothing_that_is_a_clip_says_what_was_there(tmp_path: Path) -> None:
    for name in ("a.doc", "b.doc", "c.txt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(Refused, match=r"got 0 clips \(2 files of other kinds\).*\.mp4"):
        find_source(tmp_path)
    as_csv(tmp_path, [{"path": "a.mp4"}, {"path": "b.mp4"}])
    with pytest.raises(Refused, match=r"got 0 clips .*2 left out: without a caption"):
        find_source(tmp_path, rules=SourceRules(no_caption="skip"))


def test_what_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no such folder"):
        find_source(tmp_path / "none")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(Refused, match=r"not a table.*a\.zip.*\.csv \.jsonl \.parquet"):
        find_source(tmp_path / "a.zip")
    as_csv(tmp_path, GOOD)
    with pytest.raises(Refused, match="a file where a folder is expected.*kind folder"):
        find_source(tmp_path / "captions.csv", kind="folder")
    with pytest.raises(Refused, match="a table, and a source that is none"):
        find_source(tmp_path, kind="folder", table=tmp_path / "captions.csv")
    with pytest.raises(Refused, match="no table.*captions.csv"):
        (tmp_path / "deep").mkdir()
        find_source(tmp_path / "deep", kind="table")
    with pytest.raises(Refused, match="unknown kind of a source, got 'zip', expected folder, table, webdataset"):
        find_source(tmp_path, kind="zip")
    with pytest.raises(Refused, match="unknown bad captions of a source, got 'ignore', expected refuse, drop"):
        SourceRules(bad_captions="ignore")
