"""A headless Chromium, spoken to by the DevTools protocol over a pipe: no driver and no package is needed."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 30.0  # seconds that anything on a page may take


def program() -> str | None:
    """Where Chromium is, or None."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Browser:
    """One tab. `addresses` are those of all that was fetched so far."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers, self._rest = commands, answers, b""
        self._number, self._session = 0, ""
        self.addresses: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol and its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._answers], [], [], PATIENCE)[0], "the browser says nothing"
            read = os.read(self._answers, 1 << 20)
            assert read, "the browser has ended"
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if message.get("method") == "Network.requestWillBeSent":
            self.addresses.append(message["params"]["request"]["url"])
        return message

    def open(self, address: str, width: int, height: int) -> None:
        """Opens a page in a window of this size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=address)

    def value(self, script: str) -> Any:
        """What a JavaScript expression gives; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str) -> Any:
        """Waits until the expression holds, and gives its value."""
        end = time.monotonic() + PATIENCE
        while not (value := self.value(script)):
            assert time.monotonic() < end, f"never came: {script}; the page: {self.value('document.body.innerText')}"
            time.sleep(0.1)
        return value

    def click(self, element: str) -> None:
        """Clicks what a JavaScript expression names, when it is there."""
        self.wait(f"!!({element})")
        self.value(f"({element}).click()")

    def type(self, element: str, text: str) -> None:
        """Puts text in place of what a field holds, key by key."""
        self.wait(f"!!({element})")
        self.value(f"({element}).focus(), ({element}).select()")
        self.call("Input.insertText", text=text)

    def upload(self, selector: str, path: Path) -> None:
        """Hands a file to a file field."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def photograph(self, path: Path) -> None:
        """Writes the whole page as a png file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser with its profile in `folder`, ended afterwards."""
    executable = program()
    assert executable, "no Chromium here"
    command_end, commands = os.pipe()
    answers, answer_end = os.pipe()

    def place() -> None:  # the protocol is read from file 3 and written to file 4
        kept = os.dup(command_end), os.dup(answer_end)
        os.dup2(kept[0], 3)
        os.dup2(kept[1], 4)

    words = [
        "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--no-first-run", "--disable-background-networking", "--autoplay-policy=no-user-gesture-required",
        f"--user-data-dir={folder}",
    ]  # fmt: skip
    process = subprocess.Popen(
        [executable, *words], preexec_fn=place, close_fds=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(command_end)
    os.close(answer_end)
    try:
        browser = Browser(commands, answers)
        yield browser
        browser._session = ""
        browser.call("Browser.close")
        process.wait(20)
    finally:
        process.kill()
        process.wait(20)
        os.close(commands)
        os.close(answers)
