"""Clips that a pipeline makes, as a set to measure: clip i is a function of seed, i and its condition."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mmdit import __version__
from mmdit.conditioning import TextEncoder
from mmdit.errors import Refused
from mmdit.evaluation.clip_sets import Row, as_bytes
from mmdit.evaluation.protocol import Protocol
from mmdit.evaluation.view import View
from mmdit.latents.codec_files import fingerprint
from mmdit.pipelines.clip_pipeline import ClipPipeline
from mmdit.pipelines.loading import Source


@dataclass(frozen=True)
class How:
    """How clips are sampled; fields as in `ClipPipeline.__call__`."""

    seed: int
    steps: int
    guidance: float
    precision: str = "float32"
    batch_size: int = 16


def sampled_rows(source: Source, rules: Protocol, asked: Sequence[Row]) -> list[Row]:
    """What each sample is asked for, as the protocol's conditions say: {"caption", "label", attributes}.

    asked: rows of real clips whose captions and labels are taken, one after the other, and then again.

    Raises:
        Refused: conditions that the model does not have, or that the rows lack.
    """
    if rules.conditions == "none":
        if source.labels is not None and not source.has_text:
            raise Refused("this model asks for a label", got="conditions none", fix="say conditions=labels")
        return [{"caption": None, "label": None}] * rules.samples
    if rules.conditions == "labels":
        if source.labels is None:
            raise Refused("this model has no labels", got="conditions labels", fix="say conditions=rows")
        names = list(source.labels.names)
        return [{"caption": None, "label": names[number % len(names)]} for number in range(rules.samples)]
    if not source.has_text and source.labels is None:
        return [{"caption": None, "label": None}] * rules.samples
    told = "caption" if source.has_text else "label"
    lacking = sum(row.get(told) is None for row in asked)
    if lacking and (told == "label" or lacking == len(asked)):
        raise Refused(f"real clips without a {told}, which the model asks for", got=f"{lacking} of {len(asked)}",
                      fix="say conditions=none")  # fmt: skip
    return [asked[number % len(asked)] for number in range(rules.samples)]


def told_attributes(source: Source, rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """Those of the attributes `names` that the model is told: all by captions, by labels what the labels are."""
    if source.has_text and all(row.get("caption") is not None for row in rows):
        return list(names)
    return [name for name in names if all(row.get(name) == row["label"] is not None for row in rows)]


class SampledClips:
    """The clips that `pipeline` makes for `rows`, one for each, as `view` shows them.

    Captions are the prompts of a model that reads prompts; labels are told to one that does not, or where there are no
    captions. A view of one frame is of images.
    """

    def __init__(self, pipeline: ClipPipeline, rows: Sequence[Row], how: How, view: View | None = None) -> None:
        self.pipeline, self.rows, self.how, self.view = pipeline, rows, how, view or View()
        self._reads_captions = pipeline.has_text and any(row["caption"] is not None for row in rows)
        self._asks_nothing = not pipeline.has_text and pipeline.labels is None
        default = pipeline.default_size()
        self.frames = 1 if self.view.frames == 1 else default[0]
        self.view.start(self.frames, None, "the model's clips")
        self.size = self.view.shown((self.frames, *default[1:]))

    @cached_property
    def fingerprint(self) -> str:
        """What the clips are a function of, to the last bit and but for what is given, as a hash."""
        pipe = self.pipeline
        text = TextEncoder(pipe.text_encoder, pipe.tokenizer).fingerprint if pipe.has_text else None
        made_by = [fingerprint(pipe.transformer), text, pipe.codec.fingerprint, _said(pipe.config), pipe.faster]
        sampler = [type(pipe.scheduler).__name__, _said(pipe.scheduler.config)]
        machine = [__version__, torch.__version__, pipe.device.type, torch.get_num_threads()]
        rows = [[row.get("caption"), row.get("label")] for row in self.rows]
        all_of_it = [made_by, sampler, machine, rows, asdict(self.how), repr(self.view), self.frames]
        return hashlib.sha256(json.dumps(all_of_it, sort_keys=True, default=repr).encode()).hexdigest()

    def read(self, numbers: Sequence[int], **given: Any) -> Tensor:
        """These clips, uint8 (b, 3, frame, height, width).

        given: "image" and "last_image", lists of pictures, one a clip, and "force_given", of `ClipPipeline.__call__`.
        """
        if self._asks_nothing and given and len(numbers) > 1:  # a call then has one condition, and pictures for one
            parts = [{name: v[i : i + 1] if isinstance(v, list) else v for name, v in given.items()}
                     for i in range(len(numbers))]  # fmt: skip
            return torch.cat([self.read([number], **part) for number, part in zip(numbers, parts, strict=True)])
        rows = [self.rows[number] for number in numbers]
        by_label = self.pipeline.labels is not None and not self._reads_captions
        made = self.pipeline(
            [row["caption"] or "" for row in rows] if self.pipeline.has_text else None,
            [row["label"] for row in rows] if by_label and rows[0]["label"] is not None else None,
            **given,
            num_clips_per_prompt=len(rows) if self._asks_nothing else 1,
            num_frames=self.frames,
            num_inference_steps=self.how.steps,
            guidance_scale=self.how.guidance,
            seed=[self.how.seed] * len(rows),
            first_index=list(numbers),
            batch_size=self.how.batch_size,
            precision=self.how.precision,
            output_type="pt",
        ).frames
        return torch.stack([self.view.cut(clip, 0) for clip in as_bytes(made)])


def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of diffusers without its notes to itself, one of which is a set in an order of this process's own."""
    return {key: value for key, value in config.items() if not key.startswith("_")}
