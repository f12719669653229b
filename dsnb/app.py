"""The app: the panel of notebook 00 for your own image, without code. `make app` serves it."""

import functools
import html
import io
from collections.abc import Sequence

import ipywidgets
import torch
from torch import Tensor

from .images import read_image
from .inversion import Trajectory, invert
from .models import Model
from .panel import blend_panel
from .prompts import Picture, pictures
from .widgets import paint
from .widgets.controls import is_interactive

WIDE = {"style": {"description_width": "130px"}, "layout": {"width": "420px"}}


def make_app(model: Model, steps: int | None = None) -> ipywidgets.VBox:
    """A form that chooses an image, above the panel that blends two styles in it.

    Args:
        model: a model with a UNet.
        steps: denoising steps of a full image; default `model.settings.steps`.

    Returns:
        The form and the panel. A live front end shows them if they are the last line of a cell.

    Raises:
        RuntimeError: nobody can move a slider here, see `widgets.controls.is_interactive`.
    """
    if not is_interactive():
        raise RuntimeError(
            "the app needs a live front end; start it with `make app`, or set DSNB_INTERACTIVE=1"
        )
    bundled = {f"{image.caption} ({image.file.stem})": image for image in pictures()}
    choice = ipywidgets.Dropdown(description="image", options=bundled, **WIDE)
    upload = ipywidgets.FileUpload(description="or your own", accept="image/*", layout={"width": "200px"})
    caption = ipywidgets.Text(description="it shows", placeholder="a dog on a beach", **WIDE)
    start = ipywidgets.Button(description="use this image", icon="check", button_style="primary")
    status, below = ipywidgets.HTML(), ipywidgets.VBox()
    status.add_class("dsnb-app-status")

    def use(_: object = None) -> None:
        try:
            name, image, text = _chosen(choice.value, upload.value, caption.value, model)
            status.value = f"Drawing {html.escape(name)} …"
            below.children = [_panel(model, image, text, name, steps)]
        except Exception as error:  # whatever it is, the visitor should read it
            status.value = f"<span style='color:#b00020'>{html.escape(str(error))}</span>"
        else:
            status.value = ""

    def forget(_: object) -> None:  # an upload comes first, until another bundled image is chosen
        upload.value = ()

    start.on_click(use)
    choice.observe(forget, names="value")
    use()
    form = ipywidgets.VBox([choice, ipywidgets.HBox([upload, caption]), start, status])
    return ipywidgets.VBox([form, below])


def _chosen(
    bundled: Picture, uploaded: Sequence[dict], caption: str, model: Model
) -> tuple[str, Tensor, str]:
    """(name, image, caption) of what the form holds; an upload comes first."""
    if not uploaded:
        return bundled.file.name, read_image(bundled.file, model), bundled.caption
    if not caption.strip():
        raise ValueError("Say in 'it shows' what your image shows, for example: a dog on a beach")
    (file,) = uploaded
    content = io.BytesIO(file["content"])
    content.name = file["name"]  # for the message of an error
    return content.name, read_image(content, model), caption.strip()


def _panel(model: Model, image: Tensor, caption: str, name: str, steps: int | None) -> ipywidgets.Widget:
    @functools.lru_cache(maxsize=32)
    def inverted(index: int, seed: int, steps: int) -> Trajectory:
        generator = torch.Generator().manual_seed(seed)
        return invert(model, image, caption, steps=steps, generator=generator, progress=False)

    painter = paint(image, labels=["first style", "second style"], width=300)
    panel = blend_panel(
        model, [image], [caption], inverted, steps=steps, painter=painter,
        settings={"image": name}, progress=False,
    )  # fmt: skip
    painter.observe(lambda _: panel.set(shape="painted"), names="value")
    return panel.box
