"""What does a picture show? The judge reads object and style, by comparing a picture with captions."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoTokenizer

from ..world.captions import LENGTH, PARAPHRASES, describe
from ..world.icons import OBJECTS
from ..world.styles import STYLES, draw, random_styles
from ..world.world import Pictures, random_pictures


@dataclass
class Judge:
    """A contrastive model with transformers' interface and its tokenizer; caches the captions it has read."""

    model: torch.nn.Module
    tokenizer: object
    _read: dict = field(default_factory=dict)

    @torch.no_grad()
    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        """Unit features (B,D) of images (B,3,128,128) in [0, 1]."""
        device = next(self.model.parameters()).device
        parts = [
            self.model.get_image_features(pixel_values=(chunk.to(device).float() - 0.5) / 0.25).pooler_output
            for chunk in images.split(64)
        ]
        return F.normalize(torch.cat(parts).float(), dim=-1)

    @torch.no_grad()
    def text_features(self, texts: list[str]) -> torch.Tensor:
        """Unit features (B,D) of captions."""
        device, new = (
            next(self.model.parameters()).device,
            [text for text in dict.fromkeys(texts) if text not in self._read],
        )
        for start in range(0, len(new), 256):
            part = new[start : start + 256]
            tokens = self.tokenizer(
                part, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
            )
            features = self.model.get_text_features(input_ids=tokens.input_ids.to(device)).pooler_output
            self._read.update(zip(part, F.normalize(features.float(), dim=-1), strict=True))
        return torch.stack([self._read[text] for text in texts])

    def objects(self, images: torch.Tensor, pictures: Pictures, styles: torch.Tensor) -> torch.Tensor:
        """Similarity (B, objects) to captions of every object in the picture's own scene and style."""
        features, names, rows = self.image_features(images), list(STYLES), []
        for index, feature in enumerate(features):
            template = PARAPHRASES[names[styles[index]]][0]
            texts = [template.format(describe(name, pictures.scene[index])) for name in OBJECTS]
            rows.append(self.text_features(texts) @ feature)
        return torch.stack(rows).cpu()

    def styles(self, images: torch.Tensor, pictures: Pictures) -> torch.Tensor:
        """Similarity (B, styles) to captions of every style with the picture's own object and scene."""
        features, rows = self.image_features(images), []
        for index, feature in enumerate(features):
            what = describe(OBJECTS[pictures.object[index]], pictures.scene[index])
            rows.append(self.text_features([PARAPHRASES[name][0].format(what) for name in STYLES]) @ feature)
        return torch.stack(rows).cpu()


def open_judge(folder: Path, device="cpu") -> Judge:
    """Open the judge that `clip.save_judge` wrote."""
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"there is no judge in {folder}; the stage `judge` of the recipe makes it")
    model = AutoModel.from_pretrained(folder).float().eval().to(device)
    return Judge(model, AutoTokenizer.from_pretrained(folder))


def sides(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The left and the right halves of pictures, each completed by its mirror image to a picture of one
    style."""
    half = images.shape[-1] // 2
    left, right = images[..., :half], images[..., half:]
    return torch.cat([left, left.flip(-1)], -1), torch.cat([right.flip(-1), right], -1)


def truth(count: int, seed: int, device="cpu") -> tuple[torch.Tensor, Pictures, torch.Tensor]:
    """True pictures (count,3,128,128) in all styles of a seed that training never uses; pictures, styles."""
    generator = torch.Generator().manual_seed(900_000 + seed)
    pictures = random_pictures(count, generator)
    styles = random_styles(pictures, generator)
    images = [
        draw(p.to(device), s.to(device)).cpu()
        for p, s in zip(_batches(pictures), styles.split(64), strict=True)
    ]
    return torch.cat(images), pictures, styles


def _batches(pictures: Pictures, size: int = 64) -> list[Pictures]:
    return [pictures[start : start + size] for start in range(0, len(pictures), size)]


def top(scores: torch.Tensor, right: torch.Tensor, k: int = 1) -> torch.Tensor:
    """Whether the right one is among the k best of scores (B,n): float (B,)."""
    return (scores.topk(k, 1).indices == right.unsqueeze(1)).any(1).float()
