"""Two contrastive networks of images and captions: one lends the generator its text encoder, one evaluates.

The generator's text encoder is trained here first and frozen, as in Stable Diffusion: contrast alone teaches
styles and scenes within minutes, but it hardly teaches objects. So both towers also name object, style and scene
directly, which helped in short trials. Every other batch has one style and one scene, and the image tower is
convolutional; neither was shown to help (notebook 18). The evaluator CLIP has another architecture and another seed. It
never sees an image of the generator: its training images are drawn.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    ConvNextConfig,
    ConvNextModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from ... import checks
from ..world import OBJECTS, SCENES, STYLES, Pictures, draw, held_out, random_pictures, random_styles
from ..world.captions import LENGTH, captions, tokenize
from .loop import Plan, autocast, fit, upload

WIDTH = 256  # of the joint embedding
COUNTS = (len(OBJECTS), len(STYLES), len(SCENES))


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm x)))))."""

    def __init__(self, channels: int):
        super().__init__()
        norm, conv = lambda: nn.GroupNorm(8, channels), lambda: nn.Conv2d(channels, channels, 3, padding=1)
        self.body = nn.Sequential(norm(), nn.SiLU(), conv(), norm(), nn.SiLU(), conv())

    def forward(self, x):
        return x + self.body(x)


class ConvolutionalTower(nn.Module):
    """A small residual network: pixels (B,3,128,128) around 0 to features (B,4 channels)."""

    def __init__(self, channels: int = 64):
        super().__init__()
        c, self.width = channels, 4 * channels
        self.body = nn.Sequential(
            nn.Conv2d(3, c, 6, stride=4, padding=1), Residual(c),
            nn.Conv2d(c, 2 * c, 2, stride=2), Residual(2 * c), Residual(2 * c),
            nn.Conv2d(2 * c, 4 * c, 2, stride=2), Residual(4 * c), Residual(4 * c),
            nn.GroupNorm(8, 4 * c), nn.SiLU(),
        )  # fmt: skip

    def forward(self, pixels):
        return self.body(pixels).mean((2, 3))


class ConvNextTower(nn.Module):
    """transformers' ConvNextModel, small: pixels (B,3,128,128) to features (B,4 channels)."""

    def __init__(self, channels: int = 48):
        super().__init__()
        sizes = [channels, 2 * channels, 4 * channels]
        config = ConvNextConfig(
            image_size=128,
            patch_size=4,
            num_stages=3,
            hidden_sizes=sizes,
            depths=[2, 2, 4],
            layer_scale_init_value=0.1,
        )
        config.hidden_size = sizes[-1]  # where the dual encoder looks for the width of the features
        self.model, self.width = ConvNextModel(config), sizes[-1]

    def forward(self, pixels):
        return self.model(pixels).pooler_output


class Contrast(nn.Module):
    """An image tower and a CLIPTextModel, projected to one space, and heads that name object, style, scene."""

    def __init__(self, tower: nn.Module, tokenizer: CLIPTokenizer, width: int = WIDTH, layers: int = 4):
        super().__init__()
        self.tower = tower
        ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            max_position_embeddings=LENGTH,
            projection_dim=WIDTH,
            **ends,
        )
        config._attn_implementation = "eager"  # at this length faster to train than the fused kernel on a CPU
        self.text = CLIPTextModel(config)
        self.from_image = nn.Linear(tower.width, WIDTH, bias=False)
        self.from_text = nn.Linear(width, WIDTH, bias=False)
        self.scale = nn.Parameter(torch.tensor(2.659))  # ln(1 / 0.07)
        self.image_heads = nn.ModuleList(nn.Linear(tower.width, count) for count in COUNTS)
        self.text_heads = nn.ModuleList(nn.Linear(width, count) for count in COUNTS)

    def image(self, images: torch.Tensor) -> torch.Tensor:
        """Features of images in [0, 1], before projection: (B, tower.width)."""
        return self.tower((images - 0.5) / 0.25)

    def forward(self, images, tokens):
        """Unit embeddings (B,WIDTH) of images in [0, 1] and of token numbers, and the heads' logits of both."""
        seen, read = self.image(images), self.text(tokens).pooler_output
        unit = lambda x: F.normalize(x.float(), dim=-1)
        named = [
            [head(x).float() for head in heads]
            for x, heads in ((seen, self.image_heads), (read, self.text_heads))
        ]
        return unit(self.from_image(seen)), unit(self.from_text(read)), *named


@dataclass(frozen=True)
class ContrastClip:
    """A `Contrast` in training behind the methods of `metrics.perceptual.Clip`."""

    network: Contrast
    tokenizer: CLIPTokenizer

    @torch.no_grad()
    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        device = self.network.scale.device
        return F.normalize(self.network.from_image(self.network.image(images.to(device))), dim=-1).cpu()

    @torch.no_grad()
    def text_features(self, texts: list[str]) -> torch.Tensor:
        tokens = tokenize(self.tokenizer, texts).to(self.network.scale.device)
        return F.normalize(self.network.from_text(self.network.text(tokens).pooler_output), dim=-1).cpu()


