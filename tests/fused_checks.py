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
from dsnb.kernels import reference  # noqa: E402
from dsnb.methods import blend  # noqa: E402

LARGE = 4099 if DEVICE == "cuda" else 131  # tokens: several tiles and a rest; the interpreter takes its time
HALF, BF, FULL = torch.float16, torch.bfloat16, torch.float32
TOLERANCE = {HALF: 2e-3, BF: 1.5e-2, FULL: 5e-6}


@pytest.fixture(autouse=True)
def forced():
    """The fused kernels or an error, and every fresh tensor full of NaN until it is written to."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = False  # whole images are compared to the digit
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
    return weights


def in_float64(*args):
    return (x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in args)


def check_blend(q, k, v, weights, roles):
    plan = kernels.make_plan(weights, roles, DEVICE)
    out = kernels.blend_attention(q, k, v, plan)
    assert out.dtype == q.dtype
    assert_close(out, reference.blend_attention(*in_float64(q, k, v, plan.weights), plan.roles), q.dtype)


def check_maps(q, k, v, chosen):
    out, maps = kernels.attention_with_maps(q, k, v, *chosen)
    exact = reference.attention_with_maps(*in_float64(q, k, v), *chosen)
    assert maps.dtype == FULL
    assert_close(out, exact[0], q.dtype)
    assert_close(maps, exact[1], FULL)


def check_step(*call):
    step = kernels.StepCoefficients(1.8, -1.5, 1.1, -0.2, 0.1)
    exact = reference.blend_step(*in_float64(*call), step)
    for out, expected in zip(kernels.blend_step(*call, step), exact, strict=True):
        assert_close(out, expected, FULL)


def assert_close(out, exact, dtype):
    assert out.shape == exact.shape
    assert torch.isfinite(out).all()
    error = (out.double() - exact).norm() / exact.norm()
    assert error < TOLERANCE[dtype], f"relative error {error:.2e}"


BLENDS = [  # tokens, head size, heads, styles, dtype
    (1, 160, 2, 5, HALF),
    (17, 40, 2, 1, HALF),
    (17, 64, 2, 8, BF),
    (77, 80, 2, 2, BF),
    (77, 160, 1, 5, FULL),
    (LARGE, 40, 1, 2, FULL),
    (LARGE, 64, 1, 2, HALF),
    (LARGE, 160, 1, 1, BF),
]


@pytest.mark.parametrize("tokens, dim, heads, styles, dtype", BLENDS)
def test_blend_attention(tokens, dim, heads, styles, dtype):
    check_blend(*qkv(2, 1 + styles, heads, tokens, dim, dtype), soft_weights(styles, tokens), [0, 1])


@pytest.mark.parametrize("keys", [1, 16, 33, 100, 154])
def test_blend_attention_with_other_numbers_of_keys(keys):
    check_blend(*qkv(1, 2, 2, 50, 24, FULL, keys=keys), soft_weights(1, 50), [1])


@pytest.mark.parametrize(
    "tokens, dim, dtype", [(LARGE, 40, FULL), (1, 160, HALF), (17, 64, BF), (77, 40, HALF)]
)
def test_masks_of_exact_zeros_and_ones(tokens, dim, dtype):
    weights = torch.zeros(3, 4, tokens)
    weights[0, 0] = weights[2, 3] = 1
    weights[1, 1, : tokens // 2] = weights[1, 2, tokens // 2 :] = 1
    check_blend(*qkv(4, 4, 1, tokens, dim, dtype), weights, [1, 0, 2, 1])


def test_prompts_without_weight_are_skipped():
    """Were they computed, the NaN of the empty prompt and of the second style's right half would spread."""
    q, k, v = qkv(1, 3, 1, 256, 40, FULL)
    k[0], v[0], v[2] = float("nan"), float("nan"), float("nan")
    weights = soft_weights(2, 256)
    weights[1, 1, :128], weights[1, 2, :128] = 1, 0
    out = kernels.blend_attention(q, k, v, kernels.make_plan(weights, [1], DEVICE))
    assert torch.isfinite(out[:, :, :128]).all()
    assert out[:, :, 128:].isnan().all()


