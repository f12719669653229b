"""What `dsnb.bench` measures: one function per section, each adding rows to a `Bench`."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from tqdm.auto import tqdm

from .. import kernels, masks, styles
from ..attention import cross_attention_layers
from ..epsilon import blend_eps
from ..images import read_image
from ..inversion import invert
from ..methods import METHODS, blend
from ..metrics.measures import layout, psnr
from ..models import Model, count_unet_samples, load
from ..sampling import ddim_mean, make_schedule
from .baselines import CONFIGS, make_loop, random_model, reuse_deep_features, source_attention, source_epsilon
from .harness import Bench, ratios

MODELS = ("bundled", *CONFIGS)
SHAPES = ((4096, 8, 40), (1024, 8, 80), (256, 8, 160), (64, 8, 160))  # tokens, heads, head size of SD 1.5


@dataclass(frozen=True)
class Options:
    """models: of MODELS; steps: per picture, None for all (bundled) or one, scaled up; compiled: that too."""

    models: tuple[str, ...] = ("bundled",)
    styles: tuple[int, ...] = (2, 3, 5)
    steps: int | None = None
    compiled: bool = False


def pictures(bench: Bench, options: Options) -> None:
    """UNet samples, seconds and memory per picture: every method, beside the source project's way."""
    for name in options.models:
        model = _model(name, bench.device, bench.dtype)
        total = model.settings.steps - model.settings.skip
        for n in options.styles if name == "bundled" or bench.device.type == "cuda" else options.styles[:1]:
            case, steps = f"{name}, N = {n}", _steps(name, options, total)
            methods = ("prompt", "pixel", "epsilon", "attention") if n == 2 else ("epsilon", "attention")
            calls = {method: METHODS[method] for method in methods}
            calls |= {"source's epsilon": source_epsilon, "source's attention": source_attention}
            variants = _bound(calls, make_loop(model, masks.logistic(n=n), steps))
            seconds = bench.time(variants, note=case)
            for variant, call in variants.items():
                with count_unet_samples(model.unet) as count, torch.no_grad():
                    memory = bench.peak_memory(call)
                samples = count.samples / steps
                bench.add("pictures", case, variant, "UNet samples per step", samples, "")
                bench.add("pictures", case, variant, "UNet samples per picture", samples * total, "")
                per_picture = [s / steps * total for s in seconds[variant]]
                bench.add("pictures", case, variant, "time per picture", per_picture, "s")
                bench.add("pictures", case, variant, "peak memory", memory / 2**20, "MiB")
            for ours in ("epsilon", "attention"):
                gain = ratios(seconds, ours)[f"source's {ours}"]
                bench.add("pictures", case, ours, "times faster than the source's", gain, "×")


def overhead(bench: Bench, options: Options) -> None:
    """What the loop, the blend and the hooks add to bare UNet calls of the same number of samples."""
    for name in options.models:
        model = _model(name, bench.device, bench.dtype)
        steps = _steps(name, options, model.settings.steps - model.settings.skip)
        loop = make_loop(model, masks.logistic(), steps)
        variants = {}
        for method, samples in (("epsilon", 3), ("attention", 2)):
            variants |= _bound({method: METHODS[method]}, loop)
            variants[f"bare {method}"] = _bare_calls(model, loop, steps, samples)
        seconds = bench.time(variants, note=f"{name}: the loop's share")
        for method in ("epsilon", "attention"):
            share = [100 * (r - 1) for r in ratios(seconds, f"bare {method}")[method]]
            per_call = [s / steps for s in seconds[f"bare {method}"]]
            bench.add("overhead", name, method, "one bare UNet call", per_call, "s")
            bench.add("overhead", name, method, "the loop's share over bare calls", share, "%")


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
            _map_readout(bench, speed, batch, tokens, heads, dim)
    for batch in (1, 64):
        _blend_step(bench, options, speed, batch)


