"""Several stores and shapes in one run: buckets, shares, images beside clips, batches of equal cost."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from encoding import encode

from mmdit.clips.buckets import Bucket
from mmdit.clips.made import make_clips
from mmdit.conditioning import load_text_encoder
from mmdit.errors import Refused
from mmdit.latents.store import LatentStore
from mmdit.latents.texts import encode_texts
from mmdit.training import loop
from mmdit.training.data import TrainingData
from mmdit.training.loop import train
from mmdit.training.resume_rules import check_same_recipe
from mmdit.training.sources import Sources


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stores: clips of two shapes, and images."""
    folder = tmp_path_factory.mktemp("shapes")
    make_clips(folder / "tall", 20, seed=1, size=(48, 32), frames=3, fps=8)
    make_clips(folder / "both", 12, seed=2, size=(32, 32), frames=3, fps=8)
    lines = (folder / "tall" / "captions.csv").read_text().splitlines()[1:]
    with (folder / "both" / "captions.csv").open("a") as table:
        for line in lines:
            name = line.split(",")[0]
            table.write(line.replace(name, f"tall-{Path(name).name}") + "\n")
            (folder / "tall" / name).rename(folder / "both" / f"tall-{Path(name).name}")
    two = (Bucket(3, 32, 32), Bucket(3, 48, 32))
    encode(folder / "both", folder / "clips", tiny.make_codec(), buckets=two, dtype="float16", psnr_every=0)
    make_clips(folder / "stills", 16, seed=3, size=(32, 32), frames=1, fps=8)
    encode(folder / "stills", folder / "images", tiny.make_codec(), frames=1, size=(32, 32), psnr_every=0)
    return folder


def both(shapes: Path, share: float | None = None) -> list[dict[str, Any]]:
    return [{"store": str(shapes / "clips")}, {"store": str(shapes / "images"), "share": share}]


@pytest.fixture
def mixed(recipe: Any, shapes: Path) -> Any:
    """A recipe of both stores."""

    def make(share: float | None = None, **changes: Any) -> Any:
        return recipe(data__store=None, data__sources=both(shapes, share), data__image_share=0.0, **changes)

    return make


def draw(config: Any, steps: int) -> list[tuple[torch.Size, list[tuple[int, int]]]]:
    data = TrainingData(Sources.open(config.data), "train", config)
    drawn = (data.batch(step, range(data.batch_size(step))) for step in range(steps))
    return [(batch.latents.shape, batch.places) for batch in drawn]


