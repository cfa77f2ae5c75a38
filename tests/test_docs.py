"""What the README and the pages tell a user to type is right, and the pages build without a warning."""

import ast
import functools
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doc_commands import PAGES, ROOT, Command, commands, python_blocks

from mmdit.config import load_config
from mmdit.errors import Refused
from mmdit.tools import cli

COMMANDS = [command for page in PAGES for command in commands(page)]


def read_words(verb: str, words: list[str], *, whole: bool) -> None:
    """What the verb makes of its words, up to where its work would begin; Refused for what it would refuse."""
    heard: dict[str, Any] = {}

    def listening(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def listen(**given: Any) -> None:
            heard.update(given)

        return listen

    main = importlib.import_module(cli.VERBS[verb].module).main
    if isinstance(main, cli.Kinds):
        function, words, _ = main.pick(words, verb)
    else:
        function = main
    try:
        cli.call(listening(function), verb, words)
    except Refused as refusal:
        if whole or not re.match("missing (argument|option)", str(refusal)):
            raise
    check_values(verb, heard)


def check_values(verb: str, heard: dict[str, Any]) -> None:
    """Names of recipes and their keys, of protocols, studies, samplers, devices, and ways to sample faster."""
    from mmdit.diffusion import SAMPLERS
    from mmdit.evaluation.probe_training import ProbeRecipe
    from mmdit.evaluation.protocol import load_protocol
    from mmdit.pipelines.faster import read_ways
    from mmdit.tools import study
    from mmdit.training.codec_recipe import CodecRecipe
    from mmdit.training.config import RunConfig
    from mmdit.training.devices import find_device
    from mmdit.training.study import Study

    overrides, recipe = heard.get("overrides") or [], heard.get("config") or heard.get("recipe")
    kinds: dict[str, Any] = {"train-codec": CodecRecipe, "train-probe": ProbeRecipe}
    if "protocol" in heard:
        load_protocol(heard["protocol"], overrides)
    elif "study" in heard:
        found = load_config(Study, study._find(heard["study"]))
        for changes in found.points.values():
            load_config(RunConfig, found.recipe, [*found.settings, *overrides, *changes])
    elif verb in ("train", "plan", "bench", *kinds) and recipe:
        load_config(kinds.get(verb, RunConfig), recipe, overrides)
    else:
        assert not overrides, f"nothing here checks overrides of mmdit {verb}"
    if heard.get("sampler") not in (None, "NAME"):
        assert heard["sampler"] in SAMPLERS
    if heard.get("gpu"):
        assert find_device(heard["gpu"])
    read_ways(heard.get("faster"))


def check(command: Command) -> None:
    program, *words = command.words
    if program == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
        assert {word for word in words if "=" not in word} <= targets
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
        assert {name for word in words for name in re.findall(r"(?:mmdit-video|\.)\[(.+)\]", word)} <= extras.keys()
    elif program == "mmdit":
        verb = words[0]
        if verb not in ("--help", "--version"):
            assert verb in cli.VERBS, f"no such verb: {verb}"
            if len(words) > 1 or command.whole:
                read_words(verb, words[1:], whole=command.whole)
    else:
        read_launched(program, words, whole=command.whole)


def read_launched(program: str, words: list[str], *, whole: bool) -> None:
    """`torchrun ... tools/VERB.py ...` and `accelerate launch ...`: the launcher's own options, then the verb's."""
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    if program == "accelerate":
        assert words.pop(0) == "launch"
        if not words:
            return
    parser = get_args_parser() if program == "torchrun" else launch_command_parser()
    launched = parser.parse_args(words)
    assert (ROOT / launched.training_script).is_file(), launched.training_script
    module = "mmdit.tools." + Path(launched.training_script).stem
    verb = next(name for name, verb in cli.VERBS.items() if verb.module == module)
    read_words(verb, launched.training_script_args, whole=whole)


@pytest.mark.parametrize("page", sorted({command.page for command in COMMANDS}))
def test_every_command_is_one_that_there_is(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = []
    for command in COMMANDS:
        if command.page == page:
            try:
                check(command)
            except (AssertionError, Refused, KeyError, SystemExit, StopIteration) as error:
                wrong.append(f"{command}: {error!r}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_commands_of_a_recipe_are_right(path: Path) -> None:
    header = re.match(r"(#.*\n)+", path.read_text("utf-8"))
    text = re.sub(r"\\\n#|\n# {9,}", " ", header[0] if header else "")
    found = re.findall(r"^# (?:Data|Command|Plan): +((?:mmdit|torchrun) .*)$", text, re.M)
    lines = [line for part in found for line in part.split(" && ")]
    assert any(f"configs/{path.name}" in line for line in lines)
    for line in lines:
        check(Command(path.name, tuple(line.split()), whole=True))


def test_the_commands_are_found() -> None:
    seen = {command.page: 0 for command in COMMANDS} | {"all": len(COMMANDS)}
    assert seen["all"] > 60 and {"README.md", "docs/index.md", "docs/training.md", "docs/scaling.md"} <= seen.keys()
    assert any(command.words[0] == "torchrun" for command in COMMANDS)


@pytest.mark.parametrize(
    "line",
    [
        "mmdit trian configs/debug.yaml",
        "mmdit train configs/no_such_recipe.yaml",
        "mmdit train configs/debug.yaml data.bath_size=3",
        "mmdit train configs/debug.yaml steps=none",
        "mmdit generate runs/mine --promt coat --out a.mp4",
        "mmdit generate runs/mine --prompt coat",
        "mmdit generate runs/mine --out a.mp4 --sampler eulr",
        "mmdit generate runs/mine --out a.mp4 --faster first-blok",
        "mmdit bench lod demo_fashion",
        "mmdit plan debug --gpu h2000",
        "mmdit evaluate runs/mine --store demo/store --protocol fvd-17f",
        "mmdit evaluate runs/mine --store demo/store sampels=3",
        "mmdit study scalign",
        "mmdit study scaling data.stroe=demo/store",
        "torchrun --nproc-per-noode 8 tools/train.py debug",
        "torchrun --nproc-per-node 8 tools/trian.py debug",
        "torchrun --nproc-per-node 8 tools/train.py debug sharding=ful",
        "accelerate launch --num_procesess 2 tools/train.py debug",
        "make tset",
        'pip install "mmdit-video[ap]"',
    ],
)
def test_a_wrong_command_is_seen(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("doc_commands.ROOT", tmp_path)
    for text in (f"```\n{line}  # why\n```\n", f"    {line}\n"):
        (tmp_path / "page.md").write_text(text)
        found = commands(tmp_path / "page.md")
        assert len(found) == 1
        with pytest.raises((AssertionError, Refused, SystemExit)):
            check(found[0])


@pytest.mark.parametrize(("page", "source"), python_blocks())
def test_the_python_of_a_page_compiles_and_imports_what_there_is(page: str, source: str) -> None:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{page}: {missing} of {node.module}"
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assert names or "import" in source


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, built strictly: a link that leads nowhere, a page left out or an unknown name ends the build."""
    out = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]  # --quiet counts no warning
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)
    assert built.returncode == 0, built.stdout + built.stderr
    return out


def test_the_pages_build_and_fetch_nothing(site: Path) -> None:
    pages = {path.name: path.read_text("utf-8") for path in site.glob("*.html")}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} <= {Path(name).stem for name in pages}
    for name, text in pages.items():
        fetched = re.findall(r'<(?:script|link|img|iframe|source)[^>]+(?:src|href)="?((?:https?:)?//[^" >]+)', text)
        assert not fetched, f"{name} fetches {fetched}"


def test_every_key_of_a_training_recipe_has_its_row(site: Path) -> None:
    from mmdit.training.config import RunConfig

    text = (site / "recipes.html").read_text("utf-8")
    part = text[text.index('<h2 id="training">') : text.index('<h2 id="the-codec">')]
    rows = Counter(re.findall(r"<tr>\s*<td><code>(\w+)</code></td>", part))
    schema = RunConfig.model_json_schema()
    keys = Counter(key for table in (schema, *schema["$defs"].values()) for key in table["properties"])
    assert rows == keys


def test_every_recipe_has_its_card(site: Path) -> None:
    page = (site / "reproduction.html").read_text("utf-8")
    rows = dict(re.findall(r'<h3 id="(\w+)">.*?<tbody>(.*?)</tbody>', page, flags=re.DOTALL))
    assert rows.keys() == {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    for name, text in rows.items():
        cells = re.findall(r"<td><strong>(\w+)</strong></td>\s*<td>(.+?)</td>", text)
        kinds = {"source", "data", "command", "hardware", "time", "published", "measured", "size"}
        assert kinds <= {kind for kind, _ in cells}, name
        assert ("not run" not in text) or re.search(r"planned: [\d.,]+ hours on .* assumed \d+ % of its peak", text), (
            name
        )


def test_every_room_has_its_paragraph(site: Path) -> None:
    house = (site / "house.html").read_text("utf-8")
    rooms = re.findall(r">(\w+)</text>", house)
    assert len(rooms) > 12
    assert [room for room in rooms if f"<strong>{room}</strong>" not in house] == []
