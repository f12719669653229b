"""The comparison: what is compared, how rows are computed and resumed, and the command around it."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from PIL import Image

import dsnb
from dsnb.images import to_pil
from dsnb.lab import compare
from dsnb.lab.compare import command, running
from dsnb.lab.world import OBJECTS, SCENES, split
from dsnb.metrics.networks import load_lpips

PAIR = ("minecraft", "vangogh")
SIDES = {"left_prompt": "a blocky bear", "right_prompt": "a painted bear"}
ENTRY = {
    "encode_text": "a bear",
    "decode_text": SIDES,
    "decode_text_total": "a bear, blocky on the left and painted on the right",
    "img_path": "./data/prompt2prompt/bear.png",
}
STYLED = {key: value for key, value in ENTRY.items() if key != "img_path"}
STYLED |= {"encode_img": "bear.png", "style_left": "MINECRAFT", "style_right": "VAN GOGH"}


@pytest.fixture(scope="module")
def nets():
    return compare.Networks(load_lpips())


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Folders as the source project has them: data/prompt2prompt/bear.png, Pixel_interpolation/images/bear.png."""
    folder = tmp_path_factory.mktemp("project")
    for place in ("data/prompt2prompt", "Pixel_interpolation/images"):
        (folder / place).mkdir(parents=True)
        to_pil(torch.rand(1, 3, 64, 64)).save(folder / place / "bear.png")
    return folder


# --- validation and test images ---


def test_the_two_sets_share_no_object_and_no_scene():
    validation, test = split("validation", 100), split("test", 500)
    assert not set(validation.object.tolist()) & set(test.object.tolist())
    assert not set(validation.scene.tolist()) & set(test.scene.tolist())
    assert len({*validation.object.tolist(), *test.object.tolist()}) == len(OBJECTS)
    assert len({*validation.scene.tolist(), *test.scene.tolist()}) == len(SCENES)
    assert torch.equal(split("test", 3).numbers, test.numbers[:3])  # image k does not depend on the count
    for name, count, words in [("train", 1, "one of validation, test"), ("test", 0, "from 1 to")]:
        with pytest.raises(ValueError, match=words):
            split(name, count)


# --- pairs files ---


@pytest.mark.parametrize(
    ("file", "content", "prompts", "styles"),
    [
        ("data/translate-text.json", [ENTRY], tuple(SIDES.values()), ()),
        ("Pixel_interpolation/prompts.json", [STYLED], tuple(SIDES.values()), PAIR),
        ("data/prompts.json", {"comment": "…", "bear": "A picture of a bear"}, None, PAIR),
        ("data/prompts.json", {"first": ENTRY}, tuple(SIDES.values()), ()),
        ("data/one.json", [ENTRY | {"decode_text": "a painted bear"}], ("a painted bear", "a bear"), ()),
    ],
)
def test_every_format_of_the_source_project(project, file, content, prompts, styles):
    (project / file).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8-sig")
    task = compare.read_pairs(project / file)[0]
    assert task.image.shape == (1, 3, 64, 64) and task.caption == "a bear" and task.styles == styles
    assert task.prompts == (prompts or tuple(dsnb.prompts.prompt(style, "a bear") for style in PAIR))


def test_captions_get_every_pair_and_entries_take_a_single_one(project):
    path = project / "data" / "pairs.json"
    path.write_text(json.dumps({"bear": "a bear"}))
    tasks = compare.read_pairs(path, [PAIR, ("mosaic", "warhol")])
    assert [task.pair for task in tasks] == ["minecraft / vangogh", "mosaic / warhol"]
    assert len({task.name for task in tasks}) == 1
    path.write_text(json.dumps([ENTRY, ENTRY]))
    tasks = compare.read_pairs(path, [PAIR])
    assert [task.styles for task in tasks] == [PAIR, PAIR] and len({task.name for task in tasks}) == 1
    example = compare.read_pairs(dsnb.data_path("pairs.json"))
    assert [task.caption for task in example] == ["a bear on grass", "a cat"]


