"""The reference kernels against float64, who computes, and the fused kernels in a process of their own."""

import importlib.util
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch

from dsnb import kernels

HERE = Path(__file__).parent


@pytest.fixture
def data(generator):
    """q (3, 2, 50, 16), three prompts, weights of two roles: the empty prompt, a mix of the others."""
    q, k, v = (torch.randn(3, n, 2, 16, generator=generator).transpose(1, 2) for n in (50, 77, 77))
    weights = torch.zeros(2, 3, 50)
    weights[0, 0] = 1
    weights[1, 1] = torch.rand(50, generator=generator)
    weights[1, 2] = 1 - weights[1, 1]
    return q, k, v, weights


def exact_blend(q, k, v, weights, roles):
    q, k, v = q.double(), k.double(), v.double()
    probs = torch.einsum("bhtd,phld->bphtl", q, k).mul(q.shape[-1] ** -0.5).softmax(-1)
    return torch.einsum("bpt,bphtl,phld->bhtd", weights.double()[roles], probs, v)


@pytest.mark.parametrize("roles", [[0, 1, 1], [1, 0, 1], [1, 1, 1], [0, 0, 0]])
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float64, 1e-12)]
)
def test_blend_attention_is_the_sum(data, roles, dtype, tolerance):
    q, k, v, weights = data
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    exact = exact_blend(q, k, v, weights, roles)
    for plan in (None, kernels.make_plan(weights, roles), kernels.make_plan(weights, roles, skip=False)):
        out = kernels.blend_attention(q, k, v, weights, roles, plan)
        assert out.dtype == dtype
        assert (out - exact).norm() / exact.norm() < tolerance


def test_unconditional_rows_take_the_plain_path_bit_for_bit(data):
    q, k, v, weights = data
    out = kernels.blend_attention(q, k, v, weights, [1, 0, 1])
    plain = torch.nn.functional.scaled_dot_product_attention(
        q, k[:1].expand(3, -1, -1, -1), v[:1].expand(3, -1, -1, -1)
    )
    assert torch.equal(out[1], plain[1])
    assert not torch.equal(out[0], plain[0])


def test_prompts_without_weight_are_not_computed(data):
    q, k, v, weights = data
    k[0] = v[0] = float("nan")
    assert torch.isfinite(kernels.blend_attention(q, k, v, weights, [1, 1, 1])).all()
    assert kernels.make_plan(weights, [0, 1, 1]).terms == ((1, 3, 1, 1), (1, 3, 1, 2))


def test_a_single_role_needs_no_roles(data):
    q, k, v, weights = data
    out = kernels.blend_attention(q, k, v, weights[1])
    assert torch.equal(out, kernels.blend_attention(q, k, v, weights, [1, 1, 1]))


def test_heads_come_out_free_to_merge(data):
    q, k, v, weights = data
    out = kernels.blend_attention(q, k, v, weights, [0, 1, 1])
    assert out.transpose(1, 2).flatten(2).data_ptr() == out.data_ptr()


def test_blend_attention_has_gradients(data):
    q, k, v, weights = data
    q = q.clone().requires_grad_()
    kernels.blend_attention(q, k, v, weights, [0, 1, 1]).square().sum().backward()
    exact = q.detach().clone().requires_grad_()
    exact_blend(exact, k, v, weights, [0, 1, 1]).square().sum().backward()
    assert torch.allclose(q.grad, exact.grad, atol=1e-5)


def test_maps_are_head_means(data):
    q, k, v, _ = data
    out, maps = kernels.attention_with_maps(q, k, v, [3, 76, 3])
    probs = (q.double() @ k.double().transpose(-1, -2) / 4).softmax(-1)
    assert torch.allclose(out.double(), probs @ v.double(), atol=1e-6)
    assert torch.allclose(maps.double(), probs.mean(1)[..., [3, 76, 3]], atol=1e-7)


