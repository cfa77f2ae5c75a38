"""Scoring the demo: what the probe reads from real, reconstructed and generated clips, side by side."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdit.clips.decode import ReadRequest, read_request
from mmdit.clips.video import clip_to_frames, frames_to_clip, write_clip
from mmdit.evaluation.probe import Probe, colour_drift
from mmdit.evaluation.score import Scored, check_probe, columns, confusion, psnr, score_table
from mmdit.latents.codec import Codec
from mmdit.latents.store import LatentStore

ATTRIBUTES = ("garment", "colour", "pattern", "motion")
SPLITS = {"trained": "validation", "held-out": "held_out"}  # by combination: where real clips of it are
BATCH = 16


@dataclass(frozen=True)
class RealClips:
    """Real clips of one kind of combination with what the codec makes of them, (clip, 3, frame, height, width)."""

    rows: list[dict[str, Any]]
    clips: Tensor
    reconstructed: Tensor


def score_demo(folder: Path, probe: Probe, codec: Codec, *, real_clips: int, shown: int) -> dict[str, Any]:
    """Reads every clip of a demo folder and returns the parts of its summary that say how good they are.

    Args:
        folder: with clips/, store/ and generated/ (see `mmdit.tools.demo`).
        real_clips: at most so many real clips of each kind of combination.
        shown: how many reconstructions are written to reconstructions/, to be looked at.

    Raises:
        Stopped: the probe reads fewer than 99 % of the real clips right, so its scores would mean nothing.
    """
    store = LatentStore.open(folder / "store")
    clip = store.clip
    real = {name: _real(folder, store, codec, split, real_clips) for name, split in SPLITS.items()}
    everything = torch.cat([part.clips for part in real.values()])
    check_probe(probe, everything, columns([row for part in real.values() for row in part.rows], ATTRIBUTES))

    wishes = json.loads((folder / "generated" / "wishes.json").read_text(encoding="utf-8"))
    moving = [wish for wish in wishes if wish["frames"] is None]
    generated = _read([folder / "generated" / wish["file"] for wish in moving], clip["frames"], clip)
    read = probe.read(generated)
    groups = _real_groups(probe, real) + _generated_groups(moving, read)
    by_prompt = [number for number, wish in enumerate(moving) if wish["prompt"] is not None]
    asked = columns([moving[number]["wanted"] for number in by_prompt], ATTRIBUTES)
    answered = {name: [values[number] for number in by_prompt] for name, values in read.items()}
    return {
        "scores": score_table(groups),
        "confusion": {name: confusion(answered, asked, name, probe.config.names[name]) for name in ATTRIBUTES},
        "gallery": [_shown(wish, number, read) for number, wish in enumerate(moving)],
        "stills": [
            {"file": f"generated/{wish['file']}", "prompt": wish["prompt"]} for wish in wishes if wish["frames"] == 1
        ],
        "reconstructions": _write_reconstructions(folder, real["trained"], clip["fps"], shown),
        "figures": _figures(probe, real, generated),
    }


def _real(folder: Path, store: LatentStore, codec: Codec, split: str, count: int) -> RealClips:
    numbers = store.split(split)[:count]
    rows = [store.row(number) for number in numbers]
    clips = _read([folder / "clips" / row["source"] for row in rows], store.clip["frames"], store.clip)
    means = torch.stack([store.latent(number)[0].float() for number in numbers])
    return RealClips(rows, clips, torch.cat([codec.decode(part) for part in means.split(BATCH)]))


def _read(paths: Sequence[Path], frames: int, clip: dict[str, Any]) -> Tensor:
    requests = (ReadRequest(str(path), frames, tuple(clip["size"]), clip["fps"]) for path in paths)
    return torch.stack([frames_to_clip(read_request(request).frames) for request in requests])


def _real_groups(probe: Probe, real: dict[str, RealClips]) -> list[Scored]:
    groups = []
    for combination, part in real.items():
        wanted = columns(part.rows, ATTRIBUTES)
        groups.append(Scored("real", combination, None, probe.read(part.clips), wanted))
        groups.append(Scored("reconstructed", combination, None, probe.read(part.reconstructed), wanted))
    return groups


def _generated_groups(wishes: list[dict[str, Any]], read: dict[str, list[str]]) -> list[Scored]:
    groups = []
    kinds = dict.fromkeys((wish["combination"], "label" if wish["prompt"] is None else "prompt") for wish in wishes)
    for combination, condition in kinds:
        chosen = [
            number
            for number, wish in enumerate(wishes)
            if wish["combination"] == combination and (wish["prompt"] is None) == (condition == "label")
        ]
        wanted = [wishes[number]["wanted"] for number in chosen]
        names = [name for name in ATTRIBUTES if name in wanted[0]]
        seen = {name: [values[number] for number in chosen] for name, values in read.items()}
        groups.append(Scored("generated", combination, condition, seen, columns(wanted, names)))
    return groups


def _shown(wish: dict[str, Any], number: int, read: dict[str, list[str]]) -> dict[str, Any]:
    return {
        "file": f"generated/{wish['file']}",
        "prompt": wish["prompt"],
        "label": wish["label"],
        "combination": wish["combination"],
        "wanted": wish["wanted"],
        "read": {name: values[number] for name, values in read.items()},
    }


def _write_reconstructions(folder: Path, real: RealClips, fps: float, count: int) -> list[dict[str, Any]]:
    written = []
    for number, row in enumerate(real.rows[:count]):
        name = f"reconstructions/{number:03d}.mp4"
        write_clip(folder / name, clip_to_frames(real.reconstructed[number]), fps)
        quality = psnr(real.clips[number : number + 1], real.reconstructed[number : number + 1]).item()
        written.append(
            {
                "original": f"clips/{row['source']}",
                "reconstruction": name,
                "psnr": round(quality, 2),
                "caption": row["caption"],
            }
        )
    return written


def _figures(probe: Probe, real: dict[str, RealClips], generated: Tensor) -> dict[str, Any]:
    figures = {}
    for combination, part in real.items():
        figures[f"psnr_{combination}"] = {
            "value": round(psnr(part.clips, part.reconstructed).mean().item(), 2),
            "unit": "dB",
            "meaning": f"what the codec keeps of {len(part.rows)} real clips it was not trained on "
            f"({combination} combinations): mean peak signal-to-noise ratio of their reconstructions",
        }
    for name, clips in (("real", real["trained"].clips), ("generated", generated)):
        drifts = colour_drift(probe, clips[:64])
        figures[f"colour_drift_{name}"] = {
            "value": round(sum(drifts) / len(drifts), 4),
            "unit": "share",
            "meaning": f"how much the colour read from single frames changes along {name} clips (0 is constant)",
        }
    return figures
