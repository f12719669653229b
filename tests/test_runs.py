"""Grids run for real: papermill, Dask workers, kernels; on notebooks that import nothing heavy."""

import errno
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
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from distributed import Client

import dsnb
from dsnb.lab.grid import main, points, runner
from dsnb.lab.grid.grid import GridError, convert, make_grid, parse_settings, parse_values
from dsnb.lab.grid.records import once, record, recorded
from dsnb.lab.grid.results import FolderError

PARAMETERS = """
sharpness: float = 20.0  # how sharp
method: str = "epsilon"  # which
seed: int = 0
log: str = ""  # a file that gets a line at the beginning and the end
pause: float = 0.0  # seconds
"""
BODY = """
import os, time
from dsnb.lab.grid import once, record
note = lambda word: open(log, "a").write(f"{word} {sharpness:g} {os.getpid()}\\n") if log else None
note("begin")
time.sleep(pause)
if sharpness == 7:
    raise RuntimeError("seven is not to be had")
note("end")
"""
RECORD = """
assert "left_over" not in globals()
left_over = 1
record(score=2 * sharpness, kernel=os.getpid(), kept=once(os.getpid), nothing=float("nan"))
record([{"score": -1.0}])
"""
PICTURE = """
from IPython.display import Image, display
display(Image(data=bytes.fromhex("89504e470d0a1a0a"), format="png"))
"""


@pytest.fixture
def notebook(tmp_path):
    cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in (BODY, RECORD, PICTURE)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = tmp_path / "tiny.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


@pytest.fixture(scope="module")
def cluster():
    """Two workers that outlive the single runs, as a cluster of the user's own would."""
    with runner._local_cluster(2, 2) as cluster:
        yield cluster


@contextmanager
def started(*words):
    """A process in a group of its own, which is killed afterwards."""
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=Path(__file__).parents[1],
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
    rows = [json.loads(file.read_text()) for file in output.glob("points/[!.]*/row.json")]
    return sorted(row["parameters"]["sharpness"] for row in rows if row["status"] == "done")


