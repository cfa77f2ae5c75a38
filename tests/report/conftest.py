"""A small made-up demo folder: everything that the report reads, with moving blobs in place of clips."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

Frames = np.ndarray[Any, np.dtype[np.uint8]]

GARMENTS = ["dress", "coat", "t-shirt and trousers"]
ATTRIBUTES = ["garment", "colour", "pattern", "motion"]


def blob(seed: int, frames: int = 9) -> Frames:
    """A coloured disc on a plain ground that walks to the right: uint8 (frames, 64, 48, 3)."""
    random = np.random.default_rng(seed)
    ground, ink = random.uniform(150, 240, 3), random.uniform(20, 200, 3)
    y, x = np.mgrid[0:64, 0:48]
    clip = np.empty((frames, 64, 48, 3), np.uint8)
    for i in range(frames):
        inside = np.clip(12 - np.hypot(y - 34, x - 14 - 2 * i), 0, 1)[..., None]
        clip[i] = (ground * (1 - inside) + ink * inside).astype(np.uint8)
    return clip


def write_video(path: Path, frames: Frames, fps: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "20"})
        stream.height, stream.width, stream.pix_fmt = int(frames.shape[1]), int(frames.shape[2]), "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())


def score_row(
    clips: str, combinations: str, condition: str | None, attribute: str, correct: int, count: int
) -> dict[str, Any]:
    share = correct / count
    row = {"clips": clips, "combinations": combinations, "condition": condition, "attribute": attribute}
    return row | {
        "correct": correct,
        "count": count,
        "accuracy": share,
        "low": max(0.0, share - 0.03),
        "high": min(1.0, share + 0.01),
    }


def make_summary(clips: int) -> dict[str, Any]:
    scores = []
    for combinations in ("trained", "held-out"):
        for number, attribute in enumerate(ATTRIBUTES):
            scores.append(score_row("real", combinations, None, attribute, 128, 128))
            scores.append(score_row("reconstructed", combinations, None, attribute, 128 - number, 128))
            scores.append(score_row("generated", combinations, "prompt", attribute, 127 - 2 * number, 128))
        scores.append(score_row("generated", combinations, "label", "garment", 31, 32))
    gallery = [
        {
            "file": f"generated/{combination}/{i:03}.mp4",
            "prompt": None if by_label else f"a striped red coat, number {i}, walking to the right",
            "label": "coat" if by_label else None,
            "combination": combination,
            "read": {
                "garment": "coat",
                "colour": "red",
                "pattern": "unclear" if i == 1 else "stripes",
                "motion": "walks",
            },
            "wanted": {"garment": "coat"} if by_label else {"garment": "coat", "colour": "red", "pattern": "stripes"},
        }
        for combination in ("trained", "held-out")
        for i in range(clips)
        for by_label in [i == clips - 1 and combination == "trained"]
    ]
    return {
        "format": 1,
        "quick": False,
        "settings": {"clips": 1500, "steps": 1800},
        "machine": {
            "cpu": "A Processor",
            "cores": 2,
            "memory_gib": 23.4,
            "python": "3.11",
            "torch": "2.13",
            "platform": "Linux",
        },
        "figures": {
            "garment_trained": {
                "value": 0.992,
                "unit": "share",
                "meaning": "generated clips whose garment reads as asked",
            },
            "train_steps": {"value": 1800, "unit": "steps", "meaning": "optimizer steps"},
            "train_seconds": {"value": 170.2, "unit": "s", "meaning": "time of training"},
        },
        "scores": scores,
        "confusion": {
            "garment": {
                "names": [*GARMENTS, "unclear"],
                "counts": [[40, 0, 1, 0], [0, 44, 0, 0], [0, 0, 42, 1], [0] * 4],
            }
        },
        "gallery": gallery,
        "stills": [{"file": "generated/stills/000.png", "prompt": "a plain blue dress"}],
        "reconstructions": [
            {
                "original": "reconstructions/000-original.mp4",
                "reconstruction": "reconstructions/000-restored.mp4",
                "psnr": 31.24,
                "caption": "a dotted green skirt",
            }
        ],
        "timings": {
            "make-clips": 31.0,
            "encode": 40.2,
            "train": 170.0,
            "generate": 20.1,
            "score": 9.0,
            "total": 280.0,
            "peak_memory_gib": 2.1,
        },
    }


def make_demo_folder(folder: Path, *, clips: int = 3) -> dict[str, Any]:
    """Fills `folder` and returns the summary that was written there."""
    from PIL import Image

    summary = make_summary(clips)
    files = [item["file"] for item in summary["gallery"]]
    files += [pair[key] for pair in summary["reconstructions"] for key in ("original", "reconstruction")]
    for seed, name in enumerate(files):
        write_video(folder / name, blob(seed))
    for still in summary["stills"]:
        (folder / still["file"]).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(blob(99)[0]).save(folder / still["file"])
    rows = []
    for step in range(1, 401):
        row = {"step": step, "loss": 0.3 + 1.2 / (1 + step / 40) + 0.1 * np.sin(step * 12.9898), "lr": 1e-3}
        if step % 80 == 0:
            row["val_loss"] = 0.35 + 1.2 / (1 + step / 40)
        rows.append(json.dumps(row))
    (folder / "run").mkdir(exist_ok=True)
    (folder / "run" / "metrics.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(summary, sort_keys=True), encoding="utf-8")
    return summary


@pytest.fixture(name="blob")
def blob_fixture() -> Callable[..., Frames]:
    return blob


@pytest.fixture(name="make_demo_folder")
def make_demo_folder_fixture() -> Callable[..., dict[str, Any]]:
    return make_demo_folder
