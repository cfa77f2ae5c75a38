"""Training straight from videos: the section of a recipe that says which clips, and how a recipe's data are opened."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import torch
from pydantic import Field, model_validator

from mmdit.config import Config, refuse_unread
from mmdit.errors import Refused

if TYPE_CHECKING:
    from mmdit.latents.codec import Codec
    from mmdit.latents.index import Store
    from mmdit.latents.plan import SourcePlan
    from mmdit.latents.request import ClipRules, EncodeOptions


class VideosConfig(Config):
    """Videos and images that are encoded while they are trained on; the keys are the options of `mmdit encode`."""

    source: str
    """A folder of videos and images, a table (csv, jsonl, parquet), tar files, or a saved data set."""
    codec: str = "fashion"
    """A codec that comes with mmdit, a folder, or a hub name."""
    frames: int = Field(17, ge=1)
    """Frames a clip."""
    size: str = "64x48"
    """HEIGHTxWIDTH in pixels."""
    bucket: tuple[str, ...] | None = None
    """FRAMESxHEIGHTxWIDTH, any number of them, in place of `frames` and `size`."""
    token_budget: int | None = Field(None, ge=1)
    """Derive sizes from the sources: at most so many 2x2 latent patches a clip."""
    fps: float = Field(8.0, gt=0.0)
    """Frames a second; the speed stays true."""
    stride: int | None = Field(None, ge=1)
    """Take every so-many-th frame of the source instead of going by time."""
    windows: int | Literal["all"] = 1
    """Clips a video: 1 (its beginning), a number (spread evenly), or "all"."""
    window_step: float | None = Field(None, gt=0.0)
    """With windows "all": seconds between beginnings; null for a clip's length."""
    flip: bool = False
    """Each clip also mirrored, as a clip of its own."""
    kind: Literal["folder", "table", "webdataset", "datasets"] | None = None
    """What the source is; null finds out by looking at it."""
    captions: str | None = None
    """A table of captions; null for captions.csv, .jsonl or .parquet in the folder."""
    caption_from: Literal["given", "name"] = "given"
    """"name": clips without a caption get the words of their file name."""
    labels: Literal["given", "folder"] = "given"
    """"folder": the first folder below the source is the label."""
    label_names: str | None = None
    """A file with a label name a line, in the order of their numbers; null for classes.txt."""
    no_caption: Literal["keep", "skip", "refuse"] = "keep"
    """What becomes of clips without a caption."""
    bad_captions: Literal["refuse", "drop"] = "refuse"
    """What becomes of captions that are no text: not UTF-8, or with NUL."""
    max_caption: int | None = Field(None, ge=1)
    """Cut captions after so many characters."""
    batch: int = Field(16, ge=1)
    """Clips encoded at a time."""
    workers: int | None = Field(None, ge=1)
    """Decoding processes; null for one less than processors, shared among the training processes of a machine."""
    deadline: float = Field(60.0, gt=0.0)
    """Seconds that decoding one clip may take."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """What latents are rounded to: the type that a store would hold."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the codec computes in."""
    tiling: bool | int = False
    """Large pictures in less memory: true, or the side of a tile in pixels."""
    reader: Literal["pyav", "decord"] = "pyav"
    """pyav, or decord where it agrees with the container."""

    @model_validator(mode="after")
    def _makes_rules(self) -> Self:
        for other in ("bucket", "token_budget"):
            if getattr(self, other) is not None:
                refuse_unread(self, "size", f"data.videos.{other}", "one of them")
        if self.bucket is not None:
            refuse_unread(self, "frames", "data.videos.bucket", "one of them")
        self.rules()
        return self

    def rules(self) -> "ClipRules":
        """Which clips are cut from the source; Refused where the keys do not fit together."""
        from mmdit.latents.options import rules_of

        return rules_of(
            frames=self.frames, size=self.size, bucket=list(self.bucket or ()), token_budget=self.token_budget,
            fps=self.fps, stride=self.stride, windows=str(self.windows), window_step=self.window_step,
            flip=self.flip, reader=self.reader,
        )  # fmt: skip

    def options(self) -> "EncodeOptions":
        """How they are read and encoded."""
        from mmdit.latents.request import EncodeOptions

        return EncodeOptions(self.dtype, self.batch, workers=self.workers, deadline=self.deadline)


class Opened(Protocol):
    """What names a recipe's data: a store, or videos, the other None."""

    @property
    def store(self) -> str | None: ...
    @property
    def videos(self) -> VideosConfig | None: ...


def check_one_given(config: Opened, where: str) -> None:
    """Refused unless there is a store or videos, and not both."""
    if (config.store is None) == (config.videos is None):
        raise Refused(
            "the data are a store or videos", where=where, got="neither" if config.store is None else "both",
            expected=f"{where}.store or {where}.videos", fix="set the other one to null",
        )  # fmt: skip


def open_data(config: Opened, device: torch.device, folder: Path | None = None) -> "Store":
    """The clips that a recipe names, open for reading; every process of a run calls it alike.

    Args:
        device: where videos are encoded.
        folder: the run's. What is found out about videos is kept there, so that going on costs a look at their dates;
            None: nowhere.

    Raises:
        Refused: no whole store there; no such source or codec, or no clip of it can be used.
    """
    from mmdit.latents.codec import load_codec
    from mmdit.latents.live import LiveStore
    from mmdit.latents.request import DTYPES, latent_shapes
    from mmdit.latents.store import LatentStore

    if config.videos is None:
        return LatentStore.open(str(config.store))
    videos = config.videos
    codec = load_codec(videos.codec, device=device, dtype=DTYPES[videos.precision], tiling=videos.tiling)
    latent_shapes(codec, videos.rules())  # what can be refused without a look at the videos is
    return LiveStore(_plan(videos, codec, folder), codec, videos.options(), codec_name=videos.codec)


def _plan(videos: VideosConfig, codec: "Codec", folder: Path | None) -> "SourcePlan":
    """The clips of the videos, found out by the main process alone."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    answer: list[Any] = [None]
    if not together or torch.distributed.get_rank() == 0:
        try:
            answer = [_look(videos, codec, folder)]
        except Refused as error:
            answer = [error]
    if together:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(answer)
    if isinstance(answer[0], Refused):
        raise answer[0]
    plan: SourcePlan = answer[0]
    return plan


def _look(videos: VideosConfig, codec: "Codec", folder: Path | None) -> "SourcePlan":
    from mmdit.latents.options import source_of
    from mmdit.latents.plan import plan_source

    rules = videos.rules()
    captions, names = (None if path is None else Path(path) for path in (videos.captions, videos.label_names))
    found = source_of(
        Path(videos.source), rules, kind=videos.kind, captions=captions, caption_from=videos.caption_from,
        labels=videos.labels, label_names=names, no_caption=videos.no_caption, bad_captions=videos.bad_captions,
        max_caption=videos.max_caption,
    )  # fmt: skip
    return plan_source(found, codec, rules, videos.options(), folder, probed=True)
