"""DiT: a transformer that denoises image and video latents.

Shapes: B batch, C channels, (F, H, W) latent grid, (f, h, w) token grid, S = h * w tokens a frame, M text tokens,
D width. What stands in context beside the tokens of a frame (n vectors, M text tokens) comes before them.
Sources: arXiv 2212.09748 (the image network, block designs); 2401.03048 (alternating); 2310.00426 (shared adaLN).
"""

from collections.abc import Mapping

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmdit.errors import Refused
from mmdit.models.block import LAYOUTS, Block, FinalLayer
from mmdit.models.checks import check_config, check_given, check_latents, check_timesteps
from mmdit.models.embeddings import LabelEmbedder, PatchEmbedder, TextEmbedder, TimestepEmbedder
from mmdit.models.initialize import initialize
from mmdit.models.positions import PositionMaker, Triple
from mmdit.models.sublayers import BlockConfig
from mmdit.models.told import tell


class DiT(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """A Diffusion Transformer for clips; an image is a clip of one frame.

    Args:
        sample_size: latent grid (frames, height, width) it is made for; other grids work at call time.
        patch_size: (time, height, width) of a patch.
        in_channels, out_channels: of the latents; None means in_channels, twice as many predict a variance as well.
        hidden_size, depth, num_heads, mlp_ratio: the size of the network.
        layout: which attentions each block has: "space", "factorized", "alternating" or "joint".
        conditioning: how timestep, labels, pooled text and scalars enter: "adaln-zero", "adaln" or "shared-adaln"
            (their sum modulates), "cross-attention" or "in-context" (each is a token).
        num_classes: number of labels; 0 for none. The null label is `num_classes`.
        text_dim: width of the pooled text; 0 for none.
        text_token_dim: width of the text tokens; 0 for none.
        text_tokens_by: "cross-attention", or "in-context": a copy stands beside the tokens of each frame.
        scalars: names of numbers in about [0, 1000] that a sample is told, such as ("fps", "height").
        positions: "sincos" (added, as in the paper) or "rotary" (turns queries and keys).
        timestep_spacing: the steps that the 128 frequencies of a timestep are spaced over: 128 as in the paper, or
            127 as in diffusers' DiT.
        interpolate: whether positions on another grid are scaled to span what they span on `sample_size`.
        norm: "layer" or "rms". mlp: "gelu" or "swiglu". qk_norm: RMS norm on queries and keys.
        attention_backend: "auto", "math", "sdpa" or "xformers".

    Raises:
        Refused: an impossible configuration.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: Triple,
        patch_size: Triple,
        in_channels: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        out_channels: int | None = None,
        mlp_ratio: float = 4.0,
        layout: str = "space",
        num_classes: int = 0,
        text_dim: int = 0,
        positions: str = "sincos",
        norm: str = "layer",
        mlp: str = "gelu",
        qk_norm: bool = False,
        attention_backend: str = "auto",
        conditioning: str = "adaln-zero",
        text_token_dim: int = 0,
        text_tokens_by: str = "cross-attention",
        scalars: tuple[str, ...] = (),
        interpolate: bool = False,
        timestep_spacing: int = 128,
    ) -> None:
        super().__init__()
        check_config(self.config)
        self.patch_size: Triple = tuple(patch_size)  # type: ignore[assignment]  # a list once it was saved
        self.out_channels = out_channels or in_channels
        self.x_embedder = PatchEmbedder(in_channels, hidden_size, self.patch_size)
        self.t_embedder = TimestepEmbedder(hidden_size, spacing=timestep_spacing)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size) if num_classes else None
        self.text_embedder = TextEmbedder(text_dim, hidden_size) if text_dim else None
        self.token_embedder = TextEmbedder(text_token_dim, hidden_size) if text_token_dim else None
        self.scalar_embedders = nn.ModuleDict({name: TimestepEmbedder(hidden_size) for name in scalars})
        shared = BlockConfig(hidden_size, num_heads, mlp_ratio, mlp, norm, qk_norm, attention_backend, conditioning)
        crossed = conditioning == "cross-attention" or (text_token_dim > 0 and text_tokens_by == "cross-attention")
        rows = [(*row[:-1], "cross", "mlp") if crossed else row for row in LAYOUTS[layout]]
        self.blocks = nn.ModuleList(Block(shared, rows[i % len(rows)]) for i in range(depth))
        self.shared_modulation: nn.Module | None = None
        if conditioning == "shared-adaln":
            values = self.blocks.get_parameter("0.modulation_table").numel()
            self.shared_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, values))
        patch_volume = self.patch_size[0] * self.patch_size[1] * self.patch_size[2]
        self.final_layer = FinalLayer(shared, patch_volume * self.out_channels)
        trained = tuple(n / p for n, p in zip(sample_size, patch_size, strict=True)) if interpolate else None
        head_dim, joint = hidden_size // num_heads, layout == "joint"
        self.make_positions = PositionMaker(positions, hidden_size, head_dim, joint, trained)
        self.checkpoint_every = 0
        self.initialize()

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        *,
        labels: Tensor | None = None,
        text: Tensor | None = None,
        text_tokens: Tensor | None = None,
        text_mask: Tensor | None = None,
        scalars: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Latents (B, C, F, H, W) at timesteps in [0, 1000] -> (B, out_channels, F, H, W).

        Each input is given exactly when the network has it.

        Args:
            timesteps: (B,), or one for each latent frame (B, F), or for each token frame (B, f).
            labels: ids (B,) in [0, num_classes].
            text: pooled, (B, text_dim).
            text_tokens: (B, M, text_token_dim). text_mask: (B, M) bool, False for padding; None when there is none.
            scalars: a number for each sample, (B,), by name.

        Raises:
            Refused: a grid that does not divide into patches, an input too many or too few, or one of the wrong shape.
        """
        grid = check_latents(latents, self.config.in_channels, self.patch_size)
        check_timesteps(timesteps, latents.shape, grid)
        check_given(self, labels=labels, text=text, text_tokens=text_tokens, text_mask=text_mask, scalars=scalars)
        positions = self.make_positions(grid, latents.device)
        x = self.x_embedder(latents)  # (B, f, S, D)
        x = x if positions.added is None else x + positions.added.to(x.dtype)
        vectors = self._vectors(timesteps, grid, labels, text, scalars or {})  # each (B, 1 or f, D)
        tokens = self.token_embedder(text_tokens)[:, None] if self.token_embedder is not None else None  # (B, 1, M, D)
        by, tokens_by = self.config.conditioning, self.config.text_tokens_by
        x, told = tell(x, vectors, tokens, text_mask, by=by, tokens_by=tokens_by)  # (B, f, n+M+S, D)
        vector = told.vector  # (B, 1 or f, 1, D)
        if self.shared_modulation is not None:
            told = told._replace(vector=self.shared_modulation(vector))  # (B, 1 or f, 1, 6D or 9D)
        beside = x.shape[2] - grid[1] * grid[2]  # n+M
        positions = positions.beside(beside, grid[0])
        for index, block in enumerate(self.blocks):
            if index == 1 and self.config.layout == "alternating" and positions.added_over_time is not None:
                x = x + positions.added_over_time.to(x.dtype)  # right before the first time attention
            if self.checkpoint_every and index % self.checkpoint_every == 0 and torch.is_grad_enabled():
                x = checkpoint(block, x, told, positions, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, told, positions)  # (B, f, n+M+S, D)
        x = self.final_layer(x[:, :, beside:], vector)  # (B, f, S, pt*ph*pw*C)
        pt, ph, pw = self.patch_size
        return rearrange(
            x, "b f (h w) (pt ph pw c) -> b c (f pt) (h ph) (w pw)", h=grid[1], w=grid[2], pt=pt, ph=ph, pw=pw
        )

    def _vectors(
        self,
        timesteps: Tensor,
        grid: Triple,
        labels: Tensor | None,
        text: Tensor | None,
        scalars: Mapping[str, Tensor],
    ) -> list[Tensor]:
        """The conditions that have one vector each: the timestep's (B, 1 or f, D), the others' (B, 1, D)."""
        time = self.t_embedder(timesteps)  # (B, D), (B, F, D) or (B, f, D)
        time = time[:, None] if time.ndim == 2 else time
        if time.shape[1] not in (1, grid[0]):
            time = time.unflatten(1, (grid[0], self.patch_size[0])).mean(2)  # the frames of a patch share its tokens
        vectors = [time]
        if self.y_embedder is not None:
            vectors.append(self.y_embedder(labels)[:, None])
        if self.text_embedder is not None:
            vectors.append(self.text_embedder(text)[:, None])
        return vectors + [embedder(scalars[name])[:, None] for name, embedder in self.scalar_embedders.items()]

    def initialize(self) -> None:
        """Sets every weight as `mmdit.models.initialize.initialize` says."""
        initialize(self, self.config.conditioning)

    def enable_gradient_checkpointing(self, every: int = 1) -> None:
        """In training, keeps only the input of every n-th block and computes the block again in the backward pass."""
        if every < 1:
            raise Refused("checkpointing of no block", got=f"every {every}", expected="1 or more")
        self.checkpoint_every = every

    def disable_gradient_checkpointing(self) -> None:
        """Keeps what every block computes, as a new network does."""
        self.checkpoint_every = 0

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any block is computed again in the backward pass."""
        return self.checkpoint_every > 0
