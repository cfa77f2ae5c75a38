"""`mmdit app`: a page in the browser that makes clips with a trained model."""

import os
import signal
import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmdit.tools.cli import run

if TYPE_CHECKING:
    from mmdit.pipelines.loading import Source

LARGEST_UPLOAD = "50mb"


def main(
    source: Annotated[Path, typer.Argument(help="A run folder, one of its checkpoints, or a pipeline folder.")],
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen at.")] = 7860,
    weights: Annotated[str, typer.Option(help="ema (averaged), or raw (as last trained).")] = "ema",
    codec: Annotated[str | None, typer.Option(help="Where the codec lies now, if it was moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")] = "auto",
) -> None:
    """Opens a page that makes clips: a form, a player, and a gallery with how each clip was made.

    It needs gradio (the extra `app`), and no network: it listens on this machine alone unless --host says otherwise.
    What is made lies in a temporary folder, which is removed at the end; the page has a download for each clip.

    Example:
      mmdit app runs/mine
    """
    from mmdit.pipelines.loading import WEIGHTS, find_source
    from mmdit.pipelines.request import check_choice
    from mmdit.tools.clip_options import device_of

    # Everything that can be refused without a model is refused before one is loaded.
    found = find_source(source)
    check_choice("weights", weights, WEIGHTS)
    check_address(host, port)
    device = device_of(device)
    with tempfile.TemporaryDirectory(prefix="mmdit-app-") as folder:
        keep_to_itself(Path(folder), host)
        _serve(found, Path(folder), (host, port), {"weights": weights, "codec": codec, "device": device})


def check_address(host: str, port: int) -> None:
    """Refused where nothing can listen at this address."""
    from mmdit.errors import Refused

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if not 1 <= port <= 65535:
            raise OSError("a port is 1 to 65535")
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Refused("cannot listen there", where=f"{host}:{port}", got=reason, fix="name another --port") from None


def keep_to_itself(folder: Path, host: str) -> None:
    """Tells gradio, before it is imported, to keep its files in `folder` and to call nobody.

    Raises Refused where gradio is not installed.
    """
    from importlib.util import find_spec

    from mmdit.errors import Refused

    os.environ |= {"GRADIO_TEMP_DIR": str(folder / "served"), "GRADIO_ANALYTICS_ENABLED": "False"}
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1"}
    for name in ("NO_PROXY", "no_proxy"):  # gradio asks itself whether it is there, which no proxy can know
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost", host)))
    if find_spec("gradio") is None:
        raise Refused("the page needs gradio, which is not installed", fix='pip install "mmdit-video[app]"')


def _serve(found: "Source", folder: Path, address: tuple[str, int], options: dict[str, Any]) -> None:
    """Loads the model and shows the page until Ctrl-C or SIGTERM."""
    from mmdit.pipelines.app import Playground
    from mmdit.pipelines.app_page import CSS, THEME, Page
    from mmdit.pipelines.loading import load_pipeline

    pipeline = load_pipeline(found, **options)
    page = Page(
        Playground(pipeline, found.origin),
        folder / "made",
        str(found.folder.resolve().name if found.state is None else "/".join(found.folder.resolve().parts[-3:])),
    )
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    page.blocks.launch(
        server_name=address[0], server_port=address[1], prevent_thread_lock=True, quiet=True, share=False,
        ssr_mode=False, mcp_server=False, pwa=False, enable_monitoring=False, run_history=False, footer_links=[],
        max_file_size=LARGEST_UPLOAD, show_error=True, theme=THEME, css=CSS,
    )  # fmt: skip
    print(f"playground: http://{address[0]}:{address[1]} (Ctrl-C ends it)", flush=True)
    ended.wait()
    page.blocks.close(verbose=False)


if __name__ == "__main__":
    run(main)
