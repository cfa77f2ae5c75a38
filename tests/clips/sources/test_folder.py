"""Folders of files: what is a clip, what captions and labels it."""

from pathlib import Path

import pytest

from mmdit.clips.source import IMAGE_SUFFIXES, SourceRules, find_source
from mmdit.errors import Refused


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"bytes")
    return folder


def test_videos_and_images_of_every_ending(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{number}{suffix}" for number, suffix in enumerate(sorted(IMAGE_SUFFIXES))), "video.mp4", "x.PNG")
    found = find_source(tmp_path)
    assert found.kind == "folder" and found.folder == tmp_path and len(found.clips) == len(IMAGE_SUFFIXES) + 2
    assert {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"} == IMAGE_SUFFIXES
    assert [clip.path for clip in find_source(tmp_path, rules=SourceRules(media="video")).clips] == ["video.mp4"]
    assert len(find_source(tmp_path, rules=SourceRules(media="image")).clips) == len(IMAGE_SUFFIXES) + 1


def test_what_is_no_clip_is_counted(tmp_path: Path) -> None:
    fill(tmp_path, "a.mp4", "notes.md", "data.bin", "a.txt", ".hidden.mp4", ".cache/b.mp4")
    found = find_source(tmp_path)
    assert [clip.path for clip in found.clips] == ["a.mp4"]
    assert found.notes == {"files of other kinds": 2} and found.first == {"files of other kinds": "data.bin"}


def test_the_sheet_of_generated_clips_is_none_of_them(tmp_path: Path) -> None:
    fill(tmp_path, "made/0.png", "made/sheet.png", "made/manifest.json", "others/sheet.png")
    found = find_source(tmp_path)
    assert [clip.path for clip in found.clips] == ["made/0.png", "others/sheet.png"]
    assert found.notes["sheets of generated clips"] == 1


def test_captions_by_file_name_where_no_other_is_given(tmp_path: Path) -> None:
    fill(tmp_path, "deep/a_red-coat__on. a peg.mp4", "b.mp4")
    (tmp_path / "b.txt").write_text("given\n")
    found = find_source(tmp_path, rules=SourceRules(captions="name"))
    assert [clip.caption for clip in found.clips] == ["given", "a red coat on. a peg"]
    assert found.notes["captioned by the file name"] == 1
    assert [clip.caption for clip in find_source(tmp_path).clips] == ["given", None]


def test_class_folders_are_the_labels_in_sorted_order(tmp_path: Path) -> None:
    fill(tmp_path, "Walk/deep/a.mp4", "10/b.mp4", "9/c.jpg", "Run/d.mp4", "Run/a.mp4")
    found = find_source(tmp_path, rules=SourceRules(labels="folder"))
    assert found.labels == ["10", "9", "Run", "Walk"]
    assert {clip.path: clip.label for clip in found.clips} == {
        "10/b.mp4": "10", "9/c.jpg": "9", "Run/a.mp4": "Run", "Run/d.mp4": "Run", "Walk/deep/a.mp4": "Walk",
    }  # fmt: skip
    assert find_source(tmp_path).labels == [] and find_source(tmp_path).clips[0].label is None


def test_class_folders_in_the_order_that_is_given(tmp_path: Path) -> None:
    fill(tmp_path, "Run/a.mp4", "Walk/b.mp4")
    rules = SourceRules(labels="folder", label_names=("Walk", "Run", "Jump"))
    assert find_source(tmp_path, rules=rules).labels == ["Walk", "Run", "Jump"]
    (tmp_path / "classes.txt").write_text("Run\nJump\nWalk\n")
    assert find_source(tmp_path, rules=SourceRules(labels="folder")).labels == ["Run", "Jump", "Walk"]
    (tmp_path / "classes.txt").write_text("Run\n")
    with pytest.raises(Refused, match=r"label out of range.*Walk/b\.mp4.*'Walk'"):
        find_source(tmp_path, rules=SourceRules(labels="folder"))


def test_a_file_beside_class_folders_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "Run/a.mp4", "b.mp4")
    with pytest.raises(Refused, match=r"without a class folder.*b\.mp4"):
        find_source(tmp_path, rules=SourceRules(labels="folder"))


def test_links_to_folders_are_counted_and_not_followed(tmp_path: Path) -> None:
    fill(tmp_path, "Run/a.mp4")
    (tmp_path / "again").symlink_to(tmp_path / "Run")
    found = find_source(tmp_path)
    assert [clip.path for clip in found.clips] == ["Run/a.mp4"]
    assert found.notes["links to folders, not followed"] == 1
