"""The methods under one signature: a trajectory, N prompts and a mask go in, one image comes out.

Each method is a noise prediction eps(x_t, t, progress) for the one denoising loop.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from . import checks
from .adapters import check_adapters, switched_adapters
from .attention import blend_cross_attention
from .epsilon import Predictions, guidance_per_style
from .families import Prompts
from .inversion import FROM_NOISE, Trajectory, guided_eps
from .job import Job, decode_trajectory
from .joint import joint_rows
from .masks import Mask
from .models import Model, decode_latents, refuse_blending
from .regional import regional_context
from .sampling import Step

UNCONDITIONAL, MIXED, ALONE = 0, 1, 2  # roles of `attention.Blend`; style i alone is ALONE + i


# What only some methods take.
OPTIONS = {
    "one_prompt": ("prompt",),
    "switch": ("combined",),
    "regional": ("combined",),
    "passes": ("attention", "regional", "combined"),
    "loras": ("epsilon",),
}


def blend(
    model: Model,
    trajectory: Trajectory,
    prompts: Sequence[str] | Prompts,
    mask: Mask,
    *,
    method: str | None = None,
    guidance: float | Sequence[float] | None = None,
    negative_prompt: str = "",
    one_prompt: str | None = None,
    switch: float | None = None,
    regional: bool | None = None,
    passes: Sequence[float] | None = None,
    loras: Sequence[str | None] | None = None,
    callback: Callable[[Step], None] | None = None,
    progress: bool = True,
) -> Tensor:
    """The trajectory's images with N >= 2 prompts laid out by the mask.

    Args:
        model: the model that recorded the trajectory.
        trajectory: from `invert` or `from_noise`, of B images.
        prompts: one text per style, in the mask's order; or encoded prompts with one row per style, for example
            with weighted words of compel (see the docs, "Model families").
        mask: where each style goes.
        method: "prompt" (one prompt that names all styles), "pixel" (each style decoded alone, then the images
            blended), "epsilon" (blended noise predictions), "attention" (blended cross-attentions), "regional"
            (attention with `regional.regional_context`), "combined" (epsilon while the progress is below `switch`,
            regional after) or "joint" (a masked bias in joint attention, see `joint.joint_bias`). Models with a UNet
            have all but "joint"; transformers with joint attention have "prompt", "pixel", "epsilon" and "joint".
            Default `default_method(model)`.
        guidance: one number, or one per prompt; default the model's for the method, see `models.Settings`. Method
            "prompt" takes their mean.
        negative_prompt: the text in place of the empty prompt, which guidance moves away from.
        one_prompt: the text of method "prompt"; default the prompts from left to right.
        switch: of method "combined", from 0 to 1; default 0.5.
        regional: of method "combined", whether "regional" follows after the switch, or "attention"; default True.
        passes: of the methods with cross-attention, weights of repeated passes through each layer, see
            `attention.blend_cross_attention`; default one plain pass.
        loras: of method "epsilon", one name per style of an adapter that `model.pipe.load_lora_weights` loaded, or
            None for no adapter. Its strength is what `model.pipe.set_adapters` gave it. Costs N network calls of 2
            samples per step instead of one call of N + 1. Afterwards the same adapters are on as before.
        callback: called with a `sampling.Step` after each step.
        progress: whether to show a progress bar.

    Returns:
        (B, 3, H, W) in [0, 1], float32, on the CPU.

    Raises:
        ValueError: for a parameter out of range, one that the method does not take, a trajectory that does not fit,
            and a result that is not finite.
        TypeError: for a parameter of a wrong type.
        RuntimeError: inside the callback of a blend with the same model.
    """
    _check(model, trajectory, callback)
    if not isinstance(prompts, Prompts):
        prompts = checks.texts("prompts", prompts)
    method = default_method(model) if method is None else method
    _refuse_other(model, method)
    checks.one_of("method", method, methods_of(model))
    checks.instance("mask", mask, Mask, "dsnb.masks.from_weights(array) makes one")
    if len(prompts) != mask.n:
        raise ValueError(f"the mask has {mask.n} styles, so {mask.n} prompts are needed; got {len(prompts)}")
    for name, value in zip(OPTIONS, (one_prompt, switch, regional, passes, loras), strict=True):
        if value is not None and method not in OPTIONS[name]:
            takes = " and ".join(repr(other) for other in OPTIONS[name])
            raise ValueError(f"{name} is for method {takes}, not for {method!r}; leave it out")
    if method == "prompt" and one_prompt is None:
        if isinstance(prompts, Prompts):
            raise ValueError("one_prompt must be a text where prompts are encoded already, got None")
        one_prompt = name_places(prompts)
    guidance = default_guidance(model, trajectory, method) if guidance is None else guidance
    job = Job(
        model,
        trajectory,
        prompts,
        mask,
        guidance_per_style(guidance, mask.n, model.device),
        _check_negative(model, negative_prompt),
        None if one_prompt is None else checks.text("one_prompt", one_prompt),
        0.5 if switch is None else checks.number("switch", switch, 0, 1),
        True if regional is None else checks.flag("regional", regional),
        (1.0,) if passes is None else tuple(checks.numbers("passes", passes, None, 0, 1)),
        callback,
        progress,
        None if loras is None else check_adapters(model.pipe, "loras", loras, mask.n),
    )
    with model.lock:
        refuse_blending(model.network)
        return methods_of(model)[method](job)


def decode(
    model: Model,
    trajectory: Trajectory,
    prompt: str | Sequence[str] | Prompts,
    *,
    guidance: float | None = None,
    negative_prompt: str = "",
    callback: Callable[[Step], None] | None = None,
    progress: bool = True,
) -> Tensor:
    """The trajectory's images with another prompt and no mask.

    With an inversion's own caption, guidance and negative prompt they are the source images again, as the autoencoder
    draws them.

    Args:
        model: the model that recorded the trajectory.
        trajectory: of B images.
        prompt: one text, or a list with one for each image; or encoded prompts with one row, or one for each image.
        guidance: default `model.settings.guidance`, or `sampling_guidance` for a trajectory from noise.
        negative_prompt: the text in place of the empty prompt, which guidance moves away from.
        callback: called with a `sampling.Step` after each step.
        progress: whether to show a progress bar.

    Returns:
        (B, 3, H, W) in [0, 1], float32, on the CPU.

    Raises:
        ValueError: for a parameter out of range, a trajectory that does not fit, and a result that is not finite.
        TypeError: for a parameter of a wrong type.
        RuntimeError: inside the callback of a blend with the same model.
    """
    _check(model, trajectory, callback)
    if not isinstance(prompt, Prompts):
        prompt = checks.one_or_each("prompt", prompt, len(trajectory.x_T))
    elif len(prompt) not in (1, len(trajectory.x_T)):
        raise ValueError(
            f"prompt must have 1 row, or one for each image ({len(trajectory.x_T)}); got {len(prompt)}"
        )
    guidance = (
        default_guidance(model, trajectory) if guidance is None else checks.number("guidance", guidance)
    )
    negative_prompt = _check_negative(model, negative_prompt)
    with model.lock:
        eps = guided_eps(model, prompt, guidance, negative_prompt)
        return decode_latents(model, decode_trajectory(model, trajectory, eps, callback, progress))


def default_method(model: Model) -> str:
    """ "combined", which lost a style least often on validation images (figures/10_trials.csv), or else "epsilon"."""
    return "combined" if "combined" in methods_of(model) else "epsilon"


def default_guidance(model: Model, trajectory: Trajectory, method: str = "") -> float:
    """The guidance that suits a trajectory and a method: an inversion holds an image already, noise does not."""
    settings = model.settings
    if trajectory.method == FROM_NOISE:
        return settings.sampling_guidance
    return settings.guidance_of(method)


def _check_negative(model: Model, negative_prompt: str) -> str:
    if checks.text("negative_prompt", negative_prompt) and not model.guided:
        raise ValueError(
            f"negative_prompt must be empty for {model.family.name}, whose network has no unconditional prediction; "
            f"got {negative_prompt!r}"
        )
    return negative_prompt


def _check(model: Model, trajectory: Trajectory, callback: Callable | None) -> None:
    checks.instance("model", model, Model, "dsnb.load opens one")
    checks.instance("trajectory", trajectory, Trajectory, "dsnb.invert records one")
    checks.function("callback", callback)


def refuse_timed(mask: Mask) -> None:
    """ValueError for a mask that changes over the steps, which finished images no longer have."""
    if mask.timed:
        raise ValueError("the mask changes over the steps, which finished images no longer have; use another")


def blend_pixels(images: Tensor, mask: Mask) -> Tensor:
    """Finished images (N, B, 3, H, W) -> their masked sum (B, 3, H, W). ValueError for a timed mask."""
    refuse_timed(mask)
    weights = mask.weights(*images.shape[-2:]).to(images)
    return (weights[:, None, None] * images).sum(0).clamp(0, 1)


def name_places(prompts: Sequence[str]) -> str:
    """One prompt that names every style and its position in the image."""
    if len(prompts) == 2:
        return f"{prompts[0]} on the left and {prompts[1]} on the right"
    return "From left to right: " + "; ".join(prompts)


def _prompt(job: Job) -> Tensor:
    return job.decode(job.one_prompt or "", job.guidance.mean().item())


def _pixel(job: Job) -> Tensor:
    refuse_timed(job.mask)  # before the work
    each = [job.decode(prompt, guidance) for prompt, guidance in job.styles()]
    return blend_pixels(torch.stack(each), job.mask)


def _epsilon(job: Job) -> Tensor:
    """One UNet call of N + 1 samples per step: eps = sum_i M_i (eps_0 + s_i (eps_i - eps_0))."""
    if job.loras is not None:
        return _epsilon_with_loras(job, job.loras)
    contexts, weights = job.contexts(), job.latent_weights()
    return job.run(lambda x_t, t, progress: job.predict(x_t, t, contexts, weights(progress)))


def _epsilon_with_loras(job: Job, loras: Sequence[str | None]) -> Tensor:
    """Each style has an adapter of its own, for both of its predictions: eps = sum_i M_i (u_i + s_i (eps_i - u_i))."""
    weights, ones = job.latent_weights(), torch.ones_like(job.guidance)
    with switched_adapters(job.model.pipe) as switch:
        styles = []
        for lora, (prompt, guidance) in zip(loras, job.styles(), strict=True):
            switch(lora)  # its text encoder may have one too
            styles.append(guided_eps(job.model, prompt, guidance, job.negative_prompt))

        def network(x_t: Tensor, t: Tensor, progress: float) -> Predictions:
            guided = []
            for lora, style in zip(loras, styles, strict=True):
                switch(lora)
                guided.append(style(x_t, t, progress))
            return Predictions(guided[0], torch.stack(guided), weights(progress), ones)

        return job.run(network)


def _attention(job: Job) -> Tensor:
    """One UNet call of 2 samples per step; the conditional one mixes the prompts in every cross-attention."""
    return _hooked(job, switch=0.0)


def _regional(job: Job) -> Tensor:
    """As `_attention`, and each style keeps its own statistics and attends mostly to its own region."""
    return _hooked(job, switch=0.0, regional=True)


def _combined(job: Job) -> Tensor:
    """The epsilon mask while progress < switch, then (regional) attention interpolation, under the same hooks."""
    return _hooked(job, job.switch, job.regional)


def _hooked(job: Job, switch: float, regional: bool = False) -> Tensor:
    """Styles apart while progress < switch, then mixed; the context is regional only from there on."""
    contexts, weights = job.contexts(), job.latent_weights()
    styles = [ALONE + i for i in range(job.mask.n)]
    unet, mask, size, passes = job.model.unet, job.mask, job.size(), job.passes
    context = regional_context(unet, mask, size) if regional else nullcontext()
    with blend_cross_attention(unet, contexts.text, mask, size, passes=passes) as hook, context as regions:

        def network(x_t: Tensor, t: Tensor, progress: float) -> Predictions:
            roles = [UNCONDITIONAL, *(styles if progress < switch else [MIXED])]
            hook.at(progress, [role for role in roles for _ in range(len(x_t))])
            if regions is not None:
                regions.at(progress, on=progress >= switch)
            rows = contexts if progress < switch else job.mixed(contexts, weights(progress))
            return job.predict(x_t, t, rows, weights(progress))

        return job.run(network)


def _joint(job: Job) -> Tensor:
    """One network call of 2 samples per step (1 without a negative prompt): all texts in one joint attention."""
    contexts, weights, family, pipe = job.contexts(), job.latent_weights(), job.model.family, job.model.pipe
    height, width = (side // family.patch for side in job.size())

    def network(x_t: Tensor, t: Tensor, progress: float) -> Predictions:
        at_tokens = job.mask.weights(height, width, progress).flatten(1).to(x_t.device)
        rows = joint_rows(contexts, job.mask.n, at_tokens, at_tokens.mean(1))
        return job.predict(x_t, t, rows, weights(progress))

    with family.biased(pipe):
        return job.run(network)


Method = Callable[[Job], Tensor]
PLAIN_METHODS: Mapping[str, Method] = {"prompt": _prompt, "pixel": _pixel, "epsilon": _epsilon}
METHODS: Mapping[str, Method] = {
    **PLAIN_METHODS,
    "attention": _attention,
    "regional": _regional,
    "combined": _combined,
}
JOINT_METHODS: Mapping[str, Method] = {**PLAIN_METHODS, "joint": _joint}
BY_ATTENTION = {"cross": METHODS, "joint": JOINT_METHODS, "plain joint": PLAIN_METHODS}


def methods_of(model: Model) -> Mapping[str, Method]:
    """The methods that a model's family has, by name."""
    return BY_ATTENTION[model.family.attention]


def _refuse_other(model: Model, method: str) -> None:
    """NotImplementedError for a method that is there, but not for this model's kind of attention."""
    others = {*METHODS, *JOINT_METHODS} - set(methods_of(model))
    if isinstance(method, str) and method in others:
        raise NotImplementedError(
            f"method {method!r} is not there for {model.family.name}, whose network reads text by "
            f"{model.family.attention} attention; its methods are {', '.join(methods_of(model))}"
        )
