"""Training straight from videos is the run that training from a store of them is."""

from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import tiny
import torch
from encoding import encode
from runs import state_of

from mmdit.clips.made import make_clips
from mmdit.config import load_config
from mmdit.errors import Refused
from mmdit.latents.live import LiveStore
from mmdit.latents.store import LatentStore
from mmdit.training import loop
from mmdit.training.config import RunConfig
from mmdit.training.loop import train
from mmdit.training.videos import VideosConfig, open_data

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, a codec, and the store of them, encoded clip by clip: batches of unlike size may differ in rounding."""
    folder = tmp_path_factory.mktemp("made")
    make_clips(folder / "clips", 24, seed=0, size=(32, 32), frames=3, fps=8)
    codec = tiny.make_codec()
    codec.vae.save_pretrained(folder / "codec")
    how = {
        "frames": 3,
        "size": (32, 32),
        "dtype": "float16",
        "psnr_every": 0,
        "batch_size": 1,
        "codec_name": str(folder / "codec"),
    }
    encode(folder / "clips", folder / "store", codec, **how)
    return folder


def videos_of(made: Path, **changes: Any) -> dict[str, Any]:
    same = {"source": str(made / "clips"), "codec": str(made / "codec"), "frames": 3, "size": "32x32", "batch": 1}
    return {**same, "workers": 1, **changes}


@pytest.fixture(scope="module")
def recipes(made: Path, recipe: Any) -> tuple[RunConfig, RunConfig]:
    """The same run from the store and from the videos."""
    changes = {"steps": 4, "keep_checkpoints": 9}
    from_videos = recipe(data__store=None, data__videos=videos_of(made), **changes)
    return recipe(data__store=str(made / "store"), **changes), from_videos


@pytest.fixture(scope="module")
def whole(recipes: tuple[RunConfig, RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    train(recipes[0], folder := tmp_path_factory.mktemp("whole"))
    return folder


class Interrupted(Exception):
    pass


def stop_at_3(step: int, *_: object) -> None:
    if step == 3:
        raise Interrupted


def test_a_run_from_videos_is_the_run_from_their_store(
    recipes: tuple[RunConfig, RunConfig], whole: Path, tmp_path: Path
) -> None:
    train(recipes[1], tmp_path)
    assert state_of(tmp_path) == state_of(whole)


@pytest.mark.parametrize("first", [0, 1], ids=["store first", "videos first"])
def test_a_run_goes_on_from_the_other(
    recipes: tuple[RunConfig, RunConfig], whole: Path, tmp_path: Path, first: int
) -> None:
    with pytest.raises(Interrupted):
        train(recipes[first], tmp_path, progress=stop_at_3)
    train(recipes[1 - first], tmp_path)
    assert state_of(tmp_path) == state_of(whole)


def test_what_would_make_other_latents_is_refused(
    recipes: tuple[RunConfig, RunConfig], made: Path, recipe: Any, tmp_path: Path
) -> None:
    def changed(**changes: Any) -> RunConfig:
        made_by: RunConfig = recipe(
            steps=4, keep_checkpoints=9, data__store=None, data__videos=videos_of(made, **changes)
        )
        return made_by

    with pytest.raises(Interrupted):
        train(recipes[1], tmp_path, progress=stop_at_3)
    with pytest.raises(Refused, match=r"got data\.videos\.dtype=float32, expected data\.videos\.dtype=float16"):
        train(changed(dtype="float32"), tmp_path)
    tiny.make_codec(seed=1).vae.save_pretrained(tmp_path / "other")
    with pytest.raises(Refused, match="the codec's fingerprint is not what this run was begun with"):
        train(changed(codec=str(tmp_path / "other")), tmp_path)
    (tmp_path / "moved").symlink_to(made / "clips")
    train(changed(source=str(tmp_path / "moved"), workers=2, deadline=50.0), tmp_path)


def test_what_is_known_of_videos_is_kept_with_the_run(
    made: Path, recipes: tuple[RunConfig, RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_data(recipes[1].data, CPU, tmp_path)
    monkeypatch.setattr("mmdit.latents.facts._AT_A_TIME", None)  # nothing can be hashed
    assert len(open_data(recipes[1].data, CPU, tmp_path)) == 24
    with pytest.raises(TypeError):
        open_data(recipes[1].data, CPU)


def test_a_recipe_has_a_store_or_videos(made: Path, recipe: Any) -> None:
    with pytest.raises(Refused, match=r"one of data\.store, data\.videos and data\.sources, got store and videos"):
        recipe(data__videos=videos_of(made))
    with pytest.raises(Refused, match="got none"):
        recipe(data__store=None)
    assert load_config(RunConfig, "fashion_from_videos").data.videos is not None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": "32by32"}, "not a size"),
        ({"bucket": ["3x32x32"]}, "nothing reads size"),
        ({"bucket": ["3x32x32"], "size": "64x48"}, "nothing reads frames"),
        ({"token_budget": 64}, "nothing reads size"),
        ({"windows": 0}, "not a number of windows"),
        ({"window_step": 1.0}, "a step of windows"),
        ({"bucket": ["3x32"], "size": "64x48", "frames": 17}, "not a bucket"),
        ({"flop": True}, r"unknown config key.*data\.videos\.flop.*did you mean data\.videos\.flip"),
    ],
)
def test_keys_that_do_not_fit_are_refused(made: Path, recipe: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        recipe(data__store=None, data__videos=videos_of(made, **changes))


# For each key other values than those of `videos_of`.
CHANGES: dict[str, dict[str, Any]] = {
    "source": {"source": "nowhere"},
    "codec": {"codec": "nowhere"},
    "frames": {"frames": 2},
    "size": {"size": "16x16"},
    "bucket": {"bucket": ("1x16x16",), "size": "64x48", "frames": 17},
    "token_budget": {"token_budget": 4, "size": "64x48"},
    "fps": {"fps": 9.0},
    "stride": {"stride": 1},
    "windows": {"windows": 2, "frames": 2},
    "window_step": {"windows": "all", "frames": 1, "window_step": 0.25},
    "flip": {"flip": True},
    "kind": {"kind": "folder"},
    "captions": {"captions": "nowhere.csv"},
    "caption_from": {"kind": "folder", "caption_from": "name"},
    "labels": {"labels": "folder"},
    "label_names": {"label_names": "nowhere.txt"},
    "no_caption": {"kind": "folder", "no_caption": "skip"},
    "bad_captions": {"bad_captions": "drop"},
    "max_caption": {"max_caption": 5},
    "batch": {"batch": 4},
    "workers": {"workers": 3},
    "deadline": {"deadline": 1e-4},
    "dtype": {"dtype": "float32"},
    "precision": {"precision": "bfloat16"},
    "tiling": {"tiling": 16},
    "reader": {"reader": "decord"},
}


def seen(config: VideosConfig, folder: Path) -> Any:
    """What is opened: the rows, how they are read and encoded; or the refusal."""
    try:
        store = open_data(Both(config), CPU, folder)
    except Refused as refusal:
        return str(refusal)
    assert isinstance(store, LiveStore)
    rows = [store.row(row) for row in range(len(store))]
    how = store._options, store._ahead._reader.workers, store._ahead._reader.deadline
    store.close()
    return rows, how


class Both:
    store = None

    def __init__(self, videos: VideosConfig) -> None:
        self.videos = videos


@pytest.fixture(scope="module")
def base(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The facts of the sources, found out once, and what is seen under each setting that others are compared with."""
    return tmp_path_factory.mktemp("facts"), {}