def test_blend_step_is_ddim_with_blended_guidance(generator):
    from dsnb.epsilon import blend_eps
    from dsnb.sampling import ddim_mean

    x_t, noise, uncond = (torch.randn(2, 4, 5, 7, generator=generator) for _ in range(3))
    cond = torch.randn(3, 2, 4, 5, 7, generator=generator)
    weights = torch.rand(3, 5, 7, generator=generator)
    numbers = torch.tensor([0.3, 0.5, 0.1])
    guidance = torch.tensor([2.0, 5.0, 7.0])
    x_prev, x_0 = kernels.blend_step(uncond, cond, weights, guidance, x_t, noise, *numbers, return_x0=True)
    mean, clean = ddim_mean(x_t, blend_eps(uncond, cond, weights, guidance), *numbers)
    assert torch.allclose(x_prev, mean + 0.1 * noise, atol=1e-5)
    assert torch.allclose(x_0, clean, atol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weights": torch.ones(2, 3, 49)}, r"weights must be \(R, 3, 50\)"),
        ({"roles": [0]}, "one role per row of q \\(3\\), got 1"),
        ({"roles": None}, "roles must be given"),
        ({"v": torch.ones(3, 2, 77, 8)}, "k and v must be"),
    ],
)
def test_wrong_shapes_are_named(data, change, message):
    call = dict(zip(("q", "k", "v", "weights"), data, strict=True), roles=[0, 1, 1]) | change
    with pytest.raises(ValueError, match=message):
        kernels.blend_attention(**call)


def test_wrong_tokens_and_numbers_are_named(data):
    with pytest.raises(ValueError, match="from 0 to 76, got"):
        kernels.attention_with_maps(*data[:3], [77])
    x = torch.zeros(1, 4, 2, 2)
    with pytest.raises(ValueError, match="alpha"):
        kernels.blend_step(x, x[None], x[0, :1], 1.0, x, None, 1.5, 0.5, 0.0)
    with pytest.raises(ValueError, match="noise must be given"):
        kernels.blend_step(x, x[None], x[0, :1], 1.0, x, None, 0.5, 0.5, 0.1)


def test_force_is_the_switch():
    assert kernels.backend("cpu") == "torch"
    with pytest.raises(ValueError, match="'torch', 'triton' or None, got 'cuda'"):
        kernels.force("cuda")
    with kernels.force("torch"):
        assert kernels.backend("cuda") == "torch"
    assert kernels.backend("cpu") == "torch"


def test_the_environment_is_the_switch_too():
    code = "from dsnb import kernels; print(kernels.backend('cuda'))"
    done = run_python("-c", code, DSNB_KERNELS="torch")
    assert done.stdout.strip() == "torch"
    assert "choice must be" in run_python("-c", code, DSNB_KERNELS="fast").stderr


def test_a_broken_kernel_is_replaced_with_one_warning(data, monkeypatch):
    def explode(*args):
        raise RuntimeError("ptxas does not know this GPU")

    broken = types.SimpleNamespace(unsupported=lambda *args: None, blend_attention=explode)
    monkeypatch.setitem(sys.modules, "dsnb.kernels.fused", broken)
    monkeypatch.setattr(kernels, "fused", broken, raising=False)
    monkeypatch.setattr(kernels, "backend", lambda device: "triton")
    monkeypatch.setattr(kernels, "_broken", set())
    q, k, v, weights = data
    with pytest.warns(UserWarning, match="plain torch takes over: ptxas does not know this GPU"):
        out = kernels.blend_attention(q, k, v, weights, [0, 1, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = kernels.blend_attention(q, k, v, weights, [0, 1, 1])
    expected = exact_blend(q, k, v, weights, [0, 1, 1])
    assert (out - expected).norm() / expected.norm() < 1e-6
    assert torch.equal(out, again)


def test_importing_the_package_does_not_import_triton():
    code = "import sys, dsnb; from dsnb import kernels; assert 'triton' not in sys.modules"
    assert run_python("-c", code).returncode == 0


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="pip install 'dsnb[triton]'")
def test_fused_kernels():
    """On a GPU where there is one; else in the interpreter, to be chosen before triton is imported."""
    options = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = run_python("-m", "pytest", "-x", str(HERE / "fused_checks.py"), OMP_NUM_THREADS="1", **options)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "passed" in done.stdout and "skipped" not in done.stdout


def run_python(*args, **environment):
    command = [sys.executable, *args]
    return subprocess.run(
        command, cwd=HERE.parent, env=os.environ | environment, capture_output=True, text=True
    )
