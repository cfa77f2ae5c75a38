"""The network against values made with the original ones (tests/assets/golden)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mmdit.models import DiT

GOLDEN = Path(__file__).parents[1] / "assets" / "golden"


def load(name: str) -> tuple[DiT, dict[str, torch.Tensor], bool]:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    weights = {key.removeprefix("weights."): value for key, value in values.items() if key.startswith("weights.")}
    weights["x_embedder.proj.weight"] = weights["x_embedder.proj.weight"].unsqueeze(2)
    for table in ("pos_embed", "temp_embed"):
        weights.pop(table, None)
    image = name.startswith("dit")
    model = DiT(
        sample_size=(config.get("num_frames", 1), config["input_size"], config["input_size"]),
        patch_size=(1, config["patch_size"], config["patch_size"]),
        in_channels=config["in_channels"],
        out_channels=2 * config["in_channels"],
        hidden_size=config["hidden_size"],
        depth=len({key.split(".")[1] for key in weights if key.startswith("blocks.")}),
        num_heads=config["num_heads"],
        layout="space" if image else "alternating",
        num_classes=config["num_classes"] if "y_embedder.embedding_table.weight" in weights else 0,
    )
    model.load_state_dict(weights)
    return model.eval(), values, image


@pytest.mark.parametrize("name", ["dit_image_class", "latte_video_class", "latte_video_uncond"])
@pytest.mark.parametrize("condition", ["cond", "null"])
def test_same_output_as_the_original(name: str, condition: str) -> None:
    model, values, image = load(name)
    if f"out.{condition}" not in values:
        pytest.skip("this network has no condition")
    x, expected = values["in.x"], values[f"out.{condition}"]
    x, expected = (v[:, :, None] if image else v.transpose(1, 2) for v in (x, expected))
    labels = values.get("in.y")
    if condition == "null":
        labels = torch.full_like(values["in.y"], model.config.num_classes)
    with torch.no_grad():
        out = model(x, values["in.t"], labels=labels)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
