"""An installed mmdit is complete: every module, recipe and asset is in the wheel, under mmdit and nowhere else."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import mmdit

ROOT = Path(__file__).parents[1]
FOLDERS = {"mmdit": "mmdit", "configs": "mmdit/configs", "pipelines": "mmdit/pipelines", "tools": "mmdit/tools"}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def pins() -> dict[str, str]:
    """The exact versions of constraints.txt by name."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = [line.partition(";")[0].strip().split("==") for line in lines if line and not line.startswith("#")]
    assert len(dict(pairs)) == len(pairs), "a package is pinned twice"
    return dict(pairs)


def shipped() -> set[str]:
    """What the wheel must hold, by its path there: all that lies in the four folders."""
    return {
        f"{place}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, place in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in path.relative_to(ROOT).parts)
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built of a copy: setuptools leaves its working files in the source folder, and takes old ones in."""
    source = tmp_path_factory.mktemp("source")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_everything_and_only_under_mmdit(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"mmdit_video-{mmdit.__version__}.dist-info/"
    assert wheel.name == f"mmdit_video-{mmdit.__version__}-py3-none-any.whl"
    assert {name for name in names if not name.startswith(info)} == shipped()
    assert f"{info}licenses/LICENSE" in names


def test_the_wheel_runs_where_there_is_no_repository(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "from importlib.util import find_spec; from mmdit.tools import cli\n"
        "for name in ('mmdit.tools.cli', 'mmdit.pipelines', 'mmdit.configs'): print(find_spec(name).origin)\n"
        "cli.main()"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", code, "--help"]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert result.returncode == 0, result.stderr
    places = [
        tmp_path / "site/mmdit" / name for name in ("tools/cli.py", "pipelines/__init__.py", "configs/__init__.py")
    ]
    lines = result.stdout.splitlines()
    assert [Path(line) for line in lines[:3]] == places
    assert "Usage: mmdit VERB [ARGUMENTS]" in lines


def test_recipes_and_assets_are_there_to_ship() -> None:
    assert any(name.startswith("mmdit/configs/") and name.endswith(".yaml") for name in shipped())
    for asset in ("codec_fashion", "probe_fashion"):
        assert any(name.startswith(f"mmdit/assets/{asset}/") for name in shipped())


def test_every_dependency_has_a_lower_bound_and_a_pin() -> None:
    table, pinned = project()["project"], pins()
    for line in table["dependencies"] + [line for extra in table["optional-dependencies"].values() for line in extra]:
        found = re.match(r"([A-Za-z0-9_-]+)(?:\[[a-z]+\])?(?:(>=|<)([0-9.]+))?", line)
        assert found, line
        name, sign, bound = found.groups()
        assert name in pinned, f"{name} has no exact version in constraints.txt"
        assert sign or name.startswith("types-"), f"{line} has no lower bound"
        if sign:
            assert (numbers(pinned[name]) >= numbers(bound)) == (sign == ">="), f"{line}, but {pinned[name]} is pinned"


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def name_of(requirement: str) -> str:
    return re.split(r"[><;\[ ]", requirement)[0]


def test_what_is_imported_is_declared() -> None:
    """Every third-party package that the code imports is a dependency or an extra, and no dependency is unused."""
    nodes = [
        node
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
    ]
    used = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    used |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    used = {name.partition(".")[0] for name in used}
    names = {"PIL": "pillow", "huggingface_hub": "huggingface-hub", "yaml": "pyyaml", "decord": "decord2"}
    foreign = {names.get(name, name) for name in used if name not in sys.stdlib_module_names} - {"mmdit"}
    table = project()["project"]
    dependencies = {name_of(line) for line in table["dependencies"]}
    optional = ("xformers", "app", "ray", "lora", "eightbit")
    extras = {name_of(line) for extra in optional for line in table["optional-dependencies"][extra]}
    assert foreign <= dependencies | extras
    by_others = {"tensorboard"}  # torch's and accelerate's tracker imports it
    assert dependencies <= foreign | by_others, f"not used: {dependencies - foreign}"


PLAIN_DIFFUSERS = """
import sys
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], custom_pipeline=sys.argv[1], trust_remote_code=True)
print(*pipeline("a red coat", num_inference_steps=2).frames[0].shape[:3])
"""


@pytest.mark.slow
def test_a_wheel_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """What a user does without the repository: install the wheel, ask for help, run the demo, export what it trained;
    and load that in plain diffusers, which says what is missing where mmdit is not there."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True, timeout=300)
    programs = tmp_path / "env/bin"

    def call(*command: str, ending: int = 0) -> str:
        words = [str(programs / command[0]), *command[1:]]
        result = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=1500)
        assert result.returncode == ending, result.stdout + result.stderr
        return result.stdout or result.stderr

    call("pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt"), str(wheel))
    call("pip", "check")
    assert "Usage: mmdit VERB" in call("mmdit", "--help")
    call("mmdit", "demo", "--quick", "--out", "demo")
    assert (tmp_path / "demo/summary.json").is_file() and (tmp_path / "demo/report.html").is_file()

    call("mmdit", "export", "demo/run", "exported")
    assert call("python", "-c", PLAIN_DIFFUSERS, "exported").split()[-3:] == ["17", "64", "48"]
    call("pip", "uninstall", "--yes", "--quiet", "mmdit-video")
    said = call("python", "-c", PLAIN_DIFFUSERS, "exported", ending=1)
    assert said.splitlines()[-1].startswith("ImportError: this pipeline needs mmdit")
    assert said.splitlines()[-1].endswith(": pip install mmdit-video")
