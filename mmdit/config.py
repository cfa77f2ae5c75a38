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
    """What all recipes share: unknown keys are refused, and the docstring under a field is its help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


C = TypeVar("C", bound=Config)


def load_config(kind: type[C], source: str | Path, overrides: Sequence[str] = ()) -> C:
    """Reads a recipe and applies `key.sub=value` overrides (the value is YAML).

    Args:
        source: a YAML file, or the name of a shipped one ("demo_fashion", "configs/demo_fashion.yaml").

    Raises:
        Refused: no such recipe, not YAML, an unknown key (the nearest known one is named), or a value that does not
            fit.
    """
    values = read_yaml(find_recipe(source))
    for override in overrides:
        _apply(values, override)
    return parse_config(kind, values, where=str(source))


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
            f"config key {key} does not fit", where=where, got=repr(problem["input"])[:100], expected=problem["msg"]
        ) from None


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
    raise Refused("no such recipe", got=source, expected=f"a YAML file, or one of the shipped {', '.join(names)}")


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
