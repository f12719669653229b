"""Whatever a user passes: a finite image comes out, or a ValueError or TypeError that names a parameter."""

import math
import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dsnb
from dsnb import images, masks

WRONG = [None, "2", b"2", [], [1], ["x", None], {}, object(), 1j, print, True, torch.ones(2), np.ones(2)]


def mostly(usual, odd=None):
    """Usual values, one time in ten others: odd ones of the right type, or of a wrong type."""
    other = st.sampled_from(WRONG) if odd is None else st.one_of(odd, st.sampled_from(WRONG))
    return st.tuples(st.integers(0, 9), usual, other).map(lambda drawn: drawn[1 + (drawn[0] == 9)])


scalars = [0, 1e30, 10**400, np.float16(3), torch.tensor(2.0), torch.tensor([1.5]), torch.tensor(math.nan)]
reals = mostly(st.floats(0.01, 30), st.one_of(st.floats(), st.sampled_from(scalars)))
units = mostly(st.floats(0, 1), st.sampled_from([0, 1, 1.0000001, -0.1, math.nan]))
wholes = mostly(st.integers(2, 4), st.sampled_from([0, 1, 10**9, 10**400, np.int64(2), torch.tensor(3), 2.0]))
lists = st.one_of(
    reals, st.lists(reals, min_size=1, max_size=3), st.lists(st.floats(0.1, 9), min_size=2, max_size=2)
)
inversions = mostly(st.sampled_from(["dpm-encoder", "ddim", "edit-friendly"]), st.just("ddim "))
methods = mostly(st.sampled_from(sorted(dsnb.methods.METHODS)), st.just("Epsilon"))
texts = st.one_of(st.text(max_size=20), st.sampled_from(["\ud800", "a\0b", "a " * 200, "🐻", *WRONG]))
prompts = st.one_of(texts, st.lists(texts, max_size=3), st.just(["a bear", "a cat"]))
shapes = st.one_of(st.just((1, 3, 8, 8)), st.lists(st.integers(0, 9), max_size=5).map(tuple))
pixels = st.sampled_from([0.0, 0.5, 1.0, 1.0000001, -0.1, math.nan, math.inf])
tensors = st.builds(lambda shape, value: torch.full(shape, value), shapes, pixels)
arrays = st.builds(
    lambda image, kind: np.asarray(image.numpy()).astype(kind),
    tensors,
    st.sampled_from(["f4", "f2", "i4", "?"]),
)
sources = st.one_of(tensors, arrays, st.sampled_from([*WRONG, "nothing.png", "/", "a\0b"]))
formulas = st.one_of(
    st.text("xyrt0123456789+-*/%().<> ", max_size=12),
    st.sampled_from(
        ["1 / t", "log(x - t)", "x if t > y else r", "9 ** 9 ** 9", "tan(a) ** 0.5", "min(x, y) and 1"]
    ),
    mostly(st.lists(st.sampled_from(["x", "y", "t", "1"]), min_size=1, max_size=3)),
)
sizes = st.sampled_from([8, 16, 12, None, (8, 16), (8,), 10**9, *WRONG])
made_masks = st.one_of(
    st.builds(lambda *a: lambda: masks.logistic(*a), reals, wholes, reals, lists),
    st.builds(lambda *a: lambda: masks.linear(*a), wholes, reals, lists),
    st.builds(lambda *a: lambda: masks.radial(*a), wholes, reals, reals, lists),
    st.builds(lambda *a: lambda: masks.stripes(*a), wholes, wholes, reals, reals),
    st.builds(lambda *a: lambda: masks.sharpen(*a), reals, reals, wholes, reals),
    st.builds(
        lambda *a: lambda: masks.linear().active(*a), st.lists(units, max_size=3), st.lists(units, max_size=3)
    ),
    st.builds(lambda f: lambda: masks.formula(f), formulas),
    st.builds(lambda a: lambda: masks.from_weights(a), sources),
    st.builds(lambda a: lambda: masks.image(a), sources),
    st.builds(lambda a: lambda: a, sources),
)


@pytest.fixture(scope="module")
def trajectory(tiny):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 8, 8, generator=generator)
    return dsnb.invert(tiny, image, "a bear", steps=2, skip=0, generator=generator, progress=False)


def calls(tiny, trajectory):
    """One call of a public function, with values of any kind for some of its parameters."""
    some = lambda **each: st.fixed_dictionaries({}, optional=each)
    generators = mostly(st.just(torch.Generator()))
    callbacks = mostly(st.just(lambda step: None))
    inverting = some(
        method=inversions, steps=wholes, skip=wholes, eta=units, guidance=reals, generator=generators
    )
    blending = some(
        method=methods,
        guidance=lists,
        one_prompt=texts,
        switch=units,
        passes=lists,
        callback=callbacks,
        negative_prompt=texts,
    )
    decoding = some(guidance=reals, callback=callbacks)

    def blend(prompts, mask, options):
        mask = mask()
        if isinstance(mask, masks.Mask) and isinstance(prompts, str) and prompts == "fitting":
            prompts = ["a bear", "a cat", "a dog", "a car", "a bus", "a cup"][: mask.n]
        return dsnb.blend(tiny, trajectory, prompts, mask, progress=False, **options)

    def invert(image, caption, options):
        t = dsnb.invert(tiny, image, caption, **{"steps": 2, "progress": False} | options)
        return dsnb.decode(tiny, t, t.caption, progress=False)

    def noise(options):
        t = dsnb.from_noise(tiny, **{"size": 8, "steps": 1} | options)
        return dsnb.decode(tiny, t, "a bear", progress=False)

    def decode(prompt, options):
        return dsnb.decode(tiny, trajectory, prompt, progress=False, **options)

    def read(source, size):
        return dsnb.read_image(source, size=size)

    def show(image):
        return torch.from_numpy(np.array(images.to_pil(image)))

    fitting, half = st.just("fitting"), torch.full((1, 3, 8, 8), 0.5)
    return st.one_of(
        st.tuples(st.just(blend), st.one_of(fitting, prompts), made_masks, blending),
        st.tuples(st.just(blend), fitting, made_masks, st.just({})),
        st.tuples(st.just(blend), fitting, st.just(masks.linear), blending),
        st.tuples(st.just(invert), sources, prompts, inverting),
        st.tuples(st.just(invert), st.just(half), st.just("a bear"), inverting),
        st.tuples(st.just(decode), prompts, decoding),
        st.tuples(st.just(noise), some(size=sizes, seed=wholes, batch=wholes, steps=wholes, eta=units)),
        st.tuples(st.just(read), sources, sizes),
        st.tuples(st.just(show), sources),
    )


# What a message may name: parameters, and the parts of those that are made of parts.
NAMED = re.compile(
    r"\b(model|image|caption|method|steps|skip|eta|guidance|generator|prompts?|mask|one_prompt|switch|callback|size|n|seed|batch|passes|negative_prompt|"
    r"angle|center|sharpness|radius|count|first|last|starts|ends|expression|formula|weights|latents|noises|x_T)\b"
)


@pytest.mark.parametrize("cases", [30, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("tiny_folder", [1], indirect=True)
def test_a_finite_image_or_an_error_that_names_a_parameter(tiny, trajectory, cases):
    @settings(max_examples=cases, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(calls(tiny, trajectory))
    def check(call):
        function, *arguments = call
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = function(*arguments)
            except (ValueError, TypeError, FileNotFoundError) as error:
                assert NAMED.search(str(error)), error
            else:
                assert torch.isfinite(image.float()).all() and image.numel()

    check()
