"""What the states of other networks look like, and how each of their tensors is called here.

The way out (`outward`) also tells which keys and shapes a state must have to come in, so each format is said once.
"""

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmdit.errors import Refused
from mmdit.models.checks import token_grid
from mmdit.models.dit import DiT
from mmdit.models.positions import PositionMaker, Triple

SHOWN = 4  # names in a refusal
TABLE_TOLERANCE = 1e-5  # what two ways of computing a float32 table may differ by

# Any value of these is held by every format; an option that is not here must be the paper's.
SIZES = {"sample_size", "patch_size", "in_channels", "out_channels", "hidden_size", "depth", "num_heads", "mlp_ratio",
         "num_classes", "layout", "attention_backend"}  # fmt: skip


class Format(NamedTuple):
    """One kind of state: which of its tensors tell the network's sizes, and the position tables that it may hold."""

    network: str  # as messages call it
    layout: str
    labels_optional: bool
    block: str
    patch: str
    inner: str
    out: str
    labels: str
    tables: tuple[str, ...]


OURS = Format(
    network="the original DiT",
    layout="space",
    labels_optional=False,
    block="blocks.",
    patch="x_embedder.proj.weight",
    inner="blocks.0.mlp.fc1.weight",
    out="final_layer.linear.weight",
    labels="y_embedder.embedding_table.weight",
    tables=("pos_embed",),
)
FORMATS = {
    "dit": OURS,
    "latte": OURS._replace(
        network="Latte", layout="alternating", labels_optional=True, tables=("pos_embed", "temp_embed")
    ),
    "diffusers": Format(
        network="diffusers' DiTTransformer2DModel",
        layout="space",
        labels_optional=False,
        block="transformer_blocks.",
        patch="pos_embed.proj.weight",
        inner="transformer_blocks.0.ff.net.0.proj.weight",
        out="proj_out_2.weight",
        labels="transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight",
        tables=("pos_embed.pos_embed",),
    ),
}

# Ours on the left, diffusers' on the right, each with .weight and .bias.
ONCE = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
COPIED_TO_EACH_BLOCK = {
    "t_embedder.mlp.0": "norm1.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "norm1.emb.timestep_embedder.linear_2",
    "y_embedder.embedding_table": "norm1.emb.class_embedder.embedding_table",
}
OF_A_BLOCK = {
    "adaLN_modulation.1": ("norm1.linear",),
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),  # thirds of ours
    "attn.proj": ("attn1.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
}