def begun(log):
    """The sharpness of each point begun, in order."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [float(line.split()[1]) for line in lines if line.startswith("begin")]


def command(notebook, output, *words, cluster=None):
    where = ["--scheduler", cluster.scheduler_address] if cluster else ["--workers", "1"]
    return main([str(notebook), "--output", str(output), *where, *words])


def test_a_grid_becomes_a_table_and_only_what_is_missing_is_run_again(notebook, tmp_path, cluster, capsys):
    output, log = tmp_path / "out", tmp_path / "log"
    words = ["--grid", "sharpness=5,7,20", "-p", "seed=3", "-p", f"log={log}"]
    assert command(notebook, output, *words, cluster=cluster) == 1  # one point fails
    table = pd.read_csv(output / "table.csv")
    assert table.sharpness.tolist() == [5, 5, 7, 20, 20]
    assert table.status.tolist() == ["done", "done", "failed", "done", "done"]
    assert table.score.dropna().tolist() == [10, -1, 40, -1]
    assert set(table.seed) == {3} and set(table.method) == {"epsilon"} and table.nothing.isna().all()
    assert table.error[2] == "RuntimeError: seven is not to be had"
    assert all((output / path).is_file() for path in table.notebook)
    failed = nbformat.read(output / table.notebook[2], as_version=4)
    assert any("seven" in str(cell.get("outputs", "")) for cell in failed.cells)
    assert table.version_papermill.notna().all() and table.version_python.notna().all()
    assert set(table.version_dsnb) == {dsnb.__version__}  # installed or not
    assert pd.read_parquet(output / "table.parquet").score.dropna().tolist() == [10, -1, 40, -1]
    point = output / Path(table.notebook[0]).parent
    assert (point / "00.png").read_bytes().startswith(b"\x89PNG")
    assert not list(output.rglob("*tmp*"))
    assert "2 done, 1 failed, 0 from before" in capsys.readouterr().out

    before = log.read_text().count("begin")
    assert command(notebook, output, *words, cluster=cluster) == 1
    lines = log.read_text().splitlines()[2 * before - 1 :]
    assert [line.split()[:2] for line in lines] == [["begin", "7"]]  # the failed one is tried again, no other
    assert len(pd.read_csv(output / "table.csv")) == 5


def test_more_values_extend_a_table_and_kernels_are_kept_but_clean(notebook, tmp_path, cluster):
    output = tmp_path / "out"
    assert command(notebook, output, "--grid", "sharpness=1,2", cluster=cluster) == 0
    assert command(notebook, output, "--grid", "sharpness=1,2,3,4,5,6", cluster=cluster) == 0
    table = pd.read_csv(output / "table.csv")
    assert table.sharpness.tolist() == [k for k in range(1, 7) for _ in range(2)]
    first = table[table.score >= 0]
    assert (first.kernel == first.kept).all()  # what `once` kept belongs to this very kernel …
    before, after = set(first.kernel[:2]), set(first.kernel[2:])
    assert len(after) <= 2 < len(first[2:])  # … which served several points, with no variable left over …
    assert not before & after  # … and one run
    for kernel in before | after:  # they end with their run, although the workers live on
        wait_until(lambda kernel=int(kernel): _ended(kernel), f"kernel {kernel} ended")


def _ended(pid):
    """Whether a process has ended, if perhaps nobody has asked for its status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_kept_kernel_starts_each_point_in_its_folder_and_gives_way_to_another_run_or_name(
    tmp_path, monkeypatch
):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / "kernels" / name).mkdir(parents=True)
        words = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = {"argv": words, "display_name": name, "language": "python", "env": {"KERNEL": name}}
        (tmp_path / "kernels" / name / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    source = "import os\nfrom dsnb.lab.grid import record"
    source += "\nrecord(folder=os.getcwd(), kernel=os.getpid(), name=os.environ['KERNEL'], "
    source += "figures=os.environ['DSNB_FIGURES'])\nos.chdir('/')"

    def row(name, folder, run, figures=""):
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        nb.metadata.kernelspec = {"name": name, "display_name": name, "language": "python"}
        point = points.Point("id", nbformat.writes(nb), {}, str(tmp_path / folder), figures)
        outcome = points.run_point(point, run)
        assert outcome.status == "done", outcome.error
        # figures are saved where they were asked for, or in a folder that is gone with the point
        saved = outcome.rows[0]["figures"]
        assert saved == figures if figures else saved and not Path(saved).exists()
        assert outcome.rows[0]["name"] == name and outcome.rows[0]["folder"] == str(tmp_path / folder)
        return outcome.rows[0]["kernel"]

    try:
        first = row("one", "one", "a")
        assert row("one", "one", "a", str(tmp_path / "mine")) == row("one", "two", "a") == first
        third = row("two", "two", "a")
        fourth = row("two", "two", "b")
        assert len({first, third, fourth}) == 3 and len(points._kernels) == 1
        wait_until(lambda: _ended(first) and _ended(third), "replaced kernels ended")
    finally:
        points.end_kernels()
    wait_until(lambda: _ended(fourth), "last kernel ended")


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_a_run_stopped_midway_goes_on_from_there(notebook, tmp_path, how):
    output, log = tmp_path / "out", tmp_path / "log"
    words = ["-m", "dsnb", "run", str(notebook), "--output", str(output), "--workers", "1"]
    words += ["--grid", "sharpness=1,2,3,4", "-p", f"log={log}", "-p", "pause=1"]
    with started(*words) as process:
        wait_until(lambda: finished(output), "a finished point")
        if how == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)  # as in a terminal: to the workers too
        else:
            process.terminate()
        _, text = process.communicate(timeout=60)
    assert process.returncode == 130 and text.rstrip().endswith("the same command goes on from here")
    assert "Traceback" not in text
    done = finished(output)
    assert 1 <= len(done) < 4 and not list(output.rglob("*tmp*"))
    assert pd.read_csv(output / "table.csv").sharpness.nunique() == len(done)

    log.unlink()
    with started(*words) as process:
        text, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and f"{4 - len(done)} done, 0 failed, {len(done)} from before" in text
    assert sorted([*begun(log), *done]) == [1, 2, 3, 4]
    assert pd.read_csv(output / "table.csv").sharpness.tolist() == [k for k in range(1, 5) for _ in range(2)]


