"""What the pages say of the code, made from the code when they are built, so that it cannot go stale.

A line `<!-- generated: NAME -->` of a page becomes what the function of that name in GENERATED gives. And griffe, which
reads the docstrings, finds the packages as they are when installed: links beside the built site.
"""

import ast
import importlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from cards import cards  # beside this file, where mkdocs looks while it loads a hook
from mkdocs.plugins import event_priority

ROOT = Path(__file__).parents[1]


@event_priority(100)
def on_config(config: Any) -> Any:
    """Before mkdocstrings reads where the packages are."""
    links = Path(f"{config.site_dir}-links")
    shutil.rmtree(links, ignore_errors=True)
    (links / "mmdit").mkdir(parents=True)
    for part in [*(ROOT / "mmdit").iterdir(), *(ROOT / name for name in ("configs", "pipelines", "tools"))]:
        (links / "mmdit" / part.name).symlink_to(part)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(links)]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    return re.sub(r"^<!-- generated: (.+) -->$", lambda found: GENERATED[found[1]](), markdown, flags=re.MULTILINE)


def training_keys() -> str:
    """Every key of a training recipe; with what a run that goes on makes of another value."""
    from mmdit.training.config import RunConfig
    from mmdit.training.resume_rules import IGNORED, MAY_CHANGE, MUST_MATCH, rule_of

    rules = [(MUST_MATCH, "must match"), (MAY_CHANGE, "may change"), (IGNORED, "ignored")]

    def going_on(key: str) -> str:
        return next((words for keys, words in rules if rule_of(key) in keys), "")

    return _tables(RunConfig, going_on)


def codec_keys() -> str:
    from mmdit.training.codec_recipe import CodecRecipe

    return _tables(CodecRecipe)


def _tables(kind: Any, going_on: Callable[[str], str] | None = None) -> str:
    """A table of the keys for each table of a recipe, with a heading where it is not the outermost."""
    schema = kind.model_json_schema()
    head = ["key", "value", "default", "what it does", *(["when a run goes on"] if going_on else [])]
    lines = []
    for name, table in _in_order(schema, schema, ""):
        lines += ["", f"### {name}", "", table.get("description", "")] if name else []
        lines += ["", _row(head), _row(["---"] * len(head))]
        for key, about in table["properties"].items():
            cells = [f"`{key}`", _value(about), _default(schema, table, key), about.get("description", "see below")]
            lines.append(_row([*cells, going_on(f"{name}.{key}".lstrip("."))] if going_on else cells))
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def _default(schema: Any, table: Any, key: str) -> str:
    about = table["properties"][key]
    if key in table.get("required", []):
        return "needed"
    if _inner(schema, about) and about["default"] is not None:
        return "see below"
    return f"`{json.dumps(about['default'])}`"


def _in_order(schema: Any, table: Any, name: str) -> Iterator[tuple[str, Any]]:
    """A table, and then those within it, by dotted name; what occurs a second time is told once."""
    yield name, table
    for key, about in table["properties"].items():
        inner = _inner(schema, about)
        if inner and f"{name}.{key}" != "data.sources.videos":
            yield from _in_order(schema, inner, f"{name}.{key}".lstrip("."))


def _inner(schema: Any, about: Any) -> Any:
    """The table that a key holds, or a list of; None for a plain value."""
    for option in (about, *about.get("anyOf", ())):
        reference = option.get("$ref") or option.get("items", {}).get("$ref")
        if reference:
            return schema["$defs"][reference.rsplit("/", 1)[1]]
    return None