def test_the_image_of_an_entry_is_the_one_it_names(tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([ENTRY | {"img_path": "elsewhere/cat.png"}]))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "a" / "cat.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "a" / "cat.old.png")
    with pytest.warns(UserWarning, match="'elsewhere/cat.png' does not exist; '.*/a/cat.png' is used"):
        compare.read_pairs(path)
    path.write_text(json.dumps({"cat": "a cat"}))
    assert compare.read_pairs(path)[0].name == "cat", "wherever it is in the file"
    Image.new("RGB", (64, 64)).save(tmp_path / "b" / "cat.png")
    with pytest.raises(ValueError, match="'cat' may be a/cat.png and b/cat.png; write its folder"):
        compare.read_pairs(path)
    deep = tmp_path / "c" / "d" / "pairs.json"
    deep.parent.mkdir(parents=True)
    deep.write_text(json.dumps({"owl": "an owl"}))
    Image.new("RGB", (64, 64)).save(tmp_path / "owl.png")
    assert compare.read_pairs(deep)[0].name == "owl", "also without a suffix, it is searched for upwards"


def test_names_with_wildcards_and_of_every_format(tmp_path):
    path, files = tmp_path / "pairs.json", ("sub/x.png", "sub/bear [1].png", "photo.bmp")
    (tmp_path / "sub").mkdir()
    for file in files:
        Image.new("RGB", (64, 64)).save(tmp_path / file)
    path.write_text(json.dumps({"bear [1]": "a bear", "photo.bmp": "a bear"}))
    assert [task.name for task in compare.read_pairs(path, [PAIR])] == ["bear [1]", "photo"]
    path.write_text(json.dumps({"?.png": "a bear"}))
    with pytest.raises(FileNotFoundError, match=r"there is no image '\?.png'"):
        compare.read_pairs(path)


def test_every_image_has_a_name_of_its_own(tmp_path):
    files = ("a/bear.png", "b/bear.png", "bear 2.png")
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64)).save(tmp_path / file)
    (tmp_path / "pairs.json").write_text(
        json.dumps([ENTRY | {"img_path": file} for file in (*files, files[1])])
    )
    names = [task.name for task in compare.read_pairs(tmp_path / "pairs.json")]
    assert names == ["bear", "bear 2", "bear 2 2", "bear 2"]


def test_styles_that_the_classifiers_do_not_know_are_own_prompts(project):
    path = project / "data" / "pairs.json"
    path.write_text(json.dumps([ENTRY | {"style_left": "gouache", "style_right": "mosaic"}]))
    assert compare.read_pairs(path, [PAIR])[0].pair == "own prompts"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"bear": "a bear", "bear": "a brown bear"}', "the key 'bear' is there twice"),
        ({"bear": " "}, "entry bear must be a caption, got ' '"),
        ("{", "cannot be read as UTF-8 JSON"),
        (b"\xff\xfe\x00", "cannot be read as UTF-8 JSON"),
        ([], "at least one"),
        ("7", "must hold a list or an object"),
        (["a.png"], 'entry 0 must be an object, got "a.png"'),
        ({"bear": 3}, "entry bear must be an object or a caption, got 3"),
        ([ENTRY, {"encode_text": "a"}], "entry 1: 'decode_text' is missing"),
        ([ENTRY, ENTRY | {"encode_text": None}], "entry 1: 'encode_text' must be a text, got null"),
        (
            [ENTRY | {"decode_text": SIDES | {"left_prompt": 5}}],
            "entry 0: 'left_prompt' must be a text, got 5",
        ),
        ([ENTRY | {"decode_text": {"left_prompt": "x"}}], "entry 0: 'right_prompt' is missing"),
        ([ENTRY | {"img_path": "none.png"}], "entry 0: there is no image 'none.png'"),
        ({"wolf": "a wolf"}, "entry wolf: there is no image 'wolf'"),
    ],
)
def test_a_misread_pairs_file_names_the_entry(project, content, words):
    path = project / "data" / "broken.json"
    data = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        compare.read_pairs(path)


# --- rows ---


