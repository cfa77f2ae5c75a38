"""What makes a pipeline take less memory: the codec in tiles and one clip at a time."""

from typing import Any

from mmdit.errors import Refused
from mmdit.latents.codec import Codec


class SavesMemory:
    """The part of `ClipPipeline` that has diffusers' names for this; `enable_model_cpu_offload` is of diffusers."""

    vae: Any

    @property
    def codec(self) -> Codec:
        """The vae with its normalisation, its frame rule, and tiling where it is enabled."""
        return Codec(self.vae, tiling=bool(getattr(self.vae, "use_tiling", False)))

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Refused: the attention of this network comes in no slices."""
        if slice_size is not None:  # diffusers' way to disable it
            raise Refused("this network's attention comes in no slices", where="enable_attention_slicing",
                          fix="make smaller batches (batch_size), or enable_vae_slicing()")  # fmt: skip

    def enable_vae_tiling(self) -> None:
        """Large pictures are encoded and decoded in tiles that overlap. Refused for a vae that cannot do it."""
        Codec(self.vae, tiling=True)
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Pictures are encoded and decoded whole, as in a new pipeline."""
        self.vae.disable_tiling()

    def enable_vae_slicing(self) -> None:
        """Clips, of a vae of single frames the frames, are encoded and decoded one by one; the results stay the same.

        Refused for a vae that cannot do it.
        """
        if not hasattr(self.vae, "use_slicing"):
            raise Refused("diffusers has no slicing for this codec class", got=type(self.vae).__name__,
                          fix="make smaller batches")  # fmt: skip
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """All of a batch is encoded and decoded at once, as in a new pipeline."""
        self.vae.disable_slicing()
