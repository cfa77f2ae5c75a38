"""The part of a recipe that says which clips are trained on, and how many at a time."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mmdit.config import Config, refuse_unread
from mmdit.errors import Refused
from mmdit.training.videos import VideosConfig, check_one_given


class SourceConfig(Config):
    """One of several sources of clips that are trained on together: a store, or videos."""

    store: str | None = None
    """A latent store: a folder, or a URL of fsspec."""
    videos: VideosConfig | None = None
    """Videos in place of a store, as in `data.videos`."""
    share: float | None = Field(None, gt=0.0, lt=1.0)
    """Share of the samples that are its; null: each of its clips comes once an epoch."""

    @model_validator(mode="after")
    def _one_kind_of_data(self) -> Self:
        check_one_given(self, "data.sources")
        return self


class DataConfig(Config):
    """Which encoded clips, and how many at a time."""

    store: str | None = None
    """The latent store that `mmdit encode` wrote: a folder, or a URL of fsspec (s3://..., gs://..., hf://...)."""
    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)] | None = None
    """Several sources of one codec in place of `store`: clips of unlike shapes, images and videos; an image is a clip
    of one frame. null for the one store."""
    videos: VideosConfig | None = None
    """Videos in place of a store: each is read and encoded whenever it is trained on. Slower, and nothing is stored."""
    split: str = "train"
    """Split that is trained on."""
    validation_split: str = "validation"
    """Split that the held-out loss is measured on; it may be missing from the store."""
    batch_size: int = Field(32, ge=1)
    """Clips a step, over all processes together; they are of one shape."""
    batch_by: Literal["clips", "cost"] = "clips"
    """"clips": `batch_size` clips of every shape. "cost": `batch_size` clips of the costliest shape, and of the others
    so many more as cost the same in multiply-accumulates of the network."""
    batch_multiple: int = Field(1, ge=1)
    """With "cost", every batch is a multiple of it: the number of processes, or a multiple of that."""
    repeat: bool = False
    """Train although there are fewer clips than `batch_size`: a batch then holds a clip several times."""
    micro_batch: int | None = Field(None, ge=1)
    """Most clips that a process computes at once (of the costliest shape, with "cost"); the gradients of several such
    parts of a step are added up, which takes less memory and changes no result. null computes a process's share of the
    batch at once."""
    image_share: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the steps that train on single frames (the first latent frame of each clip)."""
    workers: int = Field(0, ge=0)
    """Processes that make the next batches while a step is computed; 0 makes the next one in a thread, which is enough
    where a store lies on a quick disk. It changes no result."""

    @model_validator(mode="after")
    def _one_kind_of_data(self) -> Self:
        given = [name for name in ("store", "videos", "sources") if getattr(self, name) is not None]
        if len(given) != 1:
            raise Refused(
                "a recipe has one of data.store, data.videos and data.sources", got=" and ".join(given) or "none",
                fix="set one of them, the others null",
            )  # fmt: skip
        if self.workers and (self.videos is not None or any(source.videos for source in self.sources or ())):
            raise Refused(
                "videos are read by processes of their own", got=f"data.workers {self.workers}",
                expected="0", fix="set data.videos.workers",
            )  # fmt: skip
        if self.sources is not None:
            shares = [source.share for source in self.sources]
            total = sum(share or 0.0 for share in shares)
            if total >= 1 if None in shares else abs(total - 1) > 1e-6:
                raise Refused(
                    "the shares of data.sources do not fit", got=f"{total:g} in all",
                    expected="below 1, for the sources without a share" if None in shares else "1",
                )  # fmt: skip
        if self.batch_by == "clips":
            refuse_unread(self, "batch_multiple", "data.batch_by clips", "data.batch_by cost")
        elif self.batch_size % self.batch_multiple:
            raise Refused(
                "data.batch_multiple does not divide data.batch_size",
                got=f"{self.batch_multiple} and {self.batch_size}", expected="a divisor",
            )  # fmt: skip
        return self
