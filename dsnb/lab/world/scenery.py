"""The ten scenes of the training world, drawn for a whole batch at once from rows of uniform numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Scene:
    """A scene: the phrases a caption may use, the light on the object in [0, 1], and how it is drawn."""

    phrases: tuple[str, ...]
    light: float
    draw: Callable[[torch.Tensor, int], torch.Tensor]


def number(u: torch.Tensor, column: int, low: float, high: float) -> torch.Tensor:
    """Column of the uniform numbers (B,K), spread over [low, high], as (B,1,1,1)."""
    return (low + (high - low) * u[:, column]).view(-1, 1, 1, 1)


def tint(u: torch.Tensor, code: str, column: int = 8, amount: float = 0.08) -> torch.Tensor:
    """The colour of a hex code, moved a little by three columns of the numbers: (B,3,1,1)."""
    rgb = torch.tensor([int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)], device=u.device)
    return (rgb + amount * (u[:, column : column + 3] - 0.5)).clamp(0, 1).view(-1, 3, 1, 1)


def axes(size: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixel centres in [0, 1]: y (1,1,size,1), downwards, and x (1,1,1,size)."""
    line = (torch.arange(size, device=device) + 0.5) / size
    return line.view(1, 1, -1, 1), line.view(1, 1, 1, -1)


def over(image: torch.Tensor, colour: torch.Tensor, cover: torch.Tensor) -> torch.Tensor:
    """Lay `colour` over the image where `cover` is 1."""
    return image + (colour - image) * cover


def edge(distance: torch.Tensor, size: int) -> torch.Tensor:
    """Antialiased step: 1 where the distance (in heights of the image) is positive."""
    return (distance * size + 0.5).clamp(0, 1)


def fade(top: torch.Tensor, bottom: torch.Tensor, y: torch.Tensor, start: float = 0.0, end: float = 1.0):
    """Vertical gradient between two colours, from height `start` to height `end`."""
    return top + (bottom - top) * ((y - start) / (end - start)).clamp(0, 1)


@lru_cache(maxsize=8)
def noise_bank(size: int, device: str, count: int = 16) -> torch.Tensor:
    """Smooth random fields of mean 0 and deviation 1, always the same ones: (count, 1, size, size)."""
    generator, total = torch.Generator().manual_seed(7), 0
    for octave, cells in enumerate((4, 8, 16, 32)):
        field = torch.randn(count, 1, cells, cells, generator=generator)
        total = total + 0.6**octave * F.interpolate(field, (size, size), mode="bicubic", align_corners=False)
    total = total - total.mean((2, 3), keepdim=True)
    return (total / total.std((2, 3), keepdim=True)).to(device)


def noise(u: torch.Tensor, column: int, size: int) -> torch.Tensor:
    """One smooth field per image, chosen by a column of the numbers: (B,1,size,size)."""
    bank = noise_bank(size, str(u.device))
    return bank[(u[:, column] * len(bank)).long().clamp(max=len(bank) - 1)]


def ridge(
    u: torch.Tensor, column: int, x: torch.Tensor, amplitude: float, rough: float = 0.5
) -> torch.Tensor:
    """A rolling skyline around 0 over x, three waves with random phases: (B,1,1,size)."""
    waves = 0
    for k in range(3):
        phase = number(u, column + k, 0, 6.283)
        waves = waves + rough**k * torch.sin(6.283 * (0.8 + 1.1 * k) * x + phase)
    return amplitude * waves


def clouds(image, u, y, horizon, colour="fafafc", amount=0.9):
    size = image.shape[-1]
    cover = ((noise(u, 11, size) - 0.3) * 1.5).clamp(0, 1) * ((horizon - 0.08 - y) * 5).clamp(0, 1)
    return over(image, tint(u, colour, amount=0.0), cover * amount)


def blue_sky(u, y, x, horizon):
    sky = fade(tint(u, "4a9eea"), tint(u, "c4e4fa"), y, 0, 0.6) + 0 * x
    return clouds(sky, u, y, horizon)


