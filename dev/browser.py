"""ComfyUI's page in a real browser, for the browser tests and for the pictures in the docs.

    python -m dev.browser       find a browser, or install one where that is possible

The browser is Chromium, Chrome or Edge as installed on the machine: Playwright drives it and downloads nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import requests
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, sync_playwright

from dev.comfy import PACK_NAME

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "msedge",
    "microsoft-edge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
FLAGS = (
    "--disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync "
    "--use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader"  # WebGL without a graphics card
).split()
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # else the page opens with a dialog
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Workflow.Persist": False,
}


class ComfyPage:
    """ComfyUI's page, with what it complained about.

    Attributes:
        page: Playwright's page.
        problems: uncaught exceptions and console errors so far, but for the page's own about services that a
            server without internet does not have.
    """

    def __init__(self, page: Page, url: str):
        self.page = page
        self.url = url
        self.problems: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))

    def open(self, query: str = "") -> None:
        """Open, or open again, the page and wait until it can be worked with."""
        self.page.goto(self.url + query)
        self.page.wait_for_function("window.app?.extensionManager && app.canvas?.graph", timeout=60_000)
        self.page.wait_for_load_state("networkidle")
        # Starting up, the page has problems of its own; ours name the pack.
        self.problems = [problem for problem in self.problems if PACK_NAME in problem]

    def load(self, workflow: dict) -> None:
        """Load a workflow in the page's format."""
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        self.settle()

    def settle(self, milliseconds: int = 500) -> None:
        """Give the page time to lay out and draw."""
        self.page.wait_for_timeout(milliseconds)

    def prompt(self) -> dict:
        """What the page would queue: the graph in API format, without the titles that it adds."""
        output = self.page.evaluate("async () => (await app.graphToPrompt()).output")
        return {
            node: {key: value for key, value in entry.items() if key != "_meta"}
            for node, entry in output.items()
        }

    def dialogs(self) -> list[str]:
        """Text of the dialogs and error messages that the page shows."""
        shown = self.page.locator(".p-dialog:visible, .comfy-modal:visible, .p-toast-message-error:visible")
        return shown.all_inner_texts()

    def run(self, timeout: float = 600) -> None:
        """Queue the graph as a user does and wait for the end.

        Raises:
            RuntimeError: the run failed.
        """
        outcome = self.page.evaluate(
            """seconds => new Promise((resolve, reject) => {
                const events = ["execution_success", "execution_error", "execution_interrupted"];
                const done = event => {
                    events.forEach(name => app.api.removeEventListener(name, done));
                    resolve(event.type === "execution_success" ? "" : JSON.stringify(event.detail));
                };
                events.forEach(name => app.api.addEventListener(name, done));
                setTimeout(() => resolve(`not finished after ${seconds} s`), 1000 * seconds);
                app.queuePrompt(0).then(() => {
                    const errors = app.lastNodeErrors ?? {};
                    if (Object.keys(errors).length) resolve(JSON.stringify(errors));
                }, reject);
            })""",
            timeout,
        )
        if outcome:
            raise RuntimeError(f"the workflow did not run: {outcome}")
        self.settle()

    def _on_console(self, message: ConsoleMessage) -> None:
        services = ("https://api.comfy.org", "https://huggingface.co", "Failed to load resource")
        problem = f"console: {message.text} ({message.location['url']})"
        if message.type == "error" and (
            PACK_NAME in problem or not any(service in problem for service in services)
        ):
            self.problems.append(problem)


def find_browser() -> str | None:
    """Path of an installed browser, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser of its own.

    Raises:
        RuntimeError: there is no browser.
    """
    path = find_browser()
    if path is None:
        raise RuntimeError(
            "No browser found: install Chromium or Chrome, or run `python -m dev.browser` as root."
        )
    with sync_playwright() as playwright:
        flags = [*FLAGS, "--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else FLAGS
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        try:
            yield browser
        finally:
            with contextlib.suppress(Error):  # it may be gone already
                browser.close()


@contextlib.contextmanager
def comfy_page(
    url: str, *, width: int = 1600, height: int = 1000, settings: dict | None = None
) -> Iterator[ComfyPage]:
    """ComfyUI's page in a headless browser of its own.

    Args:
        url: of the server.
        width, height: of the window, in pixels.
        settings: the user's settings in the page, beside :data:`SETTINGS`; they stay with the server.

    Raises:
        RuntimeError: there is no browser.
    """
    with requests.Session() as session:
        session.trust_env = False  # loopback never goes through a proxy
        reply = session.post(f"{url}/settings", json=SETTINGS | (settings or {}), timeout=60)
        reply.raise_for_status()
    with chromium() as browser:
        comfy = ComfyPage(browser.new_page(viewport={"width": width, "height": height}), url)
        comfy.open()
        yield comfy


def install_browser() -> None:
    """Install Debian's Chromium where we may."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if not (root and Path("/etc/debian_version").exists() and shutil.which("apt-get")):
        return
    print("Installing Chromium for the browser tests ...", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in ("update", "install --yes --no-install-recommends chromium fonts-dejavu-core"):
        subprocess.run(["apt-get", "-qq", *command.split()], check=True, env=environment, stdout=sys.stderr)


def main() -> int:
    """Make sure that there is a browser; without one, fail where `CI` is set and only say so elsewhere."""
    if find_browser() is None:
        install_browser()
    if browser := find_browser():
        print(f"Browser: {browser}")
        return 0
    needed = bool(os.environ.get("CI"))
    print(f"No browser: the browser tests {'fail' if needed else 'are skipped'}. Install Chromium or Chrome.")
    return int(needed)


if __name__ == "__main__":
    sys.exit(main())
