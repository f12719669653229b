"""Known values and directions of the network measures, on tiny random networks and the bundled trunk."""

import sys
import types

import pytest
import torch
from torch import nn

from dsnb.masks import linear, logistic
from dsnb.metrics import networks, perceptual


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def alex():
    return networks.load_lpips("st-alex")


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """A CLIPModel of a few thousand random weights, saved and opened in its real folder layout."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    words = ["<pad>", "<end>", "<start>", "a", "bear", "painting", "of", "blocks", "swirls"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = size | {
        "vocab_size": len(words),
        "max_position_embeddings": 8,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    vision = size | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return networks.load_clip(folder)


class ColourClip:
    """A hand-made CLIP: an image's features are its mean colour over grey, a text's the colour it names."""

    ground, scale = (0.5, 0.5, 0.5), 10.0
    colours = {"red": (1.0, 0, 0), "blue": (0, 0, 1.0), "grey": (0.02, 0.02, 0.02)}

    def image_features(self, images):
        colour = images.mean((2, 3)) - 0.5
        return torch.nn.functional.normalize(colour + 0.02, dim=-1)

    def text_features(self, texts):
        return torch.nn.functional.normalize(torch.tensor([self.colours[text] for text in texts]), dim=-1)


# --- LPIPS ---


def test_lpips_identity_symmetry_and_order(alex):
    image = noise(2, 3, 64, 64)
    assert alex(image, image).tolist() == [0, 0]
    near, far = (image + 0.05 * noise(2, 3, 64, 64, seed=1)).clamp(0, 1), noise(2, 3, 64, 64, seed=2) ** 3
    assert (alex(image, near) < alex(image, far)).all()
    assert torch.allclose(alex(image, far), alex(far, image))


def test_a_network_can_learn_from_the_maps(alex):
    targets, images = noise(1, 3, 64, 64), (noise(1, 3, 64, 64, seed=1) * 1.2 - 0.1).requires_grad_()
    before = alex.distance(alex.maps(images), alex.maps(targets)).mean()
    before.backward()
    nearer = images - images.grad / images.grad.norm()
    assert alex.distance(alex.maps(nearer), alex.maps(targets)).mean() < before
    assert all(weight.grad is None for weight in alex.parameters())


def test_lpips_is_the_package_s_own_number(alex, monkeypatch):
    """The package wants torchvision to be importable; a stand-in will do, since this path never uses it."""
    for name in ("torchvision", "torchvision.models", "torchsummary"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["torchvision"].models = sys.modules["torchvision.models"]
    sys.modules["torchsummary"].summary = None
    for name in [m for m in sys.modules if m.startswith("stlpips_pytorch")]:
        monkeypatch.delitem(sys.modules, name)
    stlpips = pytest.importorskip("stlpips_pytorch.stlpips")
    theirs = stlpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False)
    a, b = noise(2, 3, 64, 96), noise(2, 3, 64, 96, seed=1)
    with torch.no_grad():
        expected = theirs(a, b, normalize=True).flatten()
    assert torch.allclose(alex(a, b), expected, rtol=1e-4)


def test_lpips_by_hand():
    """One layer that passes the image through: weighted squared difference of unit colours."""
    network = networks.Lpips("alex", tolerant=False)
    network.slices = nn.ModuleList([nn.Identity()])
    network.heads = nn.ParameterList([torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)])
    network.shift.zero_(), network.scale.fill_(1)
    red, blue = torch.full((1, 3, 32, 32), 0.5), torch.full((1, 3, 32, 32), 0.5)
    red[:, 0], blue[:, 2] = 1, 1  # after 2x − 1: (1, 0, 0) and (0, 0, 1)
    assert perceptual.lpips(network, red, blue).item() == pytest.approx(1 + 4, rel=1e-5)


def test_usual_lpips_has_the_published_shape(monkeypatch, tmp_path):
    """The usual network, its downloaded trunk replaced by random weights of the published shapes."""
    torch.manual_seed(0)
    trunk = {}
    for index, shape in {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3)}.items():
        trunk[f"features.{index}.weight"], trunk[f"features.{index}.bias"] = (
            torch.randn(shape),
            torch.randn(shape[0]),
        )
    for index, shape in {8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}.items():
        trunk[f"features.{index}.weight"], trunk[f"features.{index}.bias"] = (
            torch.randn(shape),
            torch.randn(shape[0]),
        )
    monkeypatch.setattr(
        torch.hub, "load_state_dict_from_url", lambda *a, **k: trunk | {"classifier.1.weight": 0}
    )
    heads = {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1) for i, n in enumerate((64, 192, 384, 256, 256))}
    torch.save(heads, tmp_path / "heads.pth")
    monkeypatch.setattr(networks, "_package_file", lambda package, path: tmp_path / "heads.pth")
    network = networks.load_lpips("alex")
    assert network.name == "LPIPS (alex)"
    maps = network.features(noise(1, 3, 64, 64))
    assert [tuple(x.shape[1:]) for x in maps] == [
        (64, 15, 15),
        (192, 7, 7),
        (384, 3, 3),
        (256, 3, 3),
        (256, 3, 3),
    ]
    assert torch.equal(network.slices[2][1].weight, trunk["features.6.weight"])


def test_lpips_refusals(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="name must be one of st-alex"):
        networks.load_lpips("resnet")
    with monkeypatch.context() as nothing:
        nothing.setattr(networks.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match="pip install stlpips_pytorch"):
            networks.load_lpips("st-alex")
        with pytest.raises(ImportError, match="pip install torchmetrics"):
            networks.load_lpips("alex")

    def offline(*args, **options):
        raise OSError("no network")

    torch.save({}, tmp_path / "heads.pth")  # as if torchmetrics were there
    monkeypatch.setattr(networks, "_package_file", lambda package, path: tmp_path / "heads.pth")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(OSError, match="offline, use 'st-alex'"):
        networks.load_lpips("alex")


def test_lpips_wants_equal_sizes(alex):
    with pytest.raises(ValueError, match="targets is"):
        alex(noise(1, 3, 64, 64), noise(1, 3, 64, 65))
    with pytest.raises(ValueError, match=r"images is \(16, 64\) pixels, expected at least 32"):
        alex(noise(1, 3, 16, 64), noise(1, 3, 16, 64))


# --- structure ---


def test_structure_identity_hand_computed_and_blind_to_a_common_change():
    features = torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]])  # two positions, alike
    other = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # two positions, unlike
    assert perceptual.structure_distance(features, features).item() == 0
    # S is [[1, 1], [1, 1]] against [[1, 0], [0, 1]]: two of four entries differ by 1
    assert perceptual.structure_distance(features, other).item() == pytest.approx(0.5)
    x = noise(3, 8, 6, 5) - 0.5
    assert perceptual.structure_distance(3 * x.flip(1), x).max().item() < 1e-6  # another "style", same layout
    moved = perceptual.structure_distance(x.flip(3), x)
    assert moved.shape == (3,) and moved.min() > 0.05
    assert perceptual.structure_distance(noise(1, 4, 40, 40), noise(1, 4, 40, 40)).item() == 0
    with pytest.raises(ValueError, match="grid must be a whole number of at least 1, got 0"):
        perceptual.structure_distance(x, x, grid=0)


# --- CLIP ---


def test_similarity_and_direction_by_hand():
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert perceptual.similarity(x, torch.tensor([0.6, 0.8])).item() == pytest.approx(0.6)
    # the image moved from x to y and the text moved the same way, the other way, across
    assert perceptual.direction(
        y, x, torch.tensor([-2.0, 3.0]), torch.tensor([0.0, 1.0])
    ).item() == pytest.approx(1)
    assert perceptual.direction(
        x, y, torch.tensor([-2.0, 3.0]), torch.tensor([0.0, 1.0])
    ).item() == pytest.approx(-1)
    assert perceptual.direction(
        y, x, torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0])
    ).item() == pytest.approx(0)
    assert perceptual.direction(x, x, torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0])).item() == 0


@pytest.mark.parametrize("mask", [linear(), logistic(20)], ids=["linear", "logistic"])
def test_per_side_clip_prefers_the_true_mix_to_its_mirror(mask):
    clip, weights = ColourClip(), mask.weights(32, 32)
    red, blue = (
        torch.tensor(c).view(1, 3, 1, 1).expand(1, 3, 32, 32) for c in ((0.9, 0.5, 0.5), (0.5, 0.5, 0.9))
    )
    mix, grey = red * weights[0] + blue * weights[1], torch.full((1, 3, 32, 32), 0.5)
    mirror = mix.flip(3)
    right = perceptual.side_similarity(clip, mix, weights, ["red", "blue"])
    wrong = perceptual.side_similarity(clip, mirror, weights, ["red", "blue"])
    assert right.shape == (1, 2) and (right > wrong + 0.3).all()
    right = perceptual.side_direction(clip, mix, grey, weights, ["red", "blue"], "grey")
    wrong = perceptual.side_direction(clip, mirror, grey, weights, ["red", "blue"], "grey")
    assert (right > wrong + 0.3).all()
    # the whole image cannot tell the two apart, so measures must see one side
    texts = clip.text_features(["red"])[0]
    whole = [perceptual.similarity(clip.image_features(x), texts) for x in (mix, mirror)]
    assert torch.allclose(*whole, atol=1e-5)


def test_per_side_clip_by_hand():
    clip, weights = ColourClip(), torch.stack([torch.arange(8) < 4, torch.arange(8) >= 4]).float()[:, None]
    red, blue = (torch.tensor(c).view(1, 3, 1, 1) for c in ((0.98, 0.48, 0.48), (0.48, 0.78, 0.88)))
    mix, grey = red * weights[0] + blue * weights[1], torch.full((1, 3, 1, 8), 0.5)
    # a side alone has the features of its colour over grey: (1, 0, 0) and (0, 0.6, 0.8)
    near = perceptual.side_similarity(clip, mix, weights, ["red", "blue"])
    assert near.tolist()[0] == pytest.approx([1, 0.8], abs=1e-5)
    moved = perceptual.side_direction(clip, mix, grey, weights, ["red", "blue"], "grey")
    one = 3**-0.5  # of grey, image and text, in each colour
    assert moved[0, 0].item() == pytest.approx(1, abs=1e-5)
    way, text = torch.tensor([-one, 0.6 - one, 0.8 - one]), torch.tensor([-one, -one, 1 - one])
    assert moved[0, 1].item() == pytest.approx((way @ text / way.norm() / text.norm()).item(), abs=1e-5)


def test_each_side_has_its_own_text():
    image, weights = (
        torch.rand(1, 3, 4, 8),
        torch.stack([torch.arange(8) < 4, torch.arange(8) >= 4]).float()[:, None],
    )
    with pytest.raises(TypeError, match="texts must be a list of texts, got 'red'"):
        perceptual.side_similarity(ColourClip(), image, weights, "red")
    with pytest.raises(ValueError, match="texts must be one for each of the mask's 2 styles, got 1"):
        perceptual.side_direction(ColourClip(), image, image, weights, ["red"], "grey")


def test_isolate_shows_one_side_and_nothing_of_the_other():
    image, side = noise(1, 3, 8, 8), torch.zeros(8, 8)
    side[:, :3], side[:, 3] = 1.0, 0.25
    shown = perceptual.isolate(image, side, (0.1, 0.2, 0.3))
    assert torch.equal(
        shown, image[..., [0, 1, 2, 2, 1, 0, 0, 1]]
    )  # the box, mirrored until the frame is full
    side[5:], side[4, :3] = 0, 0.25
    shown = perceptual.isolate(image, side, (0.1, 0.2, 0.3))
    assert torch.equal(shown[..., :3], image[:, :, [0, 1, 2, 3, 3, 2, 1, 0], :3])
    side[0, 0] = 0.25  # inside the box, but hardly of this side
    shown = perceptual.isolate(image, side, (0.1, 0.2, 0.3))
    assert torch.allclose(shown[0, :, 0, 0], (image[0, :, 0, 0] + torch.tensor([0.1, 0.2, 0.3])) / 2)
    with pytest.raises(ValueError, match=r"side is \(4, 4\), expected \(8, 8\) like images"):
        perceptual.isolate(image, side[:4, :4], (0.1, 0.2, 0.3))


def test_transformers_clip_on_a_tiny_model(tiny_clip):
    images = noise(3, 3, 48, 40)
    features = tiny_clip.image_features(images)
    texts = tiny_clip.text_features(["a bear", "a painting of a bear", "blocks " * 30])
    assert features.shape == texts.shape == (3, 16)
    for x in (features, texts):
        assert torch.allclose(x.norm(dim=1), torch.ones(()), atol=1e-5)
    assert torch.allclose(
        texts[:1], tiny_clip.text_features(["a bear"]), atol=1e-5
    )  # padding changes nothing
    pixels = (networks.resize(images, 32) - torch.tensor(tiny_clip.ground).view(1, 3, 1, 1)) / torch.tensor(
        networks.CLIP_STD
    ).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = tiny_clip.model.get_image_features(pixel_values=pixels).pooler_output
    assert torch.allclose(features, torch.nn.functional.normalize(expected, dim=-1), atol=1e-5)


def test_an_absent_or_incomplete_clip_is_refused(tiny_clip, tmp_path):
    with pytest.raises(OSError, match="cannot be opened; offline, pass a folder"):
        networks.load_clip(tmp_path / "nothing")


def test_a_convolutional_dual_encoder_serves_as_well(tiny_clip, tmp_path):
    from transformers import ConvNextConfig, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    vision = ConvNextConfig(image_size=32, patch_size=4, num_stages=2, hidden_sizes=[8, 16], depths=[1, 1])
    vision.hidden_size = 16
    text = tiny_clip.model.config.text_config
    torch.manual_seed(0)
    model = VisionTextDualEncoderModel(
        VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=12)
    )
    model.save_pretrained(tmp_path)
    tiny_clip.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}'
    )
    clip = networks.load_clip(tmp_path)
    assert clip.ground == (0.5, 0.5, 0.5)
    images = noise(2, 3, 32, 32)
    assert clip.image_features(images).shape == (2, 12)
    with torch.no_grad():
        expected = model.eval().get_image_features(pixel_values=(images - 0.5) / 0.25).pooler_output
    assert torch.allclose(
        clip.image_features(images), torch.nn.functional.normalize(expected, dim=-1), atol=1e-5
    )
    assert clip.text_features(["a bear"]).shape == (1, 12)
