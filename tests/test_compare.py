"""The one command behind the tables: which grids it runs, on a notebook that computes nothing."""

import nbformat
import pandas as pd
import pytest

from dsnb.lab.compare import command

PARAMETERS = """
pictures: int = 2
first: int = 0
methods: str = "prompt,pixel,epsilon,attention"
masks: str = "linear,logistic"
sharpness: float = 20.0
guidance: float = 0.0
steps: int = 10
skip: int = -1
eta: float = 0.0
passes: str = "1"
pairs_file: str = ""
tables: str = ""
"""
BODY = """
import os
from pathlib import Path
from dsnb.lab.grid import record
if tables:
    found = sorted(path.parent.name for path in Path(tables).glob("*/table.parquet"))
    Path(tables, "drawn").write_text(" ".join([*found, os.environ["DSNB_FIGURES"]]))
else:
    record([{"picture": k} for k in range(first, first + pictures)])
"""


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    cells = [
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(BODY),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = tmp_path / "ten.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    monkeypatch.setattr(command, "NOTEBOOK", path)
    questions = {"guidance": command.QUESTIONS["guidance"], "skip": command.QUESTIONS["skip"]}
    monkeypatch.setattr(command, "QUESTIONS", questions)
    return path


def test_every_picture_is_compared_once_and_the_tables_come_last(notebook, tmp_path, capsys):
    output = tmp_path / "out"
    words = ["--output", str(output), "--pictures", "5", "--chunk", "2", "--fewer", "1", "--workers", "1"]
    assert command.main(words) == 0
    table = pd.read_csv(output / "compare" / "table.csv")
    assert table.picture.tolist() == [0, 1, 2, 3, 4, 5]  # whole chunks, each picture once
    assert set(table.steps) == {0}  # the model's own
    asked = pd.read_csv(output / "guidance" / "table.csv")
    assert len(asked) == 16 and set(asked.methods) == {"attention"} and set(asked.guidance) == {3, 5, 20, 30}
    assert (output / "drawn").read_text() == f"compare guidance skip {output / 'figures'}"
    assert "0 points failed" in capsys.readouterr().out


def test_only_the_whole_comparison_draws_into_figures(tmp_path, monkeypatch):
    monkeypatch.setenv("DSNB_FIGURES", str(tmp_path / "figures"))
    place = lambda *given: command.tables_folder(tmp_path / "out", *given)
    assert place(96, 12, None) == place(200, 12, {}) == tmp_path / "figures"
    for part in ((8, 12, None), (96, 1, None), (96, 12, {"pairs_file": "mine.json"})):
        assert place(*part) == tmp_path / "out" / "figures"


def test_a_pairs_file_says_how_many_pictures_there_are(notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "QUESTIONS", {})
    file, output = tmp_path / "pairs.json", tmp_path / "out"
    file.write_text("[{}, {}, {}]")
    words = ["--output", str(output), "--chunk", "2", "--workers", "1", "-p", f"pairs_file={file}"]
    assert command.main(words) == 0
    table = pd.read_csv(output / "compare" / "table.csv")
    assert sorted(set(table["first"])) == [0, 2] and set(table.pairs_file) == {str(file)}


@pytest.mark.parametrize("text, said", [("{}", "no list of entries"), ("[", "cannot be read")])
def test_a_pairs_file_that_is_none_is_a_sentence(notebook, tmp_path, capsys, text, said):
    (tmp_path / "pairs.json").write_text(text)
    words = ["--output", str(tmp_path / "out"), "-p", f"pairs_file={tmp_path / 'pairs.json'}"]
    assert command.main(words) == 2
    assert said in capsys.readouterr().err


def test_bad_numbers_are_a_sentence(notebook, tmp_path, capsys):
    assert command.main(["--output", str(tmp_path / "out"), "--pictures", "0"]) == 2
    assert "expected at least 1" in capsys.readouterr().err
    assert command.main(["--output", str(tmp_path / "out"), "-p", "pictures=24"]) == 2
    assert "pictures cannot be set" in capsys.readouterr().err


def test_every_question_is_about_parameters_that_the_notebook_has():
    from dsnb.lab.grid.parameters import make_grid

    for held, varied in command.QUESTIONS.values():
        grid = make_grid(command.NOTEBOOK, varied, {k: v for k, v in held.items() if k not in varied})
        assert len(grid.points) > 1
