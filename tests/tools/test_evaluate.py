"""`mmdit evaluate`, on a tiny random model and the store of a few made clips."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from commands import exit_code
from encoding import encode

from mmdit.clips.made import make_clips

QUICK = ("samples=3", "real=4", "steps=1", "--batch", "2", "--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run/, a model trained with first frames, and store/, encoded with its codec."""
    folder = tmp_path_factory.mktemp("evaluate")
    tiny.write_run(folder / "run", given_frames=("first",), labels=False)
    make_clips(folder / "clips", 24, seed=0, size=(32, 32), frames=3, fps=8)
    encode(folder / "clips", folder / "store", tiny.make_codec(), frames=3, size=(16, 32), psnr_every=0)
    return folder


def result(place: Path, *words: str) -> Any:
    out = place / "result.json"
    code = exit_code("evaluate", place / "run", *QUICK, "--store", place / "store", "--out", out, *words)
    assert code == 0
    return json.loads(out.read_text())


def test_attributes_of_samples_beside_those_of_real_clips(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = result(place)
    assert found["figures"]["counts"] == {"generated": 3, "real": 4}
    assert {"colour", "garment", "pattern"} <= found["figures"]["attributes"].keys()
    assert found["protocol"]["name"] == "fashion-small" and found["protocol"]["steps"] == 1
    assert len(found["model"]["checkpoint"]) == 64
    shown = capsys.readouterr().out
    assert "of 3 generated and 4 real clips" in shown and "colour" in shown
    again = result(place, "--batch", "3")
    assert again["figures"] == found["figures"]


def test_given_frames_are_measured_beside_the_codec(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = result(place, "--given", "first")["figures"]
    # nothing that the codec makes depends on other frames, so what is given comes back exactly as by the codec
    assert found["psnr"]["generated"] == pytest.approx(found["psnr"]["codec"], abs=0.01)
    assert found["within_1_db"] == 1
    assert found["kept"]["colour"].keys() == {"original", "codec", "generated"}
    assert "PSNR of what is given" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--given", "middle"), "unknown kind of given frames, got 'middle'"),
        (("--given", "last"), "not trained with such given frames, got last, expected first"),
        (("real_split=nothing",), "no such split"),
        (("real=5000",), "too few clips"),
        (("sampler=none",), "sampler"),
        (("samples=0",), "samples does not fit"),
        (("--protocol", "mine"), "no such protocol, got mine"),
        (("--weights", "best"), "unknown weights"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    place: Path, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("evaluate", place / "run", *QUICK, "--store", place / "store", *words) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1


def test_a_model_needs_something_to_be_compared_with(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("evaluate", place / "run") == 2
    assert "nothing to compare with" in capsys.readouterr().err
