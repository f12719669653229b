"""The kernels: each against eager torch, the usual way, torch.compile, and the lower bound that memory sets."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ... import kernels, masks
from ...epsilon import blend_eps
from ...sampling import Schedule
from .measure import Bench

SHAPES = ((4096, 8, 40), (1024, 8, 80), (256, 8, 160), (64, 8, 160))  # tokens, heads, head size of SD 1.5
SHAPES_XL = ((4096, 10, 64), (1024, 20, 64))


def kernel_section(bench: Bench) -> None:
    """Times of each kernel, and what fraction of the speed of a copy it reaches."""
    gpu = bench.device.type == "cuda"
    source = torch.randn((2**30 if gpu else 2**26) // 4, device=bench.device)
    target = torch.empty_like(source)
    seconds = bench.time({"copy": lambda: target.copy_(source)}, inner=5)["copy"]
    bandwidth = 2 * source.nbytes / seconds
    bench.add("kernels", "copy", "torch", "bandwidth", bandwidth / 1e9, "GB/s")
    compare = partial(_compare, bench, float(np.median(bandwidth)))
    shapes = (*SHAPES, *SHAPES_XL) if gpu else SHAPES
    for shape in tqdm(shapes, desc="kernels", leave=False, disable=not bench.progress):
        for batch in (2, 64) if gpu else (2,):
            _blend_attention(bench, compare, batch, *shape)
            _map_readout(bench, compare, batch, *shape)
    for batch in (1, 64):
        _blend_step(bench, compare, batch)


def _blend_attention(bench: Bench, compare: Callable, batch: int, tokens: int, heads: int, dim: int) -> None:
    q, k, v = _qkv(bench, batch, 3, tokens, heads, dim)
    weights, half = torch.zeros(2, 3, tokens), batch // 2
    weights[0, 0] = 1
    weights[1, 1:] = masks.logistic().weights(1, tokens).flatten(1)
    plan = kernels.make_plan(weights, [0] * half + [1] * half, bench.device)
    mix = plan.weights[1, 1:, :, None].to(bench.dtype)
    spread = lambda x, i: x[i : i + 1].expand(half, -1, -1, -1)

    def blend(attention, q, k, v):
        plain = attention(q[:half], spread(k, 0), spread(v, 0))
        left, right = (attention(q[half:], spread(k, i), spread(v, i)) for i in (1, 2))
        return torch.cat([plain, mix[0] * left + mix[1] * right])

    eager, usual = partial(blend, _attention), partial(blend, F.scaled_dot_product_attention)
    calls = {"eager": eager, "two SDPA and a blend": usual}
    calls["dsnb"] = lambda q, k, v: kernels.blend_attention(q, k, v, plan)
    if bench.compiled:
        calls["torch.compile"] = torch.compile(eager, dynamic=False)
    moved = 2 * q.nbytes + k.nbytes + v.nbytes + weights.nbytes
    case = f"blend attention, {tokens} tokens, {heads} × {dim}, batch {batch}"
    compare(case, calls, (q, k, v), "two SDPA and a blend", moved)


def _map_readout(bench: Bench, compare: Callable, batch: int, tokens: int, heads: int, dim: int) -> None:
    q, k, v = _qkv(bench, batch, batch, tokens, heads, dim)

    def every_map(q, k, v):
        probabilities = _probabilities(q, k)
        return probabilities @ v, probabilities.float().mean(1)

    calls = {"plain attention (SDPA)": F.scaled_dot_product_attention, "eager, every map": every_map}
    calls["dsnb"] = lambda q, k, v: kernels.attention_with_maps(q, k, v, 1, 8)
    if bench.compiled:
        calls["torch.compile, every map"] = torch.compile(every_map, dynamic=False)
    moved = 2 * q.nbytes + k.nbytes + v.nbytes + batch * tokens * 8 * 4
    case = f"map read-out, {tokens} tokens, {heads} × {dim}, batch {batch}, 8 words"
    compare(case, calls, (q, k, v), "plain attention (SDPA)", moved)


def _blend_step(bench: Bench, compare: Callable, batch: int) -> None:
    like = {"device": bench.device}
    uncond, x_t, noise = (torch.randn(batch, 4, 64, 64, **like) for _ in range(3))
    cond = torch.randn(2, batch, 4, 64, 64, **like)
    weights, guidance = masks.logistic().weights(64, 64).to(bench.device), torch.full((2,), 5.0, **like)
    a, a_next = 0.3**0.5, 0.4**0.5
    s, s_next, one = 0.7**0.5, 0.6**0.5, torch.ones(1)
    schedule = Schedule(one, a * one, s * one, a_next * one, s_next * one)
    (step,), n = schedule.coefficients(0.1), schedule.sigma(0.1).item()

    def eager(*args):
        eps, (x_t, noise) = blend_eps(*args[:4]), args[4:]
        x_0 = (x_t - s * eps) / a
        return a_next * x_0 + (s_next**2 - n**2) ** 0.5 * eps + n * noise

    calls = {"eager": eager, "dsnb": lambda *args: kernels.blend_step(*args, step)}
    if bench.compiled:
        calls["torch.compile"] = torch.compile(eager, dynamic=False)
    args = (uncond, cond, weights, guidance, x_t, noise)
    moved = sum(x.nbytes for x in args) + x_t.nbytes
    compare(f"blend step, 4 × 64 × 64, N = 2, batch {batch}", calls, args, "eager", moved)


def _compare(bench: Bench, speed: float, case: str, calls: dict, args: tuple, usual: str, moved: int) -> None:
    """Times, speed relative to the usual way, and the lower bound: the time to copy as many bytes."""
    gpu = bench.device.type == "cuda"
    calls = {name: partial(call, *args) for name, call in calls.items()}
    if gpu:
        calls = {name: _graph(call) for name, call in calls.items()}
    seconds = bench.time(calls, inner=50 if gpu else 3)
    for variant, times in seconds.items():
        bench.add("kernels", case, variant, "time", times, "s")
        bench.add("kernels", case, variant, "lower bound / time", 100 * moved / speed / times, "%")
        if variant != usual:
            bench.add("kernels", case, variant, f"times faster than {usual}", seconds[usual] / times, "×")
    bench.add("kernels", case, "lower bound", "time", moved / speed, "s")


def _graph(call: Callable) -> Callable:
    """The call's GPU kernels recorded once and replayed, so that the time of launching them does not count."""
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    with torch.no_grad(), torch.cuda.graph(graph):
        call()
    return graph.replay


def _qkv(bench: Bench, batch: int, prompts: int, tokens: int, heads: int, dim: int) -> list[Tensor]:
    like = {"device": bench.device, "dtype": bench.dtype}
    shapes = ((batch, tokens), (prompts, 77), (prompts, 77))
    return [torch.randn(n, t, heads, dim, **like).transpose(1, 2) for n, t in shapes]


def _probabilities(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _probabilities(q, k) @ v