def ground(image, u, y, x, horizon, top, bottom, amplitude=0.012, grain=0.02):
    """Everything below a rolling horizon: a gradient between two hex colours with a soft grain."""
    size = image.shape[-1]
    line = horizon + ridge(u, 12, x, amplitude)
    colour = fade(tint(u, top, 15), tint(u, bottom, 15), y, 0.5, 1.0) + grain * noise(u, 18, size)
    return over(image, colour, edge(y - line, size))


def circle(u, y, x, column, radius, low=0.08, high=0.26):
    """A disc in the sky, left or right of the object: cover (B,1,size,size) and distance to its centre."""
    left = number(u, column, 0.08, 0.22)
    centre_x = torch.where(u[:, column + 1].view(-1, 1, 1, 1) < 0.5, left, 1 - left)
    distance = ((x - centre_x) ** 2 + (y - number(u, column + 2, low, high)) ** 2).sqrt()
    return edge(radius - distance, x.shape[-1]), distance


def pines(image, u, y, x, base, column, count, low, high, code):
    """A few fir trees that stand on `base`."""
    size = image.shape[-1]
    for k in range(count):
        centre, height = number(u, column + k, 0, 1), number(u, column + k + 1, low, high)
        rise = (base - y) / height  # 0 at the foot, 1 at the tip
        saw = 0.30 * (1 - rise) * (0.75 + 0.25 * ((rise * 3) % 1.0 < 0.5))
        inside = edge(saw * height - (x - centre).abs(), size) * ((rise > 0.1) & (rise < 1))
        trunk = edge(0.03 * height - (x - centre).abs(), size) * ((rise >= 0) & (rise <= 0.1))
        image = over(over(image, tint(u, "6b4a2f"), trunk), tint(u, code), inside)
    return image


def grass(u, size):
    y, x = axes(size, u.device)
    horizon = number(u, 5, 0.50, 0.64)
    return ground(blue_sky(u, y, x, horizon), u, y, x, horizon, "8ccc4f", "4a9a34", 0.02, 0.03)


def desert(u, size):
    y, x = axes(size, u.device)
    image = fade(tint(u, "7ec4ee"), tint(u, "fbe6b8"), y, 0, 0.6) + 0 * x
    sun, _ = circle(u, y, x, 22, 0.07)
    image = over(image, tint(u, "fff2b0"), sun)
    horizon = number(u, 5, 0.48, 0.58)
    image = ground(image, u, y, x, horizon, "e9bd74", "d9a55c", 0.045, 0.0)
    dune = horizon + 0.17 + ridge(u, 25, x, 0.05)
    ripples = 0.025 * torch.sin(90 * y + 4 * noise(u, 19, size))
    return over(image, tint(u, "f3cf8a", 15) + ripples, edge(y - dune, size))


def beach(u, size):
    y, x = axes(size, u.device)
    horizon = number(u, 5, 0.42, 0.54)
    image = blue_sky(u, y, x, horizon)
    waves = 0.05 * torch.sin(100 * y + 3 * noise(u, 19, size))
    sea = fade(tint(u, "1f6fc0"), tint(u, "35b4cc"), y, 0.4, 0.8) + waves
    image = over(image, sea, edge(y - horizon, size))
    shore = horizon + number(u, 6, 0.22, 0.3) + ridge(u, 12, x, 0.015)
    image = over(image, tint(u, "f6fcfc"), edge(y - shore + 0.025, size))
    return over(image, tint(u, "f2dda4", 15) + 0.015 * noise(u, 18, size), edge(y - shore, size))


def night(u, size):
    y, x = axes(size, u.device)
    horizon = number(u, 5, 0.56, 0.68)
    image = fade(tint(u, "070a2c"), tint(u, "2c3478"), y, 0, 0.7) + 0 * x
    for k in range(14):  # stars: small crosses at positions that follow from two numbers
        at_x = (number(u, 22 + k % 8, 0, 1) * (k + 1) * 1.7) % 1
        at_y = (number(u, 23 + k % 7, 0, 1) * (k + 2)) % 0.5
        near = ((x - at_x).abs() + (y - at_y).abs()) * size
        image = over(image, torch.ones(1, device=u.device), (1.9 + 0.6 * (k % 2) - near).clamp(0, 1))
    moon, _ = circle(u, y, x, 24, 0.085)
    image = over(image, tint(u, "fdf6cf"), moon)
    return ground(image, u, y, x, horizon, "23404a", "132a33", 0.02, 0.01)


