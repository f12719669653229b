"""Every notebook runs headless from top to bottom: at toy size, and with its defaults where slow tests run.

At toy size they share a kernel, which saves the time that imports take, and a model of random weights, and their
figures have few pixels. With its defaults each notebook has its own kernel and the bundled model.
"""

import ast
import os
import re
import shutil
from itertools import product
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import torch

import dsnb
from dsnb.lab import outputs
from dsnb.lab.grid.kernels import Job, end_kernels, run_point
from dsnb.lab.training import autoencoder, diffusion
from dsnb.lab.training.export import export

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
KEPT = ROOT / "runs" / "tests"  # executed copies; of a notebook that failed, as far as it came
CELL_LIMIT = 600  # seconds for one cell, so that nothing hangs for ever

# Parameters for the toy size, each different from its default. A notebook that is not named here gets {"seed": 1}.
TOY = {
    "00_blend_two_styles": {
        "image": "sailboat_beach",
        "style_left": "mosaic",
        "style_right": "A pencil sketch of [prompt]",
        "mask": "radial",
        "sharpness": 60.0,
        "method": "attention",
        "steps": 3,
        "preview_steps": 2,
        "seed": 1,
    },
    "01_meet_the_drawn_world": {
        "object": "owl",
        "scene": "night",
        "style_left": "mosaic",
        "style_right": "neon",
        "sharpness": 60.0,
        "seed": 1,
    },
    "02_sample_an_image": {
        "prompt": "A mosaic of a dog, by the sea",
        "guidances": [2.0, 4.0],
        "seeds": 2,
        "steps": 2,
        "captions": 2,
        "seed": 7,
    },
    "03_invert_an_image": {
        "image": "rocket_night",
        "style": "warhol",
        "steps": 3,
        "step_counts": [2, 3],
        "skips": [0.0, 0.5],
        "guidances": [1.0, 3.0],
        "eta": 1.0,
        "free": 2,
        "seeds": 1,
        "seed": 3,
    },
    "04_draw_masks": {
        "image": "photo_cat",
        "style_left": "mosaic",
        "style_right": "warhol",
        "sharpness": 300.0,
        "angle": 45.0,
        "mask_file": "../data/images/photo_coffee.jpg",
        "own_formula": "r < 0.2 + 0.3 * t",
    },
    "05_two_baselines": {
        "image": "cactus_desert",
        "style_left": "mosaic",
        "style_right": "warhol",
        "sharpness": 40.0,
        "sharpnesses": [5.0, 50.0],
        "steps": 4,
        "guidance": 2.0,
        "seeds": 2,
        "seed": 2,
    },
    "06_epsilon_mask": {
        "image": "photo_cat",
        "style_left": "mosaic",
        "style_right": "warhol",
        "sharpness": 60.0,
        "guidance": 2.0,
        "steps": 3,
        "sweep_steps": 2,
        "seeds": 2,
        "seed": 1,
    },
    "07_shape_the_transition": {
        "image": "photo_cat",
        "style_left": "mosaic",
        "style_right": "warhol",
        "sharpness": 60.0,
        "angle": 45.0,
        "steps": 2,
        "seeds": 2,
        "seed": 1,
    },
    "08_watch_attention": {
        "image": "castle_mountains",
        "word": "",
        "style_on": "mosaic",
        "style_off": "warhol",
        "steps": 5,
        "count": 2,
        "seed": 1,
    },
    "09_interpolate_attention": {
        "image": "dog_beach",
        "word": "",
        "style_left": "mosaic",
        "style_right": "warhol",
        "sharpness": 60.0,
        "steps": 2,
        "sweep_steps": 2,
        "seeds": 2,
        "seed": 1,
    },
    "10_what_crosses_the_border": {
        "image": "dog_beach",
        "style_left": "minecraft",
        "style_right": "vangogh",
        "sharpness": 60.0,
        "steps": 2,
        "seeds": 2,
        "seed_steps": 2,
        "seed": 1,
    },
    "11_beyond_two_styles": {
        "image": "photo_coffee",
        "styles_in_order": "warhol, mosaic, vangogh, minecraft",
        "sharpness": 60.0,
        "switch": 0.3,
        "steps": 2,
        "sweep_steps": 2,
        "seeds": 1,
        "seed": 1,
    },
    "12_measure_an_image": {"left": "mosaic", "right": "warhol", "sharpness": 40.0, "count": 1, "seed": 1},
    "13_measure_two_styles": {
        "left": "mosaic",
        "right": "warhol",
        "mask": "linear",
        "count": 1,
        "seed": 1,
    },
    "14_compare_methods": {"pair": "mosaic/warhol", "method": "pixel", "seeds": 1, "steps": 2},
    "15_measure_cost": {"repeats": 1, "steps": 2, "styles": [3], "fewer_steps": 3, "seed": 1},
    "16_train_the_model": {
        "autoencoder_steps": 5,
        "contrast_steps": 3,
        "unet_steps": 3,
        "seed": 1,
    },
    "18_what_teaches_objects": {"change": "patches", "steps": 1, "images": 4, "seed": 1},
    "17_with_your_own_model": {"image": "sailboat_beach", "steps": 4, "size": 64, "seed": 1},
    "solutions/00_blend_two_styles": {"image": "rocket_night", "steps": 2, "seed": 1},
    "solutions/01_meet_the_drawn_world": {"object": "cup", "scene": "room", "seed": 1},
    "solutions/02_sample_an_image": {
        "prompt": "a red guitar in a room",
        "unwanted": "a guitar",
        "steps": 2,
        "step_counts": [2, 3],
        "seed": 2,
    },
    "solutions/03_invert_an_image": {
        "image": "photo_rocket",
        "style": "vangogh",
        "steps": 2,
        "seeds": 2,
        "seed": 2,
    },
    "solutions/04_draw_masks": {"image": "truck_street"},
    "solutions/05_two_baselines": {
        "image": "dog_beach",
        "style_left": "mosaic",
        "style_right": "warhol",
        "sharpness": 30.0,
        "steps": 2,
        "seeds": 2,
        "seed": 2,
    },
    "solutions/06_epsilon_mask": {
        "image": "rocket_night",
        "style_left": "mosaic",
        "steps": 2,
        "seeds": 2,
        "seed": 1,
    },
    "solutions/07_shape_the_transition": {"image": "truck_street", "steps": 2, "seeds": 2, "seed": 2},
    "solutions/08_watch_attention": {
        "image": "castle_mountains",
        "word": "castle",
        "other_word": "",
        "style": "mosaic",
        "steps": 4,
        "seed": 1,
    },
    "solutions/09_interpolate_attention": {
        "image": "dog_beach",
        "style_left": "mosaic",
        "style_right": "warhol",
        "steps": 2,
        "seeds": 2,
        "seed": 1,
    },
    "solutions/10_what_crosses_the_border": {
        "image": "photo_cat",
        "style_left": "minecraft",
        "style_right": "vangogh",
        "steps": 2,
        "seeds": 2,
        "table": "",
        "live_images": 1,
        "seed": 1,
    },
    "solutions/11_beyond_two_styles": {"image": "photo_coffee", "steps": 2, "seeds": 2, "seed": 1},
    "solutions/12_measure_an_image": {"left": "mosaic", "right": "warhol", "scenes": 3, "seed": 1},
    "solutions/13_measure_two_styles": {"left": "mosaic", "right": "warhol", "other_left": "neon", "seed": 1},
    "solutions/14_compare_methods": {"seed": 1},
    "solutions/15_measure_cost": {"samples_styles": 3, "tokens": 256, "repeats": 3, "seed": 1},
    "solutions/16_train_the_model": {"steps": 3, "count": 4, "seed": 1},
    "solutions/18_what_teaches_objects": {"steps": 1, "repeats": 20, "count": 3, "seed": 1},
}


