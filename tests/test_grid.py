"""Grids run for real, in Jupyter kernels, on notebooks that import nothing heavy."""

import functools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

import dsnb
from dsnb.lab.grid import GridError, folder, main, once, read_table, record, run
from dsnb.lab.grid.kernels import Outcome
from dsnb.lab.grid.parameters import convert, make_grid, parse_settings, parse_values
from dsnb.lab.grid.records import recorded

PARAMETERS = """
sharpness: float = 20.0  # how sharp
method: str = "epsilon"  # which
seed: int = 0
model: str = ""
log: str = ""  # a file that gets a line when a point begins and one when it ends
pause: float = 0.0  # seconds
"""
BODY = """
import os, signal, time
from pathlib import Path
from dsnb.lab.grid import once, record
def note(word):
    if log:
        with open(log, "a") as file: file.write(f"{word} {sharpness:g} {os.getpid()}\\n")
note("begin")
time.sleep(pause)
if sharpness == 7:
    raise RuntimeError("seven is not to be had")
if sharpness == 8:
    os.kill(os.getpid(), signal.SIGKILL)
if sharpness == 9:
    time.sleep(600)
note("end")
"""
RECORD = """
assert "left_over" not in globals()
left_over = 1
Path(os.environ["DSNB_FIGURES"], "figure.png").write_bytes(b"a figure that the notebook saves")
record(score=2 * sharpness, kernel=os.getpid(), kept=once(os.getpid), nothing=float("nan"), method="other")
record([{"score": -1.0}])
"""
IMAGE = """
from IPython.display import Image, display
display(Image(data=bytes.fromhex("89504e470d0a1a0a"), format="png"))
"""
SOCKETS = """
import subprocess, sys
from ipykernel.connect import get_connection_file, get_connection_info
file = Path(get_connection_file())
connect = f"import os, socket; socket.socket(socket.AF_UNIX).connect({str(file)[:-5] + '-ipc-1'!r})"
status = {"owner": connect}
if os.geteuid() == 0:
    status["other"] = connect.replace("socket;", "socket; os.setuid(65534);", 1)
for user, code in status.items():
    reply = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    status[user] = reply.stderr.strip().rpartition("\\n")[2]
record(transport=get_connection_info(unpack=True)["transport"], mode=oct(file.parent.stat().st_mode & 0o777), **status)
"""


def write_notebook(path, *sources, parameters=PARAMETERS):
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    nbformat.write(nbformat.v4.new_notebook(cells=[*cells, *map(nbformat.v4.new_code_cell, sources)]), path)
    return path


@pytest.fixture
def notebook(tmp_path):
    """A notebook without a kernelspec."""
    return write_notebook(tmp_path / "tiny.ipynb", BODY, RECORD, IMAGE)


@pytest.fixture
def empty_models(tmp_path, monkeypatch):
    """A folder that stands for the bundled models."""
    (tmp_path / "models").mkdir()
    monkeypatch.setattr("dsnb.lab.grid.parameters.data_path", lambda name: tmp_path / name)
    return tmp_path / "models"


