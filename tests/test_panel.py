"""The panel of notebook 00 draws what `blend` draws."""

from datetime import UTC, datetime

import pytest
import torch

import dsnb
from dsnb import masks, plotting
from dsnb.app import make_app
from dsnb.models import count_unet_samples
from dsnb.panel import SHAPES, TITLES, blend_panel
from dsnb.widgets import paint, painting

CAPTION, PAIR = "a bear on grass", ("a mosaic of [prompt]", "a sketch of [prompt]")


@pytest.fixture
def panel(tiny, monkeypatch):
    monkeypatch.setenv("DSNB_INTERACTIVE", "1")
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def invert(index, seed, steps):
        generator = torch.Generator().manual_seed(seed)
        return dsnb.invert(tiny, image, CAPTION, steps=steps, generator=generator, progress=False)

    panel = blend_panel(
        tiny, [image], [CAPTION], invert, pair=PAIR, method="epsilon", steps=4, preview_steps=2
    )
    panel.rest = 0.02
    panel.trajectory = invert(0, 0, 4)
    return panel


def test_it_offers_every_method_that_a_unet_has():
    from dsnb.methods import METHODS

    assert set(TITLES) == set(METHODS)


def test_the_app_needs_somebody_to_move_its_sliders(tiny, monkeypatch):
    monkeypatch.setenv("DSNB_INTERACTIVE", "0")
    with pytest.raises(RuntimeError, match="needs a live front end; start it with `make app`"):
        make_app(tiny, 2)


def test_the_app_leaves_an_upload_when_another_image_is_chosen(tiny, monkeypatch):
    monkeypatch.setenv("DSNB_INTERACTIVE", "1")
    form, below = make_app(tiny, 2).children
    choice, second, start, status = form.children
    upload, first = second.children[0], below.children
    content = plotting.png_bytes(torch.rand(1, 3, 32, 32))
    times = {"last_modified": datetime.now(UTC)}
    upload.value = (
        {"name": "mine.png", "type": "image/png", "size": len(content), "content": content} | times,
    )
    start.click()
    assert "Say in" in status.value and below.children == first  # the upload has no caption yet
    choice.index = 1
    start.click()
    assert upload.value == () and status.value == "" and below.children != first


def test_the_panel_draws_what_blend_draws(tiny, panel):
    texts = [dsnb.prompts.prompt(style, CAPTION) for style in PAIR]

    def expected(method, mask):
        options = {"method": method, "guidance": tiny.settings.guidance, "progress": False}
        return dsnb.blend(tiny, panel.trajectory, texts, mask, **options)

    assert torch.allclose(panel.picture, expected("epsilon", masks.logistic(20)), atol=1e-5)
    panel.set(shape="stripes", wipe=0.5, method="attention")
    halves = [expected(method, SHAPES["stripes"](20, 0)) for method in ("attention", "pixel")]
    wiped = torch.cat([halves[0][..., :16], halves[1][..., 16:]], -1)
    assert torch.allclose(panel.settle(), wiped, atol=1e-4)  # the panel draws finished images in one batch


def test_one_prompt_is_the_baseline_of_the_notebooks(tiny, panel):
    both = ("mosaic", "warhol")
    panel.set(pair=both, method="prompt")
    texts = [dsnb.prompts.prompt(style, CAPTION) for style in both]
    options = {"one_prompt": dsnb.prompts.one_prompt(both, CAPTION), "guidance": tiny.settings.guidance}
    options |= {"method": "prompt", "progress": False}
    expected = dsnb.blend(tiny, panel.trajectory, texts, masks.logistic(20), **options)
    assert torch.allclose(panel.settle(), expected, atol=1e-5)


def test_another_mask_blends_the_same_finished_images(tiny, panel):
    panel.set(method="pixel")
    panel.settle()
    with count_unet_samples(tiny.unet) as count:
        panel.set(shape="radial")
        radial = panel.settle()
    assert count.samples == 0
    texts = [dsnb.prompts.prompt(style, CAPTION) for style in PAIR]
    options = {"method": "pixel", "guidance": tiny.settings.guidance, "progress": False}
    expected = dsnb.blend(tiny, panel.trajectory, texts, masks.radial(sharpness=20), **options)
    assert torch.allclose(radial, expected, atol=1e-4)


def test_from_noise_needs_no_inversion(panel):
    inverted = panel.picture
    panel.set(from_noise=True)
    assert not torch.allclose(panel.settle(), inverted, atol=1e-2)


def test_a_start_beyond_a_sliders_usual_range_is_part_of_it(tiny, panel):
    image, options = torch.zeros(1, 3, 32, 32), {"pair": PAIR, "method": "epsilon", "steps": 4}
    start = {"sharpness": 0.5, "guidance": -1.0}
    made = blend_panel(tiny, [image], [CAPTION], lambda *_: panel.trajectory, **start, **options)
    assert made.parameters().items() >= start.items()


def test_wrong_choices_are_named(tiny):
    image = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match="method"):
        blend_panel(tiny, [image], [CAPTION], None, method="epsilonn")
    with pytest.raises(ValueError, match="captions must be one different text"):
        blend_panel(tiny, [image, image], [CAPTION, CAPTION], None)
    with pytest.raises(TypeError, match="captions must be a list of texts, got 'ab'"):
        blend_panel(tiny, [image, image], "ab", None)
    with pytest.raises(ValueError, match="pair must be two styles"):
        blend_panel(tiny, [image], [CAPTION], None, pair=(*PAIR, "mosaic"))


def test_a_painted_mask_is_one_of_the_shapes(tiny, panel):
    image = torch.rand(1, 3, 32, 32)
    painter = paint(image, strokes=[{"style": 1, "points": [(0.5, 0.2), (0.5, 0.8)]}])
    options = {"pair": PAIR, "method": "epsilon", "steps": 4, "preview_steps": 2, "painter": painter}
    painted = blend_panel(tiny, [image], [CAPTION], lambda *_: panel.trajectory, **options)
    painted.rest = 0.02
    painted.set(shape="painted")
    texts = [dsnb.prompts.prompt(style, CAPTION) for style in PAIR]
    mask, drawn = masks.from_weights(painter.value), {"guidance": tiny.settings.guidance, "progress": False}
    expected = dsnb.blend(tiny, panel.trajectory, texts, mask, method="epsilon", **drawn)
    assert torch.allclose(painted.settle(), expected, atol=1e-5)
    painter.add(painting.Stroke(1, ((0.1, 0.1), (0.9, 0.1)), 0.2))
    assert not torch.allclose(painted.settle(), expected, atol=1e-3)
    assert len(painted.parameters()["painted"]["strokes"]) == 2
