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


TOKENS = [1, 17, 77, 1000, 4099]  # bfloat16 goes another way above 2048; maps of 4099 are made in blocks
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


def assert_close(out, exact, dtype):
    assert out.shape == exact.shape and torch.isfinite(out).all()
    error = (out.double() - exact).norm() / exact.norm()
    assert error < TOLERANCE[dtype], f"relative error {error:.2e}"


def random(*shape, seed, dtype=torch.float32, strided=False):
    """Normal numbers; strided: every other row and column of a tensor whose axes lie the other way round."""
    generator = torch.Generator().manual_seed(seed)
    if not strided:
        return torch.randn(shape, generator=generator).to(dtype)
    *rest, rows, width = shape
    wide = torch.randn(*reversed(rest), 2 * width, 2 * rows, generator=generator).to(dtype)
    return wide.permute(*reversed(range(len(rest))), -1, -2)[..., ::2, ::2]


def hard_and_soft_weights(styles, tokens, strided):
    """Roles: the empty prompt alone, a random mix of the styles, halves of exact ones and zeros, one style."""
    weights = torch.zeros(4, 1 + styles, tokens * 2)
    mix = torch.rand(styles, tokens * 2, generator=torch.Generator().manual_seed(3))
    weights[0, 0] = weights[2, 1, :tokens] = weights[2, -1, tokens:] = weights[3, -1] = 1
    weights[1, 1:] = mix / mix.sum(0)
    return weights[..., ::2] if strided else weights[..., tokens // 2 :][..., :tokens].contiguous()


@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("styles", [1, 2, 5])
@pytest.mark.parametrize("tokens", TOKENS)
def test_blend_attention_at_every_shape(tokens, styles, dtype, strided):
    like = {"dtype": dtype, "strided": strided}
    q = random(4, 2, tokens, 8, seed=0, **like)
    k, v = (random(1 + styles, 2, 77, 8, seed=seed, **like) for seed in (1, 2))
    weights, roles = hard_and_soft_weights(styles, tokens, strided), [0, 1, 2, 3]
    exact = exact_blend(q, k, v, weights, roles)
    for plan in (kernels.make_plan(weights, roles), kernels.make_plan(weights, roles, skip=False)):
        assert_close(kernels.blend_attention(q, k, v, weights, roles, plan), exact, dtype)


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


@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("tokens", TOKENS)
def test_maps_are_head_means(tokens, heads, dtype, strided):
    like, chosen = {"dtype": dtype, "strided": strided}, [3, 76, 3]
    q, k, v = (random(2, heads, n, 8, seed=seed, **like) for seed, n in enumerate((tokens, 77, 77)))
    out, maps = kernels.attention_with_maps(q, k, v, chosen)
    probs = (q.double() @ k.double().transpose(-1, -2) / 8**0.5).softmax(-1)
    assert_close(out, probs @ v.double(), dtype)
    assert_close(maps, probs.mean(1)[..., chosen], dtype)
    assert out.dtype == dtype and maps.dtype == torch.float32


def test_maps_by_blocks_are_the_maps_at_once(data, monkeypatch):
    q, k, v, _ = data
    whole = kernels.attention_with_maps(q, k, v, [3, 76, 3])
    for block in (1, 3 * 2 * 77 * 7):  # one query at a time, seven with a rest
        monkeypatch.setattr(kernels.reference, "BLOCK", block)
        for part, expected in zip(kernels.attention_with_maps(q, k, v, [3, 76, 3]), whole, strict=True):
            torch.testing.assert_close(part, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
@pytest.mark.parametrize("styles, height, width", [(1, 1, 1), (2, 17, 3), (5, 5, 7), (2, 64, 64)])
@pytest.mark.parametrize("numbers", [(0.3, 0.5, 0.1), (0.3, 0.9, 2.0)], ids=["usual", "more noise than room"])
def test_blend_step_is_ddim_with_blended_guidance(styles, height, width, numbers, strided):
    from dsnb.epsilon import blend_eps
    from dsnb.sampling import Schedule

    alpha, alpha_prev, eta = torch.tensor(numbers).double()[:, None]
    levels = (alpha.sqrt(), (1 - alpha).sqrt(), alpha_prev.sqrt(), (1 - alpha_prev).sqrt())
    schedule, shape = Schedule(torch.ones(1), *levels), (2, 4, height, width)
    x_t, noise, uncond = (random(*shape, seed=seed, strided=strided) for seed in range(3))
    cond, weights = random(styles, *shape, seed=3, strided=strided), random(styles, height, width, seed=4)
    weights, guidance, (step,) = weights.softmax(0), torch.linspace(2, 7, styles), schedule.coefficients(eta)
    call = (uncond, cond, weights, guidance, x_t, noise)
    sigma = eta * ((1 - alpha_prev) / (1 - alpha)).sqrt() * (1 - alpha / alpha_prev).sqrt()
    eps = blend_eps(*[x.double() for x in call[:4]])
    clean = (x_t - (1 - alpha).sqrt() * eps) / alpha.sqrt()
    mean = alpha_prev.sqrt() * clean + (1 - alpha_prev - sigma**2).clamp(min=0).sqrt() * eps
    for both in (kernels.blend_step(*call, step), kernels.reference.blend_step(*call, step)):
        assert_close(both[0], mean + sigma * noise, torch.float32)
        assert_close(both[1], clean, torch.float32)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weights": torch.ones(2, 3, 49)}, r"weights must be \(R, 3, 50\)"),
        ({"roles": [0]}, "roles must name one role per row of q \\(3\\), got 1"),
        ({"plan": kernels.Plan((0, 1), (0, 1), ())}, "plan.roles must name one role per row of q .3., got 2"),
        ({"roles": None, "plan": kernels.Plan((0,), (0,), ())}, "plan.roles must name one role .*, got 1"),
        ({"roles": [0, 1, 2]}, r"roles must be indices from 0 to 1, got \[0, 1, 2\]"),
        ({"roles": torch.tensor([0, -1, 1])}, r"roles must be indices from 0 to 1, got \[0, -1, 1\]"),
        ({"plan": kernels.Plan((0, 1, 2), (0, 1, 1), ())}, "plan.roles must be indices from 0 to 1"),
        ({"roles": None}, "roles must be given"),
        ({"v": torch.ones(3, 2, 77, 8)}, "k and v must be"),
    ],
)
def test_wrong_shapes_are_named(data, change, message):
    call = dict(zip(("q", "k", "v", "weights"), data, strict=True), roles=[0, 1, 1]) | change
    with pytest.raises(ValueError, match=message):
        kernels.blend_attention(**call)


