"""Protocols are files with names; what they do not say is refused."""

import importlib.resources
from pathlib import Path

import pytest

from mmdit.diffusion import SAMPLERS
from mmdit.errors import Refused
from mmdit.evaluation.features import NETWORKS
from mmdit.evaluation.protocol import load_protocol

SHIPPED = sorted(
    path.stem for path in (Path(str(importlib.resources.files("mmdit.configs"))) / "protocols").glob("*.yaml")
)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_protocol_is_whole(name: str) -> None:
    rules = load_protocol(name)
    assert set(rules.networks) <= set(NETWORKS)
    assert rules.sampler is None or rules.sampler in SAMPLERS


def test_a_file_and_changes(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("samples: 8\nsteps: 3\n")
    rules = load_protocol(str(tmp_path / "mine.yaml"), ["steps=5", "sampler=heun"])
    assert (rules.samples, rules.steps, rules.sampler) == (8, 5, "heun")


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("no-such", [], "no such protocol, got no-such, expected a YAML file, or one of .*fashion-small"),
        ("../demo_fashion", [], "no such protocol"),
        ("fashion-small", ["sample=3"], "unknown config key, .*did you mean sample"),
        ("fashion-small", ["samples=1"], "samples does not fit"),
        ("fashion-small", ["samples"], "not an override"),
    ],
)
def test_what_is_no_protocol_is_refused(name: str, changes: list[str], said: str) -> None:
    with pytest.raises(Refused, match=said):
        load_protocol(name, changes)
