"""What `dsnb.lab.bench` measures: one function per section, each adding rows to a `Bench`."""

import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ... import masks, prompts
from ...attention import cross_attention_layers
from ...attention_maps import record_attention
from ...checkpoints import load
from ...images import read_image
from ...inversion import invert
from ...methods import METHODS, blend
from ...metrics import layout, psnr
from ...metrics.classifiers import load_probe, style_shown
from ...models import Model, count_unet_samples
from ...sampling import make_schedule
from ..grid import read_table, run
from .baselines import CONFIGS, make_loop, random_model, reuse_deep_features, source_attention, source_epsilon
from .harness import MOST_REPEATS, Bench, Options, ratios
from .kernel_section import kernel_section

MODELS = ("bundled", *CONFIGS)
NOTEBOOK = Path(__file__).resolve().parents[3] / "notebooks" / "00_blend_two_styles.ipynb"


def pictures(bench: Bench, options: Options) -> None:
    """UNet samples, seconds and memory of the denoising loop alone: every method, beside the source project's way.

    SDXL on a CPU is asked for the two methods of interest where N is above 2; "combined", which changes midway,
    where no step is left out.
    """
    for name in options.models:
        model = _model(name, bench.device, bench.dtype)
        total = model.settings.steps - model.settings.skip
        for n in options.styles:
            case, steps = f"{name}, N = {n}", _steps(name, options, total)
            few = n > 2 and name not in _affordable(bench, options)
            asked = [m for m in METHODS if m != "combined" or steps == total]
            calls = {method: METHODS[method] for method in (("epsilon", "attention") if few else asked)}
            calls |= {"source's epsilon": source_epsilon, "source's attention": source_attention}
            variants = _bound(calls, make_loop(model, masks.logistic(n=n), steps))
            seconds = _patience(bench, name).time(variants, note=case)
            for variant, call in variants.items():
                with count_unet_samples(model.unet) as count, torch.no_grad():
                    memory = bench.peak_memory(call)
                samples = count.samples / steps
                bench.add("pictures", case, variant, "UNet samples per step", samples, "")
                bench.add("pictures", case, variant, "UNet samples per picture", samples * total, "")
                per_picture = [s / steps * total for s in seconds[variant]]
                bench.add("pictures", case, variant, "loop per picture", per_picture, "s")
                bench.add("pictures", case, variant, "peak memory", memory / 2**20, "MiB")
            for ours in ("epsilon", "attention"):
                gain = ratios(seconds, ours)[f"source's {ours}"]
                bench.add("pictures", case, ours, "times faster than the source's", gain, "×")


def whole(bench: Bench, options: Options) -> None:
    """A whole picture of two styles as the notebooks draw it, texts and autoencoder included: its inversion, then
    epsilon and attention, alone and with all attention recorded. The bundled model."""
    picture, pair, mask = prompts.pictures()[0], prompts.pairs()[0], masks.logistic()
    texts = [prompts.prompt(style, picture.caption) for style in pair]
    for dtype in dict.fromkeys((bench.dtype, torch.float32)):
        model = _model("bundled", bench.device, dtype)
        for steps in dict.fromkeys((options.steps or model.settings.steps, options.steps or 25)):
            trajectory = _trajectory(model, picture, steps)
            size = trajectory.x_T.shape[-2:]
            variants = {"inversion": partial(_trajectory, model, picture, steps)}
            for method in ("epsilon", "attention"):
                draw = partial(blend, model, trajectory, texts, mask, method=method, progress=False)

                def watched(draw=draw, model=model, size=size):
                    with record_attention(model, texts, size):
                        draw()

                variants |= {method: draw, f"{method}, attention recorded": watched}
            drawn, name = len(trajectory.noises), str(dtype).removeprefix("torch.")
            case = f"bundled, {name}, {steps} steps, {drawn} of them drawn"
            seconds = bench.time(variants, note=case)
            for variant, times in seconds.items():
                bench.add("whole", case, variant, "time", times, "s")
            for method in ("epsilon", "attention"):
                added = [100 * (r - 1) for r in ratios(seconds, method)[f"{method}, attention recorded"]]
                bench.add("whole", case, f"{method}, attention recorded", "recording adds", added, "%")