def build(kind: str, tokenizer: CLIPTokenizer) -> Contrast:
    """A new network: kind "generator" (residual tower) or "evaluator" (ConvNeXt tower, smaller text tower)."""
    checks.one_of("kind", kind, ("generator", "evaluator"))
    if kind == "generator":
        return Contrast(ConvolutionalTower(), tokenizer)
    return Contrast(ConvNextTower(), tokenizer, width=192, layers=3)


def training_pairs(
    count: int, step: int, generator: torch.Generator, hide: bool = True
) -> tuple[Pictures, torch.Tensor, list[str]]:
    """Random images, styles (count,) and captions; in every other step all have the same style and the same scene.

    `hide` leaves out the held-out styles. The evaluator CLIP is trained with them too, since it is asked about them.
    """
    pictures = random_pictures(count, generator)
    if step % 2:
        pictures.scene[:] = pictures.scene[0]
    styles = random_styles(pictures, generator, hide=hide)
    if step % 2:
        shared = styles[0]
        styles = torch.where(hide & (held_out(pictures) == shared), styles, shared)
    return pictures, styles, captions(pictures, styles, generator)


def contrast_loss(network: Contrast, images, tokens, labels: torch.Tensor, head_weight: float = 1.0):
    """CLIP's symmetric cross-entropy, in which pairs with equal labels both count as right, plus the heads'.

    Images (B,3,128,128) in [0, 1], token numbers (B, LENGTH), `labels` (B,4): object, style, scene, colour;
    with `head_weight` 0 only the contrast is left. Returns the loss, and numbers to log. CLIP: Radford et al. 2021,
    figure 3.
    """
    with autocast(images.device):
        seen, read, image_names, text_names = network(images, tokens)
    logits = network.scale.clamp(max=4.6).exp() * seen @ read.T
    same = (labels.unsqueeze(0) == labels.unsqueeze(1)).all(-1).float()
    target = same / same.sum(1, keepdim=True)
    contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    image_loss = sum(F.cross_entropy(name, labels[:, k]) for k, name in enumerate(image_names))
    text_loss = sum(F.cross_entropy(name, labels[:, k]) for k, name in enumerate(text_names))
    right = (image_names[0].argmax(1) == labels[:, 0]).float().mean()
    right_style = (image_names[1].argmax(1) == labels[:, 1]).float().mean()
    numbers = {"contrast": contrast.detach(), "image_object": right, "image_style": right_style}
    numbers["text_heads"] = text_loss.detach()
    return contrast + head_weight * (0.5 * image_loss + 0.25 * text_loss), numbers


def train(kind: str, tokenizer: CLIPTokenizer, plan: Plan, folder: Path, device, good=None) -> Contrast:
    """Train one of the two within the plan's budget, from its last checkpoint. Returns the averaged network."""
    torch.manual_seed(plan.seed)
    network = build(kind, tokenizer).to(device)

    def loss(network, step, generator):
        pictures, styles, texts = training_pairs(plan.batch, step, generator, hide=kind == "generator")
        labels = torch.stack([pictures.object, styles, pictures.scene, pictures.colour], 1).to(device)
        images = draw(pictures.to(device), styles.to(device)).contiguous(memory_format=torch.channels_last)
        return contrast_loss(network, images, upload(tokenize(tokenizer, texts), device), labels)

    return fit(kind, network, loss, plan, folder, device, good)


def as_transformers(network: Contrast) -> VisionTextDualEncoderModel:
    """The evaluator CLIP as a transformers model, which `AutoModel.from_pretrained` opens without this package."""
    vision, text = network.tower.model, network.text
    make = VisionTextDualEncoderConfig.from_vision_text_configs
    config = make(vision.config, text.config, projection_dim=WIDTH)
    model = VisionTextDualEncoderModel(config, copy.deepcopy(vision), copy.deepcopy(text))
    with torch.no_grad():
        model.visual_projection.weight.copy_(network.from_image.weight)
        model.text_projection.weight.copy_(network.from_text.weight)
        model.logit_scale.copy_(network.scale)
    return model.eval()


def save_evaluator(network: Contrast, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the evaluator CLIP as a folder: config.json, model.safetensors (fp16), tokenizer, image settings."""
    as_transformers(network.cpu()).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": 128},
        "do_center_crop": True, "crop_size": {"height": 128, "width": 128}, "do_rescale": True,
        "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_convert_rgb": True,
    }  # fmt: skip
    text = json.dumps(settings, indent=2) + "\n"
    (Path(folder) / "preprocessor_config.json").write_text(text, encoding="utf-8")
