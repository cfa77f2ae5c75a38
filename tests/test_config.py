"""Recipes: every key known or refused with the nearest, overrides, names of shipped ones."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from mmdit.config import dump_config, find_recipe, load_config, recipe_schema
from mmdit.errors import Refused
from mmdit.training.config import RunConfig

GOOD = "steps: 3\ndata: {store: somewhere}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    return path


def test_values_defaults_and_overrides(recipe: Path) -> None:
    config = load_config(RunConfig, recipe, ["data.batch_size=7", "model.patch_size=[1, 4, 4]", "conditions.text={}"])
    assert (config.steps, config.data.batch_size, config.model.patch_size, config.seed) == (3, 7, (1, 4, 4), 0)
    assert config.conditions.text is not None
    again = recipe.with_name("again.yaml")
    again.write_text(dump_config(config))
    assert load_config(RunConfig, again) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stpes=4", r"unknown config key, in .*, got stpes, .*did you mean steps\?"),
        ("data.bath_size=4", r"did you mean data\.batch_size\?"),
        ("optimizer.muon_rl=1", r"did you mean optimizer\.muon_lr\?"),
        ("conditions.text.widht=3", r"did you mean conditions\.text\.width\?"),
        ("steps=none", "config key steps does not fit, in .*, got 'none', expected a valid integer"),
        ("data.batch_size=0", "config key data.batch_size does not fit.*greater than or equal to 1"),
        ("model.layout=spacetime", "config key model.layout does not fit.*'space'"),
        ("steps", "not an override.*key.sub=value"),
        ("steps.more=1", "not an override"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(Refused, match=message) as refusal:
        load_config(RunConfig, recipe, [override])
    assert "\n" not in str(refusal.value)


def test_a_missing_key_and_files_that_are_no_recipe(tmp_path: Path, recipe: Path) -> None:
    recipe.write_text("steps: 3\n")
    with pytest.raises(Refused, match="a config key is missing.*expected data"):
        load_config(RunConfig, recipe)
    for text in ("steps: [", "- 3", "\x00"):
        recipe.write_text(text)
        with pytest.raises(Refused, match="the recipe is not"):
            load_config(RunConfig, recipe)
    with pytest.raises(Refused, match="no such recipe, got nothing.yaml.*demo_fashion"):
        load_config(RunConfig, "nothing.yaml")
    with pytest.raises(Refused, match=r"; did you mean demo_fashion\?$"):
        load_config(RunConfig, "demo_fashon")


def test_shipped_recipes_go_by_name() -> None:
    assert find_recipe("demo_fashion") == find_recipe("configs/demo_fashion.yaml") or Path("configs").is_dir()
    assert load_config(RunConfig, "demo_fashion").conditions.labels


def test_every_field_has_its_help() -> None:
    def fields(model: type[BaseModel], prefix: str = "") -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found += fields(inner, f"{prefix}{name}.")
            elif not field.description:
                found.append(prefix + name)
        return found

    assert fields(RunConfig) == []


def test_a_recipe_starts_from_another(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "first.yaml").write_text("steps: 3\ndata: {store: a, batch_size: 7}\nmodel: {depth: 3}\n")
    (tmp_path / "second.yaml").write_text("base: first\ndata: {store: b}\nmodel: {num_heads: 2}\n")
    (tmp_path / "deep" / "third.yaml").write_text("base: ../second.yaml\nsteps: 5\nconditions: {labels: true}\n")
    config = load_config(RunConfig, tmp_path / "deep" / "third.yaml", ["model.depth=4"])
    assert (config.steps, config.data.store, config.data.batch_size) == (5, "b", 7)
    assert (config.model.depth, config.model.num_heads, config.conditions.labels) == (4, 2, True)
    assert "base" not in dump_config(config)
    (tmp_path / "shipped.yaml").write_text("base: demo_fashion\nsteps: 9\n")
    shipped = load_config(RunConfig, tmp_path / "shipped.yaml")
    assert shipped == load_config(RunConfig, "demo_fashion", ["steps=9"])


def test_a_base_may_be_switched_to_another_process_and_to_no_text(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: demo_fashion\nflow: null\ndiffusion: {prediction: v}\n")
    config = load_config(RunConfig, tmp_path / "mine.yaml")
    assert config.flow is None
    assert config.diffusion is not None
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(RunConfig, again) == config


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"a": "base: a\n"}, "start from each other.*a.yaml -> a.yaml"),
        ({"a": "base: b\n", "b": "base: a\n"}, "start from each other.*a.yaml -> b.yaml -> a.yaml"),
        ({"a": "base: nowhere\n"}, "no such recipe, got nowhere"),
        ({"a": "base: [b]\n"}, "base is not the name of a recipe"),
        ({"a": "base: b\n", "b": "- 3\n"}, "not a table of keys, in .*b.yaml"),
        ({"a": "base: b\n", "b": GOOD + "modle: {}\n"}, r"got modle.*did you mean model\?"),
    ],
)
def test_a_bad_base_is_refused(tmp_path: Path, texts: dict[str, str], message: str) -> None:
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(Refused, match=message):
        load_config(RunConfig, tmp_path / "a.yaml")


def test_the_schema_has_every_key_with_its_help() -> None:
    schema = recipe_schema(RunConfig)
    assert set(schema["properties"]) == {"base", *RunConfig.model_fields}
    model = schema["$defs"]["ModelConfig"]["properties"]
    assert model["layout"]["description"] == "Which attentions each block has."
    assert model["layout"]["enum"] == ["space", "factorized", "alternating", "joint"]
    assert schema["additionalProperties"] is False
    assert schema["anyOf"][1]["required"] == ["steps", "data"]