@contextmanager
def started(*words):
    """A process in a group of its own, which is killed afterwards."""
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=Path(dsnb.__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_until(condition, what):
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline, f"not within 90 s: {what}"
        time.sleep(0.05)


def finished(output):
    """The points of a folder that are done, by their sharpness."""
    rows = [json.loads(file.read_text())[0] for file in output.glob("points/*/rows.json")]
    return sorted(row["sharpness"] for row in rows if row["status"] == "done")


def begun(log):
    """The sharpness and process of each point that began, in order."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(float(line.split()[1]), int(line.split()[2])) for line in lines if line.startswith("begin")]


def ended(pid):
    """Whether a process has ended, even if its parent has not asked for its status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def command(notebook, output, *words):
    return main([str(notebook), "--output", str(output), "--workers", "1", *words])


def outcome(notebook="{}", **values):
    values = {"error": "", "rows": [], "images": [], "seconds": 1.0, "worker": "w", "versions": {}} | values
    return Outcome(notebook=notebook, **values)


# --- whole runs ---


def test_a_grid_becomes_a_table_and_only_what_is_missing_runs_again(notebook, tmp_path, capsys):
    output, log = tmp_path / "out", tmp_path / "log"
    words = ["-p", "seed=3", "-p", f"log={log}", "--point-timeout", "6"]
    assert command(notebook, output, "--grid", "sharpness=5,7,20", *words) == 1  # one point fails
    printed = capsys.readouterr()
    assert "2 done, 1 failed, 0 from before" in printed.out
    assert "the first: RuntimeError: seven is not to be had" in printed.err
    table = pd.read_csv(output / "table.csv")
    assert table.sharpness.tolist() == [5, 5, 7, 20, 20]
    assert table.status.tolist() == ["done", "done", "failed", "done", "done"]
    assert table.score.dropna().tolist() == [10, -1, 40, -1] and table.nothing.isna().all()
    assert set(table.seed) == {3} and set(table.method) == {"epsilon"}
    assert set(table.recorded_method.dropna()) == {"other"}  # hides no parameter
    assert table.error[2] == "RuntimeError: seven is not to be had"
    assert set(table.version_dsnb) == {dsnb.__version__} and table.version_python.notna().all()
    assert read_table(output / "table.parquet").score.dropna().tolist() == [10, -1, 40, -1]
    failed = nbformat.read(output / table.notebook[2], as_version=4)
    assert any("seven" in str(cell.get("outputs", "")) for cell in failed.cells)
    point = (output / table.notebook[0]).parent
    assert (point / "00.png").read_bytes().startswith(b"\x89PNG")
    assert not list(output.rglob("*tmp*"))

    before = len(begun(log))
    assert command(notebook, output, "--grid", "sharpness=1,2,5,7,8,9,20", *words) == 1
    table = pd.read_csv(output / "table.csv").drop_duplicates("point").set_index("sharpness")
    assert [sharpness for sharpness, _ in begun(log)[before:]] == [1, 2, 7, 8, 9]
    assert table.index.tolist() == [1, 2, 5, 7, 8, 9, 20]
    assert table.kernel[1] == table.kept[1] == table.kernel[2] == table.kept[2]  # one kernel, cleared between
    assert len({pid for _, pid in begun(log)[before:]}) == 4 - 1  # a failed point ends its kernel
    assert "SIGKILL" in table.error[8] and "memory" in table.error[8]
    assert "longer than 6 s" in table.error[9] and "--point-timeout" in table.error[9]
    assert all(ended(pid) for _, pid in begun(log))


def test_a_stopped_or_killed_grid_goes_on_from_there(notebook, tmp_path):
    output, log, sharpness = tmp_path / "out", tmp_path / "log", [1, 2, 3, 4, 5, 6]
    words = ["-m", "dsnb", "run", str(notebook), "--output", str(output), "--workers", "1", "-p", "pause=2"]
    words += ["-p", f"log={log}", "--grid", f"sharpness={','.join(map(str, sharpness))}"]
    for how in ("Ctrl-C", "kill -9"):
        before = len(finished(output))
        with started(*words) as process:
            wait_until(lambda n=before: len(finished(output)) > n, f"a finished point before {how}")
            if how == "Ctrl-C":
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            else:
                process.kill()
            _, text = process.communicate(timeout=60)
        assert "Traceback" not in text and len(finished(output)) < 6
        if how == "Ctrl-C":
            assert process.returncode == 130
            assert text.rstrip().endswith("stopped; the same command goes on from here")
            assert pd.read_csv(output / "table.csv").sharpness.nunique() == len(finished(output))
        wait_until(lambda: all(ended(pid) for _, pid in begun(log)), f"no kernel is left after {how}")
    done = finished(output)
    log.unlink()
    with started(*words) as process:
        text, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and f"{6 - len(done)} done, 0 failed, {len(done)} from before" in text
    assert sorted([*done, *(number for number, _ in begun(log))]) == sharpness
    assert pd.read_csv(output / "table.csv").sharpness.tolist() == [k for k in sharpness for _ in range(2)]


def test_sigterm_before_the_first_point_is_a_sentence_and_leaves_no_table(notebook, tmp_path):
    words = ["-m", "dsnb", "run", str(notebook), "--output", str(tmp_path / "out"), "-p", "pause=60"]
    with started(*words) as process:
        wait_until((tmp_path / "out" / "grid.json").exists, "the grid's folder")
        process.terminate()
        _, text = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in text
    assert text.rstrip().endswith("stopped; the same command goes on from here")
    assert not list((tmp_path / "out").glob("table.*"))


def test_a_dask_cluster_runs_points_and_its_loss_is_a_sentence(notebook, tmp_path, capsys):
    output, log = tmp_path / "out", tmp_path / "log"
    code = "import time\nfrom distributed import LocalCluster\n"
    code += "cluster = LocalCluster(n_workers=1, threads_per_worker=1, processes=False, protocol='tcp',"
    code += "dashboard_address=None)\nprint(cluster.scheduler_address, flush=True)\ntime.sleep(300)"
    with started("-c", code) as process:
        address = process.stdout.readline().strip()
        words = ["--scheduler", address, "-p", f"log={log}", "-p", "pause=0.5", "--grid"]
        assert command(notebook, output, *words, "sharpness=1,2") == 0
        assert len({pid for _, pid in begun(log)}) == 1
        wait_until(lambda: ended(begun(log)[0][1]), "the kernel ends with its run, although the worker lives")
        status = []
        points = "sharpness=1,2,3,4,5,6"
        thread = threading.Thread(target=lambda: status.append(command(notebook, output, *words, points)))
        thread.start()
        wait_until(lambda: len(finished(output)) > 2 or status, "a finished point")
        os.killpg(process.pid, signal.SIGKILL)
        thread.join(timeout=60)
    assert status == [2]
    assert "the scheduler was lost before all points were done" in capsys.readouterr().err
    table = pd.read_csv(output / "table.csv")
    assert sorted(set(table.sharpness)) == finished(output) and 3 <= len(finished(output)) < 6


def test_kernels_take_code_from_their_owner_alone(tmp_path, monkeypatch):
    (tmp_path / ("long" * 25)).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("long" * 25)))  # too long for a socket
    notebook = write_notebook(tmp_path / "sockets.ipynb", BODY, SOCKETS)
    assert command(notebook, tmp_path / "out") == 0
    row = pd.read_csv(tmp_path / "out" / "table.csv", keep_default_na=False).iloc[0]
    assert row["transport"] == "ipc" and row["mode"] == "0o700"
    assert row["owner"] == ""  # its owner can connect
    if os.geteuid() == 0:
        assert row["other"].startswith("PermissionError")  # another user cannot


