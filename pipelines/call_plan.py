"""One call of a pipeline, checked before any work."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmdit.diffusion import Guidance
from mmdit.errors import Refused
from mmdit.latents.codec import Codec
from mmdit.models import UNet
from mmdit.pipelines.given_frames import GivenFrames, Held, plan_held
from mmdit.pipelines.noise import Draws
from mmdit.pipelines.request import Condition
from mmdit.pipelines.windows import Windows, plan_windows

if TYPE_CHECKING:
    from mmdit.pipelines.clip_pipeline import ClipPipeline


@dataclass(frozen=True)
class CallPlan:
    """All that the clips of a call are made of; lists have an entry a clip.

    Attributes:
        conditions, nothing: what a clip shows, and what guidance leads away from.
        draws: where its noise comes from.
        windows: the parts that it is made in. held: the frames that it is given; empty where no clip is given any.
        steps: of each window. guidance, image_guidance: how they are guided.
        batch_size: clips sampled at a time. precision: of the network's products.
        output_type: of `mmdit.pipelines.clip_output.OUTPUT_TYPES`.
    """

    conditions: list[Condition]
    nothing: list[Condition]
    draws: Draws
    windows: Windows
    held: list[Held]
    steps: int
    guidance: Guidance
    image_guidance: float
    batch_size: int
    precision: str
    output_type: str

    def batches(self) -> list[slice]:
        """The clips that are made at a time."""
        clips = len(self.conditions)
        return [slice(start, min(start + self.batch_size, clips)) for start in range(0, clips, self.batch_size)]

    def steps_in_all(self) -> int:
        """Sampling steps of all batches and windows."""
        return len(self.batches()) * self.windows.count * self.steps

    def prompts(self) -> list[str]:
        """Every prompt that is read."""
        return [condition.prompt for condition in self.conditions + self.nothing]


def plan_frames(
    pipeline: "ClipPipeline",
    asked: GivenFrames,
    frames: int | None,
    grid: tuple[int, int, int],
    *,
    conditions: int,
    window: int | None,
    overlap: int | None,
    force: bool,
) -> tuple[Windows, list[Held]]:
    """In which windows clips of the latent grid `grid` are made, and what each condition is given, if any is.

    Args:
        frames: of a clip; None for that of the training clips.
        window, overlap, force: of `ClipPipeline`'s call.

    Raises:
        Refused: windows that cannot be made, or frames that cannot be given (`plan_windows`, `plan_held`).
    """
    codec, patch, trained = pipeline.codec, pipeline.transformer.config.patch_size[0], pipeline.default_size()[0]
    kinds = pipeline.config.given_frames
    if force and isinstance(pipeline.transformer, UNet):
        raise Refused("a U-Net cannot be given frames: it has one timestep a clip", expected="a DiT")
    windows = plan_windows(
        codec, patch, trained if frames is None else frames, grid, trained,
        window=window, overlap=overlap, kinds=None if force else kinds,
    )  # fmt: skip
    held = plan_held(asked, codec, patch, windows, conditions=conditions, overlap=overlap, trained=kinds, force=force)
    return windows, held or []


def check_latents(output_type: str, codec: Codec, windows: Windows) -> None:
    """Refused for the latents of windows that are decoded to go on with."""
    if output_type == "latent" and windows.count > 1 and codec.time_factor > 1:
        raise Refused("clips of several windows have no latents", got=f"{windows.count} windows", fix="decode them")
