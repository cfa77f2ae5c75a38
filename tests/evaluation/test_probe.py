import json
from pathlib import Path

import pytest
import torch

from mmdit.clips.made import MadeClip, plan_clips, prompts, render
from mmdit.clips.video import frames_to_clip
from mmdit.errors import Refused, Stopped
from mmdit.evaluation.augment import lossy
from mmdit.evaluation.probe import (
    EMBEDDED,
    UNCLEAR,
    Probe,
    ProbeConfig,
    colour_drift,
    load_probe,
    save_probe,
)
from mmdit.evaluation.score import attribute_scores, check_probe, columns
from mmdit.seeds import generator, normal

NAMES = {"garment": ("coat", "dress"), "colour": ("blue", "red", "teal"), "motion": ("turns", "walks")}
ATTRIBUTES = ("garment", "colour", "pattern", "motion")
Wanted = dict[str, list[str]]


def small_probe(**values: object) -> Probe:
    torch.manual_seed(0)
    config = ProbeConfig.model_validate(
        {"names": NAMES, "widths": (8, 8, 8), "size": (32, 24), "subject_clear": 0.0, **values}
    )
    return Probe(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def probe() -> Probe:
    return load_probe()


@pytest.fixture(scope="module")
def real() -> tuple[torch.Tensor, Wanted]:
    """Made clips of a seed that the probe was not trained on."""
    made: list[MadeClip] = plan_clips(48, seed=77)
    clips = torch.stack([frames_to_clip(render(clip)) for clip in made])
    return clips, columns([clip.attributes for clip in made], ATTRIBUTES)


def test_the_embedded_probe_is_small_and_knows_all_names(probe: Probe) -> None:
    assert (EMBEDDED / "model.safetensors").stat().st_size <= 1_500_000
    assert (EMBEDDED / "README.md").is_file()
    assert sum(value.numel() for value in probe.parameters()) <= 700_000
    every = columns(prompts("train", 400, 0), ATTRIBUTES)
    assert {key: set(values) for key, values in probe.config.names.items()} == {k: set(v) for k, v in every.items()}


def test_the_embedded_probe_reads_real_clips_right(probe: Probe, real: tuple[torch.Tensor, Wanted]) -> None:
    assert check_probe(probe, *real) == dict.fromkeys(ATTRIBUTES, 1.0)


def test_it_reads_what_a_lossy_codec_leaves(probe: Probe, real: tuple[torch.Tensor, Wanted]) -> None:
    clips, wanted = real
    scores = attribute_scores(probe.read(lossy(clips.clone(), generator(5, "test"))), wanted)
    assert min(score.accuracy for score in scores.values()) >= 0.95


def test_it_reads_stills_but_no_motion_from_them(probe: Probe, real: tuple[torch.Tensor, Wanted]) -> None:
    clips, wanted = real
    read = probe.read(clips[:, :, :1])
    assert set(read["motion"]) == {UNCLEAR}
    for key in ("garment", "colour", "pattern"):
        assert attribute_scores(read, {key: wanted[key]})[key].accuracy >= 0.9


def test_what_is_not_to_be_seen_does_not_score(probe: Probe, real: tuple[torch.Tensor, Wanted]) -> None:
    clips, wanted = real
    frozen = clips[:, :, 8:9].expand_as(clips)
    assert attribute_scores(probe.read(frozen), wanted)["motion"].accuracy <= 0.1
    noise = normal(tuple(clips.shape), 3, "noise").clamp(-1, 1) * 0.3
    for score in attribute_scores(probe.read(noise), wanted).values():
        assert score.accuracy <= 0.1


def test_swapped_wishes_score_nothing(probe: Probe, real: tuple[torch.Tensor, Wanted]) -> None:
    clips, wanted = real
    for key, names in probe.config.names.items():
        other = [names[(names.index(value) + 1) % len(names)] for value in wanted[key]]
        assert attribute_scores(probe.read(clips), {key: other})[key].correct == 0


def test_real_clips_hardly_drift_and_repainted_ones_do(probe: Probe, real: tuple[torch.Tensor, Wanted]) -> None:
    clips = real[0][:8]
    steady = colour_drift(probe, clips)
    painted = torch.cat([clips[:, :, :8], clips[:, [1, 2, 0], 8:]], dim=2)  # red, green, blue turned round midway
    assert sum(steady) / 8 < 0.1
    assert sum(colour_drift(probe, painted)) / 8 > sum(steady) / 8 + 0.2


def test_readings_do_not_depend_on_the_batch_and_follow_the_clips() -> None:
    probe = small_probe(clear=0.01)
    clips = normal((7, 3, 9, 32, 24), 0, "clips").clamp(-1, 1)
    whole, single = probe.probabilities(clips), probe.probabilities(clips, batch_size=2)
    for key, names in NAMES.items():
        assert whole[key].shape == (7, len(names))
        assert torch.allclose(whole[key], single[key], atol=1e-6)
        assert probe.read(clips)[key] == [names[i] for i in whole[key].argmax(1)]


@pytest.mark.parametrize("shape", [(1, 32, 24), (9, 32, 24), (17, 64, 48), (33, 50, 70), (2, 8, 8)])
def test_any_length_and_size(shape: tuple[int, int, int]) -> None:
    read = small_probe(clear=0.501).read(torch.zeros(2, 3, *shape))
    assert (UNCLEAR in read["motion"]) == (shape[0] < 9)
    assert {len(values) for values in read.values()} == {2}


def test_without_a_subject_nothing_is_read() -> None:
    clips = normal((4, 3, 9, 32, 24), 0, "clips")
    assert UNCLEAR not in small_probe(clear=0.01).read(clips)["colour"]
    assert set(small_probe(clear=0.01, subject_clear=0.99).read(clips)["colour"]) == {UNCLEAR}


def test_bytes_and_floats_read_alike() -> None:
    probe = small_probe()
    as_bytes = torch.randint(0, 256, (2, 3, 9, 32, 24), dtype=torch.uint8, generator=generator(0, "bytes"))
    as_floats = as_bytes.float() / 127.5 - 1
    for key, value in probe.probabilities(as_bytes).items():
        assert torch.allclose(value, probe.probabilities(as_floats)[key])


def test_a_clip_with_nan_is_unclear() -> None:
    clips = torch.zeros(2, 3, 9, 32, 24)
    clips[0, 0, 0, 0, 0] = torch.nan
    read = small_probe(clear=0.01).read(clips)
    assert all(values[0] == UNCLEAR and values[1] != UNCLEAR for values in read.values())


@pytest.mark.parametrize("shape", [(3, 9, 32, 24), (2, 1, 9, 32, 24), (0, 3, 9, 32, 24)])
def test_what_is_no_batch_of_clips_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(Refused, match="not clips"):
        small_probe().read(torch.zeros(shape))


def test_saving_keeps_the_readings(tmp_path: Path) -> None:
    probe = small_probe()
    save_probe(probe, tmp_path, dtype=torch.float32)
    again = load_probe(tmp_path)
    clips = normal((2, 3, 9, 32, 24), 0, "clips")
    assert again.config == probe.config
    for key, value in probe.probabilities(clips).items():
        assert torch.equal(value, again.probabilities(clips)[key])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "newer"),
        ({"class": "DiT"}, "no probe"),
        ({"width": [1]}, "unknown config key"),
        ({"names": {"garment": ["coat"]}}, "no whole probe"),
    ],
)
def test_a_probe_of_another_kind_is_refused(tmp_path: Path, change: dict[str, object], says: str) -> None:
    save_probe(small_probe(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(Refused, match=says):
        load_probe(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("cut", [None, 10])
def test_a_damaged_probe_is_refused(tmp_path: Path, name: str, cut: int | None) -> None:
    save_probe(small_probe(), tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if cut is not None:
        (tmp_path / name).write_bytes(data[:cut])
    with pytest.raises(Refused, match="no whole probe"):
        load_probe(tmp_path)


def test_scores_are_refused_when_the_probe_cannot_read_real_clips() -> None:
    probe = small_probe(clear=0.01)
    clips = normal((100, 3, 9, 32, 24), 0, "clips")
    read = probe.read(clips)
    assert check_probe(probe, clips, read) == dict.fromkeys(NAMES, 1.0)
    wanted = dict(read)
    for wrong in (1, 2):
        names = NAMES["colour"]
        wanted["colour"] = [
            names[(names.index(value) + 1) % 3] if i < wrong else value for i, value in enumerate(read["colour"])
        ]
        if wrong == 1:
            assert check_probe(probe, clips, wanted)["colour"] == 0.99
        else:
            with pytest.raises(Stopped, match="98 of 100"):
                check_probe(probe, clips, wanted)
