"""Clips that a pipeline makes, as a set to measure: clip i is a function of seed, i and its condition."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmdit.evaluation.clip_sets import as_bytes
from mmdit.pipelines.clip_pipeline import ClipPipeline


@dataclass(frozen=True)
class How:
    """How clips are sampled; fields as in `ClipPipeline.__call__`."""

    seed: int
    steps: int
    guidance: float
    precision: str = "float32"
    batch_size: int = 16


class SampledClips:
    """The clips that `pipeline` makes for `rows`, one for each, with their captions as prompts and their labels.

    A model that has no text is asked by label, and one that has neither is not asked at all.
    """

    def __init__(self, pipeline: ClipPipeline, rows: Sequence[dict[str, Any]], how: How) -> None:
        self.pipeline, self.rows, self.how = pipeline, rows, how

    def read(self, numbers: Sequence[int], given: dict[str, Any] | None = None) -> Tensor:
        """These clips, uint8 (b, 3, frame, height, width).

        given: "image" and "last_image", lists of pictures, one a clip.
        """
        rows = [self.rows[number] for number in numbers]
        made = self.pipeline(
            [row.get("caption") or "" for row in rows] if self.pipeline.has_text else None,
            [row["label"] for row in rows] if self._by_label else None,
            **(given or {}),
            num_inference_steps=self.how.steps,
            guidance_scale=self.how.guidance,
            seed=[self.how.seed] * len(rows),
            first_index=list(numbers),
            batch_size=self.how.batch_size,
            precision=self.how.precision,
            output_type="pt",
        ).frames
        return as_bytes(made)

    def is_told(self, name: str) -> bool:
        """Whether the model is told this attribute: by a prompt, or because it is what the labels say."""
        if self.pipeline.has_text:
            return True
        return self._by_label and all(row.get(name) == row["label"] for row in self.rows)

    @property
    def _by_label(self) -> bool:
        """By label alone where there is no text: a network with both was trained with either."""
        return self.pipeline.labels is not None and not self.pipeline.has_text
