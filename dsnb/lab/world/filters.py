"""Small image filters that the drawn styles are made of; all take images (B,C,S,S) in [0, 1]."""

import torch
import torch.nn.functional as F


def luminance(image: torch.Tensor) -> torch.Tensor:
    """Rec. 601 luma of (B,3,S,S), in [0, 1]: (B,1,S,S)."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=image.device).view(1, 3, 1, 1)
    return (image * weights).sum(1, keepdim=True)


def saturate(image: torch.Tensor, amount: float) -> torch.Tensor:
    grey = luminance(image)
    return (grey + (image - grey) * amount).clamp(0, 1)


def blur(image: torch.Tensor, radius: int) -> torch.Tensor:
    """Two box filters of width 2 radius + 1, the border replicated."""
    for _ in range(2):
        image = F.avg_pool2d(F.pad(image, [radius] * 4, mode="replicate"), 2 * radius + 1, stride=1)
    return image


def gradient(image: torch.Tensor) -> torch.Tensor:
    """Length of the Sobel gradient, the largest over channels: (B,1,S,S)."""
    step = torch.tensor([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]], device=image.device) / 4
    kernel = torch.stack([step, step.T]).unsqueeze(1)
    flat = F.pad(image.flatten(0, 1).unsqueeze(1), [1] * 4, mode="replicate")
    return F.conv2d(flat, kernel).square().sum(1).sqrt().view_as(image).amax(1, keepdim=True)


def thicken(cover: torch.Tensor, radius: int) -> torch.Tensor:
    """Grow what is covered by `radius` pixels."""
    return F.max_pool2d(cover, 2 * radius + 1, stride=1, padding=radius)


def outline(mask: torch.Tensor, radius: int = 1) -> torch.Tensor:
    """The object's contour, 2 radius pixels wide: (B,1,S,S)."""
    solid = (mask > 0.5).float()
    return thicken(solid, radius) - (1 - thicken(1 - solid, radius))


def inner_lines(image: torch.Tensor, mask: torch.Tensor, threshold: float) -> torch.Tensor:
    """The drawing inside the object, as clean lines about three pixels wide."""
    return ((gradient(image) - threshold) * 6).clamp(0, 1) * (mask > 0.5)
