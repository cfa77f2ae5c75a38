"""`mmdit encode` as a command: exit codes, the table, and one line for each wrong input."""

import re
from pathlib import Path

import numpy as np
import pytest
from commands import exit_code

from mmdit.clips.video import frames_to_clip, write_clip
from mmdit.latents.codec import load_codec
from mmdit.latents.store import LatentStore


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("my videos")
    y, x = np.mgrid[0:72, 0:96]
    for number in range(3):
        frames = [
            np.stack([np.sin((x + y * number + 3 * t) / (9 + c)) * 90 + 128 for c in range(3)], -1) for t in range(9)
        ]
        write_clip(folder / f"{number}.mp4", np.array(frames).astype(np.uint8), 8)
    (folder / "0.txt").write_text("waves")
    (folder / "bad.mp4").write_text("no video")
    return folder


def run(*words: object) -> int:
    return exit_code("encode", *words)


def test_encodes_a_folder_with_the_codec_that_comes_with_mmdit(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (videos, "--out", tmp_path / "a store", "--frames", 5, "--size", "32x48", "--fps", 4, "--psnr-every", 1)
    assert run(*words, "--max-skipped", 1) == 0
    said = capsys.readouterr().out
    assert re.search(r"kept +3\b", said) and re.search(r"skipped: not a video +1\b", said)
    assert re.search(r"clips/s", said) and re.search(r"reconstruction: \d+\.\d dB", said) and "a store" in said

    store, codec = LatentStore.open(tmp_path / "a store"), load_codec("fashion")
    assert store.meta["codec"] == {"name": "fashion", "fingerprint": codec.fingerprint}
    assert [group.latent for group in store.groups] == [(codec.channels, *codec.latent_size((5, 32, 48)))]
    assert store.table["caption"].to_pylist() == ["waves", None, None]
    mean, std = store.latent(0)
    clip = codec.decode(mean.float()[None])[0]
    assert clip.shape == (3, 5, 32, 48) and std.min() >= 0
    # 72x96 cut to 64x96 at the centre, half as large, every second frame
    _, x = np.mgrid[4:68:2, 0:96:2] + 0.5
    frames = [np.stack([np.sin((x + 6 * t) / (9 + c)) * 90 + 128 for c in range(3)], -1) for t in range(5)]
    wanted = codec.encode(frames_to_clip(np.array(frames).astype(np.uint8))[None]).mean[0]
    assert (mean - wanted).abs().mean() < 0.1 * wanted.abs().mean()

    assert run(*words) == 3  # 5% of 4 is none
    again = capsys.readouterr()
    assert re.search(r"encoded just now +0\b", again.out)
    assert re.fullmatch(r"mmdit: more clips were skipped.*got 1 of 4.*at most 0.*--max-skipped\n", again.err)

    assert run(*words, "--precision", "bfloat16") == 2
    assert re.search(r"another precision.*bfloat16.*float32", capsys.readouterr().err)
    assert run(*words, "--dtype", "float32") == 2
    assert re.search(r"another dtype.*float32.*float16", capsys.readouterr().err)


def test_class_folders_and_names_of_labels(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, label in enumerate(("b", "a", "c")):
        (tmp_path / "in" / label).mkdir(parents=True)
        (tmp_path / "in" / label / f"red_{number}.mp4").write_bytes((videos / f"{number}.mp4").read_bytes())
    words = ("--labels", "folder", "--caption-from", "name", "--frames", 5, "--size", "32x48", "--fps", 4)
    assert run(tmp_path / "in", "--out", tmp_path / "store", *words) == 0
    store = LatentStore.open(tmp_path / "store")
    assert store.labels == ["a", "b", "c"] and store.label_numbers().tolist() == [0, 1, 2]
    assert store.table["caption"].to_pylist() == ["red 1", "red 0", "red 2"]
    (tmp_path / "names").write_text("c\nb\na\n")
    more = (*words, "--label-names", tmp_path / "names")
    assert run(tmp_path / "in", "--out", tmp_path / "store", *more) == 0
    store = LatentStore.open(tmp_path / "store")
    assert store.labels == ["c", "b", "a"] and store.label_numbers().tolist() == [2, 1, 0]
    assert "encoded just now  0" in capsys.readouterr().out
    (tmp_path / "names").write_text("a\nb\n")
    assert run(tmp_path / "in", "--out", tmp_path / "store", *more) == 2
    assert re.search(r"'c'", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--size", "64"], "not a size.*'64'.*64x48"),
        (["--size", "0x48"], "not a size"),
        (["--size", "60x48"], "cannot take this size.*60x48.*64x48"),
        (["--frames", "4"], "cannot take this size.*nearest is"),
        (["--frames", "0"], "impossible clip"),
        (["--fps", "-1"], "rate of frames is out of range"),
        (["--max-skipped", "many"], "not a skip budget"),
        (["--max-skipped", "101%"], "not a skip budget"),
        (["--codec", "fashon"], "no such codec.*fashon"),
        (["--dtype", "int8"], "unknown type.*int8"),
        (["--reader", "vlc"], "--reader.*vlc.*pyav"),
        (["--deadline", "0"], "deadline is out of range"),
        (["--captions", "none.csv"], "no such captions file.*none.csv"),
        (["--frame", "3"], "--frame"),
        (["--label-names", "none.txt"], "no such file of label names.*none.txt"),
        (["--processes", "2"], "--processes is for --engine ray"),
        (["--tiling", "some"], "not a tiling.*'some'"),
        (["--text-encoder", "none"], "none"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(
    videos: Path, tmp_path: Path, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(videos, "--out", tmp_path / "store", *words) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(rf"mmdit: .*{line}.*\n", said), said
    assert not (tmp_path / "store").exists()


def test_a_missing_folder_and_one_without_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none", "--out", tmp_path / "store") == 2
    assert "no such folder of videos" in capsys.readouterr().err
    assert run(tmp_path, "--out", tmp_path / "store") == 2
    assert "no videos" in capsys.readouterr().err


def test_captions_are_embedded_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import tiny

    from mmdit.latents.texts import TextStore

    y, x = np.mgrid[0:32, 0:48]
    waves = [np.stack([np.sin((x * (c + 1) + y + t) / 9) * 90 + 128 for c in range(3)], -1) for t in range(5)]
    write_clip(tmp_path / "clips" / "0.mp4", np.array(waves).astype(np.uint8), 8)
    (tmp_path / "clips" / "0.txt").write_text("a red coat")
    encoder = tiny.make_encoder()
    encoder.save(tmp_path / "encoder")
    words = (tmp_path / "clips", "--out", tmp_path / "store", "--frames", 5, "--size", "32x48", "--text-encoder")
    assert run(*words, tmp_path / "nowhere") == 2
    assert not (tmp_path / "store").exists()
    assert run(*words, tmp_path / "encoder") == 0
    assert "text embeddings: " in capsys.readouterr().out
    texts = TextStore(tmp_path / "store", encoder.fingerprint)
    assert len(texts) == 2
    assert np.allclose(
        texts.embedding("a red coat").pooled, encoder.encode(["a red coat"]).pooled[0].detach(), atol=1e-5
    )


@pytest.mark.parametrize("said", ["on", "off"])
def test_tiling_in_a_recipe(said: str, videos: Path, tmp_path: Path) -> None:
    """YAML takes on and off for True and False."""
    (tmp_path / "a.yaml").write_text(f"tiling: {said}\nframes: 5\nsize: 64x48\nmax_skipped: 100%\n")
    assert run(videos, "--out", tmp_path / "store", "--recipe", tmp_path / "a.yaml") == 0
    tile = LatentStore.open(tmp_path / "store").meta["settings"]["tiling"]
    assert (tile is not None) == (said == "on")
