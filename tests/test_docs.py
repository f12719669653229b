"""The pages agree with the repository: links, the table of notebooks, the diagrams, the calls of the cheat sheet."""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COURSE = (ROOT / "docs" / "course.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing, f"{page.name} links to files that do not exist: {missing}"


@pytest.mark.parametrize("page", ["README.md", "docs/course.md"])
def test_the_table_has_every_notebook_in_order(page):
    listed = re.findall(r"^\| (\d\d) \| \[[^]]+\]\(\S*notebooks/(\S+)\) ", (ROOT / page).read_text(), re.M)
    assert [name for _, name in listed] == [path.name for path in NOTEBOOKS]
    assert all(name.startswith(number) for number, name in listed)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_time_and_level_are_those_of_the_course(path):
    first = nbformat.read(path, as_version=4).cells[0].source
    said = re.search(r"\*\*Time · level:?\*\*:? (\d+) minutes · (★+)", first)
    row = re.search(rf"\({re.escape('../notebooks/' + path.name)}\) \| [^|]+ \| (\d+) \| (★+) \|", COURSE)
    assert said is None or said.groups() == row.groups()


def test_the_diagrams_are_those_of_the_script(tmp_path, monkeypatch):
    monkeypatch.setenv("DSNB_FIGURES", str(tmp_path))
    spec = importlib.util.spec_from_file_location("diagrams", ROOT / "docs" / "diagrams.py")
    diagrams = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(diagrams)
    diagrams.main()
    drawn = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(drawn) == 5 and max(map(len, drawn.values())) < 100_000
    for name, data in drawn.items():
        assert data == (ROOT / "figures" / name).read_bytes(), f"{name} is not what docs/diagrams.py draws"


def test_the_calls_of_the_cheat_sheet_run(tmp_path, monkeypatch):
    monkeypatch.setenv("DSNB_FIGURES", str(tmp_path))
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "cheatsheet.md").read_text(), re.S)
    code = code.replace("my.png", str(ROOT / "data" / "images" / "dog_beach.png"))
    for slow, quick in (("steps=18, skip=1", "steps=4, skip=1"), ("seed=0)  ", "seed=0, steps=4)")):
        assert slow in code
        code = code.replace(slow, quick)
    names = {}
    exec(code, names)
    assert names["result"].shape == (1, 3, 128, 128) and (tmp_path / "mine.png").is_file()
