"""A headless Chromium, driven through chromedriver by the WebDriver protocol: JSON over HTTP, so no package is needed."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from processes import until
from tooling import require_tool

# No sandbox: tests may run as root. The others keep Chromium from looking for its maker's servers.
_ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


class Browser:
    """One window. Scripts see ``arguments`` and return JSON."""

    def __init__(self, address: str, options: dict[str, Any]) -> None:
        self._address = address
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{answer['sessionId']}"

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._address + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"chromedriver: {json.load(error)['value']['message']}") from error

    def close(self) -> None:
        self._ask("DELETE", self._session)

    def open(self, url: str) -> None:
        self._ask("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        return self._ask("POST", f"{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self._ask("POST", f"{self._session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def complaints(self) -> list[str]:
        """What the page wrote to the console since the last call."""
        return [entry["message"] for entry in self._ask("POST", f"{self._session}/se/log", {"type": "browser"})]

    def size(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, file: Path) -> Path:
        """The whole page."""
        area = self.devtools("Page.getLayoutMetrics")["cssContentSize"]
        shot = self.devtools("Page.captureScreenshot", captureBeyondViewport=True, clip={**area, "scale": 1})
        file.write_bytes(base64.b64decode(shot["data"]))
        return file


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Skips, or fails in CI, without Chromium and its driver."""
    driver, chromium = require_tool("chromedriver", "chromium")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with log.open("wb") as file:
            process = subprocess.Popen([driver, "--port=0"], stdout=file, stderr=file)
        try:
            port = until(lambda: re.search(r"successfully on port (\d+)", log.read_text()), "chromedriver's port")[1]
            profile = [f"--user-data-dir={folder}/profile"]
            window = Browser(f"http://127.0.0.1:{port}", {"binary": chromium, "args": [*_ARGUMENTS, *profile]})
            try:
                yield window
            finally:
                window.close()
        finally:
            process.terminate()
            process.wait()