def test_a_lost_scheduler_is_a_sentence_and_finished_rows_stay(notebook, tmp_path, capsys):
    output = tmp_path / "out"
    words = ["--grid", "sharpness=1,2,3,4", "-p", "pause=1"]
    code = "import time\nfrom distributed import LocalCluster\n"
    code += "cluster = LocalCluster(n_workers=1, threads_per_worker=1, processes=False, protocol='tcp')\n"
    code += "print(cluster.scheduler_address, flush=True)\ntime.sleep(300)"
    status = []
    with started("-c", code) as process:
        process.scheduler_address = process.stdout.readline().strip()
        run = threading.Thread(
            target=lambda: status.append(command(notebook, output, *words, cluster=process))
        )
        run.start()
        wait_until(lambda: finished(output) or status, "a finished point")
        os.killpg(process.pid, signal.SIGKILL)
        run.join(timeout=60)
    assert status == [2]
    text = capsys.readouterr().err
    assert f"scheduler {process.scheduler_address!r} was lost before all points were done" in text
    done = finished(output)
    table = pd.read_csv(output / "table.csv")
    assert 1 <= len(done) < 4 and table.sharpness.nunique() == len(done) and set(table.status) == {"done"}


def test_a_killed_worker_s_point_is_done_by_another_and_no_row_is_lost_or_doubled(
    notebook, tmp_path, cluster
):
    output, log = tmp_path / "out", tmp_path / "log"
    words = ["--grid", "sharpness=1,2,3,4,5,6", "-p", f"log={log}", "-p", "pause=1.5"]
    status = []
    run = threading.Thread(target=lambda: status.append(command(notebook, output, *words, cluster=cluster)))
    run.start()
    wait_until(lambda: begun(log), "a point begun")
    victim = _parent(int(log.read_text().splitlines()[-1].split()[2]))  # the worker whose kernel has begun it
    os.kill(victim, signal.SIGKILL)
    run.join(timeout=120)
    assert status == [0]
    table = pd.read_csv(output / "table.csv")
    assert table.sharpness.tolist() == [k for k in range(1, 7) for _ in range(2)] and set(table.status) == {
        "done"
    }
    assert str(victim) not in {worker.split(":")[1] for worker in table.worker}
    assert set(begun(log)) == {1, 2, 3, 4, 5, 6} and len(begun(log)) > 6  # some point was begun twice
    time.sleep(1.5)
    assert all(_parent_alive(int(pid)) for pid in {line.split()[2] for line in log.read_text().splitlines()})


