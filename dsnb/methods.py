"""The methods with one signature: from a trajectory, N prompts and a mask to the images.

Each method gives a noise prediction eps(x_t, t, progress) to the same denoising loop.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from . import checks
from .adapters import check_adapters, switched_adapter
from .attention import blend_cross_attention
from .epsilon import Predictions, guidance_per_style
from .families import Prompts
from .inversion import FROM_NOISE, Trajectory, guided_eps
from .job import Job, decode_trajectory, mixed_rows
from .joint import joint_rows
from .masks import Mask
from .models import Model, check_negative_prompt, decode_latents, drawing, refuse_blending
from .regional import regional_context
from .sampling import Step

UNCONDITIONAL, MIXED, ALONE = 0, 1, 2  # roles of `attention.Blend`; style i alone is ALONE + i


# Parameters of `blend` that only some methods have.
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
    """Blends N styles in the trajectory's images, by the mask.

    Args:
        model: the model that recorded the trajectory.
        trajectory: from `invert` or `from_noise`, of B images.
        prompts: one text per style, in the mask's order; or encoded prompts with one row per style, for example
            with weighted words of compel (see the docs, "Model families").
        mask: where each of the N styles goes.
        method: "prompt" (one prompt that names all styles), "pixel" (each style decoded alone, then the images
            blended), "epsilon" (blended noise predictions), "attention" (blended cross-attentions), "regional"
            (attention with `regional.regional_context`), "combined" (epsilon while the progress is below `switch`,
            regional after it) or "joint" (a masked bias in joint attention, see `joint.joint_bias`). Models with a
            UNet have all but "joint". Transformers have "prompt", "pixel" and "epsilon"; Stable Diffusion 3, FLUX.1 and
            FLUX.2 also have "joint". Default `default_method(model)`.
        guidance: one guidance scale for all styles, or one per style. Method "prompt" uses their mean. The default is
            the model's for the method, see `families.Settings`.
        negative_prompt: a text in place of the empty prompt. Guidance moves the image away from it.
        one_prompt: for method "prompt", its text. The default is `name_places(prompts)`. Encoded prompts have no
            default.
        switch: for method "combined", the progress of the switch, from 0 to 1; default 0.5.
        regional: for method "combined", whether it uses "regional" after the switch (default) or "attention".
        passes: for the methods with cross-attention, weights of repeated passes through each layer, see
            `attention.blend_cross_attention`; default one plain pass.
        loras: for method "epsilon", the name of one adapter per style, loaded by `model.pipe.load_lora_weights`, or
            None for a style without one. `model.pipe.set_adapters` sets their strengths. A step then has N network
            calls of 2 samples instead of one call of N + 1. Afterwards the same adapters are active as before.
        callback: called with a `sampling.Step` after each step.
        progress: whether to show a progress bar.

    Returns:
        (B, 3, H, W) in [0, 1], float32, on the CPU.

    Raises:
        ValueError: a parameter out of range, one that the method does not have, a trajectory that does not fit, or a
            result that is not finite.
        TypeError: a parameter of a wrong type.
        NotImplementedError: a method that the model's family does not have, an IP-Adapter, or attention processors or
            offloading with which the method cannot work.
        RuntimeError: the call is inside the callback of a cross-attention blend with the same model.
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
        check_negative_prompt(model, negative_prompt),
        None if one_prompt is None else checks.text("one_prompt", one_prompt),
        0.5 if switch is None else checks.number("switch", switch, 0, 1),
        True if regional is None else checks.flag("regional", regional),
        (1.0,) if passes is None else tuple(checks.numbers("passes", passes, None, 0, 1)),
        callback,
        progress,
        None if loras is None else check_adapters(model.pipe, loras, mask.n),
    )
    with drawing(model):
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
    """Draws the trajectory's images with one prompt, without a mask.

    With the caption, guidance and negative prompt of its inversion, they are the source images again, with the errors
    of the autoencoder.

    Args:
        model: the model that recorded the trajectory.
        trajectory: of B images.
        prompt: one text, or a list with one for each image; or encoded prompts with one row, or one for each image.
        guidance: the guidance scale; default `model.settings.guidance`, or `sampling_guidance` for a trajectory from
            noise.
        negative_prompt: a text in place of the empty prompt. Guidance moves the image away from it.
        callback: called with a `sampling.Step` after each step.
        progress: whether to show a progress bar.

    Returns:
        (B, 3, H, W) in [0, 1], float32, on the CPU.

    Raises:
        ValueError: a parameter out of range, a trajectory that does not fit, or a result that is not finite.
        TypeError: a parameter of a wrong type.
        NotImplementedError: the model has an IP-Adapter.
        RuntimeError: the call is inside the callback of a cross-attention blend with the same model.
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
    negative_prompt = check_negative_prompt(model, negative_prompt)
    with drawing(model):
        eps = guided_eps(model, prompt, guidance, negative_prompt)
        return decode_latents(model, decode_trajectory(model, trajectory, eps, callback, progress))


def default_method(model: Model) -> str:
    """The default method of a model.

    Args:
        model: the model.

    Returns:
        "combined" if the model has it, else "epsilon". The docs compare them (page "Findings").
    """
    return "combined" if "combined" in methods_of(model) else "epsilon"


def default_guidance(model: Model, trajectory: Trajectory, method: str = "") -> float:
    """The default guidance scale for a trajectory and a method.

    Args:
        model: the model.
        trajectory: from an inversion or from noise, which have different defaults.
        method: of `blend`; "" for `decode`.

    Returns:
        The guidance scale.
    """
    settings = model.settings
    if trajectory.method == FROM_NOISE:
        return settings.sampling_guidance
    return settings.guidance_of(method)


def _check(model: Model, trajectory: Trajectory, callback: Callable | None) -> None:
    checks.instance("model", model, Model, "dsnb.load opens one")
    checks.instance("trajectory", trajectory, Trajectory, "dsnb.invert records one")
    checks.function("callback", callback)


def refuse_timed(mask: Mask) -> None:
    """Raises ValueError for a mask that changes over the steps, because finished images have no steps."""
    if mask.timed:
        raise ValueError(
            "the mask changes over the steps, but a pixel blend has finished images only; use a mask with timed=False, "
            "or method 'epsilon'"
        )


def blend_pixels(images: Tensor, mask: Mask) -> Tensor:
    """Blends finished images by the mask, x = sum_i M_i x_i.

    Args:
        images: (N, B, 3, H, W) in [0, 1], one style after the other.
        mask: of N styles, not timed.

    Returns:
        (B, 3, H, W) in [0, 1].

    Raises:
        ValueError: the mask is timed, or `images` has another shape or holds no floating-point numbers.
    """
    refuse_timed(mask)
    if images.dim() != 5 or len(images) != mask.n or not images.is_floating_point():
        raise ValueError(
            f"images must be floating-point numbers of shape ({mask.n}, B, 3, H, W), got {images.dtype} of shape "
            f"{tuple(images.shape)}"
        )
    weights = mask.weights(*images.shape[-2:]).to(images)
    return (weights[:, None, None] * images).sum(0).clamp(0, 1)


def name_places(prompts: Sequence[str]) -> str:
    """One prompt that names every style and its position.

    Args:
        prompts: one text per style, from left to right.

    Returns:
        The prompt, such as "A on the left and B on the right". A single prompt stays as it is.
    """
    if len(prompts) == 1:
        return prompts[0]
    if len(prompts) == 2:
        return f"{prompts[0]} on the left and {prompts[1]} on the right"
    return "From left to right: " + "; ".join(prompts)


def _prompt(job: Job) -> Tensor:
    return job.decode(job.one_prompt or "", job.guidance.mean().item())


def _pixel(job: Job) -> Tensor:
    refuse_timed(job.mask)  # before the images are drawn
    each = [job.decode(prompt, guidance) for prompt, guidance in job.styles()]
    return blend_pixels(torch.stack(each), job.mask)


def _epsilon(job: Job) -> Tensor:
    """One UNet call of N + 1 samples per step: eps = sum_i M_i (eps_uncond + s_i (eps_i - eps_uncond))."""
    if job.loras is not None:
        return _epsilon_with_loras(job, job.loras)
    contexts, weights = job.contexts(), job.latent_weights()
    return job.run(lambda x_t, t, progress: job.predict(x_t, t, contexts, weights(progress)))


def _epsilon_with_loras(job: Job, loras: Sequence[str | None]) -> Tensor:
    """Each style has an adapter of its own, for both of its predictions: eps = sum_i M_i (u_i + s_i (eps_i - u_i))."""
    weights, ones, pipe = job.latent_weights(), torch.ones_like(job.guidance), job.model.pipe
    styles = []
    for lora, (prompt, guidance) in zip(loras, job.styles(), strict=True):
        with switched_adapter(pipe, lora):  # the text encoder may have the adapter, too
            styles.append(guided_eps(job.model, prompt, guidance, job.negative_prompt))

    def network(x_t: Tensor, t: Tensor, progress: float) -> Predictions:
        guided = []
        for lora, style in zip(loras, styles, strict=True):
            with switched_adapter(pipe, lora):
                guided.append(style(x_t, t, progress))
        return Predictions(guided[0], torch.stack(guided), weights(progress), ones)

    return job.run(network)


def _attention(job: Job) -> Tensor:
    """One UNet call of 2 samples per step; the conditional one mixes the prompts in every cross-attention."""
    return _hooked(job, switch=0.0)


def _regional(job: Job) -> Tensor:
    """As `_attention`, with group normalisation and self-attention weighted by the mask, too."""
    return _hooked(job, switch=0.0, regional=True)


def _combined(job: Job) -> Tensor:
    """The epsilon mask while progress < switch, then (regional) attention interpolation, under the same hooks."""
    return _hooked(job, job.switch, job.regional)


def _hooked(job: Job, switch: float, regional: bool = False) -> Tensor:
    """One row per style while progress < switch, then one mixed row, perhaps with regional context."""
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
            rows = contexts if progress < switch else mixed_rows(contexts, weights(progress))
            return job.predict(x_t, t, rows, weights(progress))

        return job.run(network)


def _joint(job: Job) -> Tensor:
    """One network call per step of 2 samples, or 1 if the model is not guided: all texts in one joint attention."""
    contexts, weights, family, pipe = job.contexts(), job.latent_weights(), job.model.family, job.model.pipe
    height, width = (side // family.patch for side in job.size())

    def network(x_t: Tensor, t: Tensor, progress: float) -> Predictions:
        at_tokens = job.mask.weights(height, width, progress).flatten(1).to(x_t.device)
        rows = joint_rows(contexts, at_tokens)
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
TITLES = {  # as panels and figures name them
    "prompt": "one prompt",
    "pixel": "pixel blend",
    "epsilon": "epsilon mask",
    "attention": "cross-attention",
    "regional": "regional context",
    "combined": "combined",
}
JOINT_METHODS: Mapping[str, Method] = {**PLAIN_METHODS, "joint": _joint}
BY_ATTENTION = {"cross": METHODS, "joint": JOINT_METHODS, "plain joint": PLAIN_METHODS}


def methods_of(model: Model) -> Mapping[str, Method]:
    """The methods of a model's family.

    Args:
        model: the model.

    Returns:
        Name -> function. `blend` accepts these names.
    """
    return BY_ATTENTION[model.family.attention]


def _refuse_other(model: Model, method: str) -> None:
    """NotImplementedError for a method that only other kinds of attention have."""
    others = {*METHODS, *JOINT_METHODS} - set(methods_of(model))
    if isinstance(method, str) and method in others:
        raise NotImplementedError(
            f"method {method!r} is not there for {model.family.name}, whose network reads text by "
            f"{model.family.attention} attention; its methods are {', '.join(methods_of(model))}"
        )