def test_a_new_grid_stops_if_its_first_points_fail_with_one_error(tmp_path, capsys):
    notebook = write_notebook(tmp_path / "failing.ipynb", "open('/no/such/pairs.json')")
    assert command(notebook, tmp_path / "out", "--grid", "seed=0:9") == 2
    text = capsys.readouterr().err
    assert "the first 3 points failed with the same error" in text and "'/no/such/pairs.json'" in text
    assert len(pd.read_csv(tmp_path / "out" / "table.csv")) == 3


def test_values_are_set_after_all_defaults_and_replace_those_of_an_earlier_run(tmp_path):
    def cell(source, tag="parameters", new=nbformat.v4.new_code_cell):
        return new(source, metadata={"tags": [tag]})

    body = nbformat.v4.new_code_cell("from dsnb.lab.grid import record\nrecord(used=[x, y] == [1, 20])")
    cells = [cell("# Settings", new=nbformat.v4.new_markdown_cell), cell("x = 1"), cell("y = 2"), body]
    path, identities = tmp_path / "a.ipynb", []
    for injected in ([], [cell("x = 7\ny = 7", "injected-parameters")]):  # as papermill leaves it
        nbformat.write(nbformat.v4.new_notebook(cells=cells[:2] + injected + cells[2:]), path)
        identities.append(make_grid(path, {}).identity)
    assert identities[0] == identities[1]
    report = run(path, {"y": [20]}, output=tmp_path / "out", progress=False)
    table = read_table(report.table)
    assert (table.x[0], table.y[0], table.used[0]) == (1, 20, True)


