"""The fused kernels against float64, on a GPU where there is one, else in Triton's interpreter.

The interpreter has to be chosen before Triton is imported, so `test_kernels.py` runs this file in a
process of its own. By hand: `TRITON_INTERPRET=1 python -m pytest tests/fused_checks.py`.
"""

import importlib
import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

import dsnb  # noqa: E402
from dsnb import kernels, masks  # noqa: E402
from dsnb.attention_maps import record_attention  # noqa: E402
from dsnb.methods import blend  # noqa: E402

HALF, BF, FULL = torch.float16, torch.bfloat16, torch.float32
TOLERANCE = {HALF: 2e-3, BF: 1.5e-2, FULL: 5e-6}


@pytest.fixture(autouse=True)
def forced():
    """The fused kernels or an error, and every fresh tensor full of NaN until it is written to."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = False  # convolutions of whole pictures too are compared to the digit
    assert torch.empty(3, device=DEVICE).isnan().all()
    with kernels.force("triton"):
        yield
    torch.use_deterministic_algorithms(False)


def randn(*shape, seed, dtype=FULL):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def qkv(batch, prompts, heads, tokens, dim, dtype, keys=77, seed=0):
    """Queries, keys and values as attention layers make them: transposed, heads last in memory."""
    sizes = ((batch, tokens), (prompts, keys), (prompts, keys))
    return [randn(n, t, heads * dim, seed=seed + i, dtype=dtype).unflatten(2, (heads, dim)).transpose(1, 2)
            for i, (n, t) in enumerate(sizes)]  # fmt: skip


def soft_weights(styles, tokens, seed=0):
    """Two roles over an empty prompt and the styles: the empty prompt alone, and a random mix of the rest."""
    weights = torch.zeros(2, 1 + styles, tokens)
    weights[0, 0] = 1
    mix = torch.rand(styles, tokens, generator=torch.Generator().manual_seed(seed))
    weights[1, 1:] = mix / mix.sum(0)
    return weights.to(DEVICE)


def exact_attention(q, k):
    """softmax(Q Kᵀ / √d) in float64: (B, P, heads, T, L)."""
    q, k = q.double(), k.double()
    return torch.einsum("bhtd,phld->bphtl", q, k).mul(q.shape[-1] ** -0.5).softmax(-1)


def exact_blend(q, k, v, weights, roles):
    weights = weights.double()[roles]
    return torch.einsum("bpt,bphtl,phld->bhtd", weights, exact_attention(q, k), v.double())


def assert_close(out, exact, dtype):
    assert out.shape == exact.shape
    assert torch.isfinite(out).all()
    error = (out.double() - exact).norm() / exact.norm()
    assert error < TOLERANCE[dtype], f"relative error {error:.2e}"


BLENDS = [  # tokens, head size, heads, styles, dtype
    (1, 40, 2, 2, FULL),
    (1, 160, 2, 5, HALF),
    (17, 40, 2, 1, HALF),
    (17, 64, 2, 8, BF),
    (77, 80, 2, 2, BF),
    (77, 160, 1, 5, FULL),
    (1000, 64, 1, 2, HALF),
    (1000, 160, 1, 1, BF),
    (4099, 40, 1, 2, FULL),
    (4099, 40, 1, 5, HALF),
]


@pytest.mark.parametrize("tokens, dim, heads, styles, dtype", BLENDS)
def test_blend_attention(tokens, dim, heads, styles, dtype):
    q, k, v = qkv(2, 1 + styles, heads, tokens, dim, dtype)
    weights, roles = soft_weights(styles, tokens), torch.tensor([0, 1], device=DEVICE)
    out = kernels.blend_attention(q, k, v, weights, roles)
    assert out.dtype == dtype
    assert_close(out, exact_blend(q, k, v, weights, roles), dtype)


@pytest.mark.parametrize("keys", [1, 16, 33, 100, 154])
def test_blend_attention_with_other_numbers_of_keys(keys):
    q, k, v = qkv(1, 2, 2, 50, 24, FULL, keys=keys)
    weights, roles = soft_weights(1, 50), torch.tensor([1], device=DEVICE)
    assert_close(kernels.blend_attention(q, k, v, weights, roles), exact_blend(q, k, v, weights, roles), FULL)


def test_masks_of_exact_zeros_and_ones():
    q, k, v = qkv(4, 4, 2, 200, 40, FULL)
    weights = torch.zeros(3, 4, 200, device=DEVICE)
    weights[0, 0] = 1
    weights[1, 1, :90] = 1
    weights[1, 2, 90:] = 1
    weights[2, 3] = 1
    roles = torch.tensor([1, 0, 2, 1], device=DEVICE)
    out = kernels.blend_attention(q, k, v, weights, roles)
    assert_close(out, exact_blend(q, k, v, weights, roles), FULL)
    plan = kernels.make_plan(weights, roles)
    assert_close(
        kernels.blend_attention(q, k, v, weights, plan=plan), exact_blend(q, k, v, weights, roles), FULL
    )


@pytest.mark.parametrize("dtype", [HALF, BF])
@pytest.mark.parametrize("tokens, dim", [(1, 160), (17, 64), (4099, 40)])
def test_masks_of_exact_zeros_and_ones_at_other_sizes(tokens, dim, dtype):
    q, k, v = qkv(2, 3, 1, tokens, dim, dtype)
    weights = torch.zeros(2, 3, tokens, device=DEVICE)
    weights[0, 0] = 1
    weights[1, 1, : tokens // 2], weights[1, 2, tokens // 2 :] = 1, 1
    roles = torch.tensor([1, 0], device=DEVICE)
    assert_close(
        kernels.blend_attention(q, k, v, weights, roles), exact_blend(q, k, v, weights, roles), dtype
    )


def test_prompts_without_weight_are_skipped():
    """Were they computed, the NaN of the empty prompt and of the second style's right half would spread."""
    q, k, v = qkv(1, 3, 1, 256, 40, FULL)
    k[0], v[0], v[2] = float("nan"), float("nan"), float("nan")
    weights = soft_weights(2, 256)
    weights[1, 1, :128], weights[1, 2, :128] = 1, 0
    out = kernels.blend_attention(q, k, v, weights, torch.tensor([1], device=DEVICE))
    assert torch.isfinite(out[:, :, :128]).all()
    assert out[:, :, 128:].isnan().all()


