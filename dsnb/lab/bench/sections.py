"""What the bench measures: one function per section, each adding rows to a `Bench`."""

import copy
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ... import masks, prompts
from ...attention_maps import record_attention
from ...checkpoints import load
from ...images import read_image
from ...inversion import Trajectory, invert
from ...methods import METHODS, blend
from ...metrics import layout, psnr
from ...metrics.classifiers import load_probe, style_shown
from ...models import Model, count_unet_samples
from ...sampling import make_schedule
from .baselines import CONFIGS, Loop, make_loop, random_model, source_attention, source_epsilon
from .kernel_section import kernel_section
from .measure import Bench

MODELS = ("bundled", *CONFIGS)


def pictures(bench: Bench) -> None:
    """The denoising loop alone: every method beside the source project's way, in samples, seconds and GPU memory."""
    for name in bench.models:
        model = _model(name, bench.device, bench.dtype)
        total, steps = model.settings.steps - model.settings.skip, _steps(bench, name, model)
        for n in bench.styles:
            case, methods = f"{name}, N = {n}", dict(METHODS)
            if bench.slow(name) and n > 2:
                methods = {method: METHODS[method] for method in ("epsilon", "attention")}
            methods |= {"source's epsilon": source_epsilon, "source's attention": source_attention}
            drawn = dict.fromkeys(methods, steps)  # denoising steps
            if "combined" in methods and steps < total:
                drawn["combined"] = 2  # one before its switch and one after
            loops = {count: make_loop(model, masks.logistic(n=n), count) for count in set(drawn.values())}
            calls = {variant: partial(method, loops[drawn[variant]]) for variant, method in methods.items()}
            seconds = bench.time(calls, note=case, most=2 if bench.slow(name) else None)
            for variant, call in calls.items():
                add = partial(bench.add, "pictures", case, variant)
                if bench.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(bench.device)
                    before = torch.cuda.memory_allocated(bench.device)
                with count_unet_samples(model.unet) as count, torch.no_grad():
                    call()
                if bench.device.type == "cuda":
                    peak = torch.cuda.max_memory_allocated(bench.device) - before
                    add("peak memory", peak / 2**20, "MiB")
                add("UNet samples per step", count.samples / drawn[variant], "")
                add("UNet samples per image", count.samples / drawn[variant] * total, "")
                add("loop per image", seconds[variant] / drawn[variant] * total, "s")
                if variant in ("epsilon", "attention"):
                    gain = seconds[f"source's {variant}"] / seconds[variant]
                    add("times faster than the source's", gain, "×")


def whole(bench: Bench) -> None:
    """A whole image of two styles as the notebooks draw it, its inversion, and what recording the attention adds."""
    image, pair, mask = prompts.pictures()[0], prompts.pairs()[0], masks.logistic()
    texts = [prompts.prompt(style, image.caption) for style in pair]
    for dtype in dict.fromkeys((bench.dtype, torch.float32)):
        model = _model("bundled", bench.device, dtype)
        for steps in dict.fromkeys((bench.steps or model.settings.steps, bench.steps or 25)):
            trajectory = _trajectory(model, image, steps)
            calls = {"inversion": partial(_trajectory, model, image, steps)}
            for method in ("epsilon", "attention"):
                draw = partial(blend, model, trajectory, texts, mask, method=method, progress=False)
                calls[method] = draw
                calls[f"{method}, attention recorded"] = partial(_recorded, draw, model, texts, trajectory)
            name = str(dtype).removeprefix("torch.")
            case = f"bundled, {name}, {steps} steps, {len(trajectory.noises)} of them drawn"
            seconds = bench.time(calls, note=case)
            for variant, times in seconds.items():
                bench.add("whole", case, variant, "time", times, "s")
                if variant.endswith("recorded"):
                    added = 100 * (times / seconds[variant.split(",")[0]] - 1)
                    bench.add("whole", case, variant, "recording adds", added, "%")


def overhead(bench: Bench) -> None:
    """What the loop, the blend and the hooks add to bare UNet calls of the same number of samples."""
    for name in (name for name in bench.models if not bench.slow(name)):
        model = _model(name, bench.device, bench.dtype)
        steps = _steps(bench, name, model)
        loop, calls = make_loop(model, masks.logistic(), steps), {}
        for method, samples in (("epsilon", 3), ("attention", 2)):
            calls[method] = partial(METHODS[method], loop)
            calls[f"bare {method}"] = _bare_calls(loop, steps, samples)
        seconds = bench.time(calls, note=f"{name}: overhead of the loop")
        for method in ("epsilon", "attention"):
            bare = seconds[f"bare {method}"]
            bench.add("overhead", name, method, "one bare UNet call", bare / steps, "s")
            added = 100 * (seconds[method] / bare - 1)
            bench.add("overhead", name, method, "the loop adds", added, "%")


