"""A list of wishes made into files: whatever was there before, the same files."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import tiny

from mmdit.clips.video import read_metadata
from mmdit.pipelines.wishes import Sampling, Wish, grant

WISHES = [
    *(Wish(f"prompts/{number}.mp4", prompt="a red coat") for number in range(3)),
    Wish("labels/3.mp4", label="dress"),
    Wish("stills/4.png", prompt="a blue dress", frames=1),
]
SAMPLING = Sampling(seed=0, steps=2, guidance=2.0)


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return tiny.make_pipeline()


def test_each_wish_is_a_file_and_a_second_call_makes_what_is_missing(pipeline: Any, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def make(progress: Any = None) -> dict[str, str]:
        grant(pipeline, WISHES, tmp_path, sampling=SAMPLING, metadata={"step": 5}, batch_size=2, progress=progress)
        return hashes(tmp_path)

    first = make(lambda done, count: told.append((done, count)))
    assert sorted(first) == sorted(wish.file for wish in WISHES)
    assert told[0] == (0, 8) and told[-1] == (8, 8)  # 4 batches of 2 steps
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    for name in ("prompts/1.mp4", "stills/4.png"):
        (tmp_path / name).unlink()
    kept = (tmp_path / "labels/3.mp4").stat().st_mtime_ns
    assert make() == first
    assert (tmp_path / "labels/3.mp4").stat().st_mtime_ns == kept
    assert len({first[f"prompts/{number}.mp4"] for number in range(3)}) == 3


def test_processes_share_the_work_and_make_the_same_files(pipeline: Any, tmp_path: Path) -> None:
    made = []
    for place, share in (("all", (0, 1)), ("first", (0, 2)), ("second", (1, 2))):
        grant(pipeline, WISHES, tmp_path / place, sampling=SAMPLING, metadata={}, batch_size=2, share=share)
        made.append(hashes(tmp_path / place))
    whole, first, second = made
    assert first and second and not first.keys() & second.keys()
    assert first | second == whole


def test_a_file_says_how_it_was_made(pipeline: Any, tmp_path: Path) -> None:
    grant(pipeline, WISHES[3:4], tmp_path, sampling=SAMPLING, metadata={"step": 5}, batch_size=2)
    note = read_metadata(tmp_path / "labels/3.mp4")
    assert note | {"step": 5, "seed": 0, "index": 0, "label": "dress", "prompt": None, "guidance": 2.0} == note