@pytest.mark.parametrize("from_noise", [False, True])
def test_methods_share_one_trajectory_and_seeds_do_not_depend_on_each_other(tiny, nets, from_noise):
    (task,) = compare.drawn_tasks(split("test", 1), [PAIR], tiny.image_size)
    methods, masks = list(dsnb.methods.METHODS), ["linear", "logistic"]
    settings = compare.Settings(steps=4, skip=0, eta=0.5, guidance=2.0, from_noise=from_noise)
    rows, images = compare.compare_image(tiny, task, methods, masks, nets, [0, 1], settings)
    table = pd.DataFrame(rows)
    counts = table.groupby(["mask", "method"], sort=False).seed.agg(list)
    assert list(counts.index) == [(m, n) for m in masks for n in [*methods, compare.GROUND_TRUTH]]
    assert all(seeds == [0, 1] for seeds in counts)
    assert ("layout" in table) is ("truth" in table) is not from_noise
    assert torch.equal(images["linear", "prompt"], images["logistic", "prompt"])

    trajectory = running.record(tiny, task, [1], settings)
    mask = dsnb.masks.logistic(20)
    expected = dsnb.blend(tiny, trajectory, task.prompts, mask, method="pixel", guidance=2.0, progress=False)
    assert torch.allclose(images["logistic", "pixel"][1:], expected, atol=1e-4)
    samples = table[table["mask"] == "linear"].groupby("method").samples.first()
    expected = {"prompt": 2, "pixel": 4, "epsilon": 3, "attention": 2, "regional": 2, "combined": 2.5}
    assert samples.dropna().to_dict() == expected


def test_a_run_goes_on_where_it_stopped(tiny, nets, tmp_path):
    tasks = compare.drawn_tasks(split("test", 2), [PAIR], tiny.image_size)
    run = compare.Run("eta", tasks, ["epsilon"], ["linear"], compare.Settings(steps=3, skip=1), "eta 0.1")
    first = compare.compute(run, tiny, nets, [0], tmp_path)
    files = sorted(tmp_path.glob("*.json"))
    assert len(files) == 2 and first.usual.all() and set(first.setting) == {"eta 0.1"}
    before = {file: file.stat().st_mtime_ns for file in files}
    lost, kept = files
    lost.unlink()
    again = compare.compute(run, tiny, nets, [0, 1], tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 2 * 2
    assert kept.stat().st_mtime_ns == before[kept]
    same = again[again.seed == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, first, check_exact=False, rtol=1e-3)
    kept.write_text('[{"a":')
    with pytest.raises(ValueError, match=f"{kept} cannot be read as JSON"):
        compare.compute(run, tiny, nets, [0, 1], tmp_path)
    for file in tmp_path.glob("*.png"):
        file.unlink()
    assert command.draw_examples(run, tmp_path) is None


def test_a_folder_belongs_to_one_model_and_one_set_of_settings(tiny, tmp_path):
    running.claim(tmp_path, tiny, {"steps": 600})  # fails later, without any row
    running.claim(tmp_path, tiny, {"steps": 3})
    (tmp_path / "compare-pixel-000-0.json").write_text("[]")
    running.claim(tmp_path, tiny, {"steps": 3})
    with pytest.raises(ValueError, match="holds rows with steps 3, not 4; choose another --output"):
        running.claim(tmp_path, tiny, {"steps": 4})
    other = replace(tiny, settings=replace(tiny.settings, guidance=1.5))
    with pytest.raises(ValueError, match="holds rows with defaults"):
        running.claim(tmp_path, other, {"steps": 3})
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ValueError, match="settings.json cannot be read as JSON"):
        running.claim(tmp_path, tiny, {"steps": 3})
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match="holds rows without their settings.json"):
        running.claim(tmp_path, tiny, {"steps": 3})


def test_the_references_of_a_style_do_not_depend_on_other_styles():
    alone, both = (compare.open_networks(styles).grams for styles in (["warhol"], ["mosaic", "warhol"]))
    assert all(map(torch.equal, alone["warhol"], both["warhol"]))


# --- the command ---


@pytest.fixture
def small(tiny_folder, tmp_path, nets, monkeypatch):
    """The words of a command on a tiny model, with the perceptual network alone to measure."""
    monkeypatch.setattr(command, "open_networks", lambda *given, **options: nets)
    words = f"--output {tmp_path}/out --noise-images 1 --fewer 1 -p model={tiny_folder} -p steps=3"
    return words.split()


@pytest.mark.slow
def test_the_command_writes_rows_tables_and_figures(small, tmp_path, capsys, coarse):
    words = [*small, "--images", "1", "--seeds", "2"]
    words += ["--methods", "pixel,epsilon", "--parts", "compare,noise,eta"]
    assert command.main(words) == 0
    figures = tmp_path / "out" / "figures"
    assert str(figures) in capsys.readouterr().out
    expected = {f"14_{name}.{end}" for name in ("table", "overview", "differences") for end in ("csv", "md")}
    expected |= {f"14_{name}.png" for name in ("overview", "differences", "images", "noise_images")}
    assert expected | {"14_questions.md"} <= {path.name for path in figures.iterdir()}
    rows = compare.read_rows(figures / "14_rows")
    assert set(rows) == {"compare", "noise", "eta"} and rows["compare"].seed.nunique() == 2
    assert set(rows["compare"].steps) == {3}
    for path in figures.glob("*.md"):
        assert "nan" not in path.read_text()
    assert "images: 1, seeds: 2" in (figures / "14_table.md").read_text()