def outward(source: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state, of a network that the format can hold, as the format has it; copies, without position tables."""
    depth = _depth(OURS, state)
    theirs: dict[str, Tensor] = {}
    for name, value in state.items():
        value = value.squeeze(2) if name == OURS.patch else value  # one frame a patch
        names, copied = _names(source, name, depth)
        parts = [value] * len(names) if copied else value.chunk(len(names))
        theirs |= {key: part.detach().clone() for key, part in zip(names, parts, strict=True)}
    return theirs


def inward(source: str, theirs: Mapping[str, Tensor], ours: Iterable[str], depth: int) -> dict[str, Tensor]:
    """A state of the format as our tensors called `ours`.

    Raises:
        Refused: blocks with differing copies of what our network has once.
    """
    state = {}
    for name in ours:
        names, copied = _names(source, name, depth)
        parts = [theirs[key] for key in names]
        for key, part in zip(names, parts, strict=True):
            if copied and not torch.equal(part, parts[0]):
                raise Refused(
                    "the blocks embed timesteps or labels each in its own way",
                    got=f"{key}, which differs from {names[0]} by {(part - parts[0]).abs().max():.3g}",
                    expected="the same tensor in each block, as in the paper's network",
                )
        value = parts[0] if copied else torch.cat(parts)
        state[name] = value.unsqueeze(2) if name == OURS.patch else value
    return state


def _names(source: str, name: str, depth: int) -> tuple[list[str], bool]:
    """What the format calls our tensor: parts of it in order, or (True) that many copies."""
    if source != "diffusers":
        return [name], False
    module, _, kind = name.rpartition(".")
    if module in ONCE:
        return [f"{ONCE[module]}.{kind}"], False
    if module in COPIED_TO_EACH_BLOCK:
        return [f"transformer_blocks.{i}.{COPIED_TO_EACH_BLOCK[module]}.{kind}" for i in range(depth)], True
    _, index, inner = module.split(".", 2)
    return [f"transformer_blocks.{index}.{part}.{kind}" for part in OF_A_BLOCK[inner]], False


def tables(source: str, sample_size: Triple, patch_size: Triple, width: int) -> dict[str, Tensor]:
    """The position tables of the format as the network computes them, float32; Refused for an impossible grid."""
    make = PositionMaker("sincos", width, width, joint=False, trained=None)
    made = make(token_grid(sample_size, patch_size), torch.device("cpu"))
    assert made.added is not None and made.added_over_time is not None  # "sincos" makes both
    space, time = made.added, made.added_over_time.transpose(0, 1)  # (1, S, D), (1, f, D)
    return dict(zip(FORMATS[source].tables, (space, time), strict=False))


def check_tables(source: str, given: Mapping[str, Tensor], computed: Mapping[str, Tensor]) -> None:
    """Refused where a table of the file is not what the network computes in its place."""
    for name, table in given.items():
        ours = computed[name]
        if table.shape != ours.shape:
            raise Refused("the position table is for another grid", where=name, got=tuple(table.shape),
                          expected=tuple(ours.shape), fix="sample_size is another than the file's")  # fmt: skip
        difference = (table.float() - ours.to(table.device)).abs().max().item()
        if not difference <= max(TABLE_TOLERANCE, torch.finfo(table.dtype).eps):  # values lie in [-1, 1]
            raise Refused("the position table is not the paper's, and the network holds no other", where=name,
                          got=f"a difference of {difference:.3g}", expected=f"at most {TABLE_TOLERANCE:g}")  # fmt: skip


def stand_in(source: str, state: Mapping[str, Tensor]) -> DiT:
    """A network of the state's depth and smallest sizes, without memory: its names are those of the real one."""
    form, depth = FORMATS[source], max(_depth(FORMATS[source], state), 1)
    labels = not form.labels_optional or form.labels in state
    with torch.device("meta"):
        return DiT(sample_size=(1, 1, 1), patch_size=(1, 1, 1), in_channels=1, hidden_size=4, depth=depth, num_heads=1,
                   layout=form.layout, num_classes=int(labels))  # fmt: skip


def _depth(form: Format, state: Mapping[str, Tensor]) -> int:
    return len({name.split(".")[1] for name in state if name.startswith(form.block)})


def check_names(source: str, state: Mapping[str, Tensor], expected: Iterable[str]) -> None:
    """Refused with the unknown and the missing keys."""
    expected = set(expected)
    wrong = {"unknown": state.keys() - expected, "missing": expected - state.keys()}
    said = [f"{len(names)} {kind}: {some(names)}" for kind, names in wrong.items() if names]
    if said:
        raise Refused(f"the keys are not those of {FORMATS[source].network}", got=" and ".join(said))


def read_sizes(source: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `DiT` that the shapes tell; the names are those of the format already."""
    form = FORMATS[source]
    for name in (form.patch, form.inner, form.out, form.labels):
        wanted = 4 if name == form.patch else 2
        if name in state and (state[name].ndim != wanted or 0 in state[name].shape):
            raise Refused("a tensor has an impossible shape", where=name, got=tuple(state[name].shape),
                          expected=f"{wanted} axes, none of them empty")  # fmt: skip
    depth = _depth(form, state)
    check_depth(source, depth)
    width, channels, ph, pw = state[form.patch].shape
    outputs, inner = state[form.out].shape[0], state[form.inner].shape[0]
    ratio = inner / width
    ratio = ratio if int(width * ratio) == inner else math.nextafter(ratio, math.inf)
    classes = state[form.labels].shape[0] - 1 if form.labels in state else 0
    if outputs % (ph * pw) or (form.labels in state and classes < 1):
        got = f"{outputs} outputs for patches of {ph} x {pw}, {classes} classes and the null label"
        raise Refused("the shapes fit no network", got=got, expected="outputs that divide by it, at least one class")
    return {
        "patch_size": (1, ph, pw),
        "in_channels": channels,
        "out_channels": outputs // (ph * pw),
        "hidden_size": width,
        "depth": depth,
        "mlp_ratio": ratio,
        "layout": form.layout,
        "num_classes": classes,
    }


def check_shapes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refused with the tensors whose shape does not go with the others."""
    wrong = [name for name in expected if state[name].shape != expected[name].shape]
    if wrong:
        got, wanted = (f"{tuple(tensors[wrong[0]].shape)}" for tensors in (state, expected))
        what = f"{len(wrong)} tensors do not go with the sizes of the others"
        raise Refused(what, where=some(wrong), got=got, expected=f"{wanted} for the first")


def check_depth(source: str, depth: int) -> None:
    """Refused for a space block without its time block."""
    if source == "latte" and depth % 2:
        raise Refused("Latte's blocks come in pairs", got=depth, expected="an even number")


def check_options(source: str, model: DiT) -> None:
    """Refused where the format has no such network as `model`."""
    form, config = FORMATS[source], model.config
    check_depth(source, config["depth"])
    paper = {name: p.default for name, p in inspect.signature(DiT.__init__).parameters.items() if name not in SIZES}
    wrong = {k: v for k, v in config.items() if k in paper and (tuple(v) if isinstance(v, list) else v) != paper[k]}
    if source == "diffusers":  # `to_diffusers` warns
        wrong.pop("timestep_spacing", None)
    if config["layout"] != form.layout:
        wrong["layout"], paper["layout"] = config["layout"], form.layout
    if config["patch_size"][0] != 1:
        wrong["frames of a patch"], paper["frames of a patch"] = config["patch_size"][0], 1
    if not (config["num_classes"] or form.labels_optional):
        wrong["num_classes"], paper["num_classes"] = 0, "1 or more"
    if wrong:
        raise Refused(
            f"{form.network} cannot hold this network",
            got=", ".join(f"{name} {value}" for name, value in wrong.items()),
            expected=", ".join(f"{name} {paper[name]}" for name in wrong),
        )


def some(names: Iterable[str]) -> str:
    """The first few of them."""
    names = sorted(names)
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
