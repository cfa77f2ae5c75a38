"""`mmdit evaluate`, on a tiny random model, the store of a few made clips, and folders of them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from commands import exit_code
from encoding import encode
from kills import killed_at
from networks import save_clip, save_inception
from pairs import end_pair, start_pair
from pooled import Direct

import mmdit.tools.evaluate
from mmdit.clips.made import make_clips
from mmdit.evaluation.protocol import Protocol
from mmdit.latents.store import LatentStore
from mmdit.pipelines.evaluation_plan import plan_given
from mmdit.pipelines.sampled_clips import SampledClips


class Here(Direct):
    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("clip_sets", "folder_clips"):
        monkeypatch.setattr(f"mmdit.evaluation.{module}.ClipReader", Here)


QUICK = ("samples=3", "real=4", "steps=1", "codec_clips=2", "--device", "cpu")
FILES = ("samples=6", "real=8", "--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run/, a model trained with first frames; store/, encoded with its codec; clips/, what that is made of, and some/,
    six of them under other names."""
    folder = tmp_path_factory.mktemp("evaluate")
    tiny.write_run(folder / "run", given_frames=("first",), labels=False)
    make_clips(folder / "clips", 24, seed=0, size=(32, 32), frames=3, fps=8)
    encode(folder / "clips", folder / "store", tiny.make_codec(), frames=3, size=(16, 32), psnr_every=0)
    (folder / "some").mkdir()
    for number, path in enumerate(sorted((folder / "clips" / "clips").glob("*.mp4"))[:6]):
        shutil.copy(path, folder / "some" / f"{number}.mp4")
    return folder


def result(place: Path, *words: object) -> Any:
    out = place / "result.json"
    assert exit_code("evaluate", "--cache", place / "cache", *words, "--out", out) == 0
    return json.loads(out.read_text())


