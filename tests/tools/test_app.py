"""`mmdit app`: what it refuses, and the page that it serves, as a browser shows it."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import browser
import psutil
import pytest
import tiny
from commands import exit_code
from PIL import Image

needs_browser = pytest.mark.skipif(browser.program() is None, reason="no Chromium here")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app") / "run"
    tiny.write_run(folder, given_frames=["first"])
    return folder


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    """Where `mmdit app` serves the run, to this machine alone; ended afterwards, when its files must be gone."""
    pytest.importorskip("gradio", reason="the page is made with gradio (the extra `app`)")
    files, port = run.parent / "files", free_port()
    files.mkdir()
    command = [sys.executable, "-m", "mmdit.tools.cli", "app", str(run), "--port", str(port)]
    environment = os.environ | {"TMPDIR": str(files), "http_proxy": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    said = run.parent / "log"
    log = said.open("w")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True)
    try:
        end = time.monotonic() + 200
        while "playground: http" not in said.read_text():
            assert process.poll() is None and time.monotonic() < end, said.read_text()
            time.sleep(0.2)
        assert [path.name[:10] for path in files.iterdir()] == ["mmdit-app-"]
        sockets = psutil.Process(process.pid).net_connections("inet")
        assert {tuple(one.laddr) for one in sockets if one.status == psutil.CONN_LISTEN} == {("127.0.0.1", port)}
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert list(files.iterdir()) == []
        assert "Traceback" not in said.read_text()
    finally:
        process.kill()
        process.wait(60)
        log.close()


def test_a_page_is_served(address: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    page = opener.open(address, timeout=60).read().decode()
    assert "Size and sampling" in page and "Generate" in page
    assert "fonts.googleapis" not in page


def test_refusals_are_one_line_before_a_model_is_loaded(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmdit.pipelines.loading.load_pipeline", None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for words, said in (
            ([run, "--port", port], f"cannot listen there, in 127.0.0.1:{port}"),
            ([run, "--port", 0], "a port is 1 to 65535"),
            ([run, "--port", 70000], "cannot listen there"),
            ([run, "--host", "256.0.0.1", "--port", free_port()], "cannot listen there"),
            ([run, "--weights", "best", "--port", free_port()], "ema, raw"),
            ([run, "--device", "cude", "--port", free_port()], "no such device here, in --device, got cude"),
            ([tmp_path / "none"], "no such folder"),
        ):
            assert exit_code("app", *words) == 2
            err = capsys.readouterr().err
            assert said in err and err.count("\n") == 1


def test_without_gradio_it_says_how_to_get_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert exit_code("app", run, "--port", free_port()) == 2
    assert 'not installed; pip install "mmdit-video[app]"' in capsys.readouterr().err


def field(label: str) -> str:
    labels = "[...document.querySelectorAll('label')]"
    return f"{labels}.find(l => l.innerText.trim().startsWith('{label}'))?.querySelector('input, textarea')"


def button(text: str) -> str:
    return f"[...document.querySelectorAll('button')].find(b => b.innerText.trim().startsWith('{text}'))"


STEPS = "document.querySelector('input[type=number][aria-label*=Steps]')"
FACTS = "document.querySelector('.facts')?.innerText"
SAID = "document.querySelector('.said')?.innerText"


def generate(page: browser.Browser) -> None:
    page.wait(f"!{button('Generate')}?.disabled")
    page.click(button("Generate"))


@needs_browser
def test_in_a_browser(address: str, tmp_path: Path) -> None:
    """A prompt is typed, the clip plays, and an impossible size is refused; nothing is fetched from elsewhere."""
    with browser.chromium(tmp_path / "profile") as page:
        page.open(address, 1280, 900)
        page.type(field("Prompt"), "a red coat")
        generate(page)
        page.wait("(window.seen ??= new Set()).add(document.querySelector('video')?.currentTime).size > 4")
        video = "(v => [v.videoWidth, v.videoHeight, v.error])(document.querySelector('video'))"
        assert page.value(video) == [32, 16, None]
        page.wait(f"{FACTS}.includes('16x32')")
        page.click(button("Size and sampling"))
        page.type(field("Height"), "17")
        generate(page)
        page.wait("document.querySelector('[role=alert]')?.innerText.includes('the nearest is 16x32')")
        others = [there for there in page.addresses if not there.startswith((address, "data:", "blob:", "about:"))]
    assert others == []


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_pictures_progress_and_cancelling_in_a_browser(address: str, tmp_path: Path, width: int) -> None:
    Image.new("RGB", (300, 200), (200, 0, 0)).save(tmp_path / "photo.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "point.png")
    (tmp_path / "text.jpg").write_text("a text, whatever its name says\n" * 40)
    with browser.chromium(tmp_path / "profile") as page:
        page.open(address, width, 900)
        page.type(field("Prompt"), "a red coat")
        for name, said in (("photo.png", ""), ("point.png", "8 pixels a side"), ("text.jpg", "not a video")):
            page.wait("!!document.querySelector('input[type=file]')")
            page.upload("input[type=file]", tmp_path / name)
            page.wait("!!document.querySelector('[aria-label=\"Remove Image\"]')")
            generate(page)
            page.wait(f"{SAID}.includes('{said}')" if said else f"{FACTS}.includes('photo.png')")
            page.click("document.querySelector('[aria-label=\"Remove Image\"]')")
        page.click(button("Size and sampling"))
        page.type(field("Height"), "256")
        page.type(field("Width"), "256")
        page.type(STEPS, "100")
        page.click(button("Next seed"))
        generate(page)
        page.wait("/[1-9][0-9]*[/]100 steps/.test(document.body.innerText)")
        page.click(button("Cancel"))
        page.wait(f"{SAID}.includes('Cancelled')")
        assert "16x32" in page.value(FACTS)  # of the clip before
        page.type(field("Height"), "16")
        page.type(field("Width"), "32")
        page.type(STEPS, "2")
        generate(page)
        page.wait(f"/seed\\s+1/.test({FACTS})")
        page.wait("document.querySelectorAll('.gallery button img').length == 2")
        page.click("document.querySelectorAll('.gallery button')[1]")
        page.wait(f"/seed\\s+0/.test({FACTS})")
        assert page.value("document.documentElement.scrollWidth") <= width
        page.photograph(tmp_path / "page.png")