@pytest.mark.parametrize("dtype", [HALF, BF, FULL])
def test_blend_attention_of_strided_tensors(dtype):
    wide, k, v = qkv(2, 6, 2, 77, 80, dtype)
    qkv_strided = wide[..., ::2], k[::2, ..., :40], v[1::2, ..., 40:]
    for tensors in (qkv_strided, [x.contiguous() for x in qkv_strided]):
        check_blend(*tensors, soft_weights(2, 154)[..., ::2], [1, 0])


def test_what_the_kernel_lacks_is_said():
    q, k, v = qkv(1, 2, 1, 16, 168, FULL)
    plan = kernels.make_plan(soft_weights(1, 16), [1], DEVICE)
    with pytest.raises(ValueError, match="head size 168 is above 160; DSNB_KERNELS=torch can"):
        kernels.blend_attention(q, k, v, plan)
    with pytest.raises(ValueError, match=r"the plan's weights \(2, 2, 16\) do not fit 2 prompts, 15 tokens"):
        kernels.blend_attention(q[:, :, :15, :40], k[..., :40], v[..., :40], plan)
    with kernels.force(None):
        assert kernels.blend_attention(q, k, v, plan).shape == q.shape


MAPS = [  # tokens, head size, heads, chosen, dtype
    (1, 40, 3, (0, 1), HALF),
    (17, 64, 2, (63, 14), BF),
    (77, 160, 2, (0, 77), HALF),
    (77, 80, 3, (9, 56), FULL),
    (LARGE, 40, 1, (2, 6), HALF),
]


@pytest.mark.parametrize("tokens, dim, heads, chosen, dtype", MAPS)
def test_attention_with_maps(tokens, dim, heads, chosen, dtype):
    check_maps(*qkv(2, 2, heads, tokens, dim, dtype), chosen)


@pytest.mark.parametrize("heads", [5, 8])
def test_heads_in_groups_for_a_large_gpu(heads, monkeypatch):
    """A few tokens do not fill a large GPU: it computes the heads in groups, the last of which may be smaller."""
    fused = importlib.import_module("dsnb.kernels.fused")
    monkeypatch.setattr(fused, "_processors", lambda device: 3)
    check_maps(*qkv(2, 2, heads, 50, 40, FULL), (1, 70))


STEPS = [  # height, width, styles, dtype of the predictions
    (1, 1, 1, FULL),
    (17, 3, 2, HALF),
    (8, 8, 5, BF),
    (25, 41, 2, FULL),
    (64, 64, 2, HALF),
]


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


def test_compiled_call_is_one_node():
    q, k, v = qkv(2, 3, 2, 64, 40, FULL)
    plan = kernels.make_plan(soft_weights(2, 64), [0, 1], DEVICE)
    call = lambda q, k, v: kernels.blend_attention(q, k, v, plan).transpose(1, 2).flatten(2)
    compiled = torch.compile(call, backend="eager", fullgraph=True)
    assert torch.equal(compiled(q, k, v), call(q, k, v))


@pytest.mark.parametrize("tiny_folder", [1], indirect=True, ids=["sd1"])
@pytest.mark.parametrize(
    "method, dtype, tolerance",
    [("combined", FULL, 1e-4), ("attention", BF, 3e-2)],
)
def test_images_and_recorded_maps_are_the_same_with_and_without(tiny_folder, method, dtype, tolerance):
    model = dsnb.load(tiny_folder, device=DEVICE, dtype=dtype)
    image = torch.rand(1, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    source, images, heats = torch.Generator(DEVICE).manual_seed(1), [], []
    trajectory = dsnb.invert(model, image, "a", steps=3, skip=2, eta=0.5, generator=source, progress=False)
    for choice in ("triton", "torch"):
        with kernels.force(choice), record_attention(model, ["b", "c"], trajectory.x_T.shape[-2:]) as maps:
            options = {"method": method, "guidance": 3.0, "progress": False}
            images.append(blend(model, trajectory, ["b", "c"], masks.linear(2), **options))
        heats.append(torch.stack([maps.heat(word, prompt=i) for i, word in enumerate("bc")]))
    torch.testing.assert_close(*images, atol=tolerance, rtol=0)
    torch.testing.assert_close(*heats, atol=tolerance, rtol=0)
    assert heats[0].max() > 0