def _parent(process):
    """The number of a process's parent; None where the process has ended."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[1])
    except FileNotFoundError:
        return None


def _parent_alive(kernel):
    """True where the kernel has ended or still has its worker: none is left running on its own."""
    parent = _parent(kernel)
    return parent is None or parent > 1


def test_a_notebook_that_kills_its_kernel_is_a_failed_row(notebook, tmp_path, cluster):
    nb = nbformat.read(notebook, as_version=4)
    nb.cells[1].source = "import os, signal\nif sharpness == 1: os.kill(os.getpid(), signal.SIGKILL)"
    nb.cells[2].source = "from dsnb.lab.grid import record\nrecord(score=1)"
    nbformat.write(nb, notebook)
    assert command(notebook, tmp_path / "out", "--grid", "sharpness=1,2", cluster=cluster) == 1
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert table.status.tolist() == ["failed", "done"] and "Kernel" in table.error[0]


def test_without_a_grid_and_on_workers_of_its_own(notebook, tmp_path):
    assert command(notebook, tmp_path / "out") == 0
    assert pd.read_csv(tmp_path / "out" / "table.csv").score.tolist() == [40, -1]


def test_workers_keep_memory_that_the_next_step_will_want(cluster):
    with Client(cluster) as client:
        set_by_dask = client.run(lambda: os.environ.get("MALLOC_TRIM_THRESHOLD_"))
    assert list(set_by_dask.values()) == [None, None]


# --- bad input ---


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--grid", "sharpnes=5"], "no parameter 'sharpnes'; did you mean 'sharpness'?"),
        (["-p", "zzz=5"], "no parameter 'zzz'; it has sharpness, method, seed, log, pause"),
        (
            ["--grid", "sharpness=5,abc"],
            "'sharpness' is 'abc', expected float like the notebook's default 20.0",
        ),
        (["--grid", "seed=1.5"], "'seed' is '1.5', expected int"),
        (["--grid", "sharpness="], "grid 'sharpness' has no values"),
        (["--grid", "sharpness"], "expected --grid name=value"),
        (["--grid", "seed=1", "--grid", "seed=2"], "'seed' is given twice"),
        (["--grid", "seed=1", "-p", "seed=2"], "both fixed (-p) and varied"),
        (["--workers", "0"], "workers is 0"),
        (["--scheduler", "tcp://127.0.0.1:9", "--timeout", "1"], "does not answer within 1 s"),
        (["--scheduler", "nonsense://x", "--timeout", "1"], "does not answer"),
    ],
)
def test_bad_input_is_a_sentence_and_no_traceback(notebook, tmp_path, capsys, words, sentence):
    assert main([str(notebook), "--output", str(tmp_path / "out"), *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out" / "table.csv").exists()


def test_a_file_that_is_no_notebook_or_takes_no_parameters(tmp_path, capsys):
    assert main([str(tmp_path / "none.ipynb")]) == 2
    assert "cannot be read: No such file" in capsys.readouterr().err
    (tmp_path / "text.ipynb").write_text("hello")
    assert main([str(tmp_path / "text.ipynb")]) == 2
    assert "is not a Jupyter notebook" in capsys.readouterr().err
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), tmp_path / "bare.ipynb")
    assert main([str(tmp_path / "bare.ipynb"), "-p", "x=1"]) == 2
    assert "no cell tagged 'parameters'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--grid", "sharpness=1,2", "-p", "seed=1"], "other fixed parameters"),
        (["--grid", "seed=1,2"], "a grid over other parameters"),
        (["--grid", "sharpness=2,3"], "1 points that this one does not have, such as 'sharpness=1.0"),
    ],
)
def test_a_table_of_another_grid_is_refused(notebook, tmp_path, capsys, cluster, words, sentence):
    output = tmp_path / "out"
    assert command(notebook, output, "--grid", "sharpness=1", cluster=cluster) == 0
    kept = (output / "table.csv").read_bytes()
    assert command(notebook, output, *words) == 2
    assert sentence in capsys.readouterr().err and (output / "table.csv").read_bytes() == kept


def test_a_changed_notebook_and_a_foreign_folder_are_refused(notebook, tmp_path):
    grid = make_grid(notebook, {"seed": [1]})
    runner.Folder(tmp_path / "out", grid)
    notebook.write_text(notebook.read_text().replace("score=2 * sharpness", "score=3 * sharpness"))
    with pytest.raises(FolderError, match="an earlier version of this notebook"):
        runner.Folder(tmp_path / "out", make_grid(notebook, {"seed": [1]}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "table.csv").write_text("a,b\n")
    with pytest.raises(FolderError, match="no grid.json"):
        runner.Folder(tmp_path / "other", grid)
    assert (tmp_path / "other" / "table.csv").read_text() == "a,b\n"


def test_another_version_of_the_package_is_refused(notebook, tmp_path, monkeypatch):
    runner.Folder(tmp_path / "out", make_grid(notebook, {"seed": [1]}))
    monkeypatch.setattr("dsnb.lab.grid.grid.__version__", "99")
    with pytest.raises(FolderError, match='another version of dsnb .* there, "99" now'):
        runner.Folder(tmp_path / "out", make_grid(notebook, {"seed": [1]}))


def test_two_runs_do_not_share_a_folder(notebook, tmp_path, capsys):
    folder = runner.Folder(tmp_path / "out", make_grid(notebook, {"seed": [1]}))
    with folder.alone():
        assert command(notebook, tmp_path / "out", "--grid", "seed=1") == 2
    assert "is in use by another run" in capsys.readouterr().err
    with folder.alone():
        pass


def test_what_is_recorded_under_a_parameter_s_name_has_a_whole_column(notebook, tmp_path):
    grid = make_grid(notebook, {"sharpness": [1, 2]})
    folder = runner.Folder(tmp_path / "out", grid)
    for point, used in zip(grid.points(), (1.0, 9.0), strict=True):
        rows = [{"sharpness": used, "method": "epsilon"}]
        outcome = points.Outcome(point.id, "done", "", rows, point.notebook)
        folder.write(outcome, grid.parameters | point.parameters)
    table = folder.write_table()
    assert table.sharpness.tolist() == [1, 2] and table.recorded_sharpness.tolist() == [1, 9]
    assert "recorded_method" not in table and set(table.method) == {"epsilon"}


def test_workers_of_several_threads_are_warned_of():
    client = SimpleNamespace(nthreads=lambda: {"a": 1, "b": 4})
    with pytest.warns(UserWarning, match="a worker has 4 threads"):
        runner._warn_of_threads(client)


def test_prose_comments_and_layout_do_not_make_another_notebook(notebook):
    def source(*cells):
        new = [nbformat.v4.new_markdown_cell(text) if kind == "text" else nbformat.v4.new_code_cell(text)
               for kind, text in cells]  # fmt: skip
        nb = nbformat.read(notebook, as_version=4)
        path = notebook.with_name("other.ipynb")
        nbformat.write(nbformat.v4.new_notebook(cells=nb.cells[:1] + new, metadata=nb.metadata), path)
        return make_grid(path, {"seed": [1]}).identity["source"]

    plain = source(("text", "Prose."), ("code", "x = 'a'  # why\ny = (1, 2)"))
    assert plain == source(("code", "# other words"), ("code", 'x = "a"\n\ny = (\n    1,\n    2,\n)'))
    assert plain != source(("code", "x = 'b'\ny = (1, 2)"))
    assert plain != source(("code", "x = 'a'"), ("code", "y = (1, 2)"))  # a cell shows its last value
    magic = source(("code", "%matplotlib inline\nx = 1"))
    assert magic == source(("text", "Prose."), ("code", "%matplotlib inline\nx = 1"))
    assert magic != source(("code", "%matplotlib inline\nx = 2"))


def test_a_folder_that_cannot_be_written(notebook, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "out", Path("/proc/nothing")):
        assert command(notebook, place) == 2
        assert "cannot be written" in capsys.readouterr().err


def test_a_read_only_disk(notebook, tmp_path, capsys, monkeypatch):
    def mkdir(path, *args, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert command(notebook, tmp_path / "out") == 2
    sentence = f"error: output folder {str(tmp_path / 'out')!r} cannot be written: Read-only file system"
    assert capsys.readouterr().err.startswith(sentence)


def test_a_full_disk_stops_with_a_sentence_and_leaves_only_whole_points(notebook, tmp_path, capsys, cluster):
    """The limit on file sizes stands in for a full disk: the system itself refuses the write."""
    output, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    assert command(notebook, output, "--grid", "sharpness=1", cluster=cluster) == 0
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        assert command(notebook, output, "--grid", "sharpness=1,2", cluster=cluster) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "cannot be written: File too large" in capsys.readouterr().err
    assert [p.name.split("-")[0] for p in (output / "points").iterdir()] == ["sharpness=1.0"]
    assert len(pd.read_csv(output / "table.csv")) == 2 and not list(output.rglob("*tmp*"))
    assert command(notebook, output, "--grid", "sharpness=1,2", cluster=cluster) == 0
    assert len(pd.read_csv(output / "table.csv")) == 4


# --- parts ---


def test_points_are_every_combination_once(notebook):
    points = make_grid(
        notebook, {"sharpness": ["5", 5, "20"], "method": ["a b", "a/b"]}, {"seed": "4"}
    ).points()
    assert [(p.parameters["sharpness"], p.parameters["method"]) for p in points] == [
        (5, "a b"), (5, "a/b"), (20, "a b"), (20, "a/b"),
    ]  # fmt: skip
    assert len({p.id for p in points}) == 4 and all("/" not in p.id for p in points)
    assert {p.parameters["seed"] for p in points} == {4}


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


@pytest.mark.parametrize(
    "value, kind, expected",
    [
        ("5", int, 5), ("5", float, 5.0), (5, float, 5.0), ("yes", bool, True), ("0", bool, False),
        ("5", str, "5"), ("[1, 2]", list, [1, 2]), ("(1, 2)", tuple, (1, 2)), ([1, 2], tuple, (1, 2)),
        ("x y", None, "x y"), ("3", None, 3),
    ],
)  # fmt: skip
def test_values_take_the_parameter_s_type(value, kind, expected):
    result = convert("name", value, kind)
    assert result == expected and type(result) is type(expected)


@pytest.mark.parametrize(
    "value, kind",
    [
        ("x", int),
        ("1.5", int),
        (1.5, int),
        (True, int),
        ("maybe", bool),
        ("[1", list),
        ("nan", float),
        (3, str),
    ],
)
def test_values_of_another_type_are_refused(value, kind):
    with pytest.raises(GridError, match="parameter 'name' is"):
        convert("name", value, kind)


def test_settings_and_lists_that_cannot_be_read():
    assert parse_settings(["a=1", "b=x=y"], "-p") == {"a": "1", "b": "x=y"}
    with pytest.raises(GridError, match="start like a list"):
        parse_values("[1, 2")


def test_records_survive_the_notebook_format(capsys):
    rows = [{"a": 1, "b": "text", "c": True, "d": None, "e": 0.5, "f": "nan", "g": "-inf"}]
    outputs = []

    def display(data, raw):
        outputs.append(nbformat.v4.new_output("display_data", data=data))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("IPython.display.display", display)
        record(rows)
        record(x=float("inf"), y=np.float32("-inf"), z=float("nan"))
        with pytest.raises(ValueError, match="z is list, expected one number"):
            record(z=[1])
    cell = nbformat.v4.new_code_cell("", outputs=outputs)
    notebook = nbformat.from_dict(
        json.loads(json.dumps(nbformat.v4.new_notebook(cells=[cell]), allow_nan=False))
    )
    *found, numbers = recorded(notebook)
    assert found == rows  # a text stays a text
    assert np.isnan(numbers.pop("z")) and numbers == {"x": float("inf"), "y": float("-inf")}


def test_once_makes_a_thing_once():
    made = []

    def make(name, size=1):
        made.append((name, size))
        return object()

    assert once(make, "a") is once(make, "a") and once(make, "a") is not once(make, "b", size=2)
    assert made == [("a", 1), ("b", 2)]
    with pytest.raises(TypeError, match="make is a lambda"):
        once(lambda: 1)


@pytest.mark.parametrize("value", [np.zeros(9), [np.zeros(9)], {"a": (np.zeros(9),)}, pd.DataFrame([1])])
def test_once_takes_no_argument_whose_repr_is_abbreviated(value):
    with pytest.raises(TypeError, match="argument 0 of once is a .* that is or holds an array"):
        once(print, value)
    with pytest.raises(TypeError, match="argument 'end' of once"):
        once(print, end=value)


def test_gpus_are_told_without_torch(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert runner.visible_gpus() == ["2", "5"]
    with runner._local_cluster(None, 8) as cluster, Client(cluster) as client:
        seen = client.run(os.getenv, "CUDA_VISIBLE_DEVICES")
    assert sorted(seen.values()) == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert runner.visible_gpus() == []


def test_the_command_line_does_not_import_torch(tmp_path):
    code = "import sys, dsnb.lab.grid; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
