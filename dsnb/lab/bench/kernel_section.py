"""The bench of the kernels: each against eager torch, the usual way, torch.compile, and the floor."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ... import kernels, masks
from ...epsilon import blend_eps
from ...sampling import Schedule
from .harness import Bench, Options, ratios

SHAPES = ((4096, 8, 40), (1024, 8, 80), (256, 8, 160), (64, 8, 160))  # tokens, heads, head size of SD 1.5


def kernel_section(bench: Bench, options: Options) -> None:
    """Each kernel against eager torch, two SDPA calls and a blend, torch.compile, and the floor."""
    bandwidth = _bandwidth(bench)
    bench.add("kernels", "copy", "torch", "bandwidth", [b / 1e9 for b in bandwidth], "GB/s")
    speed = sorted(bandwidth)[len(bandwidth) // 2]
    gpu = bench.device.type == "cuda"
    shapes = (*SHAPES, (4096, 10, 64), (1024, 20, 64)) if gpu else SHAPES
    for tokens, heads, dim in tqdm(shapes, desc="kernels", leave=False, disable=not bench.progress):
        for batch in (2, 64) if gpu else (2,):
            _blend_attention(bench, options, speed, batch, tokens, heads, dim)
            _map_readout(bench, options, speed, batch, tokens, heads, dim)
    for batch in (1, 64):
        _blend_step(bench, options, speed, batch)


def _blend_attention(bench, options, speed, batch, tokens, heads, dim) -> None:
    case = f"blend attention, {tokens} tokens, {heads} × {dim}, batch {batch}"
    q, k, v = _qkv(bench, batch, 3, tokens, heads, dim)
    weights = torch.zeros(2, 3, tokens)
    weights[0, 0] = 1
    weights[1, 1:] = masks.logistic().weights(1, tokens).flatten(1)
    roles = [0] * (batch // 2) + [1] * (batch // 2)
    plan = kernels.make_plan(weights, roles, bench.device)
    half = batch // 2
    mix = plan.weights[1, 1:, :, None].to(bench.dtype)
    spread = lambda x, i: x[i : i + 1].expand(half, -1, -1, -1)

    def attend(attention, q, k, v):
        plain = attention(q[:half], spread(k, 0), spread(v, 0))
        left, right = (attention(q[half:], spread(k, i), spread(v, i)) for i in (1, 2))
        return torch.cat([plain, mix[0] * left + mix[1] * right])

    variants = {
        "eager": lambda: attend(_materialised, q, k, v),
        "two SDPA and a blend": lambda: attend(F.scaled_dot_product_attention, q, k, v),
        "dsnb": lambda: kernels.blend_attention(q, k, v, plan),
    }
    if options.compiled:
        compiled = torch.compile(lambda q, k, v: attend(_materialised, q, k, v), dynamic=False)
        variants["torch.compile"] = lambda: compiled(q, k, v)
    moved = (2 * q.numel() + k.numel() + v.numel()) * q.element_size() + weights.numel() * 4
    _compare(bench, case, variants, "two SDPA and a blend", moved, speed)


def _map_readout(bench, options, speed, batch, tokens, heads, dim) -> None:
    case = f"map read-out, {tokens} tokens, {heads} × {dim}, batch {batch}, 8 words"
    q, k, v = _qkv(bench, batch, batch, tokens, heads, dim)
    words = torch.arange(1, 9, device=bench.device)

    def every_map(q, k, v):
        probabilities = _probabilities(q, k)
        return probabilities @ v, probabilities.float().mean(1)

    variants = {
        "plain attention (SDPA)": lambda: F.scaled_dot_product_attention(q, k, v),
        "eager, every map": lambda: every_map(q, k, v),
        "dsnb": lambda: kernels.attention_with_maps(q, k, v, words),
    }
    if options.compiled:
        compiled = torch.compile(every_map, dynamic=False)
        variants["torch.compile, every map"] = lambda: compiled(q, k, v)
    moved = (2 * q.numel() + k.numel() + v.numel()) * q.element_size() + batch * tokens * len(words) * 4
    _compare(bench, case, variants, "plain attention (SDPA)", moved, speed)


def _blend_step(bench, options, speed, batch) -> None:
    case = f"blend step, 4 × 64 × 64, N = 2, batch {batch}"
    like = {"device": bench.device}
    x_t, noise, uncond = (torch.randn(batch, 4, 64, 64, **like) for _ in range(3))
    cond = torch.randn(2, batch, 4, 64, 64, **like)
    weights, guidance = masks.logistic().weights(64, 64).to(bench.device), torch.full((2,), 5.0, **like)
    a, a_prev, eta = torch.tensor([[0.3], [0.4], [0.1]])
    schedule = Schedule(torch.ones(1), a.sqrt(), (1 - a).sqrt(), a_prev.sqrt(), (1 - a_prev).sqrt())
    (step,), (sigma,) = schedule.coefficients(eta), schedule.sigma(eta).tolist()
    a, a_prev = a.item(), a_prev.item()

    def eager(x_t, noise, uncond, cond):
        eps = blend_eps(uncond, cond, weights, guidance)
        x_0 = (x_t - (1 - a) ** 0.5 * eps) / a**0.5
        return a_prev**0.5 * x_0 + (1 - a_prev - sigma**2) ** 0.5 * eps + sigma * noise

    variants = {
        "eager": lambda: eager(x_t, noise, uncond, cond),
        "dsnb": lambda: kernels.blend_step(uncond, cond, weights, guidance, x_t, noise, step),
    }
    if options.compiled:
        compiled = torch.compile(eager, dynamic=False)
        variants["torch.compile"] = lambda: compiled(x_t, noise, uncond, cond)
    _compare(bench, case, variants, "eager", (4 * x_t.numel() + cond.numel() + weights.numel()) * 4, speed)


def _compare(bench: Bench, case: str, variants: dict, over: str, moved: int, speed: float) -> None:
    """Times, speed relative to `over`, and the share of the floor: the bytes moved at the speed of a copy."""
    if bench.device.type == "cuda":
        variants = {name: _graph(call) for name, call in variants.items()}
    with torch.no_grad():
        seconds = bench.time(variants, inner=50 if bench.device.type == "cuda" else 3)
    for variant, times in seconds.items():
        bench.add("kernels", case, variant, "time", times, "s")
        bench.add(
            "kernels", case, variant, "share of the floor", [100 * moved / speed / t for t in times], "%"
        )
        if variant != over:
            gain = [1 / r for r in ratios(seconds, over)[variant]]
            bench.add("kernels", case, variant, f"times faster than {over}", gain, "×")
    bench.add("kernels", case, "floor", "time", moved / speed, "s")


def _graph(call: Callable) -> Callable:
    """The call's kernels recorded once and replayed, so that launches do not hide what the kernels take."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        call()
    return graph.replay


def _bandwidth(bench: Bench) -> list[float]:
    """Bytes per second of a large copy, read and written."""
    source = torch.randn((2**30 if bench.device.type == "cuda" else 2**26) // 4, device=bench.device)
    target = torch.empty_like(source)
    seconds = bench.time({"copy": lambda: target.copy_(source)}, inner=5)["copy"]
    return [2 * source.numel() * 4 / s for s in seconds]


def _qkv(bench: Bench, batch: int, prompts: int, tokens: int, heads: int, dim: int) -> list[Tensor]:
    like = {"device": bench.device, "dtype": bench.dtype}
    shapes = ((batch, tokens), (prompts, 77), (prompts, 77))
    return [
        torch.randn(n, t, heads * dim, **like).unflatten(2, (heads, dim)).transpose(1, 2) for n, t in shapes
    ]


def _probabilities(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


def _materialised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _probabilities(q, k) @ v
