"""The networks of the measures: LPIPS and CLIP, from installed packages, a folder or the Hugging Face hub.

None of them shares weights with the model that is measured.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from .. import checks, data_path
from .measures import check_images

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SMALLEST = 32  # pixels on each side of an image that every layer of every network can take
LPIPS_NETWORKS = ("st-alex", "st-vgg", "alex", "vgg")
TRUNKS = {
    "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class BlurPool(nn.Module):
    """Blurs a feature map by [1 2 1] and halves it, with two reflected pixels at the border (Zhang 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        row = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
        kernel = (row[:, None] * row).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


def _slices(trunk: str, tolerant: bool) -> list[nn.Sequential]:
    """The five parts of AlexNet or VGG16 that LPIPS uses; `tolerant` replaces strides by blurred pooling."""
    blur = [BlurPool] if tolerant else []
    if trunk == "alex":
        pool = lambda: [nn.MaxPool2d(3, 1 if tolerant else 2), *(b() for b in blur)]
        head = [nn.Conv2d(3, 64, 11, 1 if tolerant else 4, 2), *(b() for b in blur), nn.ReLU()]
        parts = [
            head,
            [*pool(), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()],
            [*pool(), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()],
            [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()],
            [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()],
        ]
    else:
        parts, before = [], 3
        for index, (count, channels) in enumerate([(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)]):
            part = [nn.MaxPool2d(2, 1 if tolerant else 2), *(b() for b in blur)] if index else []
            for _ in range(count):
                part += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
                before = channels
            parts.append(part)
    return [nn.Sequential(*part) for part in parts]


class Lpips(nn.Module):
    """LPIPS (Zhang et al. 2018) or the shift-tolerant ST-LPIPS (Ghildyal and Liu 2022). `load_lpips` opens it.

    A call with two batches of images gives their distance (B,).

    Args:
        trunk: the network of the features, "alex" or "vgg".
        tolerant: whether it is ST-LPIPS.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, trunk: str = "alex", tolerant: bool = True):
        super().__init__()
        self.name = f"{'ST-' if tolerant else ''}LPIPS ({trunk})"
        self.key = f"{'st-' if tolerant else ''}{trunk}"  # its name for `load_lpips`
        self.slices = nn.ModuleList(_slices(trunk, tolerant))
        widths = [
            [m for m in part.modules() if isinstance(m, nn.Conv2d)][-1].out_channels for part in self.slices
        ]
        self.heads = nn.ParameterList(nn.Parameter(torch.ones(1, width, 1, 1)) for width in widths)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    @torch.no_grad()
    def features(self, images: Tensor, size: int | None = None, layers: int = 5) -> list[Tensor]:
        """Feature maps of images, without gradients.

        Args:
            images: (B, 3, H, W) in [0, 1].
            size: height and width to which the images are resized; default their own.
            layers: how many of the five layers, counted from the first.

        Returns:
            (B, C, h, w) per layer.

        Raises:
            ValueError: wrong images, or ones with a side of less than `SMALLEST` pixels.
        """
        x = check_images(images).to(self.shift)
        x = x if size is None else resize(x, size)
        if min(x.shape[2:]) < SMALLEST:
            raise ValueError(
                f"images is {tuple(x.shape[2:])} pixels, expected at least {SMALLEST} on each side"
            )
        return self.maps(x, layers)

    def maps(self, images: Tensor, layers: int = 5) -> list[Tensor]:
        """As `features`, with gradients, and without a check or a resize of the images."""
        x, maps = (2 * images - 1 - self.shift) / self.scale, []
        for part in list(self.slices)[:layers]:
            x = part(x)
            maps.append(x)
        return maps

    def distance(self, maps: list[Tensor], targets: list[Tensor]) -> Tensor:
        """The distance (B,) of two lists of feature maps, by Zhang et al. 2018, eq. 1."""
        total = torch.zeros(len(maps[0]), device=maps[0].device)
        for a, b, head in zip(maps, targets, self.heads, strict=True):
            unit = [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in (a, b)]
            total += ((unit[0] - unit[1]).square() * head).sum(1).mean((1, 2))
        return total.cpu()

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        if images.shape != targets.shape:
            raise ValueError(f"targets is {tuple(targets.shape)}, expected {tuple(images.shape)} like images")
        return self.distance(self.features(images), self.features(check_images(targets, "targets")))


def load_lpips(name: str = "st-alex", device: str | torch.device = "cpu") -> Lpips:
    """Opens a perceptual network.

    Args:
        name: "st-alex" or "st-vgg" for ST-LPIPS, which works offline. "alex" or "vgg" for the original LPIPS, which
            needs `pip install 'dsnb[lpips]'` and downloads weights.
        device: where it computes.

    Returns:
        The network, without gradients.

    Raises:
        ValueError: an unknown name.
        ImportError: a package is missing.
        OSError: the download failed.
    """
    checks.one_of("name", name, LPIPS_NETWORKS)
    trunk, tolerant = name.removeprefix("st-"), name.startswith("st-")
    if tolerant:
        file = _package_file("stlpips_pytorch", f"weights/vST0.0/{trunk}_shift_tolerant.pth")
        state = torch.load(file, map_location="cpu", weights_only=True)
        body, heads = {k: v for k, v in state.items() if k.startswith("net.")}, state
    else:
        file = _package_file("torchmetrics", f"functional/image/lpips_models/{trunk}.pth")
        heads = torch.load(file, map_location="cpu", weights_only=True)
        try:
            body = torch.hub.load_state_dict_from_url(TRUNKS[trunk], map_location="cpu", weights_only=True)
        except OSError as error:
            raise OSError(
                f"network {name!r} needs {TRUNKS[trunk]} ({error}); offline, use 'st-{trunk}'"
            ) from None
        body = {k: v for k, v in body.items() if k.startswith("features.")}
    return _fill(Lpips(trunk, tolerant), body, heads).to(device).eval().requires_grad_(False)


def _fill(network: Lpips, body: dict[str, Tensor], heads: dict[str, Tensor]) -> Lpips:
    """Copy trunk and head weights, in the order they come; both files list the layers from first to last."""
    layers = [module for module in network.slices.modules() if isinstance(module, nn.Conv2d)]
    kernels = [v for k, v in body.items() if k.endswith("weight")]
    biases = [v for k, v in body.items() if k.endswith("bias")]
    with torch.no_grad():
        for layer, kernel, bias in zip(layers, kernels, biases, strict=True):
            if layer.weight.shape != kernel.shape:
                raise ValueError(
                    f"weights: a layer is {tuple(kernel.shape)}, expected {tuple(layer.weight.shape)}"
                )
            layer.load_state_dict({"weight": kernel, "bias": bias})
        for index, head in enumerate(network.heads):
            head.copy_(heads[f"lin{index}.model.1.weight"])
    return network


def _package_file(package: str, path: str) -> Path:
    """A data file inside an installed package, without importing the package."""
    found = importlib.util.find_spec(package)
    folders = found.submodule_search_locations if found else None
    file = Path(folders[0]) / path if folders else None
    if file is None or not file.is_file():
        raise ImportError(f"the perceptual distance needs the package {package}: pip install {package}")
    return file


def resize(images: Tensor, size: int) -> Tensor:
    """Resizes images bicubically, with antialiasing and without a crop.

    Args:
        images: (B, 3, H, W) in [0, 1].
        size: the new height and width.

    Returns:
        (B, 3, size, size) in [0, 1].
    """
    if images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 1)


class TransformersClip:
    """A CLIP of transformers, with the methods of `perceptual.Clip`.

    Args:
        model: a CLIPModel, VisionTextDualEncoderModel, or another model with `get_image_features` and
            `get_text_features`.
        tokenizer: of the model.
        mean, std: of its input images, per channel.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ):
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.ground = tuple(mean)
        self.scale = model.logit_scale.exp().item()
        self._norm = [torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std)]

    def _pixels(self, images: Tensor) -> Tensor:
        mean, std = (v.to(self.model.device) for v in self._norm)
        pixels = resize(check_images(images).to(mean), self.model.config.vision_config.image_size)
        return ((pixels - mean) / std).to(self.model.dtype)

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        return _unit(self.model.get_image_features(pixel_values=self._pixels(images)))

    @torch.no_grad()
    def text_features(self, texts: list[str]) -> Tensor:
        length = self.model.config.text_config.max_position_embeddings
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        batch = {k: batch[k].to(self.model.device) for k in ("input_ids", "attention_mask")}
        return _unit(self.model.get_text_features(**batch))


