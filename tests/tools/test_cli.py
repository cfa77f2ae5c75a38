"""`mmdit VERB`: what the command line promises, for every verb there is."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer

import mmdit
from mmdit.errors import OverBudget, Refused, Stopped
from mmdit.tools import cli

HEAVY = {"accelerate", "av", "decord", "diffusers", "matplotlib", "pyarrow", "torch", "transformers"}


def ending(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def python(code: str, *, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=250)


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verb `probe FOLDER --frames N` that ends in as many ways as there are."""

    def main(
        folder: Annotated[Path, typer.Argument(help="A folder.")],
        frames: Annotated[int, typer.Option(help="Frames a clip.")] = 17,
    ) -> int:
        """Looks at a folder.

        Example: mmdit probe clips --frames 9
        """
        errors = {
            2: Refused("bad clips", where=folder, fix="look"),
            3: OverBudget("skipped"),
            4: Stopped("disk\nfull"),
            5: RuntimeError("first\nsecond"),
            6: KeyboardInterrupt(),
            7: OSError(28, "No space left on device", "store/part"),
            8: typer.Exit(3),
            9: BrokenPipeError(),
            10: ValueError(),
        }
        if frames in errors:
            raise errors[frames]
        print(f"looked at {folder}")
        return 7  # a value is no exit code

    module = type(sys)("mmdit.tools.probe_for_tests")
    module.main = main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.VERBS, "probe", cli.Verb(module.__name__, "looks"))


def test_help_lists_every_verb_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending("--help") == 0
    lines = capsys.readouterr().out.splitlines()
    for name, verb in cli.VERBS.items():
        assert any(line.split(maxsplit=1) == [name, verb.help] for line in lines)
    assert max(map(len, lines)) <= 100


def test_no_verb_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending() == 2
    assert "Usage: mmdit VERB" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending("--version") == 0
    assert capsys.readouterr().out == f"mmdit {mmdit.__version__}\n"


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys\nfrom mmdit.tools import cli\ntry: cli.main(['-h'])\nexcept SystemExit: print(*sys.modules)"
    loaded = set(python(code, cwd=tmp_path).stdout.splitlines()[-1].split())
    assert "mmdit.tools.cli" in loaded
    assert not loaded & (HEAVY | {"numpy", "typer", "pydantic"})


