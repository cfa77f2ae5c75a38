"""The commands and the Python that the README and the pages tell a user to type."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = ("mmdit", "torchrun", "accelerate", "make", "pip")
# What stands for a user's own, where the command line wants a value of some form.
STANDS_FOR = {
    "VERB": "train", "tools/VERB.py": "tools/train.py",
    "RECIPE": "configs/demo_fashion.yaml", "N": "2", "DB": "30", "WIDTHxTOKENS": "768x77",
    "CHANNELxFRAMExHEIGHTxWIDTH": "16x9x8x6", "NUMBER": "5",
}  # fmt: skip


@dataclass(frozen=True)
class Command:
    """Words as they are typed, environment left out. `whole`: on a line of its own; in a sentence it may be a part."""

    page: str
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and text of each fenced block, and "" and text of each one indented by four spaces."""
    fenced = [(found[1], found[2]) for found in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.M | re.S)]
    rest = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return fenced + [
        ("", re.sub("^ {4}", "", found[0], flags=re.M)) for found in re.finditer(r"(?:^ {4}.+\n)+", rest, re.M)
    ]


def commands(page: Path) -> list[Command]:
    """All of a page, in order within blocks and within sentences."""
    text, name = page.read_text("utf-8"), page.relative_to(ROOT).as_posix()
    lines = [line for kind, block in blocks(text) if kind in ("", "sh", "bash", "console")
             for line in block.replace("\\\n", " ").splitlines()]  # fmt: skip
    found = [_command(name, line, whole=True) for line in lines]
    sentences = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    quoted = re.findall(r"(?<!`)`([^`]+)`(?!`)", sentences)
    found += [_command(name, " ".join(line.split()), whole=False) for line in quoted]
    return [command for command in found if command is not None]


def _command(page: str, line: str, *, whole: bool) -> Command | None:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a sentence with an apostrophe
        return None
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        del words[0]
    if not words or words[0] not in PROGRAMS or (len(words) == 1 and not whole):
        return None
    end = next((place for place, word in enumerate(words) if word in (">", "|", "&&", ";")), len(words))
    kept = [STANDS_FOR.get(word, word) for word in words[:end] if word not in ("...", "key=value")]
    return Command(page, tuple(kept), whole and "..." not in words)


def python_blocks() -> list[tuple[str, str]]:
    """Page and source of each block of Python."""
    return [(page.relative_to(ROOT).as_posix(), block) for page in PAGES
            for kind, block in blocks(page.read_text("utf-8")) if kind in ("python", "py")]  # fmt: skip