def test_defaults_that_json_lacks_and_expressions_are_texts_of_the_table(tmp_path):
    parameters = "x = 1\nsides = {'left'}\nn = 2 * 3\nmodel = 4"
    path = write_notebook(tmp_path / "a.ipynb", "print(x, sides, n)", parameters=parameters)
    table = read_table(run(path, {"x": [1, 2]}, output=tmp_path / "out", progress=False).table)
    assert list(table.status) == ["done"] * 2
    assert list(table.sides) == ["{'left'}"] * 2 and list(table.n) == ["2 * 3"] * 2


# --- bad input, before anything runs ---


@pytest.mark.parametrize(
    "words, sentence",
    [
        (
            ["--grid", "sharpnes=5"],
            "no parameter 'sharpnes'; it has sharpness, method, seed, model, log, pause",
        ),
        (["--grid", "sharpnes=5"], "; did you mean 'sharpness'?"),
        (
            ["--grid", "sharpness=5,abc"],
            "'sharpness' is 'abc', expected float like the notebook's default 20.0",
        ),
        (["--grid", "seed=1.5"], "'seed' is '1.5', expected int"),
        (["--grid", "sharpness="], "grid 'sharpness' is [], expected a list of at least one value"),
        (["--grid", "sharpness"], "expected --grid name=value"),
        (["--grid", "sharpness=[1"], "start like a list"),
        (["--grid", "sharpness=[{[1]: 2}]"], "start like a list"),
        (["--grid", "seed=1", "--grid", "seed=2"], "'seed' is given twice"),
        (["--grid", "seed=1", "-p", "seed=2"], "both fixed (-p) and varied"),
        (["--grid", "seed=0:10000000000"], "more than 100,000, the most points of a grid"),
        (["--grid", "seed=0:1000", "--grid", "sharpness=0:1000"], "the grid has 1,000,000 points"),
        (["--workers", "0"], "workers is 0"),
        (["--point-timeout", "0"], "point-timeout is 0"),
        (["--point-timeout", "nan"], "point-timeout is nan"),
        (["--timeout", "nan"], "timeout is nan"),
        (["--scheduler", "tcp://127.0.0.1:9", "--timeout", "1"], "does not answer within 1 s"),
        (["--scheduler", "nonsense://x", "--timeout", "1"], "does not answer"),
    ],
)
def test_bad_input_is_a_sentence(notebook, tmp_path, capsys, words, sentence):
    assert command(notebook, tmp_path / "out", *words) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out" / "table.csv").exists()


@pytest.mark.parametrize(
    "content, sentence",
    [
        (None, "cannot be read: No such file"),
        (b"hello", "is not a Jupyter notebook"),
        (b"\xff", "is not a Jupyter notebook"),
        (nbformat.writes(nbformat.v4.new_notebook()).encode(), "it has no cell tagged 'parameters'"),
    ],
)
def test_a_file_that_is_no_notebook_or_takes_no_parameters(tmp_path, capsys, content, sentence):
    if content is not None:
        (tmp_path / "a.ipynb").write_bytes(content)
    assert command(tmp_path / "a.ipynb", tmp_path / "out", "-p", "x=1") == 2
    assert sentence in capsys.readouterr().err
    with pytest.raises(GridError, match="tagged 'parameters' is not Python"):
        make_grid(write_notebook(tmp_path / "magic.ipynb", parameters="%magic"), {})


# --- whose folder it is ---


@pytest.fixture
def finished_folder(notebook, tmp_path, empty_models):
    """A grid over sharpness 1 and 2, finished."""
    grid, path = make_grid(notebook, {"sharpness": [1, 2]}), tmp_path / "out"
    with folder.claim(path, grid):
        points = {
            name: folder.write_point(path, grid, name, outcome(rows=[{"score": 1}])) for name in grid.points
        }
        folder.write_table(path, grid, points)
    return path


