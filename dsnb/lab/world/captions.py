"""Captions of drawn images, and the tokenizer that is trained on them."""

import re
from collections import Counter

import torch
from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from ... import prompts
from .icons import OBJECTS
from .scenery import SCENES
from .styles import STYLES
from .world import COLOURS, Pictures, random_pictures

LENGTH = 64  # tokens of a caption, padding included; the longest template takes about 50

# Beside the workbook's own template of a style, which comes first; {} is the caption without a style.
PARAPHRASES = {
    "plain": ("{}", "a picture of {}", "a photo of {}"),
    "minecraft": ("a minecraft rendering of {}", "minecraft blocks, {}", "{} in minecraft style"),
    "vangogh": ("a van gogh painting of {}", "{} painted by van gogh", "{} in the style of starry night"),
    "mosaic": ("a mosaic of {}", "{} as a mosaic of tiles", "{} in mosaic style"),
    "warhol": ("an andy warhol print of {}", "pop art of {}", "{} as warhol pop art"),
    "sketch": ("a pencil sketch of {}", "a hatched drawing of {}", "{} as a pencil drawing"),
    "watercolor": ("a watercolor of {}", "{} in watercolor", "a watercolor painting of {}"),
    "stained": ("a stained glass window of {}", "{} in stained glass", "{} as a stained glass window"),
    "neon": ("a neon sign of {}", "{} in neon lights", "a glowing neon picture of {}"),
}


def templates(style: str) -> tuple[str, ...]:
    """All templates of a style, the workbook's own first; {} stands for the caption."""
    own = (prompts.prompt(style, "{}"),) if style in prompts.names() else ()
    return own + PARAPHRASES[style]


def describe(what: str, scene: int, wording: int | None = 0) -> str:
    """`what` with its article and a scene (an index), such as "an apple in a room"; wording None omits the scene."""
    article = "an" if what[0] in "aeiou" else "a"
    if wording is None:
        return f"{article} {what}"
    return f"{article} {what} {list(SCENES.values())[scene].phrases[wording]}"


def phrase(pictures: Pictures, index: int, wording: int | None = 0) -> str:
    """The caption of one image without its style, e.g. "a red car on a street"."""
    colour, name = int(pictures.colour[index]), OBJECTS[pictures.object[index]]
    what = f"{list(COLOURS)[colour]} {name}" if colour >= 0 else name
    return describe(what, pictures.scene[index], wording)


def captions(pictures: Pictures, styles: torch.Tensor, generator: torch.Generator) -> list[str]:
    """A caption for each image and style (B,): half with the first template, half with any. The scene has either
    wording; one caption in fourteen does not mention it."""
    random = torch.rand(len(pictures), 3, generator=generator).tolist()
    names, result = list(STYLES), []
    for index, (usual, which, scene) in enumerate(random):
        choices = templates(names[styles[index]])
        choice = choices[0] if usual < 0.5 else choices[int(which * len(choices))]
        wording = None if scene < 0.07 else int(scene > 0.7)
        result.append(choice.format(phrase(pictures, index, wording)))
    return result


def object_captions(style: str, scene: int) -> list[str]:
    """A caption of every object in this style and scene: what the evaluator CLIP chooses from."""
    return [PARAPHRASES[style][0].format(describe(name, scene)) for name in OBJECTS]


def caption(pictures: Pictures, index: int, style: str = "plain") -> str:
    """The usual caption of an image: first wording, first template."""
    return templates(style)[0].format(phrase(pictures, index))


def learn_merges(counts: Counter) -> list[tuple[str, str]]:
    """Byte-pair merges that make every word of `counts` one token, the most frequent pairs first.

    Sennrich et al. 2016, algorithm 1; ties are broken by the alphabet, so the result is always the same.
    """
    words = {(*word[:-1], word[-1] + "</w>"): count for word, count in counts.items()}
    merges = []
    while True:
        pairs = Counter()
        for pieces, count in words.items():
            for pair in zip(pieces, pieces[1:], strict=False):
                pairs[pair] += count
        if not pairs:
            return merges
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = {_merge(pieces, best): count for pieces, count in words.items()}


def _merge(pieces: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    result, index = [], 0
    while index < len(pieces):
        joined = pieces[index : index + 2] == pair
        result.append(pieces[index] + pieces[index + 1] if joined else pieces[index])
        index += 2 if joined else 1
    return tuple(result)


def train_tokenizer() -> CLIPTokenizer:
    """Learn byte pairs on the world's captions. Any text can be encoded; the world's words are one token each.

    CLIP's rules: lower case, words end in </w>, a caption is padded with its end token to LENGTH.
    """
    generator = torch.Generator().manual_seed(17)
    pictures = random_pictures(4000, generator)
    styles = torch.randint(len(STYLES), (len(pictures),), generator=generator)
    corpus = captions(pictures, styles, generator)
    for pair in prompts.pairs():
        corpus += [prompts.one_prompt(pair, picture.caption) for picture in prompts.pictures()]
    merges = learn_merges(Counter(word for text in corpus for word in re.findall(r"[a-z]+", text.lower())))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = alphabet + [letter + "</w>" for letter in alphabet] + ["".join(pair) for pair in merges]
    pieces = dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"])
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token numbers (B, LENGTH), padded and cut to LENGTH."""
    kept = dict(padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    return tokenizer(texts, **kept).input_ids
