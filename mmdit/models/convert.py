"""Weights from other networks, and back: the original DiT, Latte, and diffusers' DiTTransformer2DModel.

What their files do not hold (the norms, the tanh form of GELU, the order of patches) is the paper's in all three.
"""

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmdit.errors import Refused
from mmdit.models import convert_formats as formats
from mmdit.models.checks import token_grid
from mmdit.models.convert_formats import FORMATS, OURS
from mmdit.models.dit import DiT
from mmdit.models.positions import Triple
from mmdit.models.presets import SIZES

log = logging.getLogger(__name__)

State = Mapping[str, Tensor]

HEADS = {width: heads for _, width, heads in SIZES.values()}  # of the published networks
SPACING = 127  # of the timestep frequencies in diffusers' class; the paper's is 128


def from_dit(state_dict: State, *, sample_size: Triple, num_heads: int | None = None) -> DiT:
    """The original image DiT (2212.09748) from its state dict.

    Args:
        state_dict: as the original saves it. The position table may be left out; one that is there must be the paper's
            for this grid (the network computes its tables for any grid, and a file's own would hold for one only).
        sample_size: (frames, height, width) of the latents.
        num_heads: not in the state; known for the published widths (384, 768, 1024, 1152).

    Returns:
        A network in the state's precision, in eval mode. All sizes are read from the shapes; the last row of the label
        table is the null label.

    Raises:
        Refused: a key unknown or missing, a shape or table that does not fit, heads that are not known.
    """
    return _build("dit", state_dict, sample_size, num_heads)


def from_latte(state_dict: State, *, sample_size: Triple, num_heads: int | None = None) -> DiT:
    """Latte (2401.03048), with class labels or none, as `from_dit`; blocks alternate between space and time."""
    return _build("latte", state_dict, sample_size, num_heads)


def from_diffusers(
    state_dict: State, *, sample_size: Triple, num_heads: int | None = None, timestep_spacing: int = SPACING
) -> DiT:
    """Diffusers' DiTTransformer2DModel, as `from_dit`.

    Each of its blocks holds timestep and label embeddings of its own, and the last layer uses the first block's. The
    paper's network has one for all, so a state whose blocks differ there is refused.

    The timestep frequencies are those of that class: the same output. They differ slightly from the paper's, which
    weights that came to diffusers from the original were trained with; `timestep_spacing=128` makes those the original.
    """
    return _build("diffusers", state_dict, sample_size, num_heads, timestep_spacing)


def to_dit(model: DiT) -> dict[str, Tensor]:
    """The state of the original DiT (layout "space") or of Latte ("alternating"), with position tables.

    Raises:
        Refused: the original has no such network (rotary positions, text, ...).
    """
    source = "latte" if model.config.layout == "alternating" else "dit"
    formats.check_options(source, model)
    state = formats.outward(source, model.state_dict())
    config = model.config
    tables = formats.tables(source, config.sample_size, config.patch_size, config.hidden_size)
    return state | {name: table.to(state[OURS.patch]) for name, table in tables.items()}