def test_wrong_tokens_and_numbers_are_named(data):
    for tokens in ([77], [-1], torch.tensor([3, 77])):
        with pytest.raises(ValueError, match="tokens must be indices from 0 to 76, got"):
            kernels.attention_with_maps(*data[:3], tokens)
    x = torch.zeros(2, 4, 3, 3)
    step = kernels.StepCoefficients(1.0, -0.5, 1.0, -0.1, 0.1)
    right = {"eps_uncond": x, "eps_cond": x.expand(3, *x.shape), "weights": x[0, :3]}
    right |= {"guidance": torch.ones(3), "x_t": x, "noise": x, "step": step}
    for wrong, message in (
        ({"noise": x[:1]}, r"noise must have shape \(2, 4, 3, 3\), got \(1, 4, 3, 3\)"),
        ({"eps_uncond": x[..., :1]}, r"eps_uncond must have shape .*, got \(2, 4, 3, 1\)"),
        ({"eps_cond": x}, r"eps_cond must have shape \(2, 2, 4, 3, 3\), got \(2, 4, 3, 3\)"),
        ({"guidance": torch.ones(2)}, r"guidance must have shape \(3,\), got \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.blend_step(**right | wrong)


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
    with pytest.warns(
        UserWarning, match="for torch.float32, plain torch takes over: ptxas does not know this GPU"
    ):
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


LIMITS = {75: 64, 80: 163, 86: 99, 90: 227}  # KiB of shared memory for a program, by compute capability


class Launches:
    """In the place of a kernel: keeps what it is launched with."""

    def __init__(self):
        self.seen = []

    def __getitem__(self, grid):
        return lambda *args, **options: self.seen.append((args, options))


def build(kernel, args, options, capability):
    """What Triton makes of a launch for a GPU, whether there is one or not."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.int32: "i32"}
    types[torch.int64] = "i64"
    warps = {name: options[name] for name in ("num_warps", "num_stages") if name in options}
    signature, constants, known = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        value = args[i] if i < len(args) else options[name]
        if isinstance(value, torch.Tensor):
            signature[name] = f"*{types[value.dtype]}"
        elif i >= len(args) or value is None or value == 1:
            signature[name], constants[name] = "constexpr", value
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if signature[name][0] == "*" or signature[name] == "i32" and value % 16 == 0:
            known[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, known)
    return compile(source, target=GPUTarget("cuda", capability, 32), options=warps)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="pip install 'dsnb[triton]'")
@pytest.mark.parametrize("capability, dtype", [(75, torch.float16), (80, torch.bfloat16), (86, torch.float32),
                                               (86, torch.bfloat16), (90, torch.float16)], ids=str)  # fmt: skip
@pytest.mark.parametrize("dim", [40, 64, 80, 160])
def test_the_kernels_compile_for_gpus_and_fit_them(dim, dtype, capability, monkeypatch):
    fused = importlib.import_module("dsnb.kernels.fused")
    like, tokens = {"dtype": dtype, "seed": 0}, 4096
    q, k, v = (random(n, t, 8 * dim, **like).unflatten(2, (8, dim)).transpose(1, 2)
               for n, t in ((2, tokens), (3, 77), (3, 77)))  # fmt: skip
    x, weights, roles = (
        random(2, 4, 8, 8, **like),
        torch.zeros(2, 3, tokens),
        torch.zeros(2, dtype=torch.int32),
    )
    calls = {
        "blend_attention": (q, k, v, weights, roles),
        "attention_with_maps": (q, k[:2], v[:2], torch.arange(8)),
        "blend_step": (
            x,
            x.expand(3, *x.shape),
            weights[0, :, :64].view(3, 8, 8),
            roles[:3],
            x,
            x,
            kernels.StepCoefficients(1.8, -1.5, 1.1, -0.2, 0.1),
        ),
    }
    for name, call in calls.items():
        kernel, launches = getattr(fused, f"_{name}"), Launches()
        monkeypatch.setattr(fused, f"_{name}", launches)
        getattr(fused, name)(*call)
        made = build(kernel, *launches.seen[0], capability)
        assert made.asm["cubin"] and made.metadata.shared <= 1024 * LIMITS[capability], name


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
