"""Every key of a recipe reaches the process or the network, or is refused."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import BaseModel

from mmdit.config import find_recipe, load_config, parse_config
from mmdit.diffusion import GaussianDiffusion, RectifiedFlow
from mmdit.errors import Refused
from mmdit.training.build import (
    Inputs,
    build_network,
    build_process,
    describe_process,
    find_bottleneck,
    read_process,
)
from mmdit.training.config import RunConfig
from mmdit.training.data import TrainingData
from mmdit.training.processes import make_accelerator
from mmdit.training.run import begin_run

INPUTS = Inputs((4, 4, 8, 8), labels=3, text_dim=16)
TEXT = {"conditions": {"labels": True, "text": {}}}
DIFFUSION = {"diffusion": {"prediction": "v"}}

# For each key of the process and the network: another value, and what it needs beside it.
CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "flow.times": ("uniform", {}),
    "flow.shift": ("auto", {}),
    "flow.mean": (0.5, {}),
    "flow.scale": (0.5, {}),
    "flow.mode": (0.5, {"flow": {"times": "mode"}}),
    "diffusion.betas": ("cosine", DIFFUSION),
    "diffusion.prediction": ("x0", DIFFUSION),
    "diffusion.variance": ("fixed_small", DIFFUSION),
    "diffusion.min_snr": (5.0, DIFFUSION),
    "diffusion.zero_terminal_snr": (True, DIFFUSION),
    "diffusion.timesteps": (500, DIFFUSION),
    "model.network": ("unet", {"model": {"hidden_size": 8, "num_heads": 2}}),
    "model.preset": ("DiT-S/2", {}),
    "model.depth": (3, {}),
    "model.hidden_size": (32, {}),
    "model.num_heads": (2, {}),
    "model.patch_size": ((2, 2, 2), {}),
    "model.mlp_ratio": (2.0, {}),
    "model.layout": ("joint", {}),
    "model.conditioning": ("in-context", {}),
    "model.text_tokens_by": ("in-context", TEXT),
    "model.positions": ("rotary", {}),
    "model.interpolate": (True, {}),
    "model.timestep_spacing": (127, {}),
    "model.norm": ("rms", {}),
    "model.mlp": ("swiglu", {}),
    "model.qk_norm": (True, {}),
    "model.attention_backend": ("math", {}),
    "model.checkpointing": (2, {}),
}


def make(**values: Any) -> RunConfig:
    return parse_config(RunConfig, {"steps": 1, "data": {"store": "none"}, **values}, where="the test's recipe")


def output(config: RunConfig, grid: tuple[int, int, int]) -> torch.Tensor:
    """What the network of the recipe says of a clip, all its weights being random."""
    network = build_network(config, INPUTS)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=random))
    conditions: dict[str, Any] = {"labels": torch.tensor([1])} if config.conditions.labels else {}
    conditions["text"] = torch.randn(1, 16, generator=random)
    if config.model.text_tokens_by:
        conditions["text_tokens"] = torch.randn(1, 5, 16, generator=random)
    with torch.no_grad():
        return network(torch.ones(1, 4, *grid).cumsum(-1), torch.tensor([300.0]), **conditions)


def parts_of(config: RunConfig) -> list[Any]:
    """The process, and what its network does: outputs on two grids, and how it is carried out."""
    network = build_network(config, INPUTS)
    how = getattr(network, "checkpoint_every", 0), {getattr(module, "backend", None) for module in network.modules()}
    outputs = [output(config, grid).sum().item() for grid in ((4, 8, 8), (4, 4, 4))]
    return [build_process(config, INPUTS.latent_shape), how, outputs]


def keys_of(name: str) -> list[str]:
    annotation = RunConfig.model_fields[name].annotation
    kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
    (kind,) = [kind for kind in kinds if issubclass(kind, BaseModel)]
    return [f"{name}.{key}" for key in kind.model_fields]


@pytest.mark.parametrize("key", [key for section in ("flow", "diffusion", "model") for key in keys_of(section)])
def test_each_key_changes_the_process_or_the_network(key: str) -> None:
    value, beside = CHANGES[key]
    section, name = key.split(".")
    changed = {**beside, section: {**beside.get(section, {}), name: value}}
    assert parts_of(make(**changed)) != parts_of(make(**beside))


def test_the_same_recipe_makes_the_same_parts() -> None:
    assert parts_of(make()) == parts_of(make())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flow": {}, "diffusion": {}}, "one process.*set flow: null"),
        ({"diffusion": {"zero_terminal_snr": True}}, "epsilon with zero_terminal_snr, expected v or x0"),
        ({"flow": {"times": "uniform", "mean": 1.0}}, "a setting of logit-normal times"),
        ({"flow": {"mode": 1.0}}, "a setting of mode times"),
        ({"flow": {"times": "mode", "mode": 3.0}}, "mode of times is out of range"),
        ({"flow": {"shift": 0}}, r"flow\.shift.* does not fit"),
        ({"model": {"text_tokens_by": "in-context"}}, "no text to read tokens of"),
        ({"conditions": {"drop_label": 0.5}}, "nothing reads drop_label.*expected conditions.labels"),
        ({"conditions": {"drop_text": 0.5}}, "nothing reads drop_text.*expected conditions.text"),
        ({"conditions": {"text": {"encoder": "clip", "width": 64}}}, "nothing reads width.*clip"),
        ({"diffusion": {"timesteps": 5}}, "timesteps does not fit"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message) as refusal:
        make(**values)
    assert "\n" not in str(refusal.value)
    assert "the test's recipe" in str(refusal.value)


def test_patches_that_do_not_divide_and_labels_that_are_not_there() -> None:
    with pytest.raises(Refused, match="does not divide into patches"):
        build_network(make(model={"patch_size": [3, 2, 2]}), INPUTS)
    with pytest.raises(Refused, match="the store has no labels"):
        build_network(make(conditions={"labels": True}), Inputs((4, 4, 8, 8)))
    with pytest.raises(Refused, match="did you|unknown model preset"):
        build_process(make(flow={"shift": "auto"}, model={"preset": "DiT-XL"}), INPUTS.latent_shape)


def test_a_learned_variance_doubles_the_channels() -> None:
    for variance, channels in (("learned_range", 8), ("fixed_large", 4)):
        assert build_network(make(diffusion={"variance": variance}), INPUTS).out_channels == channels
    assert build_network(make(), INPUTS).out_channels == 4


def test_a_network_narrower_than_its_patches_is_warned_of() -> None:
    narrow = {"hidden_size": 96, "num_heads": 2, "patch_size": [1, 4, 2]}
    told = find_bottleneck(make(model=narrow), 16)
    assert told is not None and "96 is below the 128 values" in told and "25% of the noise" in told
    assert find_bottleneck(make(model=narrow), 12) is None  # 96 values
    assert find_bottleneck(make(model=narrow, diffusion={}), 16) == told
    assert find_bottleneck(make(model=narrow, diffusion={"prediction": "x0"}), 16) is None
    assert find_bottleneck(make(model={"preset": "DiT-S/8"}), 4) is None  # 384 and 256


def test_shift_auto_is_by_the_tokens() -> None:
    process = build_process(make(flow={"shift": "auto"}, model={"patch_size": [1, 2, 2]}), (4, 16, 32, 32))
    assert isinstance(process, RectifiedFlow)
    assert process.shift == pytest.approx(4.0)  # 16 x 16 x 16 tokens are 16 times 256


@pytest.mark.parametrize("process", [RectifiedFlow(shift=3.0), GaussianDiffusion(prediction="v", min_snr=5.0)])
def test_a_process_is_read_as_it_was_described(process: Any) -> None:
    assert read_process({"step": 3, **describe_process(process)}) == process
    assert asdict(read_process(describe_process(process))) == asdict(process)


def test_timesteps_of_a_diffusion_are_spread_evenly_over_the_global_batch(recipe: Any) -> None:
    config = recipe(diffusion={})
    run = begin_run(config, Path("nowhere"), make_accelerator(config))
    data: TrainingData = run.splits["train"]
    times = data.batch(3, range(4)).times
    assert times.dtype == torch.int64
    gaps = times.sort().values.diff()
    assert all(abs(int(gap) - 250) <= 1 for gap in gaps)
    assert torch.equal(torch.cat([data.batch(3, range(2)).times, data.batch(3, range(2, 4)).times]), times)


SHIPPED = sorted(path for path in find_recipe("demo_fashion").parent.glob("*.yaml"))
RECIPES = [path for path in SHIPPED if not path.name.startswith(("codec_", "probe_"))]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_makes_its_network(path: Path) -> None:
    config = load_config(RunConfig, path)
    side = 64 if "512" in path.stem else 32
    latent = (4, 1 if path.stem.startswith("dit_") else 16, side, side)
    labels = {"dit": 1000, "latte": 101}.get(path.stem.split("_")[0], 5)
    inputs = Inputs(latent, labels, 768 if config.conditions.text else 0)
    with torch.device("meta"):
        network = build_network(config, inputs)
    learned = config.diffusion is not None
    assert network.out_channels == latent[0] * (1 + learned)
    build_process(config, latent)
    millions = sum(weight.numel() for weight in network.parameters()) / 1e6
    published = {"dit_s2_256": 32.96, "dit_b2_256": 130.51, "dit_l2_256": 458.10, "dit_xl2_256": 675.13}
    # the paper's count has the fixed table of positions, which is not a weight here
    if path.stem in published:
        assert millions == pytest.approx(published[path.stem], rel=0.01)
    if path.stem.startswith("latte_") and not config.conditions.labels:
        assert millions == pytest.approx(673.7, rel=0.01)


@pytest.mark.parametrize(
    "word",
    [
        "optimizer.betas=[2,3]", "optimizer.betas=[0.9,1.0]", "optimizer.lr=.inf", "flow.shift=.inf", "flow.mean=.nan",
        "model.patch_size=[0,1,1]", "model.patch_size=[1,-2,2]", "model.mlp_ratio=.inf",
    ],
)  # fmt: skip
def test_numbers_that_nothing_can_be_made_of_are_refused(word: str) -> None:
    key = word.partition("=")[0]
    with pytest.raises(Refused, match=f"{key}.* does not fit"):
        load_config(RunConfig, "debug", ["data.store=x", word])
