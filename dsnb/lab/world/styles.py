"""Nine styles by classical non-photorealistic rendering, and the ground truth in any of them or any mix.

Every style is a function of the plain image (B,3,S,S) in [0, 1], the object's mask (B,1,S,S) and the image's uniform
numbers (B,K). The styles are strong and coarse, since they must survive a small autoencoder. Each must be unmistakable
at 128 pixels, and the object must stay readable.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F

from .filters import blur, gradient, inner_lines, luminance, outline, saturate, thicken
from .scenery import noise
from .world import SIZE, Pictures, draw_plain, index_of


def plain(image, mask, u):
    return image


def minecraft(image, mask, u):
    """Blocks of 8 pixels with lit and shaded edges; the object in 4-pixel texels, few colours per channel."""
    big = F.avg_pool2d(image, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    small = F.avg_pool2d(image, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    inside = (F.avg_pool2d(mask, 4) > 0.4).float().repeat_interleave(4, 2).repeat_interleave(4, 3)
    blocks = saturate(big + (small - big) * inside, 1.3)
    blocks = (blocks * 5).round() / 5
    x = torch.arange(SIZE, device=image.device) % 8
    y = x.view(-1, 1)
    lit, shaded = ((y == 0) | (x == 0)).float(), ((y == 7) | (x == 7)).float()
    texture = noise(u, 32, SIZE)[:, :, ::16, ::16].repeat_interleave(8, 2).repeat_interleave(8, 3)
    texture = texture.repeat(1, 1, SIZE // texture.shape[2], SIZE // texture.shape[3])
    blocks = blocks * (1 + 0.07 * texture * (1 - inside))
    blocks = blocks.clamp(0, 1)
    return blocks * (1 - 0.42 * shaded) + (1 - blocks) * 0.3 * lit * (1 - shaded)


@lru_cache(maxsize=2)
def _swirls(device: str, count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Fixed flow fields of vortices: strokes (count,1,S,S), noise smeared along the flow and of deviation 1,
    and where each pixel's brush has passed (count,9,S,S,2), in grid_sample's coordinates."""
    generator = torch.Generator().manual_seed(11)
    line = torch.linspace(-1, 1, SIZE)
    y, x = torch.meshgrid(line, line, indexing="ij")
    here = torch.stack([x, y], -1).expand(count, -1, -1, -1)
    waves = 0.35 * torch.sin(4 * x + 2 * y).expand(count, -1, -1)
    flow = torch.stack([torch.ones(count, SIZE, SIZE), waves], -1)
    for k in range(7):
        centre = torch.rand(count, 1, 1, 2, generator=generator) * 2 - 1
        offset = here - centre
        turn = torch.stack([-offset[..., 1], offset[..., 0]], -1) * (1 if k % 2 else -1)
        flow = flow + 9 * turn * torch.exp(-offset.square().sum(-1, keepdim=True) / 0.11)
    flow = F.normalize(flow, dim=-1).permute(0, 3, 1, 2)
    paths = [here]
    for direction in (1, -1):
        at = here
        for _ in range(4):
            along = F.grid_sample(flow, at, "bilinear", "border", True).permute(0, 2, 3, 1)
            at = at + direction * 0.026 * along
            paths.append(at)
    paths = torch.stack(paths, 1)
    strokes = torch.randn(count, 1, SIZE // 2, SIZE // 2, generator=generator)
    strokes = F.interpolate(strokes, (SIZE, SIZE), mode="bilinear")
    for _ in range(2):
        strokes = sum(F.grid_sample(strokes, paths[:, k], "bilinear", "border", True) for k in range(9)) / 9
    strokes = strokes / strokes.std((2, 3), keepdim=True)
    return strokes.to(device), paths.to(device)


def vangogh(image, mask, u):
    """Paint smeared along swirls, with ridges of paint and a palette between night blue and yellow."""
    strokes, paths = _swirls(str(image.device))
    field = (u[:, 33] * len(strokes)).long().clamp(max=len(strokes) - 1)
    relief = strokes[field].clamp(-2, 2)
    samples = [F.grid_sample(image, paths[field, k], "bilinear", "border", True) for k in range(9)]
    near, far = sum(samples[k] for k in (0, 1, 5)) / 3, sum(samples) / 9
    solid = (mask > 0.5).float()
    paint = saturate(far + (near - far) * solid, 1.5)
    light = (luminance(paint) + 0.13 * relief).clamp(0, 1)
    stops = torch.tensor([[0.04, 0.07, 0.30], [0.13, 0.36, 0.70], [0.93, 0.74, 0.22], [1.0, 0.97, 0.75]])
    stops = stops.to(image.device)
    at = light * 3
    low = at.floor().clamp(max=2)
    ramp = lambda index: stops[index.long().squeeze(1)].permute(0, 3, 1, 2)
    starry = ramp(low) + (ramp(low + 1) - ramp(low)) * (at - low)
    paint = paint + (starry - paint) * (0.62 - 0.37 * solid)
    return (paint + 0.11 * relief * (1 - 0.35 * solid)).clamp(0, 1)


@lru_cache(maxsize=4)
def _tiles(
    cells: int, jitter: float, device: str, count: int = 8
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fixed tilings, Voronoi cells of a jittered grid: label (count,S,S), distance to the nearest joint in
    pixels (count,S,S), and a random number per tile (count, cells²) in [-1, 1]."""
    generator = torch.Generator().manual_seed(13 * cells)
    step = SIZE / cells
    line = (torch.arange(cells) + 0.5) * step
    seeds = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).view(1, -1, 2)
    seeds = seeds + step * jitter * (torch.rand(count, cells * cells, 2, generator=generator) - 0.5)
    pixels = torch.arange(SIZE) + 0.5
    points = torch.stack(torch.meshgrid(pixels, pixels, indexing="ij"), -1).view(1, -1, 2)
    nearest, label = torch.cdist(points.expand(count, -1, -1), seeds).topk(2, largest=False)
    joint = (nearest[..., 1] - nearest[..., 0]) / 2
    shade = torch.rand(count, cells * cells, generator=generator) * 2 - 1
    shape = (count, SIZE, SIZE)
    return label[..., 0].view(shape).to(device), joint.view(shape).to(device), shade.to(device)


def _lay_tiles(image, mask, u, cells: int, jitter: float):
    """Fill every tile with its mean colour; tiles are cut along the object's contour. Returns the filled image, the
    distance to the nearest joint in pixels, and the tile's random number, (B,3|1|1,S,S)."""
    label, joint, shade = _tiles(cells, jitter, str(image.device))
    tiling = (u[:, 34] * len(label)).long().clamp(max=len(label) - 1)
    batch = len(image)
    cut = (label[tiling] * 2 + (mask[:, 0] > 0.5)).view(batch, -1)
    sums = torch.zeros(batch, 4, cells * cells * 2, device=image.device)
    values = torch.cat([image, torch.ones_like(mask)], 1).view(batch, 4, -1)
    index = cut.unsqueeze(1)
    sums.scatter_add_(2, index.expand(-1, 4, -1), values)
    means = sums[:, :3] / sums[:, 3:].clamp(min=1)
    filled = means.gather(2, index.expand(-1, 3, -1)).view_as(image)
    per_tile = shade[tiling].gather(1, cut // 2).view_as(mask)
    return filled, joint[tiling].unsqueeze(1), per_tile


def mosaic(image, mask, u):
    """Small, nearly square tiles of one colour each, cut along the object, with brown grout between them."""
    filled, joint, per_tile = _lay_tiles(image, mask, u, 18, 0.45)
    tiles = saturate(filled, 1.5) * (1.04 + 0.16 * per_tile) + 0.05 * (joint - 2).clamp(-1, 2)
    grout = torch.maximum((1.4 - joint).clamp(0, 1), 0.8 * outline(mask))
    cement = torch.tensor([0.36, 0.31, 0.28], device=image.device).view(1, 3, 1, 1)
    return (tiles + (cement - tiles) * grout).clamp(0, 1)


def stained(image, mask, u):
    """Large luminous panes between black leads; the object is cut out of its own panes."""
    filled, joint, per_tile = _lay_tiles(image, mask, u, 9, 0.9)
    solid = (mask > 0.5).float()
    detail = filled + (blur(image, 1) - filled) * 0.6 * solid  # some painting on the object's glass
    glass = saturate(detail, 1.8) * (1 + 0.2 * per_tile) + 0.035 * joint.clamp(max=6) - 0.03
    lead = torch.maximum((2.2 - joint).clamp(0, 1) * (1 - 0.65 * solid), outline(mask, 2))
    return (glass.clamp(0, 1) * (1 - lead) + 0.03 * lead).clamp(0, 1)


# Four sets of inks: three for the scene, dark to light, and three for the object.
POP = """
    ed1f8c ffd60d 1abfe6 291a61 fa5926 ffffcc
    1a9eeb fa479e ffe626 6b0d59 4dd94d fff2e6
    f56b0d 26ccbf ffeb59 1a1a80 f22680 ffe6f2
    7326bf 8ce026 ff99cc 8c0a14 ffbf0d ffffe6
"""


@lru_cache(maxsize=2)
def inks(device: str) -> torch.Tensor:
    """POP as colours in [0, 1]: (sets, 6, 3)."""
    codes = [[bytes.fromhex(code) for code in line.split()] for line in POP.strip().splitlines()]
    return torch.tensor([[list(code) for code in line] for line in codes], device=device) / 255


def warhol(image, mask, u):
    """Flat inks: three for the scene by rank of brightness, three others for the object, a thick black outline,
    halftone dots in the middle ink, and the inks printed a little beside the lines."""
    pop = inks(str(image.device))[(u[:, 35] * 4).long().clamp(max=3)]
    grey, solid = luminance(blur(image, 1)), (mask > 0.5).float()
    ranked = grey[:, 0, ::4, ::4].flatten(1).sort(1).values
    third, two_thirds = (ranked[:, [int(ranked.shape[1] * q)]].view(-1, 1, 1, 1) for q in (0.36, 0.70))
    ink = lambda index: pop[:, index].view(-1, 3, 1, 1)
    soft = lambda value: (value * 14 + 0.5).clamp(0, 1)
    y, x = torch.arange(SIZE, device=image.device).view(-1, 1), torch.arange(SIZE, device=image.device)
    row = torch.div(y, 8, rounding_mode="floor")
    dots = (3.1 - ((y % 8 - 3.5) ** 2 + ((x + 4 * row) % 8 - 3.5) ** 2).sqrt()).clamp(0, 1)
    middle = ink(1) + (ink(2) - ink(1)) * 0.85 * dots
    scene = ink(0) + (middle - ink(0)) * soft(grey - third)
    scene = scene + (ink(2) - scene) * soft(grey - two_thirds)
    figure = ink(3) + (ink(4) - ink(3)) * soft(grey - 0.30)
    figure = figure + (ink(5) - figure) * soft(grey - 0.68)
    printed = F.pad(scene + (figure - scene) * solid, [2, 0, 2, 0], mode="replicate")[..., :-2, :-2]
    lines = torch.maximum(outline(mask, 2), inner_lines(image, mask, 0.42))
    lines = torch.maximum(lines, ((gradient(blur(image, 1)) - 0.35) * 6).clamp(0, 1) * (1 - solid))
    return printed * (1 - lines) + 0.03 * lines


def sketch(image, mask, u):
    """Graphite on warm paper: contours, and hatching that gets denser where the image is dark."""
    smooth = blur(image, 1)
    grey, solid = luminance(smooth), (mask > 0.5).float()
    y, x = torch.arange(SIZE, device=image.device).view(-1, 1), torch.arange(SIZE, device=image.device)
    hatch = (((x + y) % 7) < 2).float()
    cross = (((x - y) % 7) < 2).float()
    tone = torch.maximum(hatch * (grey < 0.62), cross * (grey < 0.36))
    edges = ((gradient(smooth) - 0.10) * 5).clamp(0, 1)
    lines = torch.maximum(torch.maximum(edges, outline(mask)), 0.5 * tone * (1 - 0.3 * solid))
    paper = torch.tensor([0.97, 0.95, 0.90], device=image.device).view(1, 3, 1, 1)
    return paper * (1 - 0.82 * lines.clamp(0, 1))


def watercolor(image, mask, u):
    """Pale washes that run a little, darker where they dry at the contour, and white paper at the border."""
    field = noise(u, 36, SIZE)
    line = torch.linspace(-1, 1, SIZE, device=image.device)
    y, x = torch.meshgrid(line, line, indexing="ij")
    wobble = torch.cat([field, field.flip(3)], 1).permute(0, 2, 3, 1) * 0.022
    runny = F.grid_sample(image, torch.stack([x, y], -1) + wobble, "bilinear", "border", True)
    wet = F.grid_sample(mask, torch.stack([x, y], -1) + wobble, "bilinear", "border", True)
    wash = 1 - (1 - blur(runny, 2) * 0.6 - runny * 0.4) * 0.72
    wash = saturate(wash, 1.15) * (1 - 0.10 * gradient(blur(wet, 1)).clamp(0, 1)) * (1 + 0.05 * field)
    rim = torch.maximum(x.abs(), y.abs()) + 0.05 * field
    bare = ((rim - 0.80) * 7).clamp(0, 1)
    return (wash + (0.985 - wash) * bare).clamp(0, 1)


GLOW = torch.tensor([[0.15, 0.95, 1.0], [0.35, 1.0, 0.35], [1.0, 0.85, 0.2]])


def neon(image, mask, u):
    """Glass tubes in the dark: the object's lines in one bright colour, the scene's in dim magenta."""
    solid = (mask > 0.5).float()
    colour = GLOW.to(image.device)[(u[:, 37] * 3).long().clamp(max=2)].view(-1, 3, 1, 1)
    dim = torch.tensor([0.85, 0.10, 0.75], device=image.device).view(1, 3, 1, 1)
    tubes = torch.maximum(outline(mask), inner_lines(image, mask, 0.35) * 0.8)
    behind = ((gradient(blur(image, 2)) - 0.06) * 7).clamp(0, 1) * (1 - thicken(solid, 3))
    dark = 0.06 + 0.22 * image * solid + torch.tensor([0.02, 0.0, 0.08], device=image.device).view(1, 3, 1, 1)
    light = dark + colour * (0.9 * blur(tubes, 3) + 0.9 * tubes)
    light = light + dim * (0.6 * blur(behind, 2) + 0.55 * behind)
    return (light + 0.5 * tubes).clamp(0, 1)


STYLES = {
    "plain": plain, "minecraft": minecraft, "vangogh": vangogh, "mosaic": mosaic, "warhol": warhol,
    "sketch": sketch, "watercolor": watercolor, "stained": stained, "neon": neon,
}  # fmt: skip


# How often training meets each style: the workbook's own ones most.
PROPORTIONS = {"plain": 0.2, **dict.fromkeys(("minecraft", "vangogh", "mosaic", "warhol"), 0.13)}


def held_out(pictures: Pictures) -> torch.Tensor:
    """For each image, the style (B,) in which training never shows its object in its scene."""
    return (pictures.object + pictures.scene) % len(STYLES)


def random_styles(
    pictures: Pictures, generator: torch.Generator, even: bool = True, hide: bool = True
) -> torch.Tensor:
    """A random style for each image.

    Args:
        pictures: what the B images show.
        generator: of random numbers.
        even: whether all styles are equally frequent; else their proportions are those of `PROPORTIONS`.
        hide: replace the held-out style of an image by the next one.

    Returns:
        (B,) indices into STYLES.
    """
    proportions = torch.tensor([1.0 if even else PROPORTIONS.get(name, 0.07) for name in STYLES])
    styles = torch.multinomial(proportions, len(pictures), replacement=True, generator=generator)
    hidden = hide & (styles == held_out(pictures).to(styles.device))
    return torch.where(hidden, (styles + 1) % len(STYLES), styles)


def draw(pictures: Pictures, style: str | torch.Tensor) -> torch.Tensor:
    """Draw the ground truth in a style.

    Args:
        pictures: what the B images show.
        style: the name of one style, or (B,) indices into STYLES.

    Returns:
        (B,3,SIZE,SIZE) in [0, 1].
    """
    image, mask = draw_plain(pictures)
    if isinstance(style, str):
        style = torch.full((len(pictures),), index_of("style", style, STYLES), device=image.device)
    drawn = torch.empty_like(image)
    for index, render in enumerate(STYLES.values()):
        rows = (style == index).nonzero().flatten()
        if len(rows):
            drawn[rows] = render(image[rows], mask[rows], pictures.numbers[rows])
    return drawn


def draw_mix(pictures: Pictures, styles: Sequence[str], weights: torch.Tensor) -> torch.Tensor:
    """Draw the ground-truth blend of N styles: Σ_i weights_i · style_i.

    Args:
        pictures: what the B images show.
        styles: the names of the N styles.
        weights: (N,SIZE,SIZE), which sum to 1 over the styles, as `dsnb.masks` gives them.

    Returns:
        (B,3,SIZE,SIZE) in [0, 1].

    Raises:
        ValueError: for weights of another shape or sum.
    """
    if tuple(weights.shape) != (len(styles), SIZE, SIZE):
        raise ValueError(f"weights has shape {tuple(weights.shape)}, expected {(len(styles), SIZE, SIZE)}")
    if not torch.allclose(weights.sum(0), torch.ones_like(weights[0]), atol=1e-4):
        raise ValueError("weights must sum to 1 over the styles at every pixel")
    weights = weights.to(pictures.numbers.device)
    return sum(draw(pictures, name) * weight for name, weight in zip(styles, weights, strict=True))
