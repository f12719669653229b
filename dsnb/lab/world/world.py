"""The world that the bundled model is trained on: one large object in one drawn scene, as a pure function of numbers.

`Pictures` says what a batch of images shows: integers for the object, its drawing, the scene and the colour, and a row
of uniform random numbers for every other detail. Drawing uses nothing else. So the same row shows the same, alone or
in a batch, in any style, and with any mix of styles.
"""

from collections.abc import Collection
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Self

import torch
import torch.nn.functional as F

from ... import checks
from .icons import OBJECTS, SETS, load_atlas
from .scenery import SCENES, draw_scenes, number

SIZE = 128  # pixels, height and width
NUMBERS = 48  # uniform numbers per image: 0-31 scene and placement, 32-47 style

COLOURS = {
    "red": (0.90, 0.13, 0.13), "yellow": (1.00, 0.83, 0.10), "green": (0.20, 0.70, 0.22),
    "blue": (0.13, 0.40, 0.95), "purple": (0.58, 0.20, 0.78),
}  # fmt: skip
# Objects of any colour; about a third of their images are recoloured, and the caption then names the colour.
PAINTABLE = (
    "car", "bus", "truck", "bicycle", "sailboat", "tent", "tulip", "balloon", "umbrella", "guitar", "cup",
    "chair", "star", "butterfly", "fish", "robot",
)  # fmt: skip
# Objects that hang in the air: no shadow, further up.
FLYING = ("butterfly", "bee", "airplane", "rocket", "balloon", "star")