def test_only_the_whole_comparison_draws_into_figures(small, tmp_path, monkeypatch):
    """Fewer images, or other settings, never replace the tables of figures/."""
    monkeypatch.setenv("DSNB_FIGURES", str(tmp_path / "figures"))
    assert (
        command.main([*small, "--images", "1", "--seeds", "1", "--methods", "pixel", "--parts", "compare"])
        == 0
    )
    assert not (tmp_path / "figures").exists()


def test_rows_of_an_image_that_changed_are_not_continued(small, tmp_path, capsys):
    path, image = tmp_path / "pairs.json", tmp_path / "bear.png"
    path.write_text(json.dumps({"bear": "a bear"}))
    Image.new("RGB", (64, 64)).save(image)
    words = [*small, "--methods", "epsilon", "--parts", "compare", "--seeds", "1", "-p", f"pairs_file={path}"]
    assert command.main(words) == 0 and command.main(words) == 0
    Image.new("RGB", (64, 64), "red").save(image)
    assert command.main(words) == 2
    assert "holds rows with images" in capsys.readouterr().err


def test_images_that_are_left_out_are_told(project, tiny):
    path = project / "data" / "pairs.json"
    path.write_text(json.dumps([ENTRY, ENTRY | {"img_path": "../Pixel_interpolation/images/bear.png"}]))
    given = command.parser().parse_args(["--images", "1"])
    chosen = command.parse_parameters([f"pairs_file={path}"])
    with pytest.warns(UserWarning, match="the first 1 of the 2 images of the pairs file are used"):
        (run,) = command.plan("compare", given, chosen, tiny)
    assert [task.name for task in run.tasks] == ["bear"]


def test_more_images_leave_the_tasks_of_the_first_ones_where_they_are(project, tiny):
    path = project / "data" / "pairs.json"
    path.write_text(
        json.dumps([ENTRY, ENTRY | {"img_path": "../Pixel_interpolation/images/bear.png"}, ENTRY])
    )
    chosen = command.parse_parameters([f"pairs_file={path}"])
    with pytest.warns(UserWarning, match="the first 1 of the 2 images"):
        few, both = (
            [task.name for task in command.plan("compare", given, chosen, tiny)[0].tasks]
            for given in (command.parser().parse_args(["--images", n]) for n in "12")
        )
    assert len(few) == 2 and len(both) == 3 and both[:2] == few


def test_a_large_skip_leaves_out_values_of_the_steps(small, tiny, capsys):
    given = command.parser().parse_args(["--parts", "steps", "--fewer", "1"])
    chosen = command.parse_parameters(["skip=15", "steps=20"])
    assert [run.settings.steps for run in command.plan("steps", given, chosen, tiny)] == [18, 20, 25, 50]
    assert command.main([*small, "--parts", "switch", "--methods", "epsilon"]) == 2
    assert "--parts switch asks nothing about --methods epsilon" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-p", "steps=3", "-p", "steps=4"], "-p 'steps' is given twice"),
        (["--images", "0"], "--images must be a whole number of at least 1"),
        (["--methods", "pixle"], "did you mean 'pixel'?"),
        (["--parts", "everything"], "--parts must be one of compare, noise"),
        (["-p", "stepz=3"], "did you mean 'steps'?"),
        (["-p", "steps=many"], "-p steps must be a number (a whole one for steps and skip), got 'many'"),
        (["-p", "guidance=nan"], "-p guidance must be a number (a whole one for steps and skip), got 'nan'"),
        (["-p", "pairs=mosaic"], "pairs must be left/right"),
        (["-p", "pairs_file=none.json"], "pairs file 'none.json' does not exist"),
    ],
)
def test_a_wrong_argument_is_refused_before_a_model_is_opened(words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command.checkpoints, "load", lambda *given: pytest.fail("a model was opened"))
    assert command.main(["--output", str(tmp_path), *words]) == 2
    assert said in capsys.readouterr().err
