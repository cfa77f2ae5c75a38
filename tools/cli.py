"""The command `mmdit VERB`, and how every program in tools/ starts and ends.

Endings: 0 all done; 2 refused before work began (bad config, bad input, bad usage); 3 done, but more was skipped than
the budget allows; 4 stopped with the last good state intact. An error is one line on stderr; the traceback comes with
`--debug`, anywhere on the line, or with MMDIT_DEBUG=1.
"""

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mmdit
from mmdit.errors import MmditError, Refused

USAGE, STOPPED = Refused.exit_code, MmditError.exit_code


class Verb(NamedTuple):
    module: str
    help: str


class Kinds(NamedTuple):
    """A verb of several kinds, each with options of its own. `pick` gives the kind's function, the words that it reads
    and what it is called, or `overview`, whose docstring is the verb's help, where the words name no kind."""

    overview: Callable[..., Any]
    pick: Callable[[list[str], str], tuple[Callable[..., Any], list[str], str]]


# A verb's module is imported only when that verb is called: `mmdit --help` loads neither torch nor typer.
VERBS: dict[str, Verb] = {
    "demo": Verb(
        "mmdit.tools.demo", "the whole way in one command: make clips, encode, train, generate, score, report"
    ),
    "make-clips": Verb("mmdit.tools.make_clips", "draw fashion clips with captions and labels to learn from"),
    "plan": Verb("mmdit.tools.plan", "say what encoding or training would take, and do none of it"),
    "encode": Verb("mmdit.tools.encode", "encode videos and images into a latent store"),
    "verify": Verb("mmdit.tools.verify", "read a whole latent store, and find or repair what is damaged"),
    "inspect": Verb("mmdit.tools.inspect_store", "show what is in a latent store: figures, and a page of its clips"),
    "bench": Verb("mmdit.tools.bench", "measure encoding, training, its memory and sampling on this machine"),
    "train": Verb("mmdit.tools.train", "train a Diffusion Transformer from a recipe"),
    "generate": Verb("mmdit.tools.generate", "generate clips or images from a trained run"),
    "regenerate": Verb("mmdit.tools.regenerate", "make a generated file again, pixel for pixel"),
    "calibrate": Verb("mmdit.tools.calibrate", "find how far attention can be broadcast, for faster sampling"),
    "export": Verb("mmdit.tools.export", "write a run as a pipeline folder with a model card, and push it to a hub"),
    "evaluate": Verb("mmdit.tools.evaluate", "measure a model, or a folder of clips, by a named protocol"),
    "app": Verb("mmdit.tools.app", "make clips on a page in the browser"),
    "convert": Verb("mmdit.tools.convert", "convert weights of DiT, Latte and diffusers' DiT, and back"),
    "study": Verb("mmdit.tools.study", "train a recipe in several ways, and compare what they reach"),
    "train-codec": Verb("mmdit.tools.train_codec", "train the small video codec that comes with mmdit"),
    "train-probe": Verb("mmdit.tools.train_probe", "train the network that scores the generated clips"),
}

HELP = """\
mmdit trains and runs Diffusion Transformers on images and video.

Usage: mmdit VERB [ARGUMENTS]

Verbs:
{verbs}

Options:
  -h, --help  this text; after a verb, what that verb takes, with an example
  --version   the version
  --debug     show the traceback of an error (also: MMDIT_DEBUG=1)

Example:
  mmdit demo --out demo
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The program `mmdit`: picks the verb and runs it, then ends the process with its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = _take_debug(words)
    first = words[0] if words else "--help"
    if first in ("--help", "-h"):
        width = max(map(len, VERBS))
        print(HELP.format(verbs="\n".join(f"  {name:{width}}  {verb.help}" for name, verb in VERBS.items())), end="")
        sys.exit(0 if words else USAGE)
    if first == "--version":
        print(f"mmdit {mmdit.__version__}")
        sys.exit(0)
    if first not in VERBS:
        kind = "option" if first.startswith("-") else "verb"
        near = difflib.get_close_matches(first, VERBS, n=1, cutoff=0.5)
        hint = f"did you mean 'mmdit {near[0]}'?" if near and kind == "verb" else "'mmdit --help' lists the verbs"
        _complain(f"no such {kind}: {first!r}; {hint}")
        sys.exit(USAGE)
    sys.exit(_ending(lambda: call(importlib.import_module(VERBS[first].module).main, first, words[1:]), debug))


def run(function: Callable[..., Any] | Kinds) -> None:
    """Runs one verb's `main` as a program of its own: `python tools/VERB.py`, also under torchrun and accelerate."""
    words = sys.argv[1:]
    debug = _take_debug(words)
    sys.exit(_ending(lambda: call(function, os.path.basename(sys.argv[0]), words, prefix=""), debug))