def test_nothing_is_left_to_do_in_a_finished_folder(notebook, finished_folder):
    (finished_folder / "points" / ".DS_Store").write_bytes(b"")  # as macOS's Finder does
    report = run(notebook, {"sharpness": [2, 1]}, output=finished_folder, progress=False)
    assert (report.done, report.failed, report.skipped, report.error) == (0, 0, 2, "")
    assert pd.read_csv(report.table).sharpness.tolist() == [2, 1]


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--grid", "sharpness=1,2", "-p", "seed=1"], "other fixed parameters"),
        (["--grid", "seed=1,2"], "a grid over other parameters"),
        (["--grid", "sharpness=2,3"], "1 points that this one does not have, such as 'sharpness=1.0"),
    ],
)
def test_a_table_of_another_grid_is_refused(notebook, finished_folder, capsys, words, sentence):
    kept = (finished_folder / "table.csv").read_bytes()
    assert command(notebook, finished_folder, *words) == 2
    assert sentence in capsys.readouterr().err and (finished_folder / "table.csv").read_bytes() == kept


@pytest.mark.parametrize("what", ["an earlier version of this notebook's code", "another version of dsnb"])
def test_rows_of_another_version_are_refused(notebook, finished_folder, monkeypatch, what):
    if "code" in what:
        notebook.write_text(notebook.read_text().replace("score=2 * sharpness", "score=3 * sharpness"))
    else:
        monkeypatch.setattr("dsnb.lab.grid.parameters.__version__", "99")
    with pytest.raises(GridError, match=what):
        run(notebook, {"sharpness": [1, 2]}, output=finished_folder)


def test_rows_of_other_weights_are_refused_and_another_model_is_added(notebook, tmp_path, empty_models):
    path, own = tmp_path / "out", tmp_path / "own"
    weights = [empty_models / "unet" / "model.safetensors", own / "model.safetensors"]
    for file in weights:
        file.parent.mkdir()
        file.write_bytes(b"weights")

    def claimed(*models):
        with folder.claim(path, make_grid(notebook, {"model": models})):
            return True

    (own / "README.md").write_text("a model card")
    assert claimed("") and claimed("", str(own))
    (own / "README.md").write_text("another model card")
    assert claimed("", str(own)) and claimed("", str(own), "a/hub-id")
    for file in weights:
        file.write_bytes(b"trained on")
        with pytest.raises(GridError, match="other model weights"):
            claimed("", str(own))
        file.write_bytes(b"weights")


def test_rows_of_another_input_file_are_refused(notebook, tmp_path, empty_models):
    image = tmp_path / "image.png"
    image.write_bytes(b"an image")

    def claimed():
        with folder.claim(tmp_path / "out", make_grid(notebook, {"seed": [1]}, {"model": str(image)})):
            return True

    assert claimed() and claimed()
    image.write_bytes(b"another image")
    with pytest.raises(GridError, match="another input file"):
        claimed()


@pytest.mark.parametrize(
    "file, content, sentence",
    [
        ("grid.json", "{", "cannot be read: Expecting property name"),
        ("grid.json", "[1]", "does not describe a grid"),
        ("grid.json", None, "cannot be read: No such file"),
        ("points/*/rows.json", "{", "cannot be read: Expecting property name"),
        ("points/*/rows.json", '{"status": "done"}', "does not hold rows of this grid; delete it"),
        ("points/*/rows.json", '[{"status": "fine"}]', "does not hold rows of this grid; delete it"),
    ],
)
def test_a_file_that_somebody_edited_is_named(notebook, finished_folder, file, content, sentence):
    found = sorted(finished_folder.glob(file))[0]
    found.unlink() if content is None else found.write_text(content)
    with pytest.raises(GridError, match=sentence) as raised:
        run(notebook, {"sharpness": [1, 2]}, output=finished_folder)
    assert str(found) in str(raised.value)


def test_two_runs_do_not_share_a_folder(notebook, tmp_path):
    with folder.claim(tmp_path / "out", make_grid(notebook, {"seed": [1]})):
        with pytest.raises(GridError, match="is in use by another run"):
            run(notebook, {"seed": [1]}, output=tmp_path / "out")


