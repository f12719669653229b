"""The reference numbers of tests/golden: the same method means the same numbers."""

from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention

from dsnb import masks, sampling
from dsnb.attention import Blend, BlendProcessor
from dsnb.epsilon import blend_eps
from dsnb.inversion import dpm_encoder

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def golden():
    return {k.split(".", 1)[1]: torch.from_numpy(v) for k, v in np.load(GOLDEN / "sampler.npz").items()}


def noise_model(x, t, c):
    """The closed-form noise model of golden/README.md."""
    return torch.tanh(0.7 * x + c) + 0.3 * torch.sin(3 * t / 1000 + c) * x.roll(1, -1)


def close(actual, expected, tolerance=1e-4):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def test_timesteps_are_the_99_leading_ones(golden, scheduler):
    assert sampling.make_schedule(scheduler, 99).timesteps.tolist() == golden["timesteps"].tolist()


def test_dpm_encoder_records_the_reference_noise(golden, scheduler):
    schedule = sampling.make_schedule(scheduler, 99, skip=10)
    draws = iter(golden["noises"])
    eps = lambda x, t, progress: noise_model(x, t, 0.1)
    x_T, noises = dpm_encoder(eps, golden["x0"], schedule, 0.1, lambda: next(draws))
    close(x_T, golden["z"][0])
    for mine, theirs in zip(noises, golden["z"][1:], strict=True):
        close(mine, theirs)
    assert next(draws, None) is None, "every reference draw was used"
    again = sampling.denoise(eps, x_T, schedule, eta=0.1, noises=noises, progress=False)
    close(again, golden["x0"])


def test_epsilon_mask_decodes_to_the_reference(golden, scheduler):
    schedule = sampling.make_schedule(scheduler, 99, skip=10)
    ramp = torch.linspace(1, 0, 8).expand(8, 8)
    weights = torch.stack([ramp, 1 - ramp])

    def eps(x, t, progress):
        styles = torch.stack([noise_model(x, t, -0.6), noise_model(x, t, 0.9)])
        return blend_eps(noise_model(x, t, 0.0), styles, weights, torch.tensor([3.0, 3.0]))

    decoded = sampling.denoise(eps, golden["z"][0], schedule, eta=0.1, noises=golden["z"][1:], progress=False)
    close(decoded, golden["decoded"])


def test_attention_interpolation_is_the_reference_layer(monkeypatch):
    sampled = partialmethod(masks.Mask.weights, sampling="endpoints")  # as in the source project
    monkeypatch.setattr(masks.Mask, "weights", sampled)
    data = {k.split(".", 1)[1]: torch.from_numpy(v) for k, v in np.load(GOLDEN / "attention.npz").items()}
    layer = Attention(64, cross_attention_dim=32, heads=int(data["heads"]), dim_head=64 // int(data["heads"]))
    layer.load_state_dict({k.removeprefix("w."): v for k, v in data.items() if k.startswith("w.")})
    contexts = torch.cat([torch.zeros_like(data["left"]), data["left"], data["right"]])
    blend = Blend(masks.logistic(30), (8, 8), {0}, torch.device("cpu"))
    blend.at(0.0, [1])
    layer.set_processor(BlendProcessor(layer, contexts, blend))
    with torch.no_grad():
        close(layer(data["x"], encoder_hidden_states=data["left"]), data["out"])