def _value(about: Any) -> str:
    """What a value may be, in words."""
    if "anyOf" in about:
        return " or ".join(dict.fromkeys(_value(option) for option in about["anyOf"]))
    if "$ref" in about:
        return "a table"
    if "enum" in about:
        return ", ".join(f"`{choice}`" for choice in about["enum"])
    if "const" in about:
        return f"`{about['const']}`"
    if about.get("type") == "array":
        if "prefixItems" in about:
            return f"{len(about['prefixItems'])} of: {_value(about['prefixItems'][0])}"
        return f"a list of: {_value(about['items'])}"
    if about.get("type") == "object":
        inner = about.get("additionalProperties")
        return f"a table of: {_value(inner)}" if isinstance(inner, dict) else "a table"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true`, `false`",
             "null": "`null`"}[about["type"]]  # fmt: skip
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {about[name]:g}" for name, sign in signs.items() if name in about]
    return f"{words} {', '.join(limits)}".strip()


def recipes() -> str:
    """A row for each shipped recipe: what its header says before the first fact with a name."""
    rows = ["| recipe | what it trains |", "|---|---|"]
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        header = re.split(r"^(?:#? *$|# [A-Z][a-z]+: |[^#])", path.read_text("utf-8"), flags=re.MULTILINE)[0]
        words = " ".join(line.lstrip("# ") for line in header.splitlines())
        rows.append(f"| `configs/{path.name}` | {words.replace('|', '/')} |")
    return "\n".join(rows)


def layers() -> list[list[str]]:
    """The rooms from the bottom up, as tests/test_layout.py holds them to."""
    for node in ast.parse((ROOT / "tests/test_layout.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS":
            return [sorted(layer) for layer in ast.literal_eval(node.value)]
    raise LookupError("tests/test_layout.py has no LAYERS")


def house() -> str:
    """The rooms as a drawing: a row a layer, each of which imports only from the rows below."""
    width, height, gap, rows = 720, 44, 14, list(reversed(layers()))
    parts = []
    for number, names in enumerate(rows):
        top, room = number * (height + gap), (width - gap * (len(names) - 1)) / len(names)
        for place, name in enumerate(names):
            left = place * (room + gap)
            parts.append(f'<rect x="{left:.0f}" y="{top}" width="{room:.0f}" height="{height}" rx="6" fill="#3f51b5" '
                         f'fill-opacity="{0.10 + 0.05 * number:.2f}" stroke="#3f51b5"/>')  # fmt: skip
            parts.append(f'<text x="{left + room / 2:.0f}" y="{top + 28}" text-anchor="middle" fill="currentColor" '
                         f'font-size="17">{escape(name)}</text>')  # fmt: skip
        if number:
            parts.append(f'<path d="M{width / 2} {top - gap + 1} v8 m-4 -4 l4 4 l4 -4" fill="none" '
                         'stroke="currentColor"/>')  # fmt: skip
    total = len(rows) * (height + gap) - gap
    label = "Rooms of the house, from tools down to errors; each imports only from below"
    return (f'<svg viewBox="-1 -1 {width + 2} {total + 2}" role="img" aria-label="{label}" '
            f'style="max-width: 100%">{"".join(parts)}</svg>')  # fmt: skip


def commands() -> str:
    """Every verb, with the line that `mmdit --help` has for it."""
    verbs = importlib.import_module("mmdit.tools.cli").VERBS
    return "\n".join(["| verb | what it does |", "|---|---|",
                      *(f"| `mmdit {name}` | {verb.help} |" for name, verb in verbs.items())])  # fmt: skip


def studies() -> str:
    """A table for each study that was run, from what `mmdit study` wrote, under the first lines of its file."""
    lines = []
    for path in sorted((ROOT / "docs/benchmarks").glob("study-*.json")):
        told, name = json.loads(path.read_text("utf-8")), path.stem.removeprefix("study-")
        header = (ROOT / f"configs/studies/{name}.yaml").read_text("utf-8").split("# Command:")[0]
        seeds, rows = max(row["trials"] for row in told["rows"]), told["rows"]
        lines += ["", f"### {name}", "", " ".join(line.strip("# ") for line in header.splitlines()), "",
                  f"`mmdit study {name} data.store=demo/store`, {seeds} {'seeds' if seeds > 1 else 'seed'}, "
                  f"on a core of an {told['device']}, torch {told['torch']}, commit {told['commit'][:7]}, "
                  f"by the protocol `{told['study']['protocol']}`:", ""]  # fmt: skip
        names = list(rows[0]["mean"])
        lines += [_row(["point", "GMACs a clip", "steps", *names]), _row(["---"] * (3 + len(names)))]
        for row in rows:
            cells = [_measured(row["mean"][key], row["spread"][key], row["trials"], key) for key in names]
            lines.append(_row([row["point"], f"{row['macs'] / 1e9:.4f}", str(row["steps"]), *cells]))
        found = [f"{key} {value:+.2f}" for key, value in told["rank_correlations"].items()]
        if found:
            lines += [
                "",
                f"Rank correlation with multiply-accumulates, -1 where more are always better: {', '.join(found)}.",
            ]
    return "\n".join(lines)


def _measured(mean: float, spread: float, trials: int, key: str) -> str:
    """A figure with the deviation over seeds; attributes in percent."""
    scale, digits, unit = (100, 1, " %") if key == "attributes" else (1, 4 if abs(mean) < 10 else 0, "")
    deviation = f" ± {scale * spread:.{digits}f}" if trials > 1 else ""
    return f"{scale * mean:.{digits}f}{deviation}{unit}"


GENERATED: dict[str, Callable[[], str]] = {
    "training keys": training_keys, "codec keys": codec_keys, "recipes": recipes, "house": house, "commands": commands,
    "studies": studies,
    "cards": lambda: cards(ROOT / "configs"),
}  # fmt: skip
