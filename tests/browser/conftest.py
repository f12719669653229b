"""A real JupyterLab in a real browser. Needs chromium and playwright; tests are skipped where these lack."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},  # keeps cells out of sight in the page
}


def find_browser():
    """Path of a chromium; the environment variable DSNB_BROWSER overrides the search."""
    named = os.environ.get("DSNB_BROWSER")
    names = [named] if named else ["chromium", "chromium-browser", "google-chrome", "chrome"]
    return next((path for path in map(shutil.which, names) if path), None)


@pytest.fixture(scope="session")
def browser():
    sync = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    path = find_browser()
    if path is None:
        pytest.skip("no chromium: apt-get install -y --no-install-recommends chromium fonts-dejavu-core")
    quiet = [
        "--no-sandbox",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
    ]
    with sync.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=[*quiet, "--no-first-run"])
        except sync.Error as error:
            pytest.skip(f"{path} does not start here: {error}")
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """A JupyterLab of its own, with its own settings → (address, folder it serves)."""
    folder, home = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("home")
    for name, values in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    port = free_port()
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "DSNB_FIGURES": str(folder / "figures"),
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("DSNB_INTERACTIVE", None)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
    command += [
        f"--port={port}",
        "--ServerApp.port_retries=0",
        "--ServerApp.disable_check_xsrf=True",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={folder}",
        f"--LabApp.app_settings_dir={ROOT / 'notebooks' / '.jupyterlab'}",  # as `make lab`
    ]
    with serving(command, environment, folder, port):
        yield f"http://127.0.0.1:{port}", folder


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def serving(command, environment, folder, port):
    """A server that listens on `port` while the block runs → its process."""
    log = Path(tempfile.mkdtemp(), "log")
    with log.open("wb") as file:
        server = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT, cwd=folder)
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert server.poll() is None, f"{command} ended:\n{log.read_text()[-2000:]}"
                time.sleep(0.2)
        yield server
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()


@pytest.fixture
def notebook(lab, browser, request):
    """`open_it(path or list of cells)` → `Page` of a notebook whose cells have all run."""
    address, folder = lab
    opened = []

    def open_it(source, seconds=180):
        import nbformat

        name = f"{request.node.name.split('[')[0]}.ipynb"
        if isinstance(source, Path):
            book = nbformat.read(source, as_version=4)
            for cell in book.cells:  # outputs that are there already would look like a finished run
                if cell.cell_type == "code":
                    cell.outputs, cell.execution_count = [], None
        else:
            book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in source])
            book.metadata["kernelspec"] = {
                "name": "python3",
                "display_name": "Python 3",
                "language": "python",
            }
        nbformat.write(book, folder / name)
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        opened.append(page)
        page.goto(f"{address}/lab/tree/{name}?reset")
        return Page(page, folder).run_all(seconds)

    yield open_it
    for page in opened:
        keep_screenshot(page, request.node.name)
        page.close()
    # A shut kernel frees its memory before the next test.
    for kernel in json.load(urllib.request.urlopen(f"{address}/api/kernels")):
        urllib.request.urlopen(
            urllib.request.Request(f"{address}/api/kernels/{kernel['id']}", method="DELETE")
        )


def keep_screenshot(page, name):
    """A screenshot of the page in the folder that DSNB_SCREENSHOTS names, if it does."""
    folder = os.environ.get("DSNB_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png")


class Page:
    """A notebook in the browser, as a user handles it."""

    def __init__(self, page, folder):
        self.page, self.folder = page, folder

    def run_all(self, seconds):
        self.page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
        self.page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
        for _ in range(5):  # a kernel that is not quite there drops the request without a word
            self.page.get_by_role("menuitem", name="Run", exact=True).click()
            self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            self.page.wait_for_timeout(3000)
            if self.page.evaluate(STARTED):
                break
        self.page.wait_for_function(FINISHED, timeout=seconds * 1000)
        self.assert_no_error()
        return self

    def assert_no_error(self):
        found = self.page.evaluate(ERRORS)
        assert not found, found

    def picture(self, panel=0):
        """What the panel shows, as a data address that changes with its pixels."""
        return self.page.evaluate(PIXELS, self.page.locator(".dsnb-picture").nth(panel).element_handle())

    def is_preview(self):
        return any("preview" in text for text in self.page.locator(".dsnb-status").all_inner_texts())

    def canvas(self, painter=0):
        return self.page.evaluate(
            PIXELS, self.page.locator(".dsnb-painter canvas").nth(painter).element_handle()
        )

    def wait_for_change(self, look, before, seconds=60):
        """Wait until `look()` differs from `before`, full and at rest → the new look."""
        end, last = time.monotonic() + seconds, before
        while time.monotonic() < end:
            self.page.wait_for_timeout(500)
            now = look()
            if now != before and now == last and not self.is_preview():
                return now
            last = now
        raise AssertionError(f"the image did not change within {seconds} seconds")

    def wait_for(self, look, wanted, seconds=60):
        """Wait until `look()` is `wanted`, whatever it shows on the way."""
        end = time.monotonic() + seconds
        while look() != wanted:
            assert time.monotonic() < end, f"the image was not the expected one within {seconds} seconds"
            self.page.wait_for_timeout(500)

    def keep(self, name):
        keep_screenshot(self.page, name)

    def paint_stroke(self, start, end, painter=0, steps=12):
        """Draw a line with the mouse on a painter's canvas, from one (x, y) in [0, 1] to another."""
        canvas = self.page.locator(".dsnb-painter canvas").nth(painter)
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        for step in range(steps + 1):
            x, y = (a + (b - a) * step / steps for a, b in zip(start, end, strict=True))
            self.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
            if step == 0:
                self.page.mouse.down()
            self.page.wait_for_timeout(20)
        self.page.mouse.up()

    def press(self, panel, label, key, times=1):
        """Keys on the slider called `label`."""
        rows = self.page.locator(".dsnb-panel").nth(panel).locator(".widget-hslider")
        handle = rows.filter(has=self.page.get_by_text(label, exact=True)).locator(".noUi-handle")
        handle.scroll_into_view_if_needed()
        handle.focus()
        for _ in range(times):
            self.page.keyboard.press(key)


STARTED = """() => [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')]
    .some(prompt => /[*\\d]/.test(prompt.innerText))"""
ERRORS = """() => {
    const texts = selector => [...document.querySelectorAll(selector)].map(part => part.innerText);
    const printed = texts("[data-mime-type='application/vnd.jupyter.stderr']");
    const raised = printed.filter(text => text.includes("Traceback (most recent call last)"));
    return [...raised, ...texts(".dsnb-error, .jupyter-widgets-error-widget")];
}"""
FINISHED = """() => {
    if ((ERRORS)().length) return true;
    const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')].map(p => p.innerText);
    return prompts.length > 0 && prompts.every(text => /^\\[\\d+\\]:$/.test(text));
}""".replace("ERRORS", ERRORS)
PIXELS = """element => {
    const canvas = document.createElement('canvas');
    canvas.width = element.naturalWidth || element.width;
    canvas.height = element.naturalHeight || element.height;
    canvas.getContext('2d').drawImage(element, 0, 0);
    return canvas.toDataURL();
}"""
