"""The house keeps its order: imports point down only, and the library reads no command line."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the bottom up; a package may import itself and what lies below it.
LAYERS = [
    {"errors"},
    {"seeds", "files"},
    {"config"},
    {"configs"},
    {"clips"},
    {"models", "diffusion", "conditioning", "latents"},
    {"training", "evaluation", "report"},
    {"pipelines"},
    {"tools"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
OUTSIDE = ("configs", "pipelines", "tools")
COMMAND_LINE = {"argparse", "click", "getopt", "optparse", "typer"}


def part_of(path: Path) -> str:
    """The layer's name for a file: mmdit/clips/video.py -> clips, tools/train.py -> tools, mmdit/seeds.py -> seeds."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "mmdit" else parts[0]


def imports(source: str, package: tuple[str, ...]) -> list[tuple[int, str]]:
    """Line and full dotted name of everything imported, lazily in functions too."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


def package_of(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(ROOT).parent.parts
    return parts if parts[0] == "mmdit" else ("mmdit", *parts)


def upward(source: str, part: str, package: tuple[str, ...]) -> list[str]:
    """What `source`, a file of `part`, must not import."""
    wrong = []
    for line, name in imports(source, package):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if top in OUTSIDE:
            wrong.append(f"line {line}: {name}: imported as mmdit.{name}")
        elif top == "mmdit" and target in RANK and target != part and RANK[target] >= RANK[part]:
            wrong.append(f"line {line}: {part} imports {name}, which is not below it")
    return wrong


def reads_command_line(source: str, package: tuple[str, ...]) -> list[str]:
    wrong = [f"line {line}: {name}" for line, name in imports(source, package) if name.split(".")[0] in COMMAND_LINE]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr == "argv":
            wrong.append(f"line {node.lineno}: argv")
    return wrong


FILES = sorted(path for top in ("mmdit", *OUTSIDE) for path in (ROOT / top).rglob("*.py"))
IDS = [path.relative_to(ROOT).as_posix() for path in FILES]


def test_every_part_has_a_layer() -> None:
    assert len(FILES) > 20
    unknown = {part_of(path) for path in FILES if path != ROOT / "mmdit/__init__.py"} - RANK.keys()
    assert not unknown, f"give these a place in LAYERS: {unknown}"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_point_down(path: Path) -> None:
    if path == ROOT / "mmdit/__init__.py":
        assert not [name for _, name in imports(path.read_text("utf-8"), ("mmdit",)) if name.startswith("mmdit")]
    else:
        wrong = upward(path.read_text("utf-8"), part_of(path), package_of(path))
        assert not wrong


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_the_library_reads_no_command_line(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] != "tools":
        wrong = reads_command_line(path.read_text("utf-8"), package_of(path))
        assert not wrong


@pytest.mark.parametrize(
    ("source", "part", "package"),
    [
        ("import mmdit.pipelines", "training", ("mmdit", "training")),
        ("def f():\n    from mmdit.tools import cli", "report", ("mmdit", "report")),
        ("from mmdit import models", "diffusion", ("mmdit", "diffusion")),
        ("from ..training import loop", "models", ("mmdit", "models")),
        ("from mmdit.clips.video import write_clip", "files", ("mmdit",)),
        ("from tools.cli import run", "tools", ("mmdit", "tools")),
    ],
)
def test_an_arrow_up_is_seen(source: str, part: str, package: tuple[str, ...]) -> None:
    assert upward(source, part, package)


def test_a_command_line_is_seen() -> None:
    assert reads_command_line("def f():\n    import argparse", ("mmdit",))
    assert reads_command_line("import sys\nprint(sys.argv)", ("mmdit",))


def test_arrows_down_are_allowed() -> None:
    for source in ("from . import loop", "from mmdit.models import DiT", "from ..files import lock", "import torch"):
        assert not upward(source, "training", ("mmdit", "training"))
