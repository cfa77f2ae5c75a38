"""`mmdit train-codec`: from a folder of clips to a codec that loads."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from mmdit.clips.video import write_clip
from mmdit.latents.codec import load_codec
from mmdit.tools import cli

SMALL = [
    "size=[16, 16]", "frames=3", "batch_frames=3", "batch_size=4", "steps=2", "decay_steps=1", "warmup_steps=1",
    "vae.latent_channels=2", "vae.block_out_channels=[8, 16]", "vae.decoder_block_out_channels=[8]",
    "vae.layers_per_block=[0, 0]", "vae.decoder_layers_per_block=[0, 0]", "then=null",
]  # fmt: skip


def ending(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(["train-codec", *words])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    splits = ["train", "train", "validation", "held_out"]
    for number in range(4):
        frames = np.full((3, 16, 16, 3), 50 * number, np.uint8)
        write_clip(folder / f"{number}.mp4", frames, 8)
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "split"), *((f"{i}.mp4", split) for i, split in enumerate(splits))])
    return folder


def test_a_codec_is_trained_measured_and_written(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["configs/codec_fashion.yaml", f"clips={clips}", *SMALL, "--out", str(tmp_path / "run")]
    assert ending(*words) == 0
    said = capsys.readouterr().out
    figures = json.loads((tmp_path / "run" / "figures.json").read_text())
    assert str(figures["held_out_psnr"]) in said
    assert str(figures["held_out_image_psnr"]) in said
    assert str(tmp_path / "run" / "codec") in said
    codec = load_codec(tmp_path / "run" / "codec")
    card = (tmp_path / "run" / "codec" / "README.md").read_text()
    assert f"{figures['held_out_psnr']:.2f}" in card
    assert codec.fingerprint in card
    assert " ".join(["mmdit train-codec", *words[:-2]]) in card
    assert codec.channels == 2
    assert codec.latent_size((3, 16, 16)) == (2, 2, 2)
    assert ending(*words) == 0


def test_the_codec_goes_where_it_is_told(clips: Path, tmp_path: Path) -> None:
    made, run = tmp_path / "made", tmp_path / "run"
    assert ending("codec_fashion", f"clips={clips}", *SMALL, "--out", str(run), "--codec", str(made)) == 0
    assert load_codec(made).channels == 2
    assert not (run / "codec").exists()


def test_the_recipe_is_shown_with_all_its_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending("codec_fashion", "seed=7", "--show") == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["seed"] == 7
    assert "validation_clips" in shown


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("stepz=3", "did you mean steps?"),
        ("vae.latent_chanels=3", "did you mean vae.latent_channels?"),
        ("clips=nowhere", "nowhere"),
        ("frames=4", "the nearest is 3 frames"),
    ],
)
def test_wrong_words_end_with_one_line_and_code_2(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, said: str
) -> None:
    run = tmp_path / "run"
    assert ending("codec_fashion", f"clips={clips}", *SMALL, word, "--out", str(run)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in lines if line.startswith("mmdit:")]) == 1
    assert said in lines[-1]
