"""A real browser: JupyterLab on a copy of the notebooks, and the report opened from disk. `pytest -m browser` runs these."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "screenshots"
LOCAL = re.compile(r"^(https?|wss?)://(127\.0\.0\.1|localhost)[:/]|^(file|blob|data|about|chrome-extension):")
SIZE = {"width": 1500, "height": 950}

# JupyterLab's own, in a server without language servers and collaboration; nothing of the notebooks is among them.
ALLOWED = [r"/lsp/status", r"favicon", r"ResizeObserver loop"]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def pytest_configure(config):
    config.addinivalue_line("markers", "browser: drives Chromium; run by `pytest -m browser`")


@pytest.fixture(scope="session")
def chromium():
    """The browser; tests are skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("needs Chromium (on Debian: apt install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


class Watched:
    """A page whose complaints are kept: `problems()` has errors, and whatever it asked of another machine."""

    def __init__(self, browser, allowed=(), offline=False, **options):
        self.context = browser.new_context(**options)
        self.context.set_offline(offline)
        self.context.set_default_timeout(180_000)
        self.allowed, self.found = [re.compile(text) for text in allowed], []
        self.context.route(lambda url: not LOCAL.match(url), self._refuse)
        self.context.on("page", self._watch)
        self.page = self.context.new_page()

    def _refuse(self, route):
        self.found.append(f"asked for {route.request.url}")
        route.abort()

    def _watch(self, page):
        page.on("pageerror", lambda error: self.found.append(f"page error: {error}"))
        page.on("console", lambda m: m.type == "error" and self.found.append(f"console error: {m.text} ({m.location})"))

    def problems(self) -> list[str]:
        return [text for text in self.found if not any(pattern.search(text) for pattern in self.allowed)]

    def shot(self, name: str, **options) -> None:
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", **options)


@pytest.fixture
def watched(chromium):
    """`watched(**options)` opens a page; what it complains of fails the test."""
    opened = []

    def make(**options):
        opened.append(Watched(chromium, **options))
        return opened[-1]

    yield make
    for page in opened:
        page.context.close()
    assert not [problem for page in opened for problem in page.problems()]


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """A JupyterLab that was started as the README says, on a copy of the project's notebooks: the address of a notebook
    by name, and the file that leads a browser to it at the start."""
    pytest.importorskip("jupyterlab", reason="needs JupyterLab")
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", home / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints", "runs"))
    (ROOT / "runs").mkdir(exist_ok=True)
    (home / "runs").symlink_to(ROOT / "runs")  # what nbval has trained; what is not there the notebooks train
    (home / "results").symlink_to(ROOT / "results")
    settings = {  # no question about news; all cells are in the page, not only those in sight
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "notebook-extension/tracker": {"windowingMode": "none"},
    }
    for name, values in settings.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    environment = {**os.environ, **{name: str(home / place) for name, place in places.items()}}
    environment = {"OMP_NUM_THREADS": "1", **environment, "PYTHONPATH": str(ROOT), "JUPYTER_TOKEN": token}
    command = [sys.executable, "-m", "jupyter", "lab", "notebooks/00_overview.ipynb", "--no-browser"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1"]
    command += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api?token={token}", timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, (home / "log").read_text()[-2000:]
                time.sleep(0.5)
        (opens,) = (home / "runtime").glob("jpserver-file-to-run-*-open.html")
        yield lambda name: f"{address}/lab/tree/{name}?token={token}&reset", opens.as_uri()
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def lab_page(watched):
    return lambda: watched(allowed=ALLOWED, viewport=SIZE)


@pytest.fixture
def open_notebook(lab_page, lab):
    def opened(name):
        seen = lab_page()
        seen.page.goto(lab[0](name))
        seen.page.wait_for_selector(".jp-Notebook .jp-Cell .jp-RenderedMarkdown h1")
        seen.page.wait_for_function(
            "document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'"
        )
        return seen

    return opened