def _take_debug(words: list[str]) -> bool:
    """Takes every `--debug` before a `--` out of `words`; says whether tracebacks are wanted."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != "--debug"]
    asked = len(kept) < end
    words[:end] = kept
    return asked or os.environ.get("MMDIT_DEBUG", "") not in ("", "0")


_words: list[str] = []


def words_given() -> list[str]:
    """The words after the verb, as they were given."""
    return list(_words)


def call(function: Callable[..., Any] | Kinds, name: str, words: list[str], prefix: str = "mmdit ") -> int:
    import typer

    _words[:] = words
    if isinstance(function, Kinds):
        function, words, name = function.pick(words, name)

    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(help=_help_text(function))(function)
    command = typer.main.get_command(app)
    settings: dict[str, Any] = {"max_content_width": 100, "help_option_names": ["-h", "--help"]}
    try:
        with command.make_context(prefix + name, words, **settings) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        # Usage errors alone have this method; their class has no public name in every version of typer.
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message().strip().rstrip(".").replace(" (Possible options: --help)", "")
        fix = f"see '{prefix}{name} --help'"
        option = getattr(error, "option_name", "")
        if any(parameter.name == "overrides" for parameter in command.params) and option.startswith("--"):
            fix = f"keys are said without dashes, as {option[2:].replace('-', '_')}=VALUE; {fix}"
        raise Refused(
            message[:1].lower() + message[1:].replace(": Input should be", ": it should be"), got=_given(error), fix=fix
        ) from None
    return 0


def _given(error: Exception) -> str | None:
    """What the user gave where pydantic, inside typer, refused a value."""
    details = getattr(error.__cause__, "errors", None)
    return repr(details()[0]["input"]) if details else None


def _help_text(function: Callable[..., Any]) -> str:
    """The docstring; a paragraph with indented or several commands (an example) keeps its line breaks."""
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    return "\n\n".join(
        "\b\n" + text if any(line.startswith((" ", "mmdit ", "Example")) for line in text.splitlines()) else text
        for text in paragraphs
    )


def _ending(work: Callable[[], int], debug: bool) -> int:
    """Runs `work` and turns however it ended into one line on stderr and an exit code."""
    try:
        code = work()
        sys.stdout.flush()
        return code
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit would fail once more
        return _failed(error, "stopped: the program that reads the output has ended", STOPPED, debug)
    except KeyboardInterrupt as error:
        return _failed(error, "stopped by Ctrl-C", STOPPED, debug)
    except MmditError as error:
        return _failed(error, str(error), error.exit_code, debug)
    except Exception as error:
        line = f"stopped by an unexpected {type(error).__name__}: {str(error) or 'no message'}"
        return _failed(error, line + ("" if debug else "; --debug shows the traceback"), STOPPED, debug)


def _failed(error: BaseException, line: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    _complain(line)
    return code


def _complain(line: str) -> None:
    print(f"mmdit: {' '.join(line.split())}", file=sys.stderr)


if __name__ == "__main__":
    importlib.import_module("mmdit.tools.cli").main()  # the module that verbs import, not a second copy of it
