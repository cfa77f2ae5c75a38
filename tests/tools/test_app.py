"""`mmdit app`: what it refuses, and the page that it serves; with a browser only in the slow test."""

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
import pytest
import tiny
from commands import exit_code


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app") / "run"
    tiny.write_run(folder)
    return folder


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture
def address(run: Path, tmp_path: Path) -> Iterator[str]:
    """Where `mmdit app` serves the run; ended afterwards, when its files must be gone."""
    pytest.importorskip("gradio", reason="the page is made with gradio (the extra `app`)")
    files, port = tmp_path / "files", free_port()
    files.mkdir()
    command = [sys.executable, "-m", "mmdit.tools.cli", "app", str(run), "--port", str(port)]
    environment = os.environ | {"TMPDIR": str(files), "http_proxy": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    log = (tmp_path / "log").open("w+")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True)
    try:
        end = time.monotonic() + 200
        while "playground: http" not in (said := (tmp_path / "log").read_text()):
            assert process.poll() is None and time.monotonic() < end, said
            time.sleep(0.2)
        assert [path.name[:10] for path in files.iterdir()] == ["mmdit-app-"]
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert list(files.iterdir()) == []
        assert "Traceback" not in (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait(60)
        log.close()


def test_a_page_is_served_and_its_files_are_removed(address: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    page = opener.open(address, timeout=60).read().decode()
    assert "Size and sampling" in page and "Generate" in page
    assert "fonts.googleapis" not in page


def test_refusals_are_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


@pytest.mark.slow
@pytest.mark.skipif(browser.program() is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(address: str, tmp_path: Path, width: int) -> None:
    """A prompt is typed, the clip plays, and an impossible size is refused; nothing is fetched from elsewhere."""
    with browser.chromium(tmp_path / "profile") as page:
        page.open(address, width, 900)
        page.type(field("Prompt"), "a red coat")
        page.click(button("Generate"))
        page.wait("document.querySelector('video')?.currentTime > 0.1")
        page.wait("document.body.innerText.includes('16x32')")
        page.click(button("Size and sampling"))
        page.type(field("Height"), "17")
        page.wait(f"!{button('Generate')}.disabled")
        page.click(button("Generate"))
        page.wait("document.querySelector('[role=alert]')?.innerText.includes('the nearest is 16x32')")
        assert page.value("document.documentElement.scrollWidth") <= width
        page.photograph(tmp_path / "page.png")
        others = [there for there in page.addresses if not there.startswith((address, "data:", "blob:", "about:"))]
    assert others == []
