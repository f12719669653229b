"""The bench: its arithmetic, its tables, and that what it compares computes the same."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from conftest import make_scheduler, make_unet

from dsnb import masks
from dsnb.lab import bench
from dsnb.lab.bench import baselines, command, kernel_section, plots, sections
from dsnb.methods import METHODS
from dsnb.models import Model, count_unet_samples

ROWS = [
    bench.Row("kernels", "a case", "dsnb", "time", 2e-4, 1e-5, "s"),
    bench.Row("kernels", "a case", "floor", "time", 1e-4, 0.0, "s"),
    bench.Row("pictures", "tiny, N = 2", "epsilon", "UNet samples per step", 3.0, 0.0, ""),
]


@pytest.fixture
def tiny_unet():
    return Model(SimpleNamespace(unet=make_unet().requires_grad_(False), scheduler=make_scheduler()), "tiny")


@pytest.fixture
def small(monkeypatch, tiny_unet):
    """The bench on a tiny model and tiny kernels."""
    monkeypatch.setattr(sections, "_model", lambda name, device, dtype: tiny_unet)
    monkeypatch.setattr(kernel_section, "SHAPES", ((16, 2, 8),))
    return dict(device="cpu", dtype=torch.float32, repeats=2, steps=2, progress=False)


@pytest.fixture
def quick_compile(monkeypatch, dynamo):
    """Tracing without generating code, which is what takes the minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def find(rows, **wanted):
    return [r for r in rows if all(getattr(r, key) == value for key, value in wanted.items())]


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("method", ["epsilon", "attention"])
def test_the_source_projects_way_draws_the_same(tiny_unet, n, method):
    loop = baselines.make_loop(tiny_unet, masks.linear(n), steps=2)
    before = tiny_unet.unet.attn_processors
    theirs = {"epsilon": baselines.source_epsilon, "attention": baselines.source_attention}[method]
    assert torch.allclose(METHODS[method](loop), theirs(loop), atol=1e-4)
    assert tiny_unet.unet.attn_processors == before


def test_samples_per_step(tiny_unet):
    expected = {
        METHODS["epsilon"]: (1, 4),
        baselines.source_epsilon: (1, 6),
        METHODS["attention"]: (1, 2),
        baselines.source_attention: (2, 2),
    }
    for call, (calls, samples) in expected.items():
        with count_unet_samples(tiny_unet.unet) as count:
            call(baselines.make_loop(tiny_unet, masks.linear(3), steps=2))
        assert (count.calls, count.samples) == (2 * calls, 2 * samples)


def test_reused_deep_features_change_the_picture_only_when_reused(tiny_unet):
    loop = baselines.make_loop(tiny_unet, masks.linear(2), steps=3)
    plain = METHODS["epsilon"](loop)
    for every, same in ((1, True), (2, False)):
        with baselines.reuse_deep_features(tiny_unet.unet, every):
            assert torch.equal(METHODS["epsilon"](loop), plain) == same
    assert torch.equal(METHODS["epsilon"](loop), plain)


def test_a_random_model_has_the_architecture_and_finite_answers():
    model = baselines.random_model(dict(make_unet().config), torch.device("cpu"), torch.float32)
    out = METHODS["attention"](baselines.make_loop(model, masks.linear(2), steps=1))
    assert torch.isfinite(out).all() and out.abs().max() > 0


@pytest.mark.parametrize("name, millions", [("SD 1.5", 860), ("SDXL", 2567)])
def test_the_configurations_are_the_published_ones(name, millions):
    with torch.device("meta"):
        unet = baselines.UNet2DConditionModel(**baselines.CONFIGS[name])
    assert round(sum(p.numel() for p in unet.parameters()) / 1e6) == millions


def test_pictures_and_overhead(small):
    head, rows = bench.run(["pictures", "overhead"], **small)
    assert list(head)[:4] == ["device", "dtype", "versions", "repeats"]
    assert head["kind"] == "cpu"
    samples = find(rows, case="bundled, N = 2", metric="UNet samples per step")
    expected = {
        "prompt": 2,
        "pixel": 4,
        "epsilon": 3,
        "attention": 2,
        "source's epsilon": 4,
        "source's attention": 2,
    }
    assert {r.variant: r.value for r in samples} == expected
    assert all(r.value > 0 for r in find(rows, metric="loop per picture"))
    assert len(find(rows, section="overhead", metric="the loop's share over bare calls")) == 2