def _blend_attention(bench, options, speed, batch, tokens, heads, dim) -> None:
    case = f"blend attention, {tokens} tokens, {heads} × {dim}, batch {batch}"
    q, k, v = _qkv(bench, batch, 3, tokens, heads, dim)
    weights = torch.zeros(2, 3, tokens)
    weights[0, 0] = 1
    weights[1, 1:] = masks.logistic().weights(1, tokens).flatten(1)
    roles = [0] * (batch // 2) + [1] * (batch // 2)
    plan = kernels.make_plan(weights, roles)
    weights, rows = weights.to(bench.device), torch.tensor(roles, device=bench.device)
    half = batch // 2
    mix = weights[1, 1:, :, None].to(bench.dtype)
    spread = lambda x, i: x[i : i + 1].expand(half, -1, -1, -1)

    def attend(attention):
        plain = attention(q[:half], spread(k, 0), spread(v, 0))
        left, right = (attention(q[half:], spread(k, i), spread(v, i)) for i in (1, 2))
        return torch.cat([plain, mix[0] * left + mix[1] * right])

    variants = {
        "eager": lambda: attend(_materialised),
        "two SDPA and a blend": lambda: attend(F.scaled_dot_product_attention),
        "dsnb": lambda: kernels.blend_attention(q, k, v, weights, rows, plan),
    }
    if options.compiled:
        compiled = torch.compile(lambda q, k, v: attend(_materialised), dynamic=False)
        variants["torch.compile"] = lambda: compiled(q, k, v)
    moved = (2 * q.numel() + k.numel() + v.numel()) * q.element_size() + weights.numel() * 4
    _compare(bench, case, variants, "two SDPA and a blend", moved, speed)


def _map_readout(bench, speed, batch, tokens, heads, dim) -> None:
    case = f"map read-out, {tokens} tokens, {heads} × {dim}, batch {batch}, 8 words"
    q, k, v = _qkv(bench, batch, batch, tokens, heads, dim)
    words = torch.arange(1, 9, device=bench.device)

    def every_map():
        probabilities = _probabilities(q, k)
        return probabilities @ v, probabilities.float().mean(1)

    variants = {
        "plain attention (SDPA)": lambda: F.scaled_dot_product_attention(q, k, v),
        "eager, every map": every_map,
        "dsnb": lambda: kernels.attention_with_maps(q, k, v, words),
    }
    moved = (2 * q.numel() + k.numel() + v.numel()) * q.element_size() + batch * tokens * len(words) * 4
    _compare(bench, case, variants, "plain attention (SDPA)", moved, speed)


def _blend_step(bench, options, speed, batch) -> None:
    case = f"blend step, 4 × 64 × 64, N = 2, batch {batch}"
    like = {"device": bench.device}
    x_t, noise, uncond = (torch.randn(batch, 4, 64, 64, **like) for _ in range(3))
    cond = torch.randn(2, batch, 4, 64, 64, **like)
    weights, guidance = masks.logistic().weights(64, 64).to(bench.device), torch.full((2,), 5.0, **like)
    numbers = torch.tensor([0.3, 0.4, 0.1])

    def eager(x_t, noise, uncond, cond):
        mean, _ = ddim_mean(x_t, blend_eps(uncond, cond, weights, guidance), *numbers)
        return mean + numbers[2] * noise

    variants = {
        "eager": lambda: eager(x_t, noise, uncond, cond),
        "dsnb": lambda: kernels.blend_step(uncond, cond, weights, guidance, x_t, noise, 0.3, 0.4, 0.1),
    }
    if options.compiled:
        compiled = torch.compile(eager, dynamic=False)
        variants["torch.compile"] = lambda: compiled(x_t, noise, uncond, cond)
    _compare(bench, case, variants, "eager", (4 * x_t.numel() + cond.numel() + weights.numel()) * 4, speed)


def cpu_section(bench: Bench, options: Options) -> None:
    """float32 against bfloat16, channels-last, threads and torch.compile, for one UNet call of 3 samples."""
    if bench.device.type != "cpu":
        return
    threads = torch.get_num_threads()
    for name in options.models:
        if name == "SDXL":
            continue
        variants = {}
        for dtype in (torch.float32, torch.bfloat16):
            model = _model(name, bench.device, dtype)
            label = str(dtype).removeprefix("torch.")
            call = _bare_calls(model, make_loop(model, masks.logistic(), 1), 1, 3)
            variants[f"{label}, channels-last"] = call
            variants[f"{label}, channels-last, 1 thread"] = lambda c=call: _with_threads(1, threads, c)
            plain = Model(copy.copy(model.pipe), model.name, model.settings)
            plain.pipe.unet = copy.deepcopy(model.unet).to(memory_format=torch.contiguous_format)
            variants[label] = _bare_calls(plain, make_loop(plain, masks.logistic(), 1), 1, 3)
            if options.compiled:
                unet = torch.compile(model.unet, dynamic=False)
                variants[f"{label}, channels-last, compiled"] = _bare_calls(model, make_loop(
                    model, masks.logistic(), 1), 1, 3, unet)  # fmt: skip
        seconds = bench.time(variants, note=f"{name}: dtypes, layouts, threads")
        best = min(seconds, key=lambda v: sorted(seconds[v])[len(seconds[v]) // 2])
        for variant, ratio in ratios(seconds, best).items():
            bench.add("cpu", f"{name}, one call of 3", variant, "time", seconds[variant], "s")
            bench.add("cpu", f"{name}, one call of 3", variant, "times the best", ratio, "×")


def steps_section(bench: Bench, options: Options) -> None:
    """The same picture in fewer steps: how near it stays, and how well it keeps style and structure."""
    model = _model("bundled", bench.device, bench.dtype)
    counts = [s for s in (99, 50, 25, 12) if options.steps is None or s <= options.steps] or [options.steps]
    chosen, reader = styles.pictures()[: 3 if options.steps is None else 1], _reader()
    pair = styles.pairs()[0]
    for method in ("epsilon", "attention"):
        longest = {}
        for steps in tqdm(counts, desc=f"fewer steps, {method}", leave=False, disable=not bench.progress):
            found: dict[str, list[float]] = {}
            for picture in chosen:
                image, result = _blended(model, picture, method, pair, steps)
                best = longest.setdefault(picture.name, result)
                if steps != counts[0]:
                    found.setdefault(f"PSNR to {counts[0]} steps", []).append(psnr(result, best).item())
                found.setdefault("layout kept", []).append(layout(result, image).item())
                if reader is not None:
                    from ..metrics.readers import style_shown

                    weights = masks.logistic().weights(*result.shape[-2:])
                    shown = style_shown(reader, result, weights, pair)["side"][0]
                    found.setdefault("probability of the side's style, weaker side", []).append(
                        shown.min().item()
                    )
            for metric, values in found.items():
                unit = "dB" if metric.startswith("PSNR") else ""
                bench.add(
                    "steps",
                    f"bundled, {len(chosen)} pictures",
                    f"{method}, {steps} steps",
                    metric,
                    values,
                    unit,
                )


def caching_section(bench: Bench, options: Options) -> None:
    """What it saves, and what it costs, to keep the texts' keys and values, and deep features."""
    for name in options.models:
        model = _model(name, bench.device, bench.dtype)
        loop = make_loop(model, masks.logistic(), 1)
        project = _text_projections(model, loop.embeddings)
        seconds = bench.time(
            {"projecting them": project, "one UNet call of 2": _bare_calls(model, loop, 1, 2)},
            note="text keys",
        )
        share = [100 * r for r in ratios(seconds, "one UNet call of 2")["projecting them"]]
        size = sum(x.numel() * x.element_size() for pair in project() for x in pair)
        case = f"{name}, keys and values of 3 texts, kept"
        bench.add("caching", case, "attention", "time saved per step", seconds["projecting them"], "s")
        bench.add("caching", case, "attention", "of a UNet call", share, "%")
        bench.add("caching", case, "attention", "memory it takes", size / 2**20, "MiB")
    model, steps = _model("bundled", bench.device, bench.dtype), options.steps
    picture, pair = styles.pictures()[0], styles.pairs()[0]
    trajectory = _trajectory(model, picture, steps)
    prompts = [styles.prompt(style, picture.caption) for style in pair]

    def run(every):
        with reuse_deep_features(model.unet, every):
            return blend(model, trajectory, prompts, masks.logistic(), method="epsilon", progress=False)

    variants = {f"deep features every {e} steps": lambda e=e: run(e) for e in (1, 2, 3, 5)}
    seconds = bench.time(variants, note="deep features")
    first = next(iter(variants))
    for variant, call in list(variants.items())[1:]:
        gain = [1 / r for r in ratios(seconds, first)[variant]]
        bench.add("caching", "bundled, deep features", variant, "times faster", gain, "×")
        bench.add(
            "caching",
            "bundled, deep features",
            variant,
            "PSNR to none reused",
            psnr(call(), run(1)).item(),
            "dB",
        )


SECTIONS: dict[str, Callable[[Bench, Options], None]] = {
    "pictures": pictures,
    "overhead": overhead,
    "kernels": kernel_section,
    "cpu": cpu_section,
    "steps": steps_section,
    "caching": caching_section,
}


def _bound(calls: dict[str, Callable], loop) -> dict[str, Callable]:
    return {name: lambda c=call: c(loop) for name, call in calls.items()}


def _text_projections(model: Model, embeddings: Tensor) -> Callable[[], list]:
    """The keys and values of every cross-attention, projected as a UNet without memory does at every step."""
    layers = [model.unet.get_submodule(layer) for layer in cross_attention_layers(model.unet)]
    return lambda: [(a.to_k(embeddings), a.to_v(embeddings)) for a in layers]


@lru_cache(maxsize=4)
def _model(name: str, device: torch.device, dtype: torch.dtype) -> Model:
    if name == "bundled":
        return load(device=device, dtype=dtype)
    return random_model(CONFIGS[name], device, dtype, name)


def _steps(name: str, options: Options, total: int) -> int:
    return min(total, options.steps or (total if name == "bundled" else 1))


def _bare_calls(model: Model, loop, steps: int, samples: int, unet=None) -> Callable[[], None]:
    """The UNet alone, `steps` times, on the first `samples` texts."""
    x = loop.trajectory.x_T.to(model.device, model.dtype).repeat(samples, 1, 1, 1)
    times = make_schedule(model.scheduler, steps).timesteps.to(model.device)
    rows, unet = loop.embeddings[:samples], unet or model.unet

    def call():
        for t in times:
            unet(x, t, encoder_hidden_states=rows)

    return call


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


def _with_threads(n: int, before: int, call: Callable) -> None:
    torch.set_num_threads(n)
    try:
        call()
    finally:
        torch.set_num_threads(before)


def _trajectory(model: Model, picture, steps: int | None):
    image = read_image(picture.file, model)
    steps = steps or model.settings.steps
    skip = round(steps * model.settings.skip / model.settings.steps)
    generator = torch.Generator(model.device).manual_seed(0)
    return invert(model, image, picture.caption, steps=steps, skip=skip, generator=generator, progress=False)


def _blended(model: Model, picture, method: str, pair, steps: int) -> tuple[Tensor, Tensor]:
    """The source picture and its two-style version."""
    trajectory = _trajectory(model, picture, steps)
    prompts = [styles.prompt(style, picture.caption) for style in pair]
    result = blend(model, trajectory, prompts, masks.logistic(), method=method, progress=False)
    return read_image(picture.file, model), result


def _reader():
    """The style probe, where it is there."""
    try:
        from ..metrics.readers import load_probe

        return load_probe()
    except (ImportError, OSError, SafetensorError):
        return None
