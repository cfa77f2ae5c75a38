"""Recipes: YAML read into pydantic models, every key known or refused with the nearest known name."""

import difflib
import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from mmdit.errors import Refused


class Config(BaseModel):
    """What all recipes share: unknown keys and infinite numbers are refused, and the docstring under a field is its
    help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def refuse_unread(config: Config, name: str, got: str, expected: str) -> None:
    """Refused where a key that nothing reads is set to something else than its default."""
    value = getattr(config, name)
    if value != type(config).model_fields[name].default:
        raise Refused(f"nothing reads {name}", got=f"{name} {value} with {got}", expected=expected)


C = TypeVar("C", bound=Config)


def load_config(kind: type[C], source: str | Path, overrides: Sequence[str] = ()) -> C:
    """Reads a recipe and applies `key.sub=value` overrides (the value is YAML).

    Args:
        source: a YAML file, or the name of a shipped one ("demo_fashion", "configs/demo_fashion.yaml"). Its key `base`
            names a recipe to start from, in the same way and relative to it: what it sets itself goes over that.

    Raises:
        Refused: no such recipe, not YAML, a circle of bases, an unknown key (the nearest known one is named), or values
            that do not fit, alone or together.
    """
    values = read_recipe(find_recipe(source))
    apply_overrides(values, overrides)
    return parse_config(kind, values, where=str(source))


def read_recipe(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a recipe's file over those of its base, and of the base's base; keys of tables are joined.

    `above` are the recipes that this one is the base of, the first one first.
    """
    if path.resolve() in above:
        circle = " -> ".join(step.name for step in (*above, path))
        raise Refused("recipes that start from each other", where=above[0], got=circle)
    values = read_yaml(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise Refused("base is not the name of a recipe", where=path, got=repr(base), expected="a name or a path")
    return _over(read_recipe(_find_base(base, path), (*above, path.resolve())), values)


def _find_base(base: str, path: Path) -> Path:
    """Beside the recipe that names it, with or without .yaml, else a shipped one."""
    for beside in (path.parent / base, path.parent / f"{base}.yaml"):
        if beside.is_file():
            return beside
    return find_recipe(base)


def _over(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    joined = {**base, **values}
    for key in base.keys() & values.keys():
        if isinstance(base[key], dict) and isinstance(values[key], dict):
            joined[key] = _over(base[key], values[key])
    return joined


def recipe_schema(kind: type[Config]) -> dict[str, Any]:
    """The JSON schema of a recipe's file, for editors; the help of each key is its description."""
    schema = kind.model_json_schema()
    says = "Another recipe to start from, by name or by path relative to this one; the keys here go over its keys."
    properties = {"base": {"type": "string", "title": "Base", "description": says}, **schema["properties"]}
    # a required key may stand in the base
    alternatives = [{"required": ["base"]}, {"required": schema.get("required", [])}]
    rest = {key: value for key, value in schema.items() if key not in ("properties", "required")}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **rest, "properties": properties} | {
        "anyOf": alternatives
    }


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a recipe's file; Refused where there are none."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refused("the recipe is not YAML", where=path, got=str(error).replace("\n", " ")) from None
    if not isinstance(values, dict):
        raise Refused("the recipe is not a table of keys", where=path, got=type(values).__name__)
    return values


def parse_config(kind: type[C], values: dict[str, Any], *, where: str) -> C:
    """Values to a config, with one line for the first thing that is wrong."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        refusal = problem.get("ctx", {}).get("error")
        if isinstance(refusal, Refused):  # values that fit alone, but not together
            raise Refused(f"{where}: {refusal}") from None
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _known_keys(kind, problem["loc"][:-1])
            nearest = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.0)
            fix = f"did you mean {'.'.join([*map(str, problem['loc'][:-1]), nearest[0]])}?" if nearest else None
            raise Refused("unknown config key", where=where, got=key, expected="a known key", fix=fix) from None
        if problem["type"] == "missing":
            raise Refused(
                "a config key is missing", where=where, expected=key, fix=f"set it in the recipe, or say {key}=VALUE"
            ) from None
        raise Refused(
            f"config key {key} does not fit", where=where, got=repr(problem["input"])[:100],
            expected=problem["msg"].removeprefix("Input should be "),
        ) from None  # fmt: skip


def dump_config(config: Config) -> str:
    """The whole config as YAML, defaults included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def find_recipe(source: str | Path) -> Path:
    """A recipe's file: as given, or the shipped one of that name."""
    path = Path(source)
    if path.is_file():
        return path
    shipped = Path(str(importlib.resources.files("mmdit.configs")))
    named = shipped / f"{path.name.removesuffix('.yaml')}.yaml"
    if named.is_file() and path.parent.as_posix() in (".", "configs"):
        return named
    names = sorted(file.stem for file in shipped.glob("*.yaml"))
    near = difflib.get_close_matches(named.stem, names, n=1, cutoff=0.7)
    raise Refused("no such recipe", got=source, expected=f"a YAML file, or one of the shipped {', '.join(names)}",
                  fix=f"did you mean {near[0]}?" if near else None)  # fmt: skip


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Sets `key.sub=value` (the value is YAML) in the values of a recipe."""
    for override in overrides:
        _apply(values, override)


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise Refused("not an override", got=repr(override), expected="key.sub=value")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise Refused("not an override", got=repr(override), expected=f"a key with keys below it before {last!r}")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        values[last] = text


def _known_keys(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        field = kind.model_fields.get(str(part))
        inner = (field.annotation, *get_args(field.annotation)) if field is not None else ()
        models = [option for option in inner if isinstance(option, type) and issubclass(option, BaseModel)]
        if not models:
            return []
        kind = models[0]  # of "a table or null", the table
    return list(kind.model_fields)