def snow(u, size):
    y, x = axes(size, u.device)
    horizon = number(u, 5, 0.54, 0.64)
    image = fade(tint(u, "9fb6d4"), tint(u, "dfe8f2"), y, 0, 0.6) + 0 * x
    image = pines(image, u, y, x, horizon + 0.03, 22, 5, 0.22, 0.42, "2f6b5c")
    image = ground(image, u, y, x, horizon, "fcfdff", "d3e0f0", 0.015, 0.008)
    for k in range(16):
        at_x = (number(u, 20 + k % 9, 0, 1) * (k + 1) * 1.9) % 1
        at_y = (number(u, 21 + k % 8, 0, 1) * (k + 3)) % 1
        distance = ((x - at_x) ** 2 + (y - at_y) ** 2).sqrt()
        image = over(image, torch.ones(1, device=u.device), (2.2 - distance * size).clamp(0, 1))
    return image


def room(u, size):
    y, x = axes(size, u.device)
    walls = torch.tensor(
        [[0.94, 0.84, 0.66], [0.70, 0.82, 0.90], [0.92, 0.74, 0.72], [0.76, 0.88, 0.72]], device=u.device
    )[(u[:, 6] * 4).long().clamp(max=3)].view(-1, 3, 1, 1)
    image = walls + 0 * x + 0 * y
    floor = number(u, 5, 0.66, 0.76)
    boards = 0.06 * (((x - 0.5) / (y - floor + 0.35) * 3.2) % 1 < 0.5)
    image = over(image, tint(u, "a5683d", 15) + boards, edge(y - floor, size))
    image = over(image, tint(u, "faf6ee", amount=0), edge(y - floor + 0.03, size) * edge(floor - y, size))
    left = number(u, 22, 0.06, 0.12)
    left = torch.where(u[:, 23].view(-1, 1, 1, 1) < 0.5, left, 0.66 - left)  # a window on one side
    across, down = (x - left - 0.14).abs(), (y - number(u, 24, 0.22, 0.28)).abs()
    frame = edge(torch.minimum(0.17 - across, 0.19 - down), size)
    panes = edge(torch.minimum(across, down) - 0.012, size)
    glass = edge(torch.minimum(0.14 - across, 0.16 - down), size) * panes
    image = over(image, tint(u, "f7f4ec", amount=0), frame)
    return over(image, fade(tint(u, "5faef2"), tint(u, "cfeafb"), y, 0.1, 0.4), glass)


def sunset(u, size):
    y, x = axes(size, u.device)
    horizon = number(u, 5, 0.56, 0.66)
    image = fade(tint(u, "6a3a86"), tint(u, "ff9a3c"), y, 0, 0.55) + 0 * x
    sun, distance = circle(u, y, x, 22, 0.13, 0.42, 0.52)
    image = image + 0.35 * torch.exp(-distance * 5) * tint(u, "ffe090")
    image = over(image, tint(u, "fff0a0"), sun)
    image = clouds(image, u, y, horizon, "e05a6a", 0.8)
    return ground(image, u, y, x, horizon, "7a3a4c", "35202f", 0.02, 0.01)


def street(u, size):
    y, x = axes(size, u.device)
    image = fade(tint(u, "69b0ee"), tint(u, "cfe6f8"), y, 0, 0.6) + 0 * x
    walls = torch.tensor(
        [[0.76, 0.42, 0.34], [0.60, 0.64, 0.70], [0.88, 0.76, 0.58], [0.44, 0.54, 0.68], [0.70, 0.54, 0.52]],
        device=u.device,
    )
    curb = number(u, 5, 0.70, 0.78)
    for k in range(5):  # houses of one width, random heights and colours, windows in a lattice
        top = number(u, 22 + k, 0.06, 0.36)
        wall = walls[((u[:, 22 + k] * 7.3 + u[:, 6] * 5) % 5).long().clamp(max=4)].view(-1, 3, 1, 1)
        local = (x - (k - 0.25 + 0.5 * number(u, 7, 0, 1)) * 0.2) / 0.2  # 0..1 across the house
        inside = ((local >= 0) & (local < 1)) * edge(y - top, size) * edge(curb - y, size)
        panes = ((local * 3) % 1 > 0.35) & (((y - top) * 9) % 1 > 0.45) & (local > 0.1) & (local < 0.97)
        lamp = tint(u, "fbe59a") if k % 2 else tint(u, "40566e")
        image = over(over(image, wall, inside), lamp, inside * panes * 0.9)
    road = fade(tint(u, "77777e"), tint(u, "53535a"), y, 0.7, 1.0)
    image = over(image, road, edge(y - curb, size))
    image = over(image, tint(u, "c9c5bd"), edge(y - curb, size) * edge(curb + 0.05 - y, size))
    dashes = edge(0.012 - (y - 0.93).abs(), size) * (((x + number(u, 27, 0, 1)) * 4) % 1 < 0.55)
    return over(image, tint(u, "f8f2d8"), dashes)


