"""The bench: that what it compares computes the same, its arithmetic, and its tables."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from conftest import make_scheduler, make_unet

from dsnb import masks
from dsnb.lab import bench
from dsnb.lab.bench import baselines, command, kernel_section, report, sections
from dsnb.methods import METHODS
from dsnb.models import Model, count_unet_samples

FIGURES = Path(__file__).parents[1] / "figures"


@pytest.fixture
def tiny_unet():
    return Model(SimpleNamespace(unet=make_unet().requires_grad_(False), scheduler=make_scheduler()), "tiny")


@pytest.fixture
def small(monkeypatch, tiny_unet, dynamo):
    """The options of a bench on a tiny model and tiny kernels, which are traced but not compiled."""
    monkeypatch.setattr(sections, "_model", lambda name, device, dtype: tiny_unet)
    monkeypatch.setattr(kernel_section, "SHAPES", ((16, 2, 8),))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    return dict(device="cpu", dtype=torch.float32, repeats=2, steps=2, styles=(3,), progress=False)


@pytest.mark.parametrize("method, ours, theirs", [("epsilon", (1, 4), (1, 6)), ("attention", (1, 2), (2, 2))])
def test_the_source_projects_way_computes_the_same_with_more_samples(tiny_unet, method, ours, theirs):
    loop, before = baselines.make_loop(tiny_unet, masks.linear(3), steps=2), tiny_unet.unet.attn_processors
    results = []
    for call, expected in ((METHODS[method], ours), (getattr(baselines, f"source_{method}"), theirs)):
        with count_unet_samples(tiny_unet.unet) as count:
            results.append(call(loop))
        assert (count.calls // 2, count.samples // 2) == expected
    torch.testing.assert_close(*results, atol=1e-4, rtol=0)
    assert tiny_unet.unet.attn_processors == before


def test_a_random_model_has_finite_answers():
    model = baselines.random_model(dict(make_unet().config), torch.device("cpu"), torch.float32)
    out = METHODS["attention"](baselines.make_loop(model, masks.linear(2), steps=1))
    assert torch.isfinite(out).all() and out.abs().max() > 0


@pytest.mark.parametrize("name, millions", [("SD 1.5", 860), ("SDXL", 2567)])
def test_the_configurations_are_the_published_ones(name, millions):
    with torch.device("meta"):
        unet = baselines.UNet2DConditionModel(**baselines.CONFIGS[name])
    assert round(sum(p.numel() for p in unet.parameters()) / 1e6) == millions


def test_sections_find_every_variant(small):
    head, rows = bench.run(["pictures", "overhead", "kernels", "cpu"], **small, compiled=True)
    assert head["kind"] == "cpu" and head["dtype"] == "float32"
    samples = rows[rows.metric == "UNet samples per step"].set_index("variant").value
    expected = {
        "prompt": 2,
        "pixel": 6,
        "epsilon": 4,
        "attention": 2,
        "combined": 3,
        "source's epsilon": 6,
        "source's attention": 2,
    }
    assert {name: samples[name] for name in expected} == expected
    assert set(samples.index) == {*METHODS, "source's epsilon", "source's attention"}
    times = rows[rows.unit == "s"]
    assert (times.value > 0).all()
    found = times[times.case.str.startswith("blend attention, 16 tokens")].variant
    assert list(found) == ["eager", "two SDPA and a blend", "dsnb", "torch.compile", "lower bound"]
    assert times.variant.str.contains("compile").sum() == 6
    assert (rows.metric == "the loop adds").sum() == 2


@pytest.mark.slow
def test_whole_images_with_and_without_recording():
    rows = bench.run(["whole"], device="cpu", dtype=torch.float32, repeats=1, steps=2, progress=False)[1]
    assert list(rows[rows.metric == "recording adds"].variant) == [
        "epsilon, attention recorded",
        "attention, attention recorded",
    ]


def test_a_report_needs_its_rows(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main(["--redraw", "--output", str(tmp_path)])
    assert "--redraw needs a 15_cost_*.csv" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_stops_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "run", lambda *given, **options: pytest.fail("something was measured"))
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(SystemExit):
        command.main(["--output", str(tmp_path / "taken")])


def test_what_is_unknown_is_named():
    with pytest.raises(ValueError, match="sections must be one of pictures.*got 'speed'"):
        bench.run(["speed"])
    with pytest.raises(ValueError, match="models must be one of bundled, SD 1.5, SDXL; got 'SD 3'"):
        bench.run(models=["SD 3"])
    for name, value in (("repeats", 0), ("styles", [2, 1]), ("steps", -3), ("steps", 0)):
        with pytest.raises(ValueError, match=f"{name} must be a whole number (of at least|from) [12]"):
            bench.run(**{name: value})


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
    assert report.text(value, spread, unit) == said


def test_a_table_comes_back_as_it_was_written(tmp_path):
    head = {"device": "a processor", "versions": "torch 2, triton: none"}
    rows = pd.DataFrame([("kernels", "a case", "dsnb", "time", 2e-4, 1e-5, "s")] * 2, columns=bench.COLUMNS)
    rows.loc[1, ["metric", "unit"]] = ["samples", ""]
    report.write_csv(tmp_path / "cost.csv", head, rows)
    again = bench.read_csv(tmp_path / "cost.csv")
    assert again[0] == head
    pd.testing.assert_frame_equal(again[1], rows)
    texts = bench.table(rows, "kernels").loc["a case", "dsnb"]
    assert texts.to_dict() == {"time": "200 ± 10 µs", "samples": "0.0002 ± 1e-05"}


def test_the_command_measures_and_writes_its_report(small, tmp_path, capsys):
    sizes = "--models bundled --styles 2 --repeats 1 --steps 1 --device cpu --dtype float32".split()
    assert bench.main(["--sections", "pictures", *sizes, "--output", str(tmp_path)]) == 0
    files = ["15_cost_cpu.csv", "15_cost.md", "15_pictures.png"]
    assert {path.name for path in tmp_path.iterdir()} == set(files)
    assert capsys.readouterr().out.splitlines()[-2:] == [str(tmp_path / name) for name in files[1:]]


def test_the_committed_report_is_what_the_committed_rows_say():
    """`dsnb bench --redraw` writes it anew."""
    assert (FIGURES / "15_cost.md").read_text(encoding="utf-8") == bench.markdown(FIGURES)
    rows = bench.read_csv(FIGURES / "15_cost_cpu.csv")[1]
    for plot in (bench.plot_pictures, bench.plot_kernels):
        assert plot(rows).axes