def to_diffusers(model: DiT) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State and config: `DiTTransformer2DModel(**config).load_state_dict(state)`.

    That class uses other timestep frequencies than the paper: the output is the same for a network that has them too
    (as those of `from_diffusers`), and a warning says so for others.

    Raises:
        Refused: the class has no such network.
    """
    formats.check_options("diffusers", model)
    config = model.config
    (frames, height, width), (_, ph, pw) = config.sample_size, config.patch_size
    inner = model.state_dict()[OURS.inner].shape[0]
    if frames != 1 or height != width or ph != pw or inner != 4 * config.hidden_size:
        raise Refused(
            "diffusers' DiTTransformer2DModel cannot hold this network",
            got=f"sample_size {tuple(config.sample_size)}, patch_size {tuple(config.patch_size)}, MLP of {inner}",
            expected=f"one frame, squares, and an MLP of {4 * config.hidden_size}",
        )
    if config.timestep_spacing != SPACING:
        log.warning(
            "diffusers' DiTTransformer2DModel spaces its timestep frequencies over %d steps, this network over %d: "
            "with the same weights the two differ, the more the later the timestep",
            SPACING,
            config.timestep_spacing,
        )
    return formats.outward("diffusers", model.state_dict()), {
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.hidden_size // config.num_heads,
        "in_channels": config.in_channels,
        "out_channels": model.out_channels,
        "num_layers": config.depth,
        "sample_size": height,
        "patch_size": ph,
        "num_embeds_ada_norm": config.num_classes,
        "norm_eps": 1e-6,
    }


def inflate(image_model: DiT, frames: int, layout: str = "factorized") -> DiT:
    """A video network that starts as `image_model` on each frame.

    Layout "factorized" puts a time sub-layer into each block, "alternating" a time block after each block; both start
    as nothing. The same image network always gives the same weights.

    Args:
        image_model: layout "space".
        frames: frames of the latents that it is made for; others work too.

    Raises:
        Refused: no image network; a layout that cannot start as one ("joint" mixes frames from the start, and sin-cos
            time positions reach the space blocks of "alternating").
    """
    config = {name: value for name, value in image_model.config.items() if not name.startswith("_")}
    if config["layout"] != "space":
        raise Refused("only an image network can be inflated", got=f"layout {config['layout']}", expected="space")
    kind = (layout, config["positions"], config["conditioning"])
    if layout != "factorized" and kind != ("alternating", "rotary", "adaln-zero"):
        raise Refused(
            "this layout cannot start as the image network",
            got=f"{layout} with {config['positions']} positions and {config['conditioning']}",
            expected="factorized, or alternating with rotary positions and adaln-zero",
        )
    if frames < 1:
        raise Refused("too few frames", got=frames, expected="1 or more")
    token_grid((frames, *config["sample_size"][1:]), image_model.patch_size)
    stride = 2 if layout == "alternating" else 1
    config |= {"layout": layout, "sample_size": (frames, *config["sample_size"][1:]), "depth": stride * config["depth"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Module.to(DiT(**config), next(image_model.parameters()))
    state = {
        re.sub(r"^blocks\.(\d+)", lambda found: f"blocks.{stride * int(found[1])}", name): value
        for name, value in image_model.state_dict().items()
    }
    start = model.state_dict()
    for name, value in state.items():  # of shared adaLN, the rows of the new sub-layer come last and stay zero
        start[name][: len(value)] = value
    return model.train(image_model.training)


def recognise(state_dict: State) -> str:
    """The name in FORMATS of what this state looks like; Refused where it looks like none."""
    for name, sign in (("diffusers", "transformer_blocks."), ("latte", "temp_embed"), ("dit", "x_embedder.proj.")):
        if any(isinstance(key, str) and key.startswith(sign) for key in state_dict):
            return name
    raise Refused(
        "no known network has such weights",
        got=formats.some(map(str, state_dict)),
        expected=f"one of {', '.join(FORMATS)}",
    )


def sample_size_of(state_dict: State) -> Triple | None:
    """The grid of the latents as the position tables tell it, taken as square; None without a table."""
    table, patch = state_dict.get("pos_embed"), state_dict.get(OURS.patch)
    if table is None or patch is None or table.ndim != 3 or patch.ndim != 4:
        return None
    side = math.isqrt(table.shape[1])
    time = state_dict.get("temp_embed")
    frames = time.shape[1] if time is not None and time.ndim == 3 else 1
    return (frames, side * patch.shape[2], side * patch.shape[3]) if side**2 == table.shape[1] else None


def _build(
    source: str, state_dict: State, sample_size: Triple, num_heads: int | None, timestep_spacing: int = 128
) -> DiT:
    form = FORMATS[source]
    _check_state(state_dict)
    sample_size = tuple(sample_size)  # type: ignore[assignment]  # three of them, as the next line sees to
    if len(sample_size) != 3 or min(sample_size) < 1 or (num_heads is not None and num_heads < 1):
        raise Refused("impossible sizes", got=f"sample_size {sample_size}, num_heads {num_heads}",
                      expected="sample_size (frames, height, width), all of them 1 or more")  # fmt: skip
    tables = {name: state_dict[name] for name in form.tables if name in state_dict}
    weights = {name: value for name, value in state_dict.items() if name not in tables}
    names = formats.stand_in(source, weights).state_dict()
    formats.check_names(source, weights, formats.outward(source, names))
    sizes = formats.read_sizes(source, weights)
    width, depth = sizes["hidden_size"], sizes["depth"]
    told = {"sample_size": sample_size, "timestep_spacing": timestep_spacing}
    config = {**sizes, **told, "num_heads": num_heads or _guess_heads(width)}
    with torch.device("meta"):  # nothing is allocated before everything fits
        expected = DiT(**config)
    formats.check_shapes(weights, formats.outward(source, expected.state_dict()))
    computed = formats.tables(source, sample_size, sizes["patch_size"], width)
    formats.check_tables(source, tables, computed)
    precisions = {value.dtype for value in weights.values()}
    model = nn.Module.to(DiT(**config), precisions.pop() if len(precisions) == 1 else torch.float32)
    model.load_state_dict(formats.inward(source, weights, names, depth))
    return model.eval()


def _check_state(state_dict: State) -> None:
    if not isinstance(state_dict, Mapping):
        raise Refused("this is no state dict", got=type(state_dict).__name__, expected="names with tensors")
    wrong = [
        str(name)
        for name, value in state_dict.items()
        if not (isinstance(name, str) and isinstance(value, Tensor) and value.is_floating_point())
    ]
    if wrong or not state_dict:
        got = f"{len(wrong)} others: {formats.some(wrong)}" if wrong else "nothing"
        raise Refused("this is no state dict", got=got, expected="names with tensors of floating-point numbers")


def _guess_heads(width: int) -> int:
    if width not in HEADS:
        known = ", ".join(f"{w}: {heads}" for w, heads in HEADS.items())
        raise Refused(
            "the number of heads is not in the weights and not known for this width",
            got=f"width {width}",
            expected=f"one of {known}",
            fix="say num_heads",
        )
    return HEADS[width]