def grid(bench: Bench, options: Options) -> None:
    """What a point of a grid costs beside its notebook, and how much faster two workers are than one.

    Eight points of notebook 00 with one picture each, on worker processes of this machine.
    """
    points, fixed, seconds = 8 if options.steps is None else 2, {"rows": 1, "steps": options.steps or 0}, {}
    for workers in (1, 2):
        with TemporaryDirectory() as folder:
            report = run(
                NOTEBOOK,
                {"seed": list(range(points))},
                fixed,
                folder,
                workers=workers,
                progress=bench.progress,
            )
            if report.failed:
                raise ValueError(f"{report.failed} of {points} points of {NOTEBOOK.name} failed")
            seconds[workers] = report.seconds
            table = read_table(report.table).drop_duplicates("point")
            books = [nbformat.read(Path(folder, name), as_version=4) for name in table.notebook]
        own = [_duration(book) for book in books]
        beside = [all_of_it - notebook for all_of_it, notebook in zip(table.seconds, own, strict=True)]
        case, variant = f"notebook 00, {points} points", f"{workers} worker{'s' * (workers > 1)}"
        bench.add("grid", case, variant, "time of a notebook", own, "s")
        bench.add("grid", case, variant, "a point beside its notebook", beside, "s")
        bench.add("grid", case, variant, "time of the grid", report.seconds, "s")
    bench.add("grid", case, variant, "times faster than one worker", seconds[1] / seconds[2], "×")


def _duration(book: nbformat.NotebookNode) -> float:
    """Seconds that an executed notebook's cells took, from the time stamps that its kernel sent."""
    stamps = [stamp for cell in book.cells for stamp in cell.metadata.get("execution", {}).values()]
    times = [datetime.fromisoformat(stamp) for stamp in stamps]
    return (max(times) - min(times)).total_seconds()


def overhead(bench: Bench, options: Options) -> None:
    """What the loop, the blend and the hooks add to bare UNet calls of the same number of samples."""
    for name in _affordable(bench, options):
        model = _model(name, bench.device, bench.dtype)
        steps = _steps(name, options, model.settings.steps - model.settings.skip)
        loop = make_loop(model, masks.logistic(), steps)
        variants = {}
        for method, samples in (("epsilon", 3), ("attention", 2)):
            variants |= _bound({method: METHODS[method]}, loop)
            variants[f"bare {method}"] = _bare_calls(model, loop, steps, samples)
        seconds = _patience(bench, name).time(variants, note=f"{name}: the loop's share")
        for method in ("epsilon", "attention"):
            share = [100 * (r - 1) for r in ratios(seconds, f"bare {method}")[method]]
            per_call = [s / steps for s in seconds[f"bare {method}"]]
            bench.add("overhead", name, method, "one bare UNet call", per_call, "s")
            bench.add("overhead", name, method, "the loop's share over bare calls", share, "%")


