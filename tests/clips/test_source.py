"""Finding clips: what is found, what is known about it, and what is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdit.clips.source import SourceClip, find_clips
from mmdit.errors import Refused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a.MP4", "deep/c.webm", ".hidden.mp4", ".cache/d.mp4", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"video")
    return tmp_path


def table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "captions.csv").write_bytes(text.encode(encoding))
    return folder


def test_walks_sorted_with_sidecar_captions(folder: Path) -> None:
    (folder / "b.txt").write_text("\ufeff a red coat \n", encoding="utf-8")
    clips = find_clips(folder)
    assert [clip.path for clip in clips] == ["a.MP4", "b.mp4", "deep/c.webm"]
    assert [clip.caption for clip in clips] == [None, "a red coat", None]
    assert {clip.split for clip in clips} == {"train"}


def test_reads_a_table(folder: Path) -> None:
    text = (
        "\ufeffpath,caption,label,split,start,end,colour\n"
        'deep/c.webm,"coat, red 🧥",coat,validation,1.5,4,red\n\nb.mp4,,,,,,\n'
    )
    clips = find_clips(table(folder, text))
    assert clips == [
        SourceClip("b.mp4", None, None, "train", {"colour": ""}),
        SourceClip("deep/c.webm", "coat, red 🧥", "coat", "validation", {"colour": "red"}, 1.5, 4.0),
    ]


def test_a_named_table_wins_and_two_spans_of_a_video_are_two_clips(folder: Path) -> None:
    table(folder, "path\nb.mp4\n")
    other = folder / "other.csv"
    other.write_text("path,start\na.MP4,2\na.MP4,0\n")
    assert [(clip.path, clip.start) for clip in find_clips(folder, other)] == [("a.MP4", 0.0), ("a.MP4", 2.0)]


def test_a_long_caption_and_a_missing_file_are_kept(folder: Path) -> None:
    caption = "word " * 40_000
    clips = find_clips(table(folder, f"path,caption\ngone.mp4,{caption}\n"))
    assert clips[0].path == "gone.mp4" and clips[0].caption == caption.strip()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,caption\nb.mp4,x\n", ["no column 'path'", "captions.csv"]),
        ("path,a,a\nb.mp4,1,2\n", ["columns without a name of their own"]),
        ("path,caption\nb.mp4,x\na.MP4\n", ["line 3", "1 cells", "expected 2"]),
        ("path,caption\nb.mp4,x,y\n", ["line 2", "3 cells"]),
        ("path\n../b.mp4\n", ["line 2", "bad path", "../b.mp4"]),
        ("path\n/etc/passwd\n", ["bad path"]),
        ("path\npipe:0\n", ["bad path"]),
        ("path\nhttp://host/b.mp4\n", ["bad path"]),
        ("path\n.\n", ["bad path"]),
        ('path,caption\n"",x\n', ["bad path"]),
        ("path\ndeep\n", ["not a regular file"]),
        ("path,caption\nb.mp4,a\0b\n", ["line 2", "NUL"]),
        ("path,start\nb.mp4,soon\n", ["line 2", "bad start", "'soon'"]),
        ("path,start\nb.mp4,-1\n", ["bad start"]),
        ("path,end\nb.mp4,nan\n", ["bad end"]),
        ("path,start,end\nb.mp4,3,3\n", ["line 2", "an empty span"]),
        ("path,label\nb.mp4,x\na.MP4,x\nb.mp4,y\n", ["twice", "lines 2 and 4", "b.mp4"]),
        ('path,caption\nb.mp4,"x\n', ["not a CSV file"]),
        ("path,caption\n", ["no videos"]),
        ("", ["no videos"]),
    ],
)
def test_refuses_bad_tables(folder: Path, text: str, words: list[str]) -> None:
    with pytest.raises(Refused) as error:
        find_clips(table(folder, text))
    assert all(word in str(error.value) for word in words), error.value


def test_refuses_text_that_is_not_utf8(folder: Path) -> None:
    with pytest.raises(Refused, match=r"not UTF-8.*0xe9.*captions.csv, line 2"):
        find_clips(table(folder, "path,caption\nb.mp4,café\n", "latin-1"))
    (folder / "captions.csv").unlink()
    (folder / "b.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(Refused, match=r"not UTF-8.*b\.txt"):
        find_clips(folder)


def test_refuses_links_out_of_the_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.mp4").write_bytes(b"video")
    (folder / "inside.mp4").symlink_to(folder / "b.mp4")
    assert "inside.mp4" in [clip.path for clip in find_clips(folder)]
    (folder / "link").symlink_to(outside)
    with pytest.raises(Refused, match="out of the folder"):
        find_clips(folder)
    with pytest.raises(Refused, match="out of the folder"):
        find_clips(table(folder, "path\nlink/secret.mp4\n"))
    (folder / "captions.csv").unlink()
    (folder / "link").unlink()
    (folder / "link.mp4").symlink_to(outside / "secret.mp4")
    with pytest.raises(Refused, match="out of the folder"):
        find_clips(folder)


def test_refuses_missing_things(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no such folder"):
        find_clips(tmp_path / "none")
    with pytest.raises(Refused, match=r"no videos.*\.mp4"):
        find_clips(tmp_path)
    with pytest.raises(Refused, match="no such captions file"):
        find_clips(tmp_path, tmp_path / "none.csv")


@given(st.binary(max_size=200))
def test_any_bytes_as_a_table_give_clips_or_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("any", numbered=True)
    (folder / "captions.csv").write_bytes(b"path,caption\n" + data)
    try:
        assert all(clip.path for clip in find_clips(folder))
    except Refused as error:
        assert "\n" not in str(error)