def test_verbs_load_nothing_heavy_before_they_run(tmp_path: Path) -> None:
    modules = [verb.module for verb in cli.VERBS.values()]
    code = f"import sys, {', '.join(modules)}\nprint(*sys.modules)"
    result = python(code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert not set(result.stdout.split()) & HEAVY


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_verb_shows_an_example_of_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(name, "--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Usage: mmdit {name} ")
    assert "Example" in shown and f"mmdit {name}" in shown.partition("Example")[2]


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_verb_refuses_an_unknown_option_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(name, "--no-such-option") == 2
    said = capsys.readouterr().err
    assert said.startswith("mmdit: no such option: --no-such-option") and said.count("\n") == 1
    assert f"mmdit {name} --help" in said


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_verb_is_a_program_too(name: str) -> None:
    source = Path(str(importlib.import_module(cli.VERBS[name].module).__file__)).read_text("utf-8")
    assert "run(main)" in source.partition('if __name__ == "__main__":\n')[2]


def test_a_key_said_as_an_option_is_told_how_to_say_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending("train", "demo_fashion", "--ema-decay", "0.9") == 2
    said = "no such option: --ema-decay; keys are said without dashes, as ema_decay=VALUE; see 'mmdit train"
    assert said in capsys.readouterr().err
    assert ending("make-clips", "clips", "--ema-decay", "0.9") == 2
    assert "without dashes" not in capsys.readouterr().err


def test_the_nearest_verb_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending("make_clip") == 2
    assert capsys.readouterr().err == "mmdit: no such verb: 'make_clip'; did you mean 'mmdit make-clips'?\n"
    assert ending("qqqq") == 2
    assert capsys.readouterr().err == "mmdit: no such verb: 'qqqq'; 'mmdit --help' lists the verbs\n"
    assert ending("--frames") == 2
    assert capsys.readouterr().err == "mmdit: no such option: '--frames'; 'mmdit --help' lists the verbs\n"


@pytest.mark.usefixtures("verb")
@pytest.mark.parametrize(
    ("frames", "code", "line"),
    [
        ("2", 2, "bad clips, in clips; look"),
        ("3", 3, "skipped"),
        ("4", 4, "disk full"),
        ("5", 4, "stopped by an unexpected RuntimeError: first second; --debug shows the traceback"),
        ("6", 4, "stopped by Ctrl-C"),
        ("7", 4, "stopped by an unexpected OSError: [Errno 28] No space left on device: 'store/part'; --debug shows"),
        ("10", 4, "stopped by an unexpected ValueError: no message; --debug shows the traceback"),
        ("nine", 2, "invalid value for '--frames': it should be a valid integer"),
    ],
)
def test_an_error_is_one_line_and_a_code(frames: str, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ending("probe", "clips", "--frames", frames) == code
    out, err = capsys.readouterr()
    assert err.startswith(f"mmdit: {line}") and err.count("\n") == 1 and not out


@pytest.mark.usefixtures("verb")
def test_a_refused_value_is_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending("probe", "clips", "--frames", "nine") == 2
    assert "got 'nine'; see 'mmdit probe --help'" in capsys.readouterr().err


@pytest.mark.usefixtures("verb")
@pytest.mark.parametrize("words", [(), ("clips", "more"), ("clips", "--frames")])
def test_wrong_usage_is_one_line(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert ending("probe", *words) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.usefixtures("verb")
def test_a_verb_that_returns_ends_with_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending("probe", "clips") == 0
    assert capsys.readouterr().out == "looked at clips\n"
    assert ending("probe", "clips", "--frames", "8") == 3  # typer.Exit(3)


@pytest.mark.usefixtures("verb")
@pytest.mark.parametrize(
    "words", [("--debug", "probe", "clips"), ("probe", "--debug", "clips"), ("probe", "clips", "--debug")]
)
def test_debug_shows_the_traceback(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(*words, "--frames", "2") == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and said.endswith("mmdit: bad clips, in clips; look\n")


@pytest.mark.usefixtures("verb")
def test_debug_by_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MMDIT_DEBUG", "1")
    assert ending("probe", "clips", "--frames", "5") == 4
    assert capsys.readouterr().err.startswith("Traceback")
    monkeypatch.setenv("MMDIT_DEBUG", "0")
    assert ending("probe", "clips", "--frames", "5") == 4
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.usefixtures("verb")
def test_after_two_dashes_all_is_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending("probe", "--", "--debug") == 0
    assert capsys.readouterr().out == "looked at --debug\n"


def test_a_program_run_by_its_file(tmp_path: Path) -> None:
    """`python tools/VERB.py`, as torchrun and accelerate launch start it, ends as the verb does."""
    program = tmp_path / "look.py"
    program.write_text(
        "import sys\nfrom mmdit.errors import Refused\nfrom mmdit.tools.cli import run\n"
        "def main(folder: str) -> None:\n    '''Looks.'''\n    raise Refused('nothing there', where=folder)\n"
        "if __name__ == '__main__':\n    run(main)\n"
    )
    for words, code, line in [(["clips"], 2, "nothing there, in clips"), (["--depth"], 2, "no such option: --depth")]:
        result = subprocess.run([sys.executable, program, *words], capture_output=True, text=True, timeout=250)
        assert result.returncode == code
        assert result.stderr.startswith(f"mmdit: {line}") and result.stderr.count("\n") == 1
    shown = subprocess.run([sys.executable, program, "--help"], capture_output=True, text=True, timeout=250)
    assert shown.returncode == 0 and shown.stdout.startswith("Usage: look.py ")


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_leaves_is_no_traceback(lines: int, tmp_path: Path) -> None:
    program = tmp_path / "count.py"
    program.write_text(
        f"from mmdit.tools.cli import run\ndef main() -> None:\n    for n in range({lines}): print(n)\nrun(main)\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, str(program)]
    result = subprocess.run(command, env=buffered, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=250)
    os.close(writer)
    assert result.returncode == 4
    assert result.stderr == "mmdit: stopped: the program that reads the output has ended\n"