@pytest.mark.parametrize("dtype", [HALF, BF, FULL])
def test_blend_attention_of_strided_tensors(dtype):
    wide, k, v = qkv(2, 6, 2, 77, 80, dtype)
    q, k, v = wide[..., ::2], k[::2, ..., :40], v[1::2, ..., 40:]
    weights, roles = soft_weights(2, 154)[..., ::2], torch.tensor([1, 0], device=DEVICE)
    exact = exact_blend(q, k, v, weights, roles)
    assert_close(kernels.blend_attention(q, k, v, weights, roles), exact, dtype)
    heads_first = [x.contiguous() for x in (q, k, v)]
    assert_close(kernels.blend_attention(*heads_first, weights, roles), exact, dtype)


def test_what_the_kernel_lacks_is_said():
    q, k, v = qkv(1, 2, 1, 16, 168, FULL)
    with pytest.raises(ValueError, match="head size 168"):
        kernels.blend_attention(q, k, v, soft_weights(1, 16), [1])
    with kernels.force(None), torch.no_grad():
        assert kernels.blend_attention(q, k, v, soft_weights(1, 16), [1]).shape == q.shape


MAPS = [  # tokens, head size, heads, chosen, dtype
    (1, 40, 3, [0], HALF),
    (17, 64, 2, [5, 2, 76], BF),
    (77, 160, 2, list(range(77)), HALF),
    (300, 80, 3, [1, 70, 3], FULL),
    (1000, 40, 2, [9, 9, 64, 9], FULL),
    (4099, 40, 1, [2, 7], HALF),
]


@pytest.mark.parametrize("tokens, dim, heads, chosen, dtype", MAPS)
def test_attention_with_maps(tokens, dim, heads, chosen, dtype):
    q, k, v = qkv(2, 2, heads, tokens, dim, dtype)
    out, maps = kernels.attention_with_maps(q, k, v, chosen)
    probs = exact_attention(q, k)[[0, 1], [0, 1]]
    assert_close(out, probs @ v.double(), dtype)
    assert maps.dtype == FULL
    assert_close(maps, probs[..., chosen].mean(1), FULL)


@pytest.mark.parametrize("heads", [5, 8])
def test_heads_in_groups_for_a_large_gpu(heads, monkeypatch):
    """A few tokens do not fill a large GPU: the heads are shared out, the last group may be smaller."""
    fused = importlib.import_module("dsnb.kernels.fused")
    monkeypatch.setattr(fused, "_processors", lambda device: 3)
    q, k, v = qkv(2, 2, heads, 50, 40, FULL)
    out, maps = kernels.attention_with_maps(q, k, v, [1, 70])
    probs = exact_attention(q, k)[[0, 1], [0, 1]]
    assert_close(out, probs @ v.double(), FULL)
    assert_close(maps, probs[..., [1, 70]].mean(1), FULL)


