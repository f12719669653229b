"""The CPU form against the equations of `reference`, the choice, and the Triton kernels where it is installed."""

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from dsnb import kernels
from dsnb.epsilon import blend_eps
from dsnb.kernels import reference
from dsnb.sampling import Schedule

HERE = Path(__file__).parent
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}
has_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="pip install 'dsnb[triton]'"
)


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


def hard_and_soft_weights(styles, tokens):
    """Roles: the empty prompt alone, a random mix of the styles, halves of exact ones and zeros, one style."""
    weights = torch.zeros(4, 1 + styles, tokens)
    mix = torch.rand(styles, tokens, generator=torch.Generator().manual_seed(3))
    half = tokens // 2
    weights[0, 0] = weights[2, 1, :half] = weights[2, -1, half:] = weights[3, -1] = 1
    weights[1, 1:] = mix / mix.sum(0)
    return weights


def exact(equations, *args):
    """What an equation of `reference` says in float64."""
    return equations(*(x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in args))


SHAPES = [
    (1, 1),
    (17, 5),
    (77, 2),
    (1000, 2),
    (4099, 1),
]  # tokens, styles; there are other ways at 128 and 2049


@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tokens, styles", SHAPES)
def test_blend_attention(tokens, styles, dtype, strided):
    like = {"dtype": dtype, "strided": strided}
    q = random(5, 2, tokens, 8, seed=0, **like)
    k, v = (random(1 + styles, 2, 77, 8, seed=seed, **like) for seed in (1, 2))
    plan = kernels.make_plan(hard_and_soft_weights(styles, tokens), [0, 1, 1, 2, 3])
    out = kernels.blend_attention(q, k, v, plan)
    assert out.dtype == dtype
    assert_close(out, exact(reference.blend_attention, q, k, v, plan.weights, plan.roles), dtype)


@pytest.fixture
def data():
    """Queries of three rows, three prompts, and weights of two roles: the empty prompt, a mix of the others."""
    q, k, v = (random(3, n, 32, seed=n).unflatten(2, (2, 16)).transpose(1, 2) for n in (50, 77, 78))
    return q, k, v[:, :, :77], hard_and_soft_weights(2, 50)[:2]


def test_unconditional_rows_are_plain_attention_bit_for_bit(data):
    q, k, v, weights = data
    out = kernels.blend_attention(q, k, v, kernels.make_plan(weights, [1, 0, 1]))
    spread = (x[:1].expand(3, -1, -1, -1) for x in (k, v))
    plain = torch.nn.functional.scaled_dot_product_attention(q, *spread)
    assert torch.equal(out[1], plain[1])
    assert out.transpose(1, 2).is_contiguous(), "merging the heads needs no copy"
    assert not torch.equal(out[0], plain[0])


def test_prompts_without_weight_are_not_computed(data):
    q, k, v, weights = data
    k[0] = v[0] = float("nan")
    assert torch.isfinite(kernels.blend_attention(q, k, v, kernels.make_plan(weights, [1, 1, 1]))).all()


def test_one_mask_is_one_role(data):
    q, k, v, weights = data
    out = kernels.blend_attention(q[:1], k, v, kernels.make_plan(weights[1]))
    assert torch.equal(out, kernels.blend_attention(q[:1], k, v, kernels.make_plan(weights, [1])))


def test_blend_attention_has_gradients(data):
    q, k, v, weights = data
    plan, gradients = kernels.make_plan(weights, [0, 1, 1]), []
    for call in (
        kernels.blend_attention,
        lambda *x: reference.blend_attention(*x[:3], x[3].weights, x[3].roles),
    ):
        query = q.clone().requires_grad_()
        call(query, k, v, plan).square().sum().backward()
        gradients.append(query.grad)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=0)


@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "tokens, heads", [(1, 3), (77, 1), (1000, 3), (4099, 3)]
)  # the last in several blocks
def test_attention_with_maps(tokens, heads, dtype, strided):
    q, k, v = (random(2, heads, n, 8, seed=n, dtype=dtype, strided=strided) for n in (tokens, 77, 77))
    out, maps = kernels.attention_with_maps(q, k, v, 3, 70)
    both = exact(reference.attention_with_maps, q, k, v, 3, 70)
    assert_close(out, both[0], dtype)
    assert_close(maps, both[1], torch.float32 if dtype == torch.float64 else dtype)
    assert out.dtype == dtype and maps.dtype == torch.float32


