"""What does an image show? The evaluator CLIP reads object and style by comparing an image with captions."""

from dataclasses import dataclass, field
from itertools import chain

import torch

from ...metrics.perceptual import Clip
from ..world import OBJECTS, STYLES, Pictures, draw, random_pictures, random_styles
from ..world.captions import PARAPHRASES, describe, object_captions


@dataclass
class Evaluator:
    """Asks a CLIP which object and which style an image shows; it reads every caption once."""

    clip: Clip
    _read: dict[str, torch.Tensor] = field(default_factory=dict)

    def objects(self, images: torch.Tensor, pictures: Pictures, styles: torch.Tensor) -> torch.Tensor:
        """Similarity (B, objects) to captions of every object in the image's own scene and style."""
        asked = zip(styles.tolist(), pictures.scene.tolist(), strict=True)
        texts = [object_captions(list(STYLES)[style], scene) for style, scene in asked]
        return self._similarity(images, texts)

    def styles(self, images: torch.Tensor, pictures: Pictures) -> torch.Tensor:
        """Similarity (B, styles) to captions of every style with the image's own object and scene."""
        shown = zip(pictures.object.tolist(), pictures.scene.tolist(), strict=True)
        whats = [describe(OBJECTS[index], scene) for index, scene in shown]
        texts = [[PARAPHRASES[name][0].format(what) for name in STYLES] for what in whats]
        return self._similarity(images, texts)

    def _similarity(self, images: torch.Tensor, texts: list[list[str]]) -> torch.Tensor:
        """Similarity (B, K) of each image to its own K texts."""
        new = [text for text in dict.fromkeys(chain(*texts)) if text not in self._read]
        for start in range(0, len(new), 256):
            part = new[start : start + 256]
            self._read.update(zip(part, self.clip.text_features(part), strict=True))
        seen = torch.cat([self.clip.image_features(part) for part in images.split(64)])
        read = [torch.stack([self._read[text] for text in row]) for row in texts]
        return torch.stack([each @ one for each, one in zip(read, seen, strict=True)])


def sides(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The left and the right halves of images, each completed by its mirror image to an image of one style."""
    half = images.shape[-1] // 2
    left, right = images[..., :half], images[..., half:]
    return torch.cat([left, left.flip(-1)], -1), torch.cat([right.flip(-1), right], -1)


def ground_truth(count: int, seed: int, device="cpu") -> tuple[torch.Tensor, Pictures, torch.Tensor]:
    """Drawn images (count, 3, 128, 128) of a seed that training never uses, what they show, and their styles."""
    generator = torch.Generator().manual_seed(900_000 + seed)
    pictures = random_pictures(count, generator)
    styles = random_styles(pictures, generator)
    parts = torch.arange(count).split(64)
    images = [draw(pictures[part].to(device), styles[part].to(device)).cpu() for part in parts]
    return torch.cat(images), pictures, styles


def top(scores: torch.Tensor, right: torch.Tensor, k: int = 1) -> torch.Tensor:
    """Whether the right one is among the k best of scores (B,n): float (B,)."""
    return (scores.topk(k, 1).indices == right.unsqueeze(1)).any(1).float()


def auc(scores: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The area under the ROC curve of each row of scores (B,n): the fraction of wrong ones that score less, (B,).

    A tie counts one half. A random order gives 1/2.
    """
    own = scores.gather(1, right[:, None])
    below, ties = (scores < own).sum(1), (scores == own).sum(1) - 1
    return (below + ties / 2) / (scores.shape[1] - 1)