@pytest.mark.parametrize("key", CHANGES)
def test_each_key_changes_what_is_opened(made: Path, base: tuple[Path, dict[str, Any]], key: str) -> None:
    folder, known = base
    changed = dict(CHANGES[key])
    without = {name: value for name, value in changed.items() if name != key}
    if key in ("bucket", "token_budget"):
        without = {}
    if key == "bad_captions":
        table = made / "bad.csv"
        table.write_bytes((made / "clips" / "captions.csv").read_bytes().replace(b"walk", b"\xff\xfe", 1))
        without["captions"] = changed["captions"] = str(table)
    if str(without) not in known:
        known[str(without)] = seen(VideosConfig(**videos_of(made, **without)), folder)
    assert seen(VideosConfig(**videos_of(made, **changed)), folder) != known[str(without)]


def test_every_key_is_in_the_table() -> None:
    assert set(CHANGES) == set(VideosConfig.model_fields)


def test_a_store_is_opened_as_one(recipes: tuple[RunConfig, RunConfig]) -> None:
    assert isinstance(open_data(recipes[0].data, CPU), LatentStore)


def test_a_video_that_cannot_be_read_is_left_out_and_listed(
    made: Path, recipes: tuple[RunConfig, RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place in the batch weighs nothing, in the gradient as in the loss that is logged."""
    bad = {3, 7}
    plain = LiveStore.latents

    def latents(store: LiveStore, rows: Any) -> Any:
        for row in bad & set(rows) - store._unusable:
            store._skip(row, "made unreadable")
        return [None if row in bad else latent for row, latent in zip(rows, plain(store, rows), strict=True)]

    monkeypatch.setattr(LiveStore, "latents", latents)
    judged: list[tuple[float, torch.Tensor, torch.Tensor | None]] = []
    judge = loop._judge

    def seen(run: Any, batch: Any, losses: torch.Tensor, norm: torch.Tensor) -> tuple[float, bool]:
        judged.append((judge(run, batch, losses, norm)[0], losses, batch.weights))
        return judge(run, batch, losses, norm)

    monkeypatch.setattr(loop, "_judge", seen)
    train(recipes[1], tmp_path)
    hit = [(mean, losses, weights) for mean, losses, weights in judged if weights is not None]
    assert hit
    for mean, losses, weights in hit:
        assert (losses[weights == 0] == 0).all() and (losses[weights == 1] > 0).all()
        assert mean == pytest.approx(losses.sum().item() / weights.sum().item())
    listed = pyarrow.parquet.read_table(tmp_path / "quarantine.parquet").to_pylist()
    assert {row["reason"] for row in listed} == {"made unreadable"}
