"""Weights in and out: the same output as the network they come from, and every tensor back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors import safe_open

from mmdit.errors import Refused
from mmdit.models import DiT, from_diffusers, from_dit, from_latte, inflate, to_diffusers, to_dit
from mmdit.models.block import CONDITIONINGS
from mmdit.models.convert import HEADS, recognise, sample_size_of
from mmdit.models.convert_formats import FORMATS

GOLDEN = Path(__file__).parents[1] / "assets" / "golden"
NAMES = ["dit_image_class", "latte_video_class", "latte_video_uncond"]
State = dict[str, torch.Tensor]


def golden(name: str) -> tuple[State, State, dict[str, Any]]:
    """The state, the values, and what the loader is told."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    state = {key.removeprefix("weights."): value for key, value in values.items() if key.startswith("weights.")}
    return state, values, {"sample_size": (config.get("num_frames", 1), 8, 8), "num_heads": config["num_heads"]}


def loader(name: str) -> Callable[..., DiT]:
    return from_dit if name.startswith("dit") else from_latte


def fill(model: torch.nn.Module, scale: float = 0.2) -> None:
    """Every weight random, so that nothing hides behind a zero."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(scale * torch.randn(weight.shape, generator=random))


def image(**options: Any) -> DiT:
    sizes: dict[str, Any] = {"sample_size": (1, 8, 8), "patch_size": (1, 2, 2), "in_channels": 4, "hidden_size": 32,
                             "depth": 3, "num_heads": 2, "num_classes": 5}  # fmt: skip
    model = DiT(**{**sizes, **options})
    fill(model)
    return model.eval()


def theirs(**options: Any) -> DiTTransformer2DModel:
    """Diffusers' class with the paper's epsilon, and one embedding for all blocks."""
    sizes = {"num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 3, "out_channels": 6, "num_layers": 3,
             "sample_size": 8, "num_embeds_ada_norm": 7, "norm_eps": 1e-6}  # fmt: skip
    model = DiTTransformer2DModel(**{**sizes, **options})
    fill(model)
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model.eval()


def papers_frequencies(model: DiTTransformer2DModel) -> DiTTransformer2DModel:
    for block in model.transformer_blocks:
        assert block.norm1.emb.time_proj.downscale_freq_shift == 1  # 127 steps
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    return model.eval()


def outputs(model: DiT, other: DiTTransformer2DModel, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(3, model.config.in_channels, size, size, generator=random)
    t, y = torch.tensor([0, 500, 999]), torch.tensor([0, model.config.num_classes, 3])
    with torch.no_grad():
        return model(x[:, :, None], t, labels=y)[:, :, 0], other(x, t, class_labels=y).sample


@pytest.mark.parametrize("name", NAMES)
def test_a_published_network_comes_in_and_goes_out(name: str) -> None:
    state, values, told = golden(name)
    model = loader(name)(state, **told)
    for kind, labels in (("cond", values.get("in.y")), ("null", torch.full((len(values["in.t"]),), 10))):
        if f"out.{kind}" in values:
            x, expected = values["in.x"], values[f"out.{kind}"]
            x, expected = (v[:, :, None] if v.ndim == 4 else v.transpose(1, 2) for v in (x, expected))
            with torch.no_grad():
                out = model(x, values["in.t"], labels=labels)
            torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    back = to_dit(model)
    assert back.keys() == state.keys()
    assert not [key for key in state if not torch.equal(back[key], state[key])]


@pytest.mark.parametrize("name", NAMES)
def test_what_the_state_tells_of_itself(name: str) -> None:
    state, _, told = golden(name)
    assert recognise(state) == ("dit" if name.startswith("dit") else "latte")
    assert sample_size_of(state) == told["sample_size"]
    config = loader(name)(state, **told).config
    assert (config.in_channels, config.out_channels, tuple(config.patch_size)) == (4, 8, (1, 2, 2))
    assert config.num_classes == (10 if "y_embedder.embedding_table.weight" in state else 0)


@pytest.mark.parametrize("options", [{}, {"out_channels": 3, "patch_size": 4}, {"num_layers": 1, "sample_size": 12}])
def test_diffusers_network_comes_in_and_goes_out(options: dict[str, Any]) -> None:
    other = theirs(**options)
    size = other.config.sample_size
    model = from_diffusers(other.state_dict(), sample_size=(1, size, size), num_heads=4)
    ours, expected = outputs(model, other, size)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    state, config = to_diffusers(model)
    assert state.keys() == other.state_dict().keys()
    assert not [key for key, value in other.state_dict().items() if not torch.equal(state[key], value)]
    assert {name: other.config[name] for name in config} == config


def test_our_network_as_diffusers_class() -> None:
    for spacing in (127, 128):
        model = image(out_channels=8, timestep_spacing=spacing)
        state, config = to_diffusers(model)
        other = DiTTransformer2DModel(**config).eval()
        other.load_state_dict(state)
        assert other.transformer_blocks[0].norm3.eps == 1e-6  # not the class's own
        ours, expected = outputs(model, other if spacing == 127 else papers_frequencies(other), 8)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_other_timestep_frequencies_are_said(caplog: pytest.LogCaptureFixture) -> None:
    to_diffusers(from_diffusers(theirs().state_dict(), sample_size=(1, 8, 8), num_heads=4))
    assert not caplog.records
    to_diffusers(image())
    assert "over 127 steps, this network over 128" in caplog.text


def test_the_originals_weights_by_way_of_diffusers_are_the_original() -> None:
    model = image()
    state = to_diffusers(model)[0]
    again = from_diffusers(state, sample_size=(1, 8, 8), num_heads=2, timestep_spacing=128)
    assert again.config.timestep_spacing == 128
    ours, theirs = to_dit(model), to_dit(again)
    assert not [key for key in ours if not torch.equal(ours[key], theirs[key])]
    with pytest.raises(Refused, match="timestep_spacing 127, expected timestep_spacing 128"):
        to_dit(from_diffusers(state, sample_size=(1, 8, 8), num_heads=2))


def test_blocks_with_embeddings_of_their_own_are_refused() -> None:
    state = theirs().state_dict()
    key = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"
    state[key] = state[key] + 0.5
    with pytest.raises(Refused, match=f"{key}, which differs .* by 0.5"):
        from_diffusers(state, sample_size=(1, 8, 8), num_heads=4)


def test_heads_are_known_for_the_published_widths() -> None:
    assert HEADS == {384: 6, 768: 12, 1024: 16, 1152: 16}
    state = to_dit(image(hidden_size=384, num_heads=6, depth=1))
    assert from_dit(state, sample_size=(1, 8, 8)).config.num_heads == 6
    assert from_dit(state, sample_size=(1, 8, 8), num_heads=12).config.num_heads == 12
    with pytest.raises(Refused, match="number of heads .* width 32, .*; say num_heads"):
        from_dit(to_dit(image()), sample_size=(1, 8, 8))


@pytest.mark.parametrize("source", FORMATS)
def test_every_wrong_key_is_named(source: str) -> None:
    make = {"dit": from_dit, "latte": from_latte, "diffusers": from_diffusers}[source]
    model = image(layout=FORMATS[source].layout, depth=2)
    good = to_diffusers(model)[0] if source == "diffusers" else to_dit(model)
    make(good, sample_size=(1, 8, 8), num_heads=2)
    for key in good.keys() - set(FORMATS[source].tables) - {"y_embedder.embedding_table.weight"}:
        with pytest.raises(Refused, match=f"not those of {FORMATS[source].network}, got 1 missing: {key}$"):
            make({name: value for name, value in good.items() if name != key}, sample_size=(1, 8, 8), num_heads=2)
    extra = {f"extra.{i}": torch.zeros(1) for i in range(6)}
    with pytest.raises(Refused, match=r"got 6 unknown: extra.0, extra.1, extra.2, extra.3, \.\.\.$"):
        make({**good, **extra}, sample_size=(1, 8, 8), num_heads=2)
    with pytest.raises(Refused, match=r"1 unknown: extra.0 and \d+ missing: "):
        make({"extra.0": torch.zeros(1)}, sample_size=(1, 8, 8), num_heads=2)


def test_an_image_network_of_dit_has_labels() -> None:
    state = to_dit(image())
    del state["y_embedder.embedding_table.weight"]
    with pytest.raises(Refused, match="1 missing: y_embedder"):
        from_dit(state, sample_size=(1, 8, 8), num_heads=2)


@pytest.mark.parametrize(
    ("key", "shape", "line"),
    [
        ("x_embedder.proj.weight", (32, 4, 2), "impossible shape, in x_embedder.proj.weight, got \\(32, 4, 2\\)"),
        ("x_embedder.proj.weight", (32, 4, 0, 2), "impossible shape"),
        ("final_layer.linear.weight", (15, 32), "15 outputs for patches of 2 x 2"),
        ("y_embedder.embedding_table.weight", (1, 32), "0 classes"),
        ("blocks.1.attn.qkv.weight", (96, 33), "1 tensors .* in blocks.1.attn.qkv.weight, got \\(96, 33\\), expected "),
        ("t_embedder.mlp.0.weight", (32, 128), "expected \\(32, 256\\)"),
        ("pos_embed", (1, 64, 32), "another grid, in pos_embed, got \\(1, 64, 32\\), expected \\(1, 16, 32\\)"),
    ],
)
def test_wrong_shapes_are_refused(key: str, shape: tuple[int, ...], line: str) -> None:
    with pytest.raises(Refused, match=line):
        from_dit(to_dit(image()) | {key: torch.zeros(shape)}, sample_size=(1, 8, 8), num_heads=2)


def test_latte_has_blocks_in_pairs() -> None:
    model = image(layout="alternating", depth=3)
    with pytest.raises(Refused, match="blocks come in pairs, got 3"):
        to_dit(model)
    with pytest.raises(Refused, match="blocks come in pairs, got 3"):
        from_latte(to_dit(image(depth=3)), sample_size=(1, 8, 8), num_heads=2)


def test_what_is_no_state_is_refused() -> None:
    states: list[Any] = [[], {}, {"x": 3}, {1: torch.zeros(1)}, {"x": torch.zeros(1, dtype=torch.long)}]
    for state in states:
        with pytest.raises(Refused, match="no state dict"):
            from_dit(state, sample_size=(1, 8, 8))
    for wrong in ({"sample_size": (8, 8)}, {"sample_size": (1, 0, 8)}, {"sample_size": (1, 8, 8), "num_heads": 0}):
        with pytest.raises(Refused, match="impossible sizes"):
            from_dit(to_dit(image()), **wrong)
    with pytest.raises(Refused, match="nearest"):
        from_dit(to_dit(image()), sample_size=(1, 9, 8), num_heads=2)


@pytest.mark.parametrize("table", ["pos_embed", "temp_embed"])
def test_position_tables_are_those_of_the_file_or_refused(table: str) -> None:
    state, _, told = golden("latte_video_class")
    with pytest.raises(Refused, match=f"in {table}, got a difference of 0.001, expected at most 1e-05"):
        from_latte(state | {table: state[table] + 1e-3}, **told)
    with pytest.raises(Refused, match="a difference of nan"):
        from_latte(state | {table: state[table] * float("nan")}, **told)
    without = {key: value for key, value in state.items() if key != table}
    assert to_dit(from_latte(without, **told)).keys() == state.keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_stay_what_they_are(dtype: torch.dtype) -> None:
    state, _, told = golden("dit_image_class")
    state = {key: value.to(dtype) for key, value in state.items()}
    back = to_dit(from_dit(state, **told))
    assert not [key for key in state if not torch.equal(back[key], state[key])]


@pytest.mark.parametrize("inner", [61, 64])  # 28 * (61 / 28) is less than 61
def test_an_mlp_of_any_width(inner: int) -> None:
    state = to_dit(image(hidden_size=28, num_heads=1))
    for i in range(3):
        state |= {f"blocks.{i}.mlp.fc1.weight": torch.ones(inner, 28), f"blocks.{i}.mlp.fc1.bias": torch.ones(inner),
                  f"blocks.{i}.mlp.fc2.weight": torch.ones(28, inner)}  # fmt: skip
    model = from_dit(state, sample_size=(1, 8, 8), num_heads=1)
    assert model.state_dict()["blocks.0.mlp.fc1.weight"].shape == (inner, 28)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"positions": "rotary", "qk_norm": True}, "got positions rotary, qk_norm True, expected positions sincos, "),
        ({"norm": "rms"}, "norm rms"),
        ({"mlp": "swiglu"}, "mlp swiglu"),
        ({"text_dim": 3}, "text_dim 3"),
        ({"layout": "factorized"}, "layout factorized, expected layout space"),
        ({"patch_size": (2, 2, 2), "sample_size": (2, 8, 8)}, "frames of a patch 2, expected frames of a patch 1"),
        ({"num_classes": 0}, "num_classes 0"),
    ],
)
def test_what_the_others_cannot_hold_is_refused(options: dict[str, Any], line: str) -> None:
    for out in (to_dit, to_diffusers):
        with pytest.raises(Refused, match=line):
            out(image(**options))


@pytest.mark.parametrize("options", [{"sample_size": (1, 8, 4)}, {"mlp_ratio": 2.0}, {"sample_size": (2, 8, 8)}])
def test_what_diffusers_class_alone_cannot_hold(options: dict[str, Any]) -> None:
    model = image(**options)
    from_dit(to_dit(model), sample_size=model.config.sample_size, num_heads=2)
    with pytest.raises(Refused, match="DiTTransformer2DModel cannot hold"):
        to_diffusers(model)


@pytest.mark.parametrize(
    ("layout", "positions"), [("factorized", "sincos"), ("factorized", "rotary"), ("alternating", "rotary")]
)
@torch.no_grad()
def test_an_inflated_network_is_the_image_network_on_each_frame(layout: str, positions: str) -> None:
    start = image(positions=positions, text_dim=3)
    video = inflate(start, 3, layout)
    assert tuple(video.config.sample_size) == (3, 8, 8)
    random = torch.Generator().manual_seed(1)
    x, t = torch.randn(2, 4, 3, 8, 8, generator=random), torch.tensor([3, 900])
    values = {"labels": torch.tensor([5, 2]), "text": torch.randn(2, 3, generator=random)}
    frames = [start(x[:, :, i : i + 1], t, **values) for i in range(3)]
    torch.testing.assert_close(video(x, t, **values), torch.cat(frames, dim=2), atol=1e-5, rtol=0)
    assert torch.equal(video(x[:, :, :1], t, **values), frames[0])
    fill(video)  # the frames do see each other, once the gates open
    changed = video(x, t, **values)[:, :, 0] - video(x + torch.tensor([0, 1, 1.0])[:, None, None], t, **values)[:, :, 0]
    assert changed.abs().max() > 1e-3


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("options", [{}, {"text_token_dim": 3}, {"text_token_dim": 3, "text_tokens_by": "in-context"}])
@torch.no_grad()
def test_every_block_design_inflates(conditioning: str, options: dict[str, Any]) -> None:
    start = image(conditioning=conditioning, **options)
    video = inflate(start, 3)
    random = torch.Generator().manual_seed(1)
    x, t = torch.randn(2, 4, 3, 8, 8, generator=random), torch.tensor([3, 900])
    values = {"labels": torch.tensor([5, 2])} | ({"text_tokens": torch.randn(2, 4, 3)} if options else {})
    frames = [start(x[:, :, i : i + 1], t, **values) for i in range(3)]
    torch.testing.assert_close(video(x, t, **values), torch.cat(frames, dim=2), atol=1e-5, rtol=1e-5)
    assert torch.equal(video(x[:, :, :1], t, **values), frames[0])
    if conditioning != "adaln-zero":
        with pytest.raises(Refused, match=f"conditioning {conditioning}"):
            to_dit(start)


def test_inflating_repeats_and_leaves_the_random_stream_alone() -> None:
    start = image()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = inflate(start, 3).state_dict()
    assert torch.equal(torch.rand(3), expected)
    second = inflate(start, 3).state_dict()
    assert not [name for name in first if not torch.equal(first[name], second[name])]


def test_what_cannot_be_inflated_is_refused() -> None:
    for layout in ("alternating", "joint", "space"):
        with pytest.raises(Refused, match=f"got {layout} with sincos positions"):
            inflate(image(), 3, layout)
    with pytest.raises(Refused, match="only an image network"):
        inflate(inflate(image(), 3), 3)
    with pytest.raises(Refused, match="too few frames, got 0"):
        inflate(image(), 0)