def _unit(features: Any) -> Tensor:
    features = getattr(features, "pooler_output", features)
    return F.normalize(features.float(), dim=-1).cpu()


def load_clip(source: str | Path, device: str | torch.device = "cpu") -> TransformersClip:
    """Opens a CLIP.

    Args:
        source: a transformers folder, or a hub id such as "openai/clip-vit-base-patch32".
        device: where it computes.

    Returns:
        The CLIP.

    Raises:
        OSError: it cannot be opened or downloaded.
        ValueError: the tokenizer is incomplete because files are missing.
    """
    from transformers import AutoModel, AutoTokenizer
    from transformers.image_processing_base import ImageProcessingMixin

    from ..models import quietly

    try:
        with quietly():
            model = AutoModel.from_pretrained(source).float()
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, SafetensorError) as error:
        raise OSError(f"clip {str(source)!r} cannot be opened; offline, pass a folder ({error})") from None
    if len(tokenizer) < model.config.text_config.vocab_size // 2:
        raise ValueError(
            f"clip {str(source)!r} has a tokenizer of {len(tokenizer)} entries, expected "
            f"{model.config.text_config.vocab_size}; files are missing"
        )
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except OSError:  # it has none
        settings = {}
    norm = settings.get("image_mean", CLIP_MEAN), settings.get("image_std", CLIP_STD)
    return TransformersClip(model.to(device), tokenizer, *norm)


def bundled_clip() -> Path:
    """The folder of the bundled evaluator CLIP."""
    return data_path("models", "drawn-world-judge")
