"""The app of `make app`, used as a visitor uses it: an image of one's own, a painted mask, the wipe, a download."""

import io
import os
import re
import shlex
import sys
from pathlib import Path

import psutil
import pytest
from conftest import Page, free_port, keep_screenshot, serving

from dsnb import plotting

ROOT = Path(__file__).resolve().parents[2]
PHOTO = ROOT / "data" / "images" / "photo_cat.jpg"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The app as `make app` serves it → (address, process)."""
    pytest.importorskip("voila", reason="voila is not installed: pip install voila")
    (line,) = re.findall(r"\$\(BIN\)/(voila .*)", (ROOT / "Makefile").read_text())
    home, port = tmp_path_factory.mktemp("app"), free_port()
    quiet = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}
    environment = os.environ | {name: str(home / folder) for name, folder in quiet.items()}
    environment |= {"DSNB_INTERACTIVE": "1", "DSNB_FIGURES": str(home / "figures")}
    environment |= {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", *shlex.split(line), "--no-browser", f"--port={port}"]
    with serving(command, environment, ROOT, port) as process:
        yield f"http://127.0.0.1:{port}/", process


@pytest.fixture
def app(browser, served, tmp_path):
    """A page of the app, ready to be used."""
    page = browser.new_page(viewport={"width": 1300, "height": 1150})
    page.goto(served[0], timeout=180_000)
    page.locator(".dsnb-picture").wait_for(timeout=180_000)
    yield Page(page, tmp_path)
    keep_screenshot(page, "app")
    page.close()


def test_it_listens_on_this_machine_only(app, served):
    server = psutil.Process(served[1].pid)
    connections = [each for one in (server, *server.children(True)) for each in one.net_connections()]
    listening = {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}
    assert listening and listening <= {"127.0.0.1", "::1"}


def test_own_image_painted_mask_wipe_and_download(app):
    page = app.page
    assert (
        "not found" not in page.locator("body").inner_text() and not page.locator(".jp-CodeCell pre").count()
    )
    bundled, canvas = app.picture(), app.canvas()

    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="or your own").click()
    chooser.value.set_files(PHOTO)
    page.get_by_role("button", name="or your own (1)").wait_for()
    page.get_by_role("button", name="use this image").click()
    page.get_by_text("Say in 'it shows' what your image shows").wait_for()
    page.get_by_label("it shows").fill("a cat")
    page.get_by_role("button", name="use this image").click()
    own = app.wait_for_change(app.picture, bundled, seconds=120)
    app.wait_for_change(app.canvas, canvas)  # the painter shows the new image, not an empty canvas

    app.paint_stroke((0.7, 0.2), (0.7, 0.8))
    painted = app.wait_for_change(app.picture, own, seconds=120)
    assert page.get_by_label("mask").evaluate("menu => menu.selectedOptions[0].innerText") == "painted"
    app.press(0, "wipe", "ArrowLeft", 10)
    app.wait_for_change(app.picture, painted, seconds=120)

    page.locator(".dsnb-panel button", has_text="save").click()
    with page.expect_download() as download:
        page.locator(".dsnb-download").click()
    file = Path(download.value.path()).read_bytes()
    told = plotting.read_parameters(io.BytesIO(file))
    assert told["image"] == PHOTO.name and told["captions"] == ["a cat"]
    assert told["shape"] == "painted" and told["wipe"] == 0.5 and len(told["painted"]["strokes"]) == 1
    assert not page.locator(".dsnb-error").count()