def mountains(u, size):
    y, x = axes(size, u.device)
    horizon = number(u, 5, 0.56, 0.66)
    image = blue_sky(u, y, x, horizon)
    for k in range(3):
        peak_x, peak_y = number(u, 22 + k, 0.33 * k - 0.05, 0.33 * k + 0.38), number(u, 25 + k, 0.08, 0.26)
        slope = 1.25 + 0.5 * number(u, 28, 0, 1)
        jag = 0.02 * noise(u, 19, size)
        side = x - peak_x + jag
        below = y - peak_y - slope * side.abs()
        rock = tint(u, "7d8399", 15) * torch.where(side < 0, 1.0, 0.74)
        cap = tint(u, "f6f9ff", amount=0) * torch.where(side < 0, 1.0, 0.82)
        image = over(image, rock, edge(below, size))
        image = over(image, cap, edge(below, size) * edge(peak_y + 0.13 + jag - y, size))
    return ground(image, u, y, x, horizon, "93b862", "5f9648", 0.015, 0.02)


def forest(u, size):
    y, x = axes(size, u.device)
    horizon = number(u, 5, 0.60, 0.70)
    image = fade(tint(u, "cbe6b4"), tint(u, "86b878"), y, 0, 0.7) + 0 * x
    for k in range(7):
        centre = number(u, 22 + k % 6, 0, 0.16) + k / 7
        width = number(u, 23 + k % 5, 0.016, 0.042)
        near = k % 3
        bark = tint(u, ("7d6548", "684d33", "543a25")[near])
        trunk = edge(width - (x - centre).abs(), size) * edge(horizon + 0.02 * near - y, size)
        image = over(image, bark, trunk)
    leaves = edge(0.26 + 0.06 * noise(u, 19, size) - y, size)
    image = over(image, tint(u, "2e7a38") + 0.07 * noise(u, 11, size), leaves)
    return ground(image, u, y, x, horizon, "6d8f44", "46692f", 0.015, 0.05)


SCENES = {
    "grass": Scene(("on grass", "in a meadow"), 1.0, grass),
    "desert": Scene(("in the desert", "on sand dunes"), 1.0, desert),
    "beach": Scene(("on a beach", "by the sea"), 1.0, beach),
    "night": Scene(("at night", "under the stars"), 0.82, night),
    "snow": Scene(("in the snow", "in winter"), 1.0, snow),
    "room": Scene(("in a room", "indoors"), 1.0, room),
    "sunset": Scene(("at sunset", "in the evening light"), 0.92, sunset),
    "street": Scene(("on a street", "in the city"), 1.0, street),
    "mountains": Scene(("in the mountains", "in front of mountains"), 1.0, mountains),
    "forest": Scene(("in a forest", "among trees"), 1.0, forest),
}


def draw_scenes(scene: torch.Tensor, numbers: torch.Tensor, size: int) -> torch.Tensor:
    """Draw the scenes `scene` (B,), indices into SCENES, from numbers (B,K): (B,3,size,size) in [0, 1]."""
    image = torch.empty(len(scene), 3, size, size, device=numbers.device)
    for index, kind in enumerate(SCENES.values()):
        rows = (scene == index).nonzero().flatten()
        if len(rows):
            image[rows] = kind.draw(numbers[rows], size).clamp(0, 1)
    return image