def test_samples_of_a_model_beside_real_clips(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = (place / "run", *QUICK, "--store", place / "store")
    found = result(place, *asked, "--batch", 2)
    figures = found["figures"]
    assert figures["counts"] == {"generated": 3, "real": 4}
    assert {"colour", "garment", "pattern"} <= figures["attributes"].keys()
    by_probe = figures["distances"]["probe"]
    assert by_probe["samples"] == {"real": 4, "generated": 3}
    assert by_probe["frechet_bias"] == by_probe["frechet"] - by_probe["frechet_extrapolated"]
    assert figures["means"].keys() == {"flicker", "drift.probe"}
    assert len(figures["means"]["drift.probe"]["generated"]["by_frame"]) == 2
    assert figures["codec"]["clips"] == 2 and 5 < figures["codec"]["psnr"] < 20
    assert found["protocol"]["name"] == "fashion-small" and found["protocol"]["steps"] == 1
    assert len(found["model"]["checkpoint"]) == len(found["networks"]["probe"]) == len(found["real"]["fingerprint"])
    assert found["versions"].keys() >= {"mmdit", "torch"}
    shown = capsys.readouterr().out
    for said in ("3 samples against 4", "the bias at 3 is", "no more samples than features", "flicker", "colour"):
        assert said in shown
    again = result(place, *asked, "--batch", 3)["figures"]
    assert again["attributes"] == figures["attributes"]
    assert again["distances"]["probe"]["frechet"] == pytest.approx(by_probe["frechet"], rel=1e-4)


def test_other_networks_and_captions(place: Path, tmp_path: Path) -> None:
    save_clip(tmp_path / "clip")
    save_inception(tmp_path / "inception.pt")
    own = ("networks=[inception,clip]", "drift_network=clip", "clip_score=true", "attributes=false", "codec_clips=0")
    paths = ("--network", f"clip={tmp_path / 'clip'}", "--network", f"inception={tmp_path / 'inception.pt'}")
    found = result(place, place / "run", *QUICK, *own, *paths, "--store", place / "store")
    figures = found["figures"]
    assert figures["distances"].keys() == {"inception", "clip"} == found["networks"].keys()
    assert figures["distances"]["inception"]["samples"] == {"generated": 9, "real": 12}  # three frames of each clip
    assert figures["means"].keys() == {"flicker", "drift.clip", "clip_score"}
    assert figures["means"]["clip_score"]["real"]["count"] == 4
    assert not figures.keys() & {"attributes", "codec"}
    images = result(place, place / "run", *QUICK, *own[:1], "frames=1", *own[3:], *paths, "--store", place / "store",
                    "drift_network=null")  # fmt: skip
    assert images["figures"]["distances"]["inception"]["samples"] == {"generated": 3, "real": 4}
    assert not images["figures"]["means"]


def test_given_frames_are_measured_beside_the_codec(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = (place / "store").as_uri()
    found = result(place, place / "run", *QUICK, "--store", store, "--given", "first")["figures"]["given"]
    # nothing that the codec makes depends on other frames, so what is given comes back exactly as by the codec
    assert found["psnr"]["generated"] == pytest.approx(found["psnr"]["codec"], abs=0.01)
    assert found["within_1_db"] == 1
    assert found["shown"]["whole"]["colour"].keys() == {"original", "codec", "generated"}
    shown = capsys.readouterr().out
    assert "PSNR of what is given" in shown and "goal: 95 %" in shown


@pytest.mark.parametrize("given", [(), ("--given", "first")], ids=["samples", "given"])
def test_stopped_it_goes_on_and_gives_the_same(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...]
) -> None:
    monkeypatch.setattr("mmdit.pipelines.evaluating.TOGETHER", 1)
    words, cache = (place / "run", *QUICK, "--store", place / "store", *given), ("--cache", tmp_path / "cache")
    whole = result(place, *words, "--cache", tmp_path / "other")  # real clips too in parts of one
    assert killed_at(monkeypatch, "kill@-1-2.safetensors:begin", lambda: exit_code("evaluate", *words, *cache))
    assert list((tmp_path / "cache").glob("unfinished-*-0-1.safetensors"))
    read: list[list[int]] = []
    plain = SampledClips.read

    def reading(self: SampledClips, numbers: Sequence[int], **more: Any) -> Any:
        read.append(list(numbers))
        return plain(self, numbers, **more)

    monkeypatch.setattr(SampledClips, "read", reading)
    assert result(place, *words, *cache) == whole
    assert read == ([[1]] if given else [[1], [2]])
    assert not list((tmp_path / "cache").glob("unfinished-*"))


@pytest.mark.parametrize(("conditions", "told"), [("rows", ["caption", "label"]), ("labels", ["label"]), ("none", [])])
def test_given_frames_alone_or_with_what_is_said(place: Path, conditions: str, told: list[str]) -> None:
    rules = Protocol.model_validate({"samples": 3, "conditions": conditions, "given_split": "train"})
    plan = plan_given(place / "run", LatentStore.open(place / "store"), rules, "first", force=True)
    for row, real in zip(plan.rows, plan.real.rows, strict=True):
        assert {name: row[name] for name in ("caption", "label")} == {
            name: real[name] if name in told else None for name in ("caption", "label")
        }
        assert row["colour"] == real["colour"]


def test_the_order_of_files_makes_no_difference(place: Path, tmp_path: Path) -> None:
    real = ("--clips", place / "clips")
    first = result(place, place / "some", *FILES, *real)
    assert first["model"] is None and first["figures"]["counts"] == {"generated": 6, "real": 8}
    assert first["figures"]["distances"]["probe"]["frechet"] > 0
    for number, path in enumerate(sorted((place / "some").glob("*.mp4"), reverse=True)):
        (tmp_path / "turned" / f"{number}").mkdir(parents=True)
        shutil.copy(path, tmp_path / "turned" / f"{number}" / "clip.mp4")
    turned = result(place, tmp_path / "turned", *FILES, *real, "--batch", 1, "--cache", tmp_path / "cache")
    assert turned["figures"] == first["figures"]
    assert turned["clips"]["fingerprint"] == first["clips"]["fingerprint"]


@pytest.mark.slow
def test_two_processes_make_no_difference(place: Path, tmp_path: Path) -> None:
    make_clips(tmp_path / "many", 72, seed=1, size=(32, 32), frames=3, fps=8)  # more than two parts of 32
    program, out = Path(str(mmdit.tools.evaluate.__file__)), tmp_path / "result.json"
    many = tmp_path / "many"
    words = (many, "samples=70", "real=null", "kid_size=9", "--clips", many, "--device", "cpu")
    ended = end_pair(start_pair(program, *words, "--cache", tmp_path / "pair", "--out", out))
    assert [code for code, _ in ended] == [0, 0], ended
    alone = result(place, *words)
    assert alone["figures"]["attributes"]["colour"]["real"]["count"] == 72
    assert json.loads(out.read_text())["figures"] == alone["figures"]


def test_what_is_known_of_real_clips_is_not_measured_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmdit.evaluation.folder_clips import FolderClips

    words = (place / "some", *FILES, "--clips", place / "clips", "--cache", tmp_path)
    first = result(place, *words)
    read = list[str]()
    whole = FolderClips.read

    def told(self: FolderClips, numbers: Any) -> Any:
        read.append(str(self.where))
        return whole(self, numbers)

    monkeypatch.setattr(FolderClips, "read", told)
    assert result(place, *words)["figures"] == first["figures"]
    assert read == [str(place / "some")]
    other = result(place, *words, "seed=1")  # other clips of the folder, and so another set
    assert other["real"]["fingerprint"] != first["real"]["fingerprint"] and str(place / "clips") in read
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"damaged")
    assert result(place, *words)["figures"] == first["figures"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--given", "middle"), "unknown kind of given frames, got 'middle'"),
        (("--given", "last"), "not trained with such given frames, got last, expected first"),
        (("real_split=nothing",), "no such split"),
        (("prompt_split=nothing",), "no such split"),
        (("real=5000",), "at most (samples=, real=), or give more clips"),
        (("frames=16",), "clips too short"),
        (("size=[32,32]", "frames=2", "networks=[i3d]"), "the weights of a feature network are not here, got i3d"),
        (("--network", "i3d=/nowhere"), "nothing in the protocol asks for this network, got i3d"),
        (("networks=[i3d]", "--network", "i3d=/nowhere"), "no feature network there, in /nowhere"),
        (("networks=[i3d]", "--network", f"i3d={__file__}"), "too few frames for a feature network, got 3 for i3d"),
        (("networks=[vgg]",), "unknown feature network, got vgg"),
        (("--network", "i3d"), "expected NAME=PATH"),
        (("drift_network=i3d",), "this network sees no single frames"),
        (("conditions=labels",), "this model has no labels"),
        (("sampler=none",), "sampler"),
        (("--given", "first", "sampler=none"), "sampler"),
        (("--given", "first", "given_split=nothing"), "no such split"),
        (("samples=0",), "samples does not fit"),
        (("--protocol", "mine"), "no such protocol, got mine"),
        (("--weights", "best"), "unknown weights"),
        (("--precision", "half"), "unknown precision"),
        (("--clips", "/nowhere"), "what to compare with, got both"),
        (("--out", "photo.png"), "not a JSON file, in --out, got photo.png"),
        (("--out", f"{__file__}/result.json"), "the output cannot be written"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_a_model_is_loaded(
    place: Path, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("mmdit.pipelines.loading.load_pipeline", load)
    assert exit_code("evaluate", place / "run", *QUICK, "--store", place / "store", *words) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1


def test_what_is_not_there_is_not_measured(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("evaluate", place / "nothing", "--store", place / "store") == 2
    assert "nothing to measure" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "what to compare with, got neither"),
        (("--clips", "/nowhere"), "no such folder of clips"),
        (("--clips", "{some}", "samples=9"), "too few clips"),
        (("--clips", "{run}"), "no videos"),
        (("--clips", "{some}", "--given", "first"), "nothing to generate from"),
        (("--clips", "{some}", "pixels=reconstructions", "samples=2", "clip_score=true"), "got clip"),
    ],
)
def test_bad_folders_are_refused(
    place: Path, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tuple(word.format(some=place / "some", run=place / "run") for word in words)
    assert exit_code("evaluate", place / "some", *words) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1
