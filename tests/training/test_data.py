"""What a step trains on is a function of (seed, step, slot)."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from mmdit.errors import Refused
from mmdit.latents.store import LatentStore
from mmdit.training.data import TrainingData
from mmdit.training.sources import Sources
from mmdit.training.texts import TextTable


def with_numbers(data: TrainingData) -> TrainingData:
    """The text of a batch is then the numbers of its captions."""
    data.texts = TextTable((torch.arange(len(data.captions)),))
    return data


@pytest.fixture
def data(recipe: Any) -> Any:
    def make(**changes: Any) -> TrainingData:
        config = recipe(**changes)
        return with_numbers(TrainingData(Sources.open(config.data), "train", config))

    return make


def test_a_share_of_a_batch_is_that_part_of_the_whole(data: Any) -> None:
    samples = data()
    whole, part = samples.batch(5, range(4)), samples.batch(5, range(2, 4))
    for name in ("latents", "noise", "times", "labels"):
        assert torch.equal(getattr(whole, name)[2:], getattr(part, name))
    assert whole.text is not None and part.text is not None
    assert torch.equal(whole.text[0][2:], part.text[0])
    assert whole.places[2:] == part.places


def test_every_epoch_has_every_clip_once_in_its_own_order(data: Any) -> None:
    samples = data()
    count, size = len(samples), samples.config.data.batch_size
    rows = [place for step in range(2 * count // size) for place in samples.batch(step, range(size)).places]
    assert sorted(rows[:count]) == [(0, row) for row in samples.pools[0].group.rows]
    first, second = rows[:count], rows[count : 2 * count // size * size]
    assert len(set(second)) == len(second)
    assert second != first[: len(second)]


@pytest.mark.parametrize(("column", "what"), [("label", "conditions.labels"), ("caption", "conditions.text")])
def test_clips_without_what_is_conditioned_on_are_refused(recipe: Any, tmp_path: Path, column: str, what: str) -> None:
    config = recipe()
    shutil.copytree(config.data.store, tmp_path / "store")
    table = pyarrow.parquet.read_table(tmp_path / "store" / "index.parquet")
    values = table[column].to_pylist()
    values[3] = values[5] = None
    table = table.set_column(table.column_names.index(column), column, pyarrow.array(values))
    pyarrow.parquet.write_table(table, tmp_path / "store" / "index.parquet")
    with pytest.raises(Refused, match=rf"clips without a {column}.*got 2 of \d+, the first is .*mp4.*without {what}"):
        TrainingData(Sources([LatentStore.open(tmp_path / "store")], [None]), "train", config)


def test_labels_and_captions_are_those_of_the_rows(data: Any) -> None:
    samples = data(conditions={"labels": True, "text": {}, "drop_label": 0.0, "drop_text": 0.0})
    batch = samples.batch(2, range(4))
    for slot, place in enumerate(batch.places):
        known = samples.sources.row(place)
        assert samples.sources.labels[batch.labels[slot]] == known["label"]
        assert samples.captions[batch.text[0][slot]] == known["caption"]


def test_seed_and_step_and_slot_decide(data: Any) -> None:
    base = data().batch(0, range(4))
    assert not torch.equal(base.noise[0], base.noise[1])
    assert not torch.equal(base.noise[0], data().batch(1, range(4)).noise[0])
    assert not torch.equal(base.noise[0], data(seed=1).batch(0, range(4)).noise[0])


def test_conditions_are_dropped_as_often_as_asked(data: Any) -> None:
    samples = data(conditions={"labels": True, "text": {}, "drop_label": 0.6, "drop_text": 0.1})
    batches = [samples.batch(step, range(4)) for step in range(200)]
    labels = torch.cat([batch.labels for batch in batches])
    captions = torch.cat([batch.text[0] for batch in batches])
    assert (labels == 5).float().mean().item() == pytest.approx(0.6, abs=0.06)
    assert (captions == 0).float().mean().item() == pytest.approx(0.1, abs=0.04)
    assert labels.max() == 5
    assert samples.captions[0] == ""


def test_some_steps_are_of_single_frames(data: Any) -> None:
    frames = [data(data__image_share=0.3).batch(step, range(1)).latents.shape[2] for step in range(100)]
    assert set(frames) == {1, 3}
    assert frames.count(1) == pytest.approx(30, abs=14)
    assert {data(data__image_share=0.0).batch(step, range(1)).latents.shape[2] for step in range(9)} == {3}


def test_latents_are_drawn_anew_from_mean_and_deviation(data: Any) -> None:
    samples = data(data__image_share=0.0)
    batch = samples.batch(0, range(2))
    mean, std = (x.float() for x in samples.sources.stores[0].latent(batch.places[0][1]))
    drawn = (batch.latents[0] - mean) / std
    assert drawn.std().item() == pytest.approx(1.0, abs=0.15)


def test_times_are_spread_evenly_over_the_batch(data: Any) -> None:
    samples = data(flow={"times": "uniform"})
    times = samples.batch(3, range(4)).times.sort().values
    assert (times.diff() - 0.25).abs().max() < 0.02 or times.diff().max() < 0.6