class Rows:
    """A dataclass of tensors with a row for each of B images; all of them are selected and moved together."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def __getitem__(self, index) -> Self:
        """Select images by a slice or a tensor of indices."""
        return type(self)(*(getattr(self, field.name)[index] for field in fields(self)))

    def to(self, device) -> Self:
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class Pictures(Rows):
    """What B images show: (B,) indices into OBJECTS, SETS, SCENES and COLOURS (-1: the object's own colour), and
    `numbers` (B, NUMBERS), uniform in [0, 1)."""

    object: torch.Tensor
    drawing: torch.Tensor
    scene: torch.Tensor
    colour: torch.Tensor
    numbers: torch.Tensor


def random_pictures(count: int, generator: torch.Generator, object=None, scene=None) -> Pictures:
    """What `count` random images show, on the CPU; `object` and `scene` are the same in all of them if given."""
    checks.integer("count", count, 1)
    draw = lambda high: torch.randint(high, (count,), generator=generator)
    objects, drawings, scenes = draw(len(OBJECTS)), draw(len(SETS)), draw(len(SCENES))
    colours, chance = draw(len(COLOURS)), torch.rand(count, generator=generator)
    numbers = torch.rand(count, NUMBERS, generator=generator)
    if object is not None:
        objects = torch.full((count,), index_of("object", object, OBJECTS))
    if scene is not None:
        scenes = torch.full((count,), index_of("scene", scene, SCENES))
    paintable = torch.tensor([name in PAINTABLE for name in OBJECTS])[objects]
    colours = torch.where(paintable & (chance < 0.35), colours, -1)
    return Pictures(objects, drawings, scenes, colours, numbers)


def index_of(what: str, name: str, names: Collection[str]) -> int:
    """Position of `name` in `names`. Raises ValueError, which lists the names, for an unknown one."""
    return list(names).index(checks.one_of(what, name, names))


@lru_cache(maxsize=4)
def _atlas(device: str) -> torch.Tensor:
    atlas = load_atlas()
    return torch.cat([atlas[:, :, :3] * atlas[:, :, 3:], atlas[:, :, 3:]], dim=2).to(device)  # premultiplied


def paint(rgba: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
    """Give the saturated parts of premultiplied `rgba` (B,4,h,w) the hue of index `colour` (B,); -1 keeps theirs."""
    palette = torch.tensor(list(COLOURS.values()), device=rgba.device)
    rgb, alpha = rgba[:, :3], rgba[:, 3:]
    bright, dark = rgb.amax(1, keepdim=True), rgb.amin(1, keepdim=True)
    fraction = ((bright - dark) / bright.clamp(min=1e-3) * 2.5 - 0.4).clamp(0, 1)  # greys stay grey
    fraction = fraction * (colour >= 0).view(-1, 1, 1, 1)
    target = bright * 1.05 * palette[colour.clamp(min=0)].view(-1, 3, 1, 1)
    return torch.cat([(rgb + (target - rgb) * fraction).clamp(max=1), alpha], dim=1)


def place_objects(pictures: Pictures) -> torch.Tensor:
    """Set each object into the frame: premultiplied RGBA (B,4,SIZE,SIZE), its box 58-80 % of the frame."""
    u, device = pictures.numbers, pictures.numbers.device
    icon = paint(_atlas(str(device))[pictures.object, pictures.drawing], pictures.colour)
    flying = torch.tensor([name in FLYING for name in OBJECTS], device=device)[pictures.object].float()
    side = 0.58 + 0.22 * u[:, 0]
    centre_x = 0.5 + (u[:, 1] - 0.5) * 0.6 * (1 - side)
    bottom = (0.88 + 0.08 * u[:, 2]) * (1 - flying) + (0.5 + side / 2 + 0.1 * (u[:, 2] - 0.5)) * flying
    flip = torch.where(u[:, 3] < 0.5, -1.0, 1.0)
    # grid_sample wants, for each pixel of the frame in [-1, 1], where to look in the icon in [-1, 1]
    theta = torch.zeros(len(pictures), 2, 3, device=device)
    theta[:, 0, 0], theta[:, 0, 2] = flip / side, flip * (1 - 2 * centre_x) / side
    theta[:, 1, 1], theta[:, 1, 2] = 1 / side, (1 - 2 * (bottom - side / 2)) / side
    grid = F.affine_grid(theta, [len(pictures), 4, SIZE, SIZE], align_corners=False)
    return F.grid_sample(icon, grid, align_corners=False)


def shadow(pictures: Pictures, rgba: torch.Tensor) -> torch.Tensor:
    """How dark the ground is under each object: (B,1,SIZE,SIZE) in [0, 0.45], nothing under what flies."""
    device = rgba.device
    y = torch.arange(SIZE, device=device).view(1, 1, -1, 1)
    x = torch.arange(SIZE, device=device).view(1, 1, 1, -1)
    solid = (rgba[:, 3:] > 0.5).float()
    bottom = (solid.amax(3, keepdim=True) * y).amax(2, keepdim=True)
    feet = (solid * (y > bottom - SIZE // 10)).amax(2, keepdim=True)  # columns the object stands on
    width = feet.sum(3, keepdim=True).clamp(min=8)
    centre = (feet * x).sum(3, keepdim=True) / feet.sum(3, keepdim=True).clamp(min=1)
    distance = ((x - centre) / (0.6 * width + 4)) ** 2 + ((y - bottom) / (0.1 * width + 3)) ** 2
    flying = torch.tensor([name in FLYING for name in OBJECTS], device=device)[pictures.object]
    return 0.45 * (1.3 - distance.sqrt()).clamp(0, 1) * (~flying).view(-1, 1, 1, 1)


def draw_plain(pictures: Pictures) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the images without a style: image (B,3,SIZE,SIZE) in [0, 1] and object mask (B,1,SIZE,SIZE)."""
    image = draw_scenes(pictures.scene, pictures.numbers, SIZE)
    rgba = place_objects(pictures)
    dark = torch.tensor([SCENES[name].light for name in SCENES], device=image.device)[pictures.scene]
    light = (dark + (number(pictures.numbers, 4, -0.06, 0.06).flatten())).clamp(max=1).view(-1, 1, 1, 1)
    image = image * (1 - shadow(pictures, rgba))
    image = image * (1 - rgba[:, 3:]) + rgba[:, :3] * light
    return image.clamp(0, 1), rgba[:, 3:]