def cpu_section(bench: Bench) -> None:
    """float32 against bfloat16, layouts, threads and torch.compile on a CPU, for one UNet call of 3 samples.

    SD 1.5 is not compiled, because that takes many minutes on a CPU.
    """
    threads = torch.get_num_threads()
    for name in (name for name in bench.models if bench.device.type == "cpu" and not bench.slow(name)):
        calls = {}
        for dtype in (torch.float32, torch.bfloat16):
            loop = make_loop(_model(name, bench.device, dtype), masks.logistic(), 1)
            label, unet = str(dtype).removeprefix("torch."), loop.model.unet
            plain = copy.deepcopy(unet).to(memory_format=torch.contiguous_format)
            calls[f"{label}, channels-last"] = _bare_calls(loop, 1, 3)
            calls[label] = _bare_calls(loop, 1, 3, plain)
            if threads > 1:
                alone = partial(_with_one_thread, _bare_calls(loop, 1, 3))
                calls[f"{label}, channels-last, 1 thread"] = alone
            if bench.compiled and name == "bundled":
                compiled = torch.compile(unet, dynamic=False)
                calls[f"{label}, channels-last, compiled"] = _bare_calls(loop, 1, 3, compiled)
        seconds = bench.time(calls, note=f"{name}: dtypes, layouts, threads")
        best = min(seconds.values(), key=lambda times: sorted(times)[len(times) // 2])
        for variant, times in seconds.items():
            bench.add("cpu", f"{name}, one call of 3", variant, "time", times, "s")
            bench.add("cpu", f"{name}, one call of 3", variant, "times the best", times / best, "×")


def steps_section(bench: Bench) -> None:
    """The same image in fewer steps: how much it changes, and how well it keeps style and layout."""
    model, most = _model("bundled", bench.device, bench.dtype), bench.steps or 99
    counts = [s for s in (99, 50, 25, 12) if s <= most] or [most]
    chosen = prompts.pictures()[: 1 if bench.steps else 6]
    classifier, pair = load_probe(), prompts.pairs()[0]
    for method in ("epsilon", "attention"):
        longest = {}
        for steps in tqdm(counts, desc=f"fewer steps, {method}", leave=False, disable=not bench.progress):
            add = partial(bench.add, "steps", f"bundled, {len(chosen)} images", f"{method}, {steps} steps")
            distances, layouts, weaker = [], [], []
            for entry in chosen:
                image, texts = read_image(entry.file, model), [prompts.prompt(s, entry.caption) for s in pair]
                trajectory = _trajectory(model, entry, steps)
                result = blend(model, trajectory, texts, masks.logistic(), method=method, progress=False)
                distances.append(psnr(result, longest.setdefault(entry.name, result)).item())
                layouts.append(layout(result, image).item())
                weights = masks.logistic().weights(*image.shape[-2:])
                weaker.append(style_shown(classifier, result, weights, pair)["side"].min().item())
            if steps != counts[0]:
                add(f"PSNR to {counts[0]} steps", distances, "dB")
            add("layout kept", layouts, "")
            add("probability of the side's style, weaker side", weaker, "")


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "pictures": pictures,
    "whole": whole,
    "overhead": overhead,
    "kernels": kernel_section,
    "cpu": cpu_section,
    "steps": steps_section,
}


@lru_cache(maxsize=4)
def _model(name: str, device: torch.device, dtype: torch.dtype) -> Model:
    if name == "bundled":
        return load(device=device, dtype=dtype)
    return random_model(CONFIGS[name], device, dtype, name)


def _steps(bench: Bench, name: str, model: Model) -> int:
    total = model.settings.steps - model.settings.skip
    return min(total, bench.steps or (total if name == "bundled" else 1))


def _bare_calls(loop: Loop, steps: int, samples: int, unet: Callable | None = None) -> Callable[[], None]:
    """The UNet alone, `steps` times, on the first `samples` texts."""
    model, rows = loop.model, loop.embeddings[:samples]
    x = loop.trajectory.x_T.to(model.device, model.dtype).repeat(samples, 1, 1, 1)
    times = make_schedule(model.scheduler, steps).timesteps.to(model.device)
    unet = model.unet if unet is None else unet
    return lambda: [unet(x, t, encoder_hidden_states=rows) for t in times] and None


def _with_one_thread(call: Callable) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        call()
    finally:
        torch.set_num_threads(before)


def _trajectory(model: Model, entry: prompts.Picture, steps: int) -> Trajectory:
    generator = torch.Generator(model.device).manual_seed(0)
    image = read_image(entry.file, model)
    return invert(model, image, entry.caption, steps=steps, generator=generator, progress=False)


def _recorded(draw: Callable[[], Tensor], model: Model, texts: list[str], trajectory: Trajectory) -> None:
    with record_attention(model, texts, trajectory.x_T.shape[-2:]):
        draw()
