"""Measures that look through a network, which the caller passes in: LPIPS, CLIP, structure.

Images are float32 in [0, 1], (B, 3, H, W); every docstring gives range, direction and source. Two families of
networks: an `Lpips` (`load_lpips("st-alex")` works offline, from the weights inside the stlpips_pytorch
package) and anything with the methods of `Clip` (`load_clip(folder or id)`); one parameter changes them.
"""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .metrics import check_images, side_weights

LPIPS_NETWORKS = ("st-alex", "st-vgg", "alex", "vgg")
TRUNKS = {
    "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


# --- LPIPS -------------------------------------------------------------------------------------------


class BlurPool(nn.Module):
    """Halve a feature map after a [1 2 1] blur, reflected by two pixels at the border (Zhang 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        row = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
        kernel = (row[:, None] * row).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


def _slices(trunk: str, tolerant: bool) -> list[nn.Sequential]:
    """The five slices of AlexNet or VGG16 that LPIPS hears; `tolerant`: strides become blurred pooling."""
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
    """LPIPS (Zhang et al. 2018) or the shift-tolerant ST-LPIPS (Ghildyal and Liu 2022): `name` says which.

    `features(images)` gives the five ReLU maps; calling it with two batches gives the distance.
    """

    def __init__(self, trunk: str = "alex", tolerant: bool = True):
        super().__init__()
        self.name = f"{'ST-' if tolerant else ''}LPIPS ({trunk})"
        self.slices = nn.ModuleList(_slices(trunk, tolerant))
        widths = [[m for m in part if isinstance(m, nn.Conv2d)][-1].out_channels for part in self.slices]
        self.heads = nn.ParameterList(nn.Parameter(torch.ones(1, width, 1, 1)) for width in widths)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    @torch.no_grad()
    def features(self, images: Tensor, size: int | None = None, layers: int = 5) -> list[Tensor]:
        """The first `layers` of five maps (B, C, h, w) of images in [0, 1], resized to `size` if given."""
        x = check_images(images).to(self.shift)
        x = x if size is None else resize(x, size)
        x = (2 * x - 1 - self.shift) / self.scale
        maps = []
        for part in self.slices[:layers]:
            x = part(x)
            maps.append(x)
        return maps

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        return lpips(self, images, targets)


@torch.no_grad()
def lpips(network: Lpips, images: Tensor, targets: Tensor) -> Tensor:
    """Learned perceptual distance, (B,). Range [0, about 1]; 0 for equal pictures, lower is nearer.

    Zhang et al. 2018, eq. 1: squared differences of channel-normalised features, weighted per channel,
    averaged over places, summed over layers. The picture should have at least 64 pixels a side.
    """
    if images.shape != targets.shape:
        raise ValueError(f"targets is {tuple(targets.shape)}, expected {tuple(images.shape)} like images")
    distance = torch.zeros(len(images), device=network.shift.device)
    for a, b, head in zip(network.features(images), network.features(targets), network.heads, strict=True):
        unit = [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in (a, b)]
        distance += ((unit[0] - unit[1]).square() * head).sum(1).mean((1, 2))
    return distance.cpu()


def load_lpips(name: str = "st-alex", device: str | torch.device = "cpu") -> Lpips:
    """Open a perceptual network: "st-alex", "st-vgg" offline; "alex", "vgg" (usual LPIPS) fetch a trunk.

    The usual one takes its heads from torchmetrics (or lpips) if that is installed. Raises ValueError for an
    unknown name, ImportError or OSError with what to install or use instead.
    """
    if name not in LPIPS_NETWORKS:
        raise ValueError(f"network is {name!r}, expected one of {', '.join(LPIPS_NETWORKS)}")
    trunk, tolerant = name.removeprefix("st-"), name.startswith("st-")
    if tolerant:
        file = _package_file("stlpips_pytorch", f"weights/vST0.0/{trunk}_shift_tolerant.pth")
        state = torch.load(file, map_location="cpu", weights_only=True)
        body, heads = {k: v for k, v in state.items() if k.startswith("net.")}, state
    else:
        try:
            body = torch.hub.load_state_dict_from_url(TRUNKS[trunk], map_location="cpu", weights_only=True)
        except OSError as error:
            raise OSError(
                f"network {name!r} needs {TRUNKS[trunk]} ({error}); offline, use 'st-{trunk}'"
            ) from None
        body = {k: v for k, v in body.items() if k.startswith("features.")}
        heads = torch.load(_usual_heads(trunk), map_location="cpu", weights_only=True)
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
            layer.weight.copy_(kernel)
            layer.bias.copy_(bias)
        for index, head in enumerate(network.heads):
            head.copy_(heads[f"lin{index}.model.1.weight"])
    return network


def _package_file(package: str, path: str) -> Path:
    """A data file inside an installed package, without importing the package."""
    found = importlib.util.find_spec(package)
    file = Path(found.submodule_search_locations[0]) / path if found else None
    if file is None or not file.is_file():
        raise ImportError(f"the perceptual distance needs the package {package}: pip install {package}")
    return file


def _usual_heads(trunk: str) -> Path:
    places = [
        ("torchmetrics", f"functional/image/lpips_models/{trunk}.pth"),
        ("lpips", f"weights/v0.1/{trunk}.pth"),
    ]
    for package, path in places:
        try:
            return _package_file(package, path)
        except ImportError:
            continue
    raise ImportError("the usual LPIPS takes its heads from torchmetrics or lpips: pip install torchmetrics")


def resize(images: Tensor, size: int) -> Tensor:
    """Antialiased bicubic resize to size × size, clamped to [0, 1]; no crop, so that no side is cut off."""
    if images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 1)


# --- structure -----------------------------------------------------------------------------------------


def structure_distance(features: Tensor, source: Tensor, grid: int = 16) -> Tensor:
    """Mean |S(a) − S(b)| of cosine self-similarities of deep features (B, C, h, w). Lower: structure kept.

    Range [0, 2], [0, 1] for features that are never negative; 0 for equal pictures. After Tumanyan et al.
    2022 (Splicing ViT Features, eq. 3), here with any features: which places look alike is layout, what they
    look like is style. Maps above `grid` × `grid` are averaged down to it.
    """
    if features.shape != source.shape:
        raise ValueError(f"source is {tuple(source.shape)}, expected {tuple(features.shape)} like features")
    tokens = [
        F.adaptive_avg_pool2d(x.float(), [min(grid, s) for s in x.shape[2:]]) for x in (features, source)
    ]
    unit = [F.normalize(x.flatten(2), dim=1) for x in tokens]
    return (unit[0].mT @ unit[0] - unit[1].mT @ unit[1]).abs().mean((1, 2)).cpu()


# --- CLIP ----------------------------------------------------------------------------------------------


class Clip(Protocol):
    """What the CLIP measures ask of a network. All features have unit length; `scale` is its logit scale."""

    ground: tuple[float, float, float]  # the colour that its preprocessing maps to zero
    scale: float

    def image_features(self, images: Tensor) -> Tensor: ...  # (B, 3, H, W) → (B, D)

    def patch_features(self, images: Tensor) -> Tensor: ...  # (B, 3, H, W) → (B, D, h, w)

    def text_features(self, texts: list[str]) -> Tensor: ...  # P texts → (P, D)


class TransformersClip:
    """A transformers CLIPModel and its tokenizer behind the `Clip` methods."""

    def __init__(self, model, tokenizer, mean=CLIP_MEAN, std=CLIP_STD):
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.ground = tuple(mean)
        self.scale = model.logit_scale.exp().item()
        self._norm = [torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std)]

    def _vision(self, images: Tensor):
        mean, std = (v.to(self.model.device) for v in self._norm)
        pixels = resize(check_images(images).to(mean), self.model.config.vision_config.image_size)
        return self.model.vision_model(pixel_values=((pixels - mean) / std).to(self.model.dtype))

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        pooled = self.model.visual_projection(self._vision(images).pooler_output)
        return F.normalize(pooled.float(), dim=-1).cpu()

    @torch.no_grad()
    def patch_features(self, images: Tensor) -> Tensor:
        tokens = self._vision(images).last_hidden_state[:, 1:]
        tokens = self.model.visual_projection(self.model.vision_model.post_layernorm(tokens)).float()
        side = math.isqrt(tokens.shape[1])
        return F.normalize(tokens, dim=-1).mT.unflatten(2, (side, side)).cpu()

    @torch.no_grad()
    def text_features(self, texts: list[str]) -> Tensor:
        length = self.model.config.text_config.max_position_embeddings
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        batch = {k: batch[k].to(self.model.device) for k in ("input_ids", "attention_mask")}
        pooled = self.model.text_projection(self.model.text_model(**batch).pooler_output)
        return F.normalize(pooled.float(), dim=-1).cpu()


def load_clip(source: str | Path, device: str | torch.device = "cpu") -> TransformersClip:
    """Open a CLIP from a transformers folder or a hub id such as "openai/clip-vit-base-patch32".

    OSError where it cannot be had, ValueError where the tokenizer came out empty (a sign of a missing file).
    """
    from transformers import AutoTokenizer, CLIPModel

    try:
        model = CLIPModel.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except OSError as error:
        raise OSError(f"clip {str(source)!r} cannot be opened; offline, pass a folder ({error})") from None
    if len(tokenizer) < model.config.text_config.vocab_size // 2:
        raise ValueError(
            f"clip {str(source)!r} has a tokenizer of {len(tokenizer)} entries; its files are missing"
        )
    settings, file = {}, Path(source) / "preprocessor_config.json"
    if file.is_file():
        settings = json.loads(file.read_text())
    norm = settings.get("image_mean", CLIP_MEAN), settings.get("image_std", CLIP_STD)
    return TransformersClip(model.to(device), tokenizer, *norm)


def similarity(features: Tensor, text_features: Tensor) -> Tensor:
    """Cosine of image features (B, D) with text features (D,) or (B, D). Range [-1, 1]; higher is nearer.

    CLIPScore (Hessel et al. 2021) is 2.5 · max(this, 0); many tables print 100 times this number.
    """
    return F.cosine_similarity(features, text_features.expand_as(features), dim=-1)


def direction(features: Tensor, source: Tensor, text: Tensor, source_text: Tensor) -> Tensor:
    """Cosine of the change in the picture with the change in the text. Range [-1, 1]; higher is better.

    Directional CLIP similarity (Gal et al. 2022, StyleGAN-NADA, eq. 2): features of result and source picture
    (B, D), of target and source text (D,) or (B, D). An unchanged picture gives 0.
    """
    return F.cosine_similarity(features - source, (text - source_text).expand_as(features), dim=-1)


def isolate(images: Tensor, side: Tensor, ground: tuple[float, float, float]) -> Tensor:
    """Show one side and hide the rest under a neutral colour: (B, 3, H, W) with `side` (H, W) in [0, 1].

    Fully shown where the style leads by half or more, fading out towards the border. Unlike pooled patch
    tokens, nothing of the hidden side leaks in through attention, and it works with any image tower.
    """
    shown = (2 * torch.as_tensor(side).float()).clamp(0, 1)
    return check_images(images) * shown + torch.tensor(ground).view(1, 3, 1, 1) * (1 - shown)


def side_similarity(clip: Clip, images: Tensor, weights: Tensor, texts: list[str]) -> Tensor:
    """CLIP similarity of each side with its own prompt: (B, N). Range [-1, 1]; higher is better."""
    return torch.stack(
        [
            similarity(clip.image_features(isolate(images, side, clip.ground)), text)
            for side, text in zip(side_weights(weights), clip.text_features(texts), strict=True)
        ],
        dim=1,
    )


def side_direction(
    clip: Clip, images: Tensor, sources: Tensor, weights: Tensor, texts: list[str], source_text: str
) -> Tensor:
    """Directional CLIP of each side towards its own prompt: (B, N). Range [-1, 1]; higher is better.

    Result and source are hidden alike, so that what the neutral ground does to the features cancels.
    """
    *targets, origin = clip.text_features([*texts, source_text])
    columns = []
    for side, text in zip(side_weights(weights), targets, strict=True):
        after, before = (clip.image_features(isolate(x, side, clip.ground)) for x in (images, sources))
        columns.append(direction(after, before, text, origin))
    return torch.stack(columns, dim=1)