def test_whole_pictures_with_and_without_recording():
    rows = bench.run(["whole"], device="cpu", dtype=torch.float32, repeats=1, steps=2, progress=False)[1]
    case = "bundled, float32, 2 steps, 2 of them drawn"
    names = ("epsilon", "epsilon, attention recorded", "attention", "attention, attention recorded")
    assert [r.variant for r in find(rows, case=case, metric="time")] == ["inversion", *names]
    assert len(find(rows, metric="recording adds")) == 2


def test_a_grid_s_overhead_and_its_speed_up(monkeypatch, tmp_path):
    cell = nbformat.v4.new_code_cell("seed = 0\nrows = 3\nsteps = 5", metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = nbformat.v4.new_notebook(
        cells=[cell, nbformat.v4.new_code_cell("import time; time.sleep(0.5)")],
        metadata={"kernelspec": kernel},
    )
    nbformat.write(book, tmp_path / "book.ipynb")
    monkeypatch.setattr(sections, "NOTEBOOK", tmp_path / "book.ipynb")
    rows = bench.run(["grid"], device="cpu", steps=2, progress=False)[1]
    assert {r.variant for r in rows} == {"1 worker", "2 workers"}
    assert all(r.value >= 0.5 for r in find(rows, metric="time of a notebook"))
    assert all(r.value > 0 for r in rows)
    assert len(find(rows, metric="times faster than one worker")) == 1


def test_kernels_have_a_floor_and_every_variant(small):
    rows = bench.run(["kernels"], **small)[1]
    case = "blend attention, 16 tokens, 2 × 8, batch 2"
    assert [r.variant for r in find(rows, case=case, metric="time")] == [
        "eager",
        "two SDPA and a blend",
        "dsnb",
        "floor",
    ]
    assert find(rows, case="copy", metric="bandwidth")


def test_compiled_variants_are_measured_too(small, quick_compile):
    rows = bench.run(["kernels", "cpu"], **small, compiled=True)[1]
    times = [r for r in rows if "compile" in r.variant and r.metric == "time"]
    assert [(r.case.split(",")[0], r.variant) for r in times] == [
        ("blend attention", "torch.compile"),
        ("map read-out", "torch.compile, every map"),
        ("blend step", "torch.compile"),
        ("blend step", "torch.compile"),
        ("bundled", "float32, channels-last, compiled"),
        ("bundled", "bfloat16, channels-last, compiled"),
    ]


def test_sdxl_is_asked_less_on_a_cpu():
    tool = bench.Bench(torch.device("cpu"), torch.float32, 5, [], False)
    patient, quick = (sections._patience(tool, name) for name in ("SD 1.5", "SDXL"))
    assert (patient.repeats, quick.repeats) == (5, 2)
    assert quick.rows is tool.rows
    assert "(2 at most for SDXL)" in bench.header(tool)["repeats"]
    assert sections._affordable(tool, sections.Options(sections.MODELS)) == ["bundled", "SD 1.5"]


@pytest.mark.parametrize(
    "value, spread, unit, said",
    [
        (2423.4, 128.2, "s", "2423 ± 128 s"),
        (1.234, 0.0567, "s", "1.23 ± 0.057 s"),
        (0.0123, 0.001, "s", "12.3 ± 1 ms"),
        (45e-6, 0.0, "s", "45 µs"),
        (999.7, 0.0, "×", "1000 ×"),
    ],
)
def test_numbers_read_well(value, spread, unit, said):
    assert bench.text(bench.Row("a", "b", "c", "d", value, spread, unit)) == said


def test_the_command_prints_the_header_and_the_tables_and_the_files(small, tmp_path, capsys):
    given = ["--sections", "overhead", "--models", "bundled", "--dtype", "float32", "--device", "cpu"]
    assert (
        bench.main([*given, "--styles", "2", "--repeats", "1", "--steps", "1", "--output", str(tmp_path)])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == ["device", "dtype", "versions", "repeats"]
    assert "dtype: float32" in lines
    assert "| case | variant | measure | CPU | GPU |" in lines
    assert "| SDXL | | | not measured | not measured |" in lines
    assert lines[-2:] == [str(tmp_path / "11_cost_cpu.csv"), str(tmp_path / "11_cost.md")]


def test_a_part_never_replaces_the_whole_table(monkeypatch, capsys):
    folders, sizes = [], []
    head = {"device": "a processor", "kind": "cpu"}
    monkeypatch.setattr(command, "run", lambda *args, **options: sizes.append(options) or (head, []))
    monkeypatch.setattr(command, "save", lambda head, rows, folder: folders.append(folder) or [])
    parts = ["--models bundled", "--sections steps", "--styles 2", "--steps 3"]
    parts += ["--repeats 1", "--dtype float32", "--threads 1", "--clock processor"]
    for given in ("", *parts):
        bench.main(["--compile", *given.split()])
    for given in ("", "--output here"):
        bench.main(given.split())
    part = Path("runs", "bench")
    assert folders == [None, *[part] * len(parts), part, "here"]
    assert sizes[0]["models"] == ("bundled", "SD 1.5", "SDXL") and sizes[0]["dtype"] is None
    with pytest.raises(SystemExit):
        bench.main(["--help"])
    assert "figures/ for the whole table" in " ".join(capsys.readouterr().out.split())


def test_what_is_unknown_is_named():
    with pytest.raises(ValueError, match="sections must be of grid, pictures.*got speed"):
        bench.run(["speed"])
    with pytest.raises(ValueError, match="models must be of bundled, SD 1.5, SDXL; got SD 3"):
        bench.run(models=["SD 3"])
    for name, value in (("repeats", 0), ("styles", [2, 0]), ("steps", -3), ("threads", 0)):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            bench.run(**{name: value})
    with pytest.raises(ValueError, match="clock must be of wall, processor; got cpu"):
        bench.run(clock="cpu")


def test_median_and_spread():
    assert bench.median_and_spread([5.0]) == (5.0, 0.0)
    assert bench.median_and_spread([4.0, 1.0, 2.0, 3.0, 100.0]) == (3.0, 1.0)


def test_ratios_are_taken_repeat_by_repeat():
    assert bench.ratios({"a": [1.0, 10.0], "b": [2.0, 20.0]}, over="a")["b"] == [2.0, 2.0]


def test_a_column_without_device_says_not_measured(tmp_path):
    head = {"device": "a processor", "dtype": "float32"}
    path = bench.write_csv(tmp_path / "cost.csv", head, ROWS)
    assert bench.read_csv(path) == (head, ROWS)
    table = bench.to_markdown({"CPU": bench.read_csv(path)})
    assert "**GPU**: device not measured" in table
    assert "| a case | dsnb | time | 200 ± 10 µs | not measured |" in table
    assert "| a case | dsnb | time | 200 ± 10 µs | 200 ± 10 µs |" in bench.to_markdown(
        {"CPU": (head, ROWS), "GPU": (head, ROWS)}
    )


def test_tables_and_plots_are_written(tmp_path):
    row = bench.Row("pictures", "tiny, N = 2", "epsilon", "loop per picture", 1.5, 0.1, "s")
    step = bench.Row("steps", "tiny", "epsilon, 25 steps", "PSNR to 99 steps", 30.0, 1.0, "dB")
    written = bench.save({"device": "a processor", "kind": "cpu"}, [*ROWS, row, step], tmp_path)
    names = {"11_cost_cpu.csv", "11_cost.md", "11_pictures.png", "11_kernels.png", "11_steps.png"}
    assert {path.name for path in written} == names
    assert all(path.stat().st_size > 0 for path in written)
    assert {path.name for path in tmp_path.iterdir()} == names
    assert (tmp_path / "11_cost.md").read_text().count("| SD 1.5 | | | not measured | not measured |") == 1


def test_the_column_follows_from_the_kind_of_device(tmp_path):
    for kind, value in (("cpu", 2.0), ("cuda", 1.0)):
        row = bench.Row("pictures", "tiny, N = 2", "epsilon", "loop per picture", value, 0.0, "s")
        bench.save({"device": "a name", "kind": kind}, [row], tmp_path)
    assert "| epsilon | loop per picture | 2 s | 1 s |" in (tmp_path / "11_cost.md").read_text()
    assert {"11_cost_cpu.csv", "11_cost_gpu.csv", "11_pictures_gpu.png"} <= {
        p.name for p in tmp_path.iterdir()
    }


def test_peak_memory_sees_what_a_call_takes():
    tool = bench.Bench(torch.device("cpu"), torch.float32, 1, [], False)
    peak = tool.peak_memory(lambda: torch.ones(2**24))
    assert peak != peak or 0.9 * 2**26 < peak < 1.5 * 2**26  # nan where it cannot be read


def test_plots_do_not_need_pyplot():
    plots.plot_kernels(ROWS)
    code = "import sys; from dsnb.lab.bench import plots; assert 'matplotlib.pyplot' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
