"""Data sets as the library `datasets` saves them, read without it and compared with what it reads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest

from mmdit.clips.source import SourceClip, SourceRules, find_source
from mmdit.errors import Refused

datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()

VIDEOS = [b"first" * 100, b"", b"third" * 50, b"fourth", b"fifth" * 1000]


def dataset(**columns: Any) -> Any:
    features = {
        "video": datasets.Video(decode=False),
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["walk", "2", "jump"]),
        "n": datasets.Value("int64"),
        "tags": datasets.List(datasets.Value("string")),
    }
    rows = {
        "video": [{"bytes": data, "path": f"{number}.MP4"} for number, data in enumerate(VIDEOS)],
        "text": ["a coat 🧥", None, "c", "d", "e"],
        "label": [2, 1, 0, -1, None],
        "n": [1, 2, 3, 4, None],
        "tags": [["x", "é"], [], [], [], []],
    }
    return datasets.Dataset.from_dict(rows | columns, features=datasets.Features(features))


def bytes_of(folder: Path, clip: SourceClip) -> bytes:
    assert clip.part is not None
    return (folder / clip.part.file).read_bytes()[clip.part.offset : clip.part.offset + clip.part.size]


def test_rows_and_parts_are_what_the_library_reads(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "saved", num_shards=2)
    found = find_source(tmp_path / "saved")
    assert found.kind == "datasets" and found.labels == ["walk", "2", "jump"]
    read = datasets.load_from_disk(tmp_path / "saved")
    assert [bytes_of(found.folder, clip) for clip in found.clips] == [row["video"]["bytes"] for row in read] == VIDEOS
    assert [clip.caption for clip in found.clips] == read["text"][:]
    assert [clip.label for clip in found.clips] == ["jump", "2", "walk", None, None]
    assert found.clips[0].path == "data-00000-of-00002.arrow/000001.mp4"
    assert found.clips[0].attributes == {"n": "1", "tags": '["x", "é"]'} and "n" not in found.clips[4].attributes
    assert found.notes == {"without a caption": 1, "without a label": 2}


def test_a_filtered_shuffled_image_dataset_in_small_batches(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": b"%03d" % number, "path": None} for number in range(50)], "caption": list("ab" * 25)}
    features = datasets.Features({"image": datasets.Image(decode=False), "caption": datasets.Value("string")})
    whole = datasets.Dataset.from_dict(rows, features=features)
    whole.shuffle(seed=1).filter(lambda row: row["caption"] == "a", writer_batch_size=7).save_to_disk(
        tmp_path / "saved"
    )
    found = find_source(tmp_path / "saved", rules=SourceRules(media="image"))
    expected = [row["image"]["bytes"] for row in datasets.load_from_disk(tmp_path / "saved")]
    assert [bytes_of(found.folder, clip) for clip in found.clips] == expected and len(expected) == 25
    with pytest.raises(Refused, match="none of Video"):
        find_source(tmp_path / "saved", rules=SourceRules(media="video"))


def test_several_splits(tmp_path: Path) -> None:
    both = datasets.DatasetDict(train=dataset().select([0, 1]), validation=dataset().select([2]))
    both.save_to_disk(tmp_path / "saved")
    found = find_source(tmp_path / "saved")
    assert [(clip.split, clip.path.partition("/")[0]) for clip in found.clips] == [
        ("train", "train"), ("train", "train"), ("validation", "validation")
    ]  # fmt: skip
    assert [bytes_of(found.folder, clip) for clip in found.clips] == VIDEOS[:3]
    info = tmp_path / "saved" / "validation" / "dataset_info.json"
    info.write_text(info.read_text().replace('"jump"', '"hop"'))
    with pytest.raises(Refused, match="splits with other labels each.*train and validation"):
        find_source(tmp_path / "saved")


def saved_paths(folder: Path, paths: list[str | None]) -> Path:
    """A saved data set whose videos are files: the library embeds them, so its Arrow file is written anew."""
    names = ["x"] * len(paths)
    dataset(video=[{"bytes": b"v", "path": "p"}] * 5).select(range(len(paths))).save_to_disk(folder)
    video = pyarrow.StructArray.from_arrays(
        [pyarrow.array([None] * len(paths), pyarrow.binary()), pyarrow.array(paths, pyarrow.string())],
        ["bytes", "path"],
    )
    rewrite(folder, pyarrow.table({"video": video, "text": names, "label": [0] * len(paths)}))
    return folder


def rewrite(folder: Path, table: pyarrow.Table, **options: Any) -> None:
    file = next(folder.glob("*.arrow"))
    with pyarrow.ipc.new_stream(file, table.schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as stream:
        stream.write_table(table)


def test_videos_that_are_files_below_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    saved_paths(folder, ["clips/a.mp4", str(folder / "clips/b.mp4"), None])
    found = find_source(folder)
    assert [(clip.path, clip.part) for clip in found.clips] == [("clips/a.mp4", None), ("clips/b.mp4", None)]
    assert found.notes == {"listed but not there": 2, "rows without a video or image": 1}
    for number, bad in enumerate(["/etc/passwd", "../a.mp4", "http://host/a.mp4"]):
        with pytest.raises(Refused, match=r"bad path.*arrow, row 2"):
            find_source(saved_paths(tmp_path / str(number), ["a.mp4", bad]))


@pytest.mark.parametrize("label", [3, -2])
def test_a_class_number_out_of_range(tmp_path: Path, label: int) -> None:
    dataset().save_to_disk(tmp_path / "saved")
    table = pyarrow.ipc.open_stream(next((tmp_path / "saved").glob("*.arrow")).read_bytes()).read_all()
    labels = pyarrow.array([0, label, 0, 0, 0])
    rewrite(tmp_path / "saved", table.set_column(table.schema.get_field_index("label"), "label", labels))
    with pytest.raises(Refused, match=rf"label out of range.*row 2, got {label}, expected 0 to 2"):
        find_source(tmp_path / "saved")


def test_compressed_arrow_is_refused(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "saved")
    table = pyarrow.ipc.open_stream(next((tmp_path / "saved").glob("*.arrow")).read_bytes()).read_all()
    rewrite(tmp_path / "saved", table, compression="lz4")
    with pytest.raises(Refused, match=r"a compressed Arrow file.*\.arrow.*without compression"):
        find_source(tmp_path / "saved")


def test_a_cut_or_damaged_dataset_is_refused(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "saved")
    file = next((tmp_path / "saved").glob("*.arrow"))
    whole = file.read_bytes()
    for cut in (0, 7, 100, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(Refused, match="cut short.*arrow"):
            find_source(tmp_path / "saved")
    ends = np.cumsum([0, *map(len, VIDEOS)], dtype=np.int32)
    for wrong in (1 << 30, -5):
        file.write_bytes(whole.replace(ends.tobytes(), np.append(ends[:-1], np.int32(wrong)).tobytes()))
        with pytest.raises(Refused, match=r"damaged or cannot be read.*\.arrow"):
            find_source(tmp_path / "saved")
    file.write_bytes(whole[:200] + b"\xff" * 400 + whole[600:])
    with pytest.raises(Refused, match=r"damaged or cannot be read.*\.arrow"):
        find_source(tmp_path / "saved")
    file.write_bytes(whole.replace(b"label", b"lab\xe9l"))
    with pytest.raises(Refused, match=r"damaged or cannot be read.*\.arrow"):
        find_source(tmp_path / "saved")
    info = tmp_path / "saved" / "dataset_info.json"
    info.write_text(info.read_text().replace('"video"', '"film"'))
    with pytest.raises(Refused, match=r"damaged or cannot be read.*\.arrow.*film"):
        find_source(tmp_path / "saved")
    file.unlink()
    with pytest.raises(Refused, match=r"damaged or cannot be read.*No such file"):
        find_source(tmp_path / "saved")


def test_hostile_json_is_refused(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "saved")
    state = tmp_path / "saved" / "state.json"
    for text, words in [
        ('{"_data_files": [{"filename": "../secret.arrow"}]}', r"bad path.*state\.json.*'\.\./secret"),
        ('{"_data_files": [{"filename": "/dev/zero"}]}', "bad path|not a regular"),
        ('{"_data_files": [{"filename": 3}]}', "damaged data set"),
        ('{"_data_files": 3}', "damaged data set"),
        ("{}", "damaged data set"),
        ("[]", "not a JSON object"),
        ('{"_data_files": []}', "no videos or images.*got 0 clips"),
    ]:
        state.write_text(text)
        with pytest.raises(Refused, match=words):
            find_source(tmp_path / "saved")


def test_columns_of_other_media_are_left_out_by_name(tmp_path: Path) -> None:
    whole = dataset().add_column("raw", [b"x"] * 5)
    whole.save_to_disk(tmp_path / "saved")
    found = find_source(tmp_path / "saved")
    assert found.notes["column raw left out"] == 1 and "raw" not in found.clips[0].attributes
    info = tmp_path / "saved" / "dataset_info.json"
    features = json.loads(info.read_text())
    features["features"]["raw"] = {"_type": "Image"}
    info.write_text(json.dumps(features))
    with pytest.raises(Refused, match="not one column of videos or images.*video, raw.*videos only"):
        find_source(tmp_path / "saved")
    assert len(find_source(tmp_path / "saved", rules=SourceRules(media="video")).clips) == 5