@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
@pytest.mark.parametrize("styles, height, width", [(1, 1, 1), (2, 17, 3), (5, 5, 7), (2, 64, 64)])
@pytest.mark.parametrize("numbers", [(0.3, 0.5, 0.1), (0.3, 0.9, 2.0)], ids=["usual", "more noise than room"])
def test_blend_step_is_ddim_with_blended_guidance(styles, height, width, numbers, strided):
    alpha, alpha_prev, eta = torch.tensor(numbers).double()[:, None]
    levels = (alpha.sqrt(), (1 - alpha).sqrt(), alpha_prev.sqrt(), (1 - alpha_prev).sqrt())
    schedule, shape = Schedule(torch.ones(1), *levels), (2, 4, height, width)
    x_t, noise, uncond = (random(*shape, seed=seed, strided=strided) for seed in range(3))
    cond, weights = random(styles, *shape, seed=3, strided=strided), random(styles, height, width, seed=4)
    weights, guidance, (step,) = weights.softmax(0), torch.linspace(2, 7, styles), schedule.coefficients(eta)
    call = (uncond, cond, weights, guidance, x_t, noise)
    sigma = eta * ((1 - alpha_prev) / (1 - alpha)).sqrt() * (1 - alpha / alpha_prev).sqrt()
    eps = exact(blend_eps, *call[:4])
    clean = (x_t - (1 - alpha).sqrt() * eps) / alpha.sqrt()
    mean = alpha_prev.sqrt() * clean + (1 - alpha_prev - sigma**2).clamp(min=0).sqrt() * eps
    for x_next, x_0 in (kernels.blend_step(*call, step), reference.blend_step(*call, step)):
        assert_close(x_next, mean + sigma * noise, torch.float32)
        assert_close(x_0, clean, torch.float32)


def test_what_does_not_fit_is_named(data):
    q, k, v, weights = data
    for roles in ([0, 1, 2], torch.tensor([0, -1, 1]), []):
        with pytest.raises(ValueError, match="roles must be indices from 0 to 1, got "):
            kernels.make_plan(weights, roles)
    with pytest.raises(ValueError, match=r"weights must be \(roles, prompts, tokens\) or .*, got \(50,\)"):
        kernels.make_plan(weights[0, 0])
    with pytest.raises(ValueError, match="plan must be for the 3 rows of q, got one for 2"):
        kernels.blend_attention(q, k, v, kernels.make_plan(weights, [0, 1]))


def test_force_is_the_switch():
    assert kernels.backend("cpu") == "torch"
    with pytest.raises(ValueError, match="'torch', 'triton' or None, got 'cuda'"):
        kernels.force("cuda")
    with kernels.force("torch"):
        assert kernels.backend("cuda") == "torch"
    assert kernels.backend("cpu") == "torch"


@has_triton
def test_triton_on_a_cpu_is_refused_with_the_way_out(data):
    with (
        kernels.force("triton"),
        pytest.raises(ValueError, match="on a GPU.* on 'cpu'; DSNB_KERNELS=torch can"),
    ):
        kernels.blend_attention(*data[:3], kernels.make_plan(data[3], [0, 1, 1]))


@has_triton
def test_the_environment_is_the_switch_too_and_importing_does_not_import_triton():
    code = "import sys; from dsnb import kernels; print(kernels.backend('cuda'), 'triton' in sys.modules)"
    assert run_python("-c", code, DSNB_KERNELS="torch").stdout.split() == ["torch", "False"]


@pytest.mark.parametrize(
    "error", [RuntimeError("ptxas does not know it"), torch.OutOfMemoryError("too large")]
)
def test_a_kernel_that_fails_says_so_and_names_the_way_out(data, error, monkeypatch):
    def explode(*args):
        raise error

    broken = types.SimpleNamespace(unsupported=lambda *args: None, blend_attention=explode)
    monkeypatch.setitem(sys.modules, "dsnb.kernels.fused", broken)
    monkeypatch.setattr(kernels, "fused", broken, raising=False)
    monkeypatch.setattr(kernels, "backend", lambda device: "triton")
    message = str(error)
    if not isinstance(error, torch.OutOfMemoryError):
        message = rf"the fused blend_attention failed for torch.float32 \(3, 2, 50, 16\): {error}\n.*DSNB_KERNELS=torch"
    with pytest.raises(type(error), match=message) as raised:
        kernels.blend_attention(*data[:3], kernels.make_plan(data[3], [0, 1, 1]))
    assert isinstance(error, torch.OutOfMemoryError) == (raised.value is error)


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


@has_triton
@pytest.mark.slow
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
        "attention_with_maps": (q, k[:2], v[:2], 0, 8),
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


@has_triton
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