def test_prose_comments_and_layout_do_not_make_another_notebook(tmp_path):
    def source(*cells):
        path = write_notebook(tmp_path / "a.ipynb", *cells)
        return make_grid(path, {"seed": [1]}).identity["source"]

    plain = source("x = 'a'  # why\ny = (1, 2)")
    assert plain == source("# other words", 'x = "a"\n\ny = (\n    1,\n    2,\n)')
    assert plain != source("x = 'b'\ny = (1, 2)")
    assert plain != source("x = 'a'", "y = (1, 2)")  # a cell shows its last value
    assert source("%matplotlib inline\nx = 1") != source("%matplotlib inline\nx = 2")


# --- the disk ---


def test_a_folder_that_cannot_be_written(notebook, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "out", Path("/proc/nothing")):
        assert command(notebook, place) == 2
        assert "cannot be written" in capsys.readouterr().err


def test_a_full_disk_leaves_only_whole_points(notebook, finished_folder):
    """The limit on file sizes stands for a full disk: the system itself refuses the write."""
    grid, limits = make_grid(notebook, {"sharpness": [1, 2]}), resource.getrlimit(resource.RLIMIT_FSIZE)
    name, other = grid.points
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(GridError, match="cannot be written: File too large"):
            folder.write_point(finished_folder, grid, name, outcome("x" * 2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(folder.read_points(finished_folder, grid)) == [other]
    assert not list((finished_folder / "points" / name).iterdir())


# --- parts ---


def test_points_are_every_combination_once(notebook):
    varied = {"sharpness": ["5", np.float32(5), "20"], "method": ["a b", "a/b"]}
    grid = make_grid(notebook, varied, {"seed": "4"})
    assert [tuple(values.values()) for values in grid.points.values()] == [
        (5.0, "a b"), (5.0, "a/b"), (20.0, "a b"), (20.0, "a/b"),
    ]  # fmt: skip
    assert len(grid.points) == 4 and all("/" not in name for name in grid.points)
    assert grid.fixed == {"seed": 4}
    # two seeds whose hashes begin with the same 8 digits
    assert len(make_grid(notebook, {"method": ["x" * 90], "seed": [13527, 60075]}).points) == 2


def test_what_was_recorded_is_in_both_tables(notebook, tmp_path):
    grid = make_grid(notebook, {"seed": [1, 2, 3]})
    with folder.claim(tmp_path, grid):
        first = {"x": 1, "whole": 2**60 + 1, "huge": 2**70, "text": "NA", "seconds": 5, "recorded_seconds": 6}
        rows = dict(zip(grid.points, ([first], [{"x": "one"}], [{}]), strict=True))
        points = {name: folder.write_point(tmp_path, grid, name, outcome(rows=rows[name])) for name in rows}
        folder.write_table(tmp_path, grid, points)
    for file in ("table.csv", "table.parquet"):
        table = read_table(tmp_path / file)
        assert table.x.tolist()[:2] == ["1", "one"] and table.x.isna().tolist() == [False, False, True]
        assert table.text[0] == "NA"
        assert (table.recorded_seconds[0], table.recorded_recorded_seconds[0]) == (5, 6)
    exact = read_table(tmp_path / "table.parquet")
    assert exact.whole[0] == 2**60 + 1 and exact.huge[0] == str(2**70)
    assert f",{2**60 + 1},{2**70},NA," in (tmp_path / "table.csv").read_text()
    with pytest.raises(ValueError, match="expected a .csv or .parquet file"):
        read_table(tmp_path / "grid.json")


@pytest.mark.parametrize(
    "text, values",
    [
        ("5, 20,70", ["5", "20", "70"]),
        ("0:12:4", ["0", "4", "8"]),
        ("2:4", ["2", "3"]),
        ("['a, b', 'c']", ["a, b", "c"]),
        ("a:b", ["a:b"]),
        ("", []),
    ],
)
def test_values_of_a_grid(text, values):
    assert parse_values(text) == values


def test_settings_keep_further_equals_signs():
    assert parse_settings(["a=1", "b=x=y"], "-p") == {"a": "1", "b": "x=y"}


@pytest.mark.parametrize(
    "value, kind, expected",
    [
        ("5", int, 5), ("5", float, 5.0), (5, float, 5.0), ("yes", bool, True), ("0", bool, False),
        ("5", str, "5"), ("[1, 2]", list, [1, 2]), ("(1, 2)", tuple, (1, 2)), ([1, 2], tuple, (1, 2)),
        ("x y", None, "x y"), ("3", None, 3), (np.array([1, 2]), list, [1, 2]),
    ],
)  # fmt: skip
def test_values_take_the_parameter_s_type(value, kind, expected):
    result = convert("name", value, kind)
    assert result == expected and type(result) is type(expected)


@pytest.mark.parametrize(
    "value, kind",
    [
        ("x", int), ("1.5", int), (1.5, int), (True, int), ("maybe", bool), ("[1", list), ("nan", float),
        (3, str), ("1e999", float), (float("inf"), float), (float("nan"), None), (Path("a"), None),
        ("9" * 400, float), ("{[1]: 2}", dict), (["caf\udce9"], list),
    ],
)  # fmt: skip
def test_values_of_another_type_are_refused(value, kind):
    with pytest.raises(GridError, match="parameter 'name' is"):
        convert("name", value, kind)


def test_records_survive_the_notebook_format(monkeypatch):
    outputs = []
    show = lambda data, raw: outputs.append(nbformat.v4.new_output("display_data", data=data))
    monkeypatch.setattr("IPython.display.display", show)
    rows = [{"a": 1, "b": "text", "c": True, "d": None, "e": 0.5, "f": "nan", "g": "-inf"}]
    record(rows[0])
    record(x=float("inf"), y=np.float32("-inf"), z=float("nan"))
    with pytest.raises(ValueError, match="z is list, expected one number"):
        record(z=[1])
    with pytest.raises(ValueError, match="psnr is ndarray, expected one number"):
        record(psnr=np.ones(2))
    with pytest.raises(ValueError, match="z must be valid Unicode"):
        record(z="caf\udce9")
    for wrong in ("abc", 5, [1, 2], pd.DataFrame({"a": [1, 2]})):
        with pytest.raises(ValueError, match="rows must be a dictionary or a list of dictionaries, got "):
            record(wrong)
    cell = nbformat.v4.new_code_cell("", outputs=outputs)
    text = json.dumps(nbformat.v4.new_notebook(cells=[cell]), allow_nan=False)
    *found, numbers = recorded(nbformat.from_dict(json.loads(text)))
    assert found == rows  # a text stays a text
    assert np.isnan(numbers.pop("z")) and numbers == {"x": float("inf"), "y": float("-inf")}


class Model:
    @classmethod
    def load(cls, name, size=1):
        return cls()


class OtherModel(Model):
    pass


def test_once_makes_a_thing_once():
    first = once(Model.load, "a")
    assert once(Model.load, "a") is first and once(Model.load, "b", size=2) is not first
    assert type(once(OtherModel.load, "a")) is OtherModel


def test_once_takes_only_what_a_name_identifies():
    def inner():
        return 1

    for make in (lambda: 1, inner, Path("a").exists, functools.partial(inner)):
        with pytest.raises(TypeError, match="make is .* cannot be told from others by its name"):
            once(make)


@pytest.mark.parametrize("value", [np.zeros(9), [np.zeros(9)], {"a": (np.zeros(9),)}, pd.DataFrame([1])])
def test_once_takes_no_array(value):
    with pytest.raises(TypeError, match="argument 'end' of once is a .* that is or holds an array"):
        once(print, end=value)


def test_each_thread_has_a_gpu_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    notebook = write_notebook(
        tmp_path / "gpu.ipynb", BODY, "record(gpu=os.environ['CUDA_VISIBLE_DEVICES'], kernel=os.getpid())"
    )
    report = run(notebook, {"seed": [1, 2]}, {}, tmp_path / "out", progress=False)
    table = pd.read_csv(report.table)
    assert set(table.gpu) == {2, 5} and table.kernel.nunique() == 2


def test_the_command_line_does_not_import_torch():
    code = "import sys, dsnb.lab.grid.runner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(dsnb.__file__).parents[1]).returncode == 0