def test_every_clip_of_every_shape_comes_once_an_epoch(mixed: Any) -> None:
    config = mixed()
    counts = Counter(pool.latent for pool in Sources.open(config.data).pools("train"))
    assert len(counts) == 3  # two shapes of clips, and images
    data = TrainingData(Sources.open(config.data), "train", config)
    seen = Counter(place for _, places in draw(config, 4 * len(data) // 4 - 3) for place in places)
    assert len(seen) == len(data)
    assert max(seen.values()) - min(seen.values()) <= 1


def test_a_batch_has_one_shape_and_images_are_clips_of_one_frame(mixed: Any) -> None:
    drawn = draw(mixed(), 12)
    assert {shape[1:] for shape, _ in drawn} == {(4, 3, 4, 4), (4, 3, 6, 4), (4, 1, 4, 4)}
    assert {places[0][0] for shape, places in drawn if shape[2] == 1} == {1}


def test_a_source_has_its_share_of_the_samples(mixed: Any) -> None:
    places = [place for _, batch in draw(mixed(share=0.8), 100) for place in batch]
    assert Counter(source for source, _ in places)[1] / len(places) == pytest.approx(0.8, abs=0.03)


def test_batches_of_equal_cost(mixed: Any) -> None:
    config = mixed(data__batch_by="cost")
    sizes = {tuple(shape[2:]): shape[0] for shape, _ in draw(config, 20)}
    assert sizes[3, 6, 4] == 4  # batch_size clips of the costliest
    assert sizes[3, 4, 4] == 5  # two thirds of the tokens, and as many modulations
    assert sizes[1, 4, 4] > 12
    config = mixed(data__batch_by="cost", data__batch_multiple=4)
    sizes = {tuple(shape[2:]): shape[0] for shape, _ in draw(config, 20)}
    assert sizes[3, 4, 4] == sizes[3, 6, 4] == 4
    assert sizes[1, 4, 4] % 4 == 0


def test_a_run_of_all_shapes_goes_on_bit_for_bit(mixed: Any, tmp_path: Path) -> None:
    config = mixed(share=0.4, data__batch_by="cost", data__micro_batch=3)
    train(config, tmp_path / "whole")

    def stop_after_three(step: int, *_: object) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "again", progress=stop_after_three)
    train(config, tmp_path / "again")
    manifests = [next((tmp_path / run / "checkpoints").glob("*6/manifest.json")) for run in ("whole", "again")]
    assert manifests[0].read_bytes() == manifests[1].read_bytes()
    state = json.loads((manifests[0].parent / "state.json").read_text())
    assert state["latent_shape"] == [4, 3, 6, 4]  # of most clips
    assert state["clip"] == {"frames": 3, "size": [48, 32], "fps": 8.0}


def test_labels_keep_their_meaning_in_every_source(shapes: Path, mixed: Any) -> None:
    config = mixed()
    sources = Sources.open(config.data)
    sources.stores[1].labels = list(reversed(sources.stores[1].labels))
    data = TrainingData(sources, "train", config)
    for step in range(12):
        batch = data.batch(step, range(4))
        for label, place in zip(batch.labels, batch.places, strict=True):
            if label < len(sources.labels):
                assert sources.labels[label] == sources.row(place)["label"]


def test_stores_of_unlike_codecs_are_refused(shapes: Path, tmp_path: Path) -> None:
    encode(shapes / "stills", tmp_path / "other", tiny.make_codec(seed=1), frames=1, size=(32, 32), psnr_every=0)
    stores = [LatentStore.open(folder) for folder in (shapes / "clips", tmp_path / "other")]
    with pytest.raises(
        Refused, match=r"unlike codecs, in .*other, got .*[0-9a-f]{16}, expected .*[0-9a-f]{16}, as in .*clips"
    ):
        Sources(stores, [None, None])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"store": None}, "a recipe has one of data.store, data.videos and data.sources, got none"),
        ({"sources": [{"store": "a"}]}, "got store and sources"),
        ({"store": None, "sources": [{"store": "a", "share": 0.5}, {"store": "b", "share": 0.6}]}, "got 1.1 in all"),
        ({"store": None, "sources": [{"store": "a", "share": 0.5}]}, "got 0.5 in all, expected 1"),
        ({"batch_multiple": 2}, "nothing reads batch_multiple"),
        ({"batch_by": "cost", "batch_multiple": 3}, "does not divide data.batch_size, got 3 and 4"),
        ({"batch_size": 100}, "fewer clips than a batch.*got 3[0-9] clips.*data.batch_size 100.*data.repeat=true"),
    ],
)
def test_data_that_cannot_be_meant_are_refused(recipe: Any, data: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        config = recipe(**{f"data__{key}": value for key, value in data.items()})
        TrainingData(Sources.open(config.data), "train", config)


def test_fewer_clips_than_a_batch_are_repeated_where_asked(recipe: Any) -> None:
    config = recipe(data__batch_size=64, data__repeat=True)
    data = TrainingData(Sources.open(config.data), "train", config)
    assert max(Counter(data.batch(0, range(64)).places).values()) == 3


def test_sources_that_moved_are_the_same_and_other_shares_are_not(recipe: Any, mixed: Any, tmp_path: Path) -> None:
    train(mixed(share=0.4, steps=2), tmp_path)
    moved = [{"store": "moved"}, {"store": "too", "share": 0.4}]
    check_same_recipe(recipe(data__store=None, data__sources=moved, data__image_share=0.0, steps=2), tmp_path)
    with pytest.raises(Refused, match=r"got data.sources.share=0.5, expected data.sources.share=0.4"):
        check_same_recipe(mixed(share=0.5, steps=2), tmp_path)


def test_the_embeddings_of_the_store_are_those_computed_now(
    recipe: Any, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from mmdit.conditioning import build_text_encoder

    captions = Sources.open(recipe().data).stores[0].column("caption").to_pylist()
    encoder = build_text_encoder(captions, width=16, depth=1, heads=2, max_tokens=24, seed=0)
    encoder.save(tmp_path / "encoder")
    shutil.copytree(store, tmp_path / "store")
    changes: dict[str, Any] = {
        "conditions": {"text": {"encoder": str(tmp_path / "encoder")}},
        "model__text_tokens_by": "cross-attention",
        "data__store": str(tmp_path / "store"),
        "steps": 2,
    }
    train(recipe(**changes), tmp_path / "computed")
    encode_texts(tmp_path / "store", load_text_encoder(tmp_path / "encoder"), tokens=True)
    monkeypatch.setattr("mmdit.training.texts._computed", None)
    train(recipe(**changes), tmp_path / "stored")
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("computed", "stored")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_given_frames_enter_clean_and_are_not_in_the_loss(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(conditions__given_frames={"first": 0.5, "both": 0.5}, data__image_share=0.0, steps=1)
    seen: list[Any] = []
    plain = loop._losses

    def losses(run: Any, module: Any, batch: Any) -> torch.Tensor:
        def spy(x_t: Any, timesteps: Any, *rest: Any) -> Any:
            seen.append((x_t, timesteps, batch))
            return module(x_t, timesteps, *rest)

        return plain(run, spy, batch)

    monkeypatch.setattr(loop, "_losses", losses)
    train(config, tmp_path)
    x_t, timesteps, batch = seen[0]
    assert timesteps.shape == batch.given.shape == (4, 3)
    assert batch.given[:, 0].all() and not batch.given[:, 1].any()
    assert {bool(last) for last in batch.given[:, 2]} == {False, True}
    assert torch.equal(timesteps == 0, batch.given)
    held = batch.given[:, None, :, None, None].expand_as(x_t)
    assert torch.equal(x_t[held], batch.latents[held])
    assert not torch.isclose(x_t[~held], batch.latents[~held]).all()