def cpu_section(bench: Bench, options: Options) -> None:
    """float32 against bfloat16, channels-last, threads and torch.compile, for one UNet call of 3 samples.

    SD 1.5 is not compiled, which takes many minutes on a CPU.
    """
    if bench.device.type != "cpu":
        return
    threads = torch.get_num_threads()
    for name in _affordable(bench, options):
        variants = {}
        for dtype in (torch.float32, torch.bfloat16):
            model = _model(name, bench.device, dtype)
            label = str(dtype).removeprefix("torch.")
            call = _bare_calls(model, make_loop(model, masks.logistic(), 1), 1, 3)
            variants[f"{label}, channels-last"] = call
            if threads > 1:
                variants[f"{label}, channels-last, 1 thread"] = lambda c=call: _with_threads(1, threads, c)
            plain = Model(copy.copy(model.pipe), model.name, model.settings)
            plain.pipe.unet = copy.deepcopy(model.unet).to(memory_format=torch.contiguous_format)
            variants[label] = _bare_calls(plain, make_loop(plain, masks.logistic(), 1), 1, 3)
            if options.compiled and name == "bundled":
                unet = torch.compile(model.unet, dynamic=False)
                variants[f"{label}, channels-last, compiled"] = _bare_calls(model, make_loop(
                    model, masks.logistic(), 1), 1, 3, unet)  # fmt: skip
        seconds = _patience(bench, name).time(variants, note=f"{name}: dtypes, layouts, threads")
        best = min(seconds, key=lambda v: sorted(seconds[v])[len(seconds[v]) // 2])
        for variant, ratio in ratios(seconds, best).items():
            bench.add("cpu", f"{name}, one call of 3", variant, "time", seconds[variant], "s")
            bench.add("cpu", f"{name}, one call of 3", variant, "times the best", ratio, "×")


def steps_section(bench: Bench, options: Options) -> None:
    """The same picture in fewer steps: how near it stays, and how well it keeps style and structure."""
    model = _model("bundled", bench.device, bench.dtype)
    counts = [s for s in (99, 50, 25, 12) if options.steps is None or s <= options.steps] or [options.steps]
    chosen, reader = prompts.pictures()[: 12 if options.steps is None else 1], load_probe()
    pair, weights = (
        prompts.pairs()[0],
        masks.logistic().weights(*read_image(chosen[0].file, model).shape[-2:]),
    )
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
                weaker = style_shown(reader, result, weights, pair)["side"].min().item()
                found.setdefault("probability of the side's style, weaker side", []).append(weaker)
            case, variant = f"bundled, {len(chosen)} pictures", f"{method}, {steps} steps"
            for metric, values in found.items():
                bench.add("steps", case, variant, metric, values, "dB" if metric.startswith("PSNR") else "")


def caching_section(bench: Bench, options: Options) -> None:
    """What it saves, and what it costs, to keep the texts' keys and values, and deep features."""
    for name in _affordable(bench, options):
        model = _model(name, bench.device, bench.dtype)
        loop = make_loop(model, masks.logistic(), 1)
        project = _text_projections(model, loop.embeddings)
        seconds = _patience(bench, name).time(
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
    picture, pair = prompts.pictures()[0], prompts.pairs()[0]
    trajectory = _trajectory(model, picture, steps)
    texts = [prompts.prompt(style, picture.caption) for style in pair]

    def run(every):
        with reuse_deep_features(model.unet, every):
            return blend(model, trajectory, texts, masks.logistic(), method="epsilon", progress=False)

    variants = {f"deep features every {e} steps": lambda e=e: run(e) for e in (1, 2, 3, 5)}
    seconds = bench.time(variants, note="deep features")
    first = next(iter(variants))
    for variant, call in list(variants.items())[1:]:
        gain = [1 / r for r in ratios(seconds, first)[variant]]
        bench.add("caching", "bundled, deep features", variant, "times faster", gain, "×")
        near = psnr(call(), run(1)).item()
        bench.add("caching", "bundled, deep features", variant, "PSNR to none reused", near, "dB")


SECTIONS: dict[str, Callable[[Bench, Options], None]] = {
    "grid": grid,
    "pictures": pictures,
    "whole": whole,
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


def _affordable(bench: Bench, options: Options) -> list[str]:
    """The models to ask the smaller questions of: not SDXL on a CPU, half a minute a call."""
    return [name for name in options.models if name != "SDXL" or bench.device.type == "cuda"]


def _patience(bench: Bench, name: str) -> Bench:
    """The same bench, with fewer repeats where this model's calls take half a minute."""
    slow = name == "SDXL" and bench.device.type == "cpu"
    return replace(bench, repeats=min(bench.repeats, MOST_REPEATS)) if slow else bench


def _steps(name: str, options: Options, total: int) -> int:
    return min(total, options.steps or (total if name == "bundled" else 1))


def _bare_calls(model: Model, loop, steps: int, samples: int, unet=None) -> Callable[[], None]:
    """The UNet alone, `steps` times, on the first `samples` texts."""
    x = loop.trajectory.x_T.to(model.device, model.dtype).repeat(samples, 1, 1, 1)
    times = make_schedule(model.scheduler, steps).timesteps.to(model.device)
    rows, unet = loop.embeddings[:samples], model.unet if unet is None else unet

    def call():
        for t in times:
            unet(x, t, encoder_hidden_states=rows)

    return call


def _with_threads(n: int, before: int, call: Callable) -> None:
    torch.set_num_threads(n)
    try:
        call()
    finally:
        torch.set_num_threads(before)


def _trajectory(model: Model, picture, steps: int | None):
    image = read_image(picture.file, model)
    generator = torch.Generator(model.device).manual_seed(0)
    return invert(model, image, picture.caption, steps=steps, generator=generator, progress=False)


def _blended(model: Model, picture, method: str, pair, steps: int) -> tuple[Tensor, Tensor]:
    """The source picture and its two-style version."""
    trajectory = _trajectory(model, picture, steps)
    texts = [prompts.prompt(style, picture.caption) for style in pair]
    result = blend(model, trajectory, texts, masks.logistic(), method=method, progress=False)
    return read_image(picture.file, model), result