TRAINED = {"solutions/03_invert_an_image"}  # random weights take no notice of a wrong caption
COARSE = "from dsnb import plotting\n\nplotting.DPI = 50"
TOY_BENCH = """import dsnb
from dsnb.lab.bench import sections

sections.load = lambda **options: dsnb.load({!r}, **options)"""
TRIAL_MEASURES = ("auc", "top1", "top5", "style", "few_auc", "few_top1")  # what notebook 18 records


def find(folder=NOTEBOOKS):
    """All notebooks by name, solutions as "solutions/…"."""
    files = (*folder.glob("*.ipynb"), *folder.glob("solutions/*.ipynb"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(files)}


FOUND = find()
each = pytest.mark.parametrize("name", FOUND)


def read(name):
    return nbformat.read(FOUND[name], as_version=4)


def parameters_cell(name):
    cells = [cell for cell in read(name).cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1, f"{name} has {len(cells)} cells with the tag 'parameters', expected one"
    return cells[0]


def parameters(name):
    """The defaults by name."""
    body = ast.parse(parameters_cell(name).source).body
    return {statement.target.id: ast.literal_eval(statement.value) for statement in body}


def run(name, case, parameters, monkeypatch):
    """Execute a notebook and keep the copy; if a cell fails, the test fails with the cell's error."""
    monkeypatch.setenv("DSNB_FIGURES", str(KEPT / "figures" / case))  # figures/ keeps the full-size ones
    monkeypatch.setenv("DSNB_INTERACTIVE", "0")
    monkeypatch.setenv("OMP_WAIT_POLICY", os.environ.get("OMP_WAIT_POLICY", "PASSIVE"))
    output = KEPT / f"{name.replace('/', '_')}-{case}.ipynb"
    output.parent.mkdir(parents=True, exist_ok=True)
    options = {"cwd": FOUND[name].parent, "progress_bar": False, "execution_timeout": CELL_LIMIT}
    try:
        papermill.execute_notebook(FOUND[name], output, parameters, **options)
    except papermill.PapermillExecutionError as error:
        said = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
        pytest.fail(f"{name} failed; {output} has what it did until then\n{said[-3000:]}", pytrace=False)


@pytest.fixture(scope="module")
def shared_kernel():
    """A run whose notebooks take turns in one kernel, as the points of a grid do."""
    yield "toy"
    end_kernels("toy")


@pytest.fixture(scope="module")
def toy_model(tmp_path_factory):
    """The bundled tokenizer and text encoder, with a small UNet and autoencoder of random weights."""
    pipe = dsnb.load().pipe
    channels, width = pipe.unet.config.in_channels, pipe.unet.config.cross_attention_dim
    torch.manual_seed(0)
    networks = autoencoder.build(channels, width=16), pipe.text_encoder, pipe.tokenizer
    return str(export(*networks, diffusion.build("tiny", channels, width), tmp_path_factory.mktemp("toy")))


@each
def test_runs_at_toy_size(name, shared_kernel, toy_model, monkeypatch):
    monkeypatch.setenv("DSNB_INTERACTIVE", "0")
    asked = dict(TOY.get(name, {"seed": 1}))
    if "model" in parameters(name) and name not in TRAINED:
        asked["model"] = toy_model
    notebook = read(name)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(COARSE))
    if name == "15_measure_cost":  # it measures the bundled model, and has no parameter for another
        notebook.cells.insert(1, nbformat.v4.new_code_cell(TOY_BENCH.format(toy_model)))
    job = Job(shared_kernel, nbformat.writes(notebook), str(FOUND[name].parent), CELL_LIMIT)
    outcome = run_point(job, asked)
    output = KEPT / f"{name.replace('/', '_')}-toy.ipynb"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(outcome.notebook, "utf-8")
    assert not outcome.error, f"{output} has what it did until then: {outcome.error}"


@pytest.mark.slow
@each
def test_runs_with_its_defaults(name, monkeypatch):
    run(name, "defaults", {}, monkeypatch)


@pytest.mark.slow
def test_notebook_10_runs_trials_where_it_has_no_table(monkeypatch):
    name = "10_what_crosses_the_border"
    run(name, "live", TOY[name] | {"table": "", "live_seeds": 1}, monkeypatch)


@each
def test_toy_parameters_exist_and_differ(name):
    defaults = parameters(name)
    for parameter, value in TOY.get(name, {"seed": 1}).items():
        assert parameter in defaults, f"{name} has no parameter {parameter!r}"
        assert value != defaults[parameter], f"{parameter} is {value!r} by default"


@each
def test_code_cells_are_short(name):
    code = (cell for cell in nbformat.read(FOUND[name], as_version=4).cells if cell.cell_type == "code")
    lines = {cell.id: len(cell.source.splitlines()) for cell in code}
    assert all(count <= 25 for count in lines.values()), lines


@each
def test_parameters_are_typed_and_explained(name):
    source = parameters_cell(name).source
    for statement in ast.parse(source).body:
        assert isinstance(statement, ast.AnnAssign), ast.unparse(statement)
        assert type(ast.literal_eval(statement.value)).__name__ == ast.unparse(statement.annotation)
        lines = source.splitlines()[statement.lineno - 1 : statement.end_lineno]
        assert re.search(r"  # \S", "\n".join(lines)), f"no comment explains {ast.unparse(statement.target)}"


def carries_outputs(name):
    notebook = read(name)
    return "dsnb" in notebook.metadata or any(cell.get("outputs") for cell in notebook.cells)


@each
def test_outputs_are_those_of_make_figures(name):
    """Solutions carry none. As soon as one notebook carries outputs, every notebook does, and they are fresh."""
    if name.startswith("solutions/") or not any(map(carries_outputs, FOUND)):
        assert not carries_outputs(name)
        assert not [cell for cell in read(name).cells if cell.get("execution_count")]
    else:
        assert not outputs.find_problems(FOUND[name])
    assert "papermill" not in read(name).metadata


@each
def test_links_lead_somewhere(name):
    text = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    missing = [link for link in links if not (FOUND[name].parent / link).exists()]
    assert not missing, f"{name} links to files that do not exist: {missing}"


@pytest.mark.parametrize("name", [name for name in FOUND if f"solutions/{name}" in FOUND])
def test_each_exercise_has_a_solution_of_the_same_name(name):
    book, solved = (
        "\n".join(cell.source for cell in read(part).cells if cell.cell_type == "markdown")
        for part in (name, f"solutions/{name}")
    )
    asked = re.findall(r"^(\d+)\. (★+) \*\*(.+?)\.?\*\* ", book[book.index("## Exercises") :], re.M)
    assert asked and asked == re.findall(r"^## (\d+)\. (★+) (.+)$", solved, re.M)
    title = book.splitlines()[0].removeprefix("# ")
    assert solved.startswith(f"# Solutions to {title}\n")


@pytest.mark.slow
def test_the_trials_draw_their_tables(tmp_path, monkeypatch):
    draws = np.random.default_rng(0)
    by_seed = {"control": (0, 0, 0), "random": (0, 0, 0), "fours": (0.6,) * 3, "small": (-0.6,) * 3}
    by_seed["patches"] = (-0.1, 0.1, 0.3)  # better by far on these images, but only by luck
    rows = [
        {"change": change, "seed": seed, "image": k, "status": "done"}
        | {name: 0.5 + gains[seed] + 0.1 * draws.random() for name in TRIAL_MEASURES}
        for (change, gains), seed, k in product(by_seed.items(), range(3), range(20))
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "table.parquet")
    drawn = KEPT / "figures" / "trials"
    shutil.rmtree(drawn, ignore_errors=True)
    asked = {"tables": str(tmp_path), "steps": 2, "images": 3}
    run("18_what_teaches_objects", "trials", asked, monkeypatch)
    kept = pd.read_csv(drawn / "18_trials.csv", index_col="change")
    assert (drawn / "18_trials.png").is_file()
    assert set(kept.index) == set(by_seed)
    assert kept["auc low"]["fours"] > 0.2 and kept["auc high"]["small"] < -0.2
    for change in ("random", "patches"):
        assert kept["auc low"][change] < 0 < kept["auc high"][change]
    assert kept["auc less control"]["patches"] == pytest.approx(0.1, abs=0.03)
    assert kept["auc less control"]["control"] == 0


@pytest.mark.slow
def test_notebook_17_takes_a_tiny_random_transformer(tmp_path, monkeypatch):
    from test_families import save

    asked = {"model": str(save("sd3", tmp_path)), "steps": 3, "size": 32}
    run("17_with_your_own_model", "transformer", asked, monkeypatch)


def test_make_trials_tries_every_change():
    cells = nbformat.read(FOUND["18_what_teaches_objects"], as_version=4).cells
    (source,) = (cell.source for cell in cells if cell.source.startswith("CHANGES = "))
    changes = ast.literal_eval(ast.parse(source).body[0].value)
    (asked,) = re.findall(r"^CHANGES := (.*)$", (NOTEBOOKS.parent / "Makefile").read_text(), re.M)
    assert asked.split(",") == list(changes)


def test_there_are_notebooks():
    assert FOUND and any(name.startswith("solutions/") for name in FOUND)
    assert set(TOY) <= set(FOUND), f"not in notebooks/: {set(TOY) - set(FOUND)}"


def test_a_failing_notebook_fails_and_is_kept(tmp_path, monkeypatch):
    cells = [nbformat.v4.new_code_cell("print('so far')"), nbformat.v4.new_code_cell("1 / 0")]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=read("00_blend_two_styles").metadata)
    path = tmp_path / "broken.ipynb"
    nbformat.write(notebook, path)
    monkeypatch.setitem(FOUND, "broken", path)
    monkeypatch.setattr(f"{__name__}.KEPT", tmp_path / "kept")
    with pytest.raises(pytest.fail.Exception, match="ZeroDivisionError"):
        run("broken", "defaults", {}, monkeypatch)
    kept = nbformat.read(tmp_path / "kept" / "broken-defaults.ipynb", as_version=4)
    assert any(
        "so far" in output.get("text", "") for cell in kept.cells for output in cell.get("outputs", [])
    )
