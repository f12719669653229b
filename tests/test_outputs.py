"""What `make figures` writes into a notebook, and what the tests say about outputs that came another way."""

import base64
import io

import nbformat
import papermill
import pytest
from nbclient.exceptions import DeadKernelError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from dsnb.lab import outputs

NOISE = """
import sys, numpy as np, tqdm.auto as tqdm
from PIL import Image
from dsnb import plotting, widgets
from dsnb.lab.grid import record
for _ in tqdm.tqdm(range(3)): pass
print("to the user"); print("to nobody", file=sys.stderr); print("and again")
Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 1500, 3), np.uint8))
"""
PANEL = "widgets.explore(lambda x: np.full((8, 8), x), settings={'file': plotting.__file__}, x=(0.0, 1.0))"
RECORD = "print(plotting.__file__); record(seam=1.0)"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A notebook after `make figures`."""
    path = tmp_path_factory.mktemp("outputs") / "made.ipynb"
    cells = [new_markdown_cell("# Title"), *map(new_code_cell, (NOISE, PANEL, RECORD))]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    outputs.execute(path, path.parent / "copies")
    return path


def test_only_small_images_and_text_are_kept(executed):
    assert outputs.find_problems(executed) == []
    noise, panel, record = (cell.outputs for cell in nbformat.read(executed, as_version=4).cells[1:])
    assert [output.get("text") for output in noise] == ["to the user\nand again\n", None]
    for shown in (noise[1], panel[0]):
        assert list(shown.data) == ["image/jpeg"]
    file = base64.b64decode(noise[1].data["image/jpeg"])
    image = Image.open(io.BytesIO(file))
    assert len(file) <= outputs.LARGEST_IMAGE and image.width / image.height == pytest.approx(5 / 3, abs=0.02)
    assert record[0].text == "dsnb/plotting.py\n"
    assert record[1].data == {"text/plain": "1 row recorded"}


def test_a_notebook_full_of_images_fits(executed, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "LARGEST_NOTEBOOK", 60_000)
    path = tmp_path / "small.ipynb"
    path.write_bytes(executed.read_bytes())
    assert "the file has" in " ".join(outputs.find_problems(path))
    outputs.execute(path, tmp_path / "copies")
    assert outputs.find_problems(path) == []


def changed(name):
    """A change of a notebook, by what is changed."""

    def apply(notebook):
        text, cell = notebook.cells[0], notebook.cells[1]
        if name == "prose":
            text.source += ", in other words"
        elif name == "code":
            cell.source += "\n1 + 1"
        elif name == "comment":
            cell.source += "  # another comment"
        elif name == "order":
            cell.execution_count = 7
        elif name == "stderr":
            cell.outputs.append(new_output("stream", name="stderr", text="a warning"))
        elif name == "PNG":
            buffer = io.BytesIO()
            Image.new("L", (4, 4)).save(buffer, "PNG")
            png = base64.b64encode(buffer.getvalue()).decode()
            cell.outputs.append(new_output("display_data", {"image/png": png}))
        elif name == "film":
            cell.outputs.append(new_output("display_data", {"text/html": "0" * 170_000}))
        elif name == "model":
            notebook.metadata["dsnb"]["outputs_of"]["model"] = "0" * 64

    return apply


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("prose", None),
        ("comment", None),
        ("code", "another code"),
        ("model", "another model"),
        ("order", "execution counts"),
        ("stderr", "too large or not"),
        ("PNG", "too large or not"),
        ("film", "too large or not"),
    ],
)
def test_what_changed_since_is_found(executed, tmp_path, name, said):
    notebook = nbformat.read(executed, as_version=4)
    changed(name)(notebook)
    nbformat.write(notebook, tmp_path / "changed.ipynb")
    problems = outputs.find_problems(tmp_path / "changed.ipynb")
    assert not problems if said is None else len(problems) == 1 and said in problems[0]


def test_figures_runs_the_named_or_the_stale_notebooks(executed, tmp_path, monkeypatch, capsys):
    for name in ("00_fresh", "01_stale", "02_broken"):
        (tmp_path / f"{name}.ipynb").write_bytes(executed.read_bytes())
    stale = nbformat.read(executed, as_version=4)
    for name, source in (("01_stale", "1 + 1"), ("02_broken", "1 / 0")):
        stale.cells[1:] = [new_code_cell(source)]
        nbformat.write(stale, tmp_path / f"{name}.ipynb")
    monkeypatch.setattr(outputs, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(outputs, "ROOT", tmp_path)
    monkeypatch.setenv("DSNB_INTERACTIVE", "0")
    before = (tmp_path / "02_broken.ipynb").read_bytes()
    assert outputs.main([]) == 1
    told = capsys.readouterr()
    assert told.out.split() == ["01_stale.ipynb", "02_broken.ipynb"] and "ZeroDivisionError" in told.err
    assert outputs.find_problems(tmp_path / "01_stale.ipynb") == []
    assert (tmp_path / "02_broken.ipynb").read_bytes() == before
    assert outputs.main([str(tmp_path / "01_stale.ipynb")]) == 0
    assert capsys.readouterr().out.split() == ["01_stale.ipynb"]
    with pytest.raises(SystemExit, match="2"):
        outputs.main(["README.md"])


@pytest.mark.parametrize("dies", [True, False])
def test_a_dead_kernel_or_another_number_of_cells_is_told(executed, tmp_path, monkeypatch, capsys, dies):
    def run(*given, **options):
        if dies:
            raise DeadKernelError("Kernel died")
        return new_notebook()  # the file has three code cells

    (tmp_path / "01_a.ipynb").write_bytes(executed.read_bytes())
    for name in ("NOTEBOOKS", "ROOT"):
        monkeypatch.setattr(outputs, name, tmp_path)
    monkeypatch.setenv("DSNB_INTERACTIVE", "0")
    monkeypatch.setattr(papermill, "execute_notebook", run)
    assert outputs.main([str(tmp_path / "01_a.ipynb")]) == 1
    said = "Kernel died" if dies else "a code cell was added or removed"
    assert f"error: 01_a.ipynb failed\n{said}" in capsys.readouterr().err
    assert (tmp_path / "01_a.ipynb").read_bytes() == executed.read_bytes()