STEPS = [  # height, width, styles, dtype of the predictions
    (1, 1, 1, FULL),
    (17, 3, 2, HALF),
    (8, 8, 5, BF),
    (25, 41, 2, FULL),
    (64, 64, 2, HALF),
]


STEP = kernels.StepCoefficients(1.8, -1.5, 1.1, -0.2, 0.1)


@pytest.mark.parametrize("height, width, styles, dtype", STEPS)
@pytest.mark.parametrize("noisy", [True, False])
def test_blend_step(height, width, styles, dtype, noisy):
    shape = (2, 4, height, width)
    x_t, noise = randn(*shape, seed=1), randn(*shape, seed=2) if noisy else None
    uncond, cond = randn(*shape, seed=3, dtype=dtype), randn(styles, *shape, seed=4, dtype=dtype)
    weights = randn(styles, height, width, seed=5).softmax(0)
    check_step(uncond, cond, weights, torch.linspace(2, 9, styles, device=DEVICE), x_t, noise)


def test_blend_step_of_strided_predictions():
    x_t, stacked = randn(3, 4, 9, 7, seed=0), randn(3, 3, 4, 9, 7, seed=1)
    cond, weights = stacked[:, 1:].transpose(0, 1), randn(7, 9, 2, seed=2).softmax(-1).permute(2, 1, 0)
    check_step(stacked[:, 0], cond, weights, torch.full((2,), 5.0, device=DEVICE), x_t, None)


def check_step(*call):
    exact = kernels.reference.blend_step(*(None if t is None else t.double() for t in call), STEP)
    for out, expected in zip(kernels.blend_step(*call, STEP), exact, strict=True):
        assert_close(out, expected, FULL)


def test_compiled_call_is_one_node():
    q, k, v = qkv(2, 3, 2, 64, 40, FULL)
    weights, roles = soft_weights(2, 64), torch.tensor([0, 1], device=DEVICE)
    call = lambda q, k, v: kernels.blend_attention(q, k, v, weights, roles).transpose(1, 2).flatten(2)
    compiled = torch.compile(call, backend="eager", fullgraph=True)
    assert torch.equal(compiled(q, k, v), call(q, k, v))


def tiny_and_trajectory(folder, dtype):
    model = dsnb.load(folder, device=DEVICE, dtype=dtype)
    image = torch.rand(1, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    source = torch.Generator(DEVICE).manual_seed(1)
    settings = {"steps": 3, "skip": 2, "eta": 0.5, "generator": source, "progress": False}
    return model, dsnb.invert(model, image, "a", **settings)


@pytest.mark.parametrize("tiny_folder", [1, 2], indirect=True, ids=["sd1", "sd2"])
@pytest.mark.parametrize(
    "method, dtype, tolerance",
    [
        ("epsilon", FULL, 1e-4),
        ("attention", FULL, 1e-4),
        ("combined", FULL, 1e-4),
        ("attention", BF, 3e-2),
        ("attention", HALF, 5e-3),
    ],
)
def test_pictures_are_the_same_with_and_without(tiny_folder, method, dtype, tolerance):
    model, trajectory = tiny_and_trajectory(tiny_folder, dtype)
    options = {"method": method, "guidance": 3.0, "progress": False}
    with_kernels = blend(model, trajectory, ["b", "c"], masks.linear(2), **options)
    with kernels.force("torch"):
        without = blend(model, trajectory, ["b", "c"], masks.linear(2), **options)
    assert (with_kernels - without).abs().max() < tolerance


@pytest.mark.parametrize("tiny_folder", [1], indirect=True, ids=["sd1"])
def test_recorded_maps_are_the_same_with_and_without(tiny_folder):
    model, trajectory = tiny_and_trajectory(tiny_folder, FULL)
    heats = []
    for choice in ("triton", "torch"):
        with kernels.force(choice), record_attention(model, ["b", "c"], trajectory.x_T.shape[-2:]) as maps:
            blend(model, trajectory, ["b", "c"], masks.linear(2), guidance=3.0, progress=False)
        heats.append(torch.stack([maps.heat(word, prompt=i) for i, word in enumerate("bc")]))
    assert heats[0].max() > 0
    torch.testing.assert_close(*heats, atol=1e-5, rtol=0)
