"""The three kernels in Triton. `dsnb.kernels` imports this module at the first use of a kernel.

Every kernel computes the equations of `reference` in one pass over memory: it reads queries and predictions once and
writes outputs once. The 77 keys and values of a prompt stay on the chip. Sums are float32.
"""

import functools
import os

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it at import too
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@triton.jit
def _load(ptr, rows, n_rows, stride, FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr,
          UP: tl.constexpr):  # fmt: skip
    """A (rows, WIDTH) piece of a matrix from column FIRST on, zero outside of it."""
    cols = FIRST + tl.arange(0, WIDTH)
    mask = (rows < n_rows)[:, None] & (cols < DIM)[None, :]
    x = tl.load(ptr + rows[:, None] * stride + cols[None, :], mask, 0.0)
    return x.to(tl.float32) if UP else x


@triton.jit
def _store(ptr, x, rows, n_rows, stride, FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr):
    cols = FIRST + tl.arange(0, WIDTH)
    mask = (rows < n_rows)[:, None] & (cols < DIM)[None, :]
    tl.store(ptr + rows[:, None] * stride + cols[None, :], x.to(ptr.dtype.element_ty), mask)


@triton.jit
def _scores(q0, q1, k, k_l, keys, n_keys, scale, DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
            UP: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    """Q Kᵀ in base-2 units against one piece of the keys; minus infinity past the last key."""
    s = tl.dot(q0, tl.trans(_load(k, keys, n_keys, k_l, 0, D0, DIM, UP)), input_precision=PRECISION)
    if D1 > 0:
        s = tl.dot(q1, tl.trans(_load(k, keys, n_keys, k_l, D0, D1, DIM, UP)), s, input_precision=PRECISION)
    return tl.where((keys < n_keys)[None, :], s * scale, float("-inf"))


@triton.jit
def _probabilities(q0, q1, k, k_l, n_keys, scale, DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
                   L0: tl.constexpr, L1: tl.constexpr, UP: tl.constexpr,
                   PRECISION: tl.constexpr):  # fmt: skip
    """Probabilities, not yet normalised, for both pieces of the keys (one piece where L1 is 0); their sum."""
    p0 = _scores(q0, q1, k, k_l, tl.arange(0, L0), n_keys, scale, DIM, D0, D1, UP, PRECISION)
    if L1 > 0:
        p1 = _scores(q0, q1, k, k_l, L0 + tl.arange(0, L1), n_keys, scale, DIM, D0, D1, UP, PRECISION)
        top = tl.maximum(tl.max(p0, 1), tl.max(p1, 1))[:, None]
        p0, p1 = tl.exp2(p0 - top), tl.exp2(p1 - top)
        return p0, p1, tl.sum(p0, 1) + tl.sum(p1, 1)
    else:
        p0 = tl.exp2(p0 - tl.max(p0, 1)[:, None])
        return p0, p0, tl.sum(p0, 1)


@triton.jit
def _add_values(acc, p0, p1, v, v_l, n_keys, FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr,
                L0: tl.constexpr, L1: tl.constexpr, UP: tl.constexpr,
                PRECISION: tl.constexpr):  # fmt: skip
    """acc + P V for the columns of V from FIRST on."""
    v0 = _load(v, tl.arange(0, L0), n_keys, v_l, FIRST, WIDTH, DIM, UP)
    acc = tl.dot(p0.to(v0.dtype), v0, acc, input_precision=PRECISION)
    if L1 > 0:
        v1 = _load(v, L0 + tl.arange(0, L1), n_keys, v_l, FIRST, WIDTH, DIM, UP)
        acc = tl.dot(p1.to(v1.dtype), v1, acc, input_precision=PRECISION)
    return acc


@triton.jit
def _blend_attention(q, k, v, out, weights, roles, n_queries, n_keys, n_prompts, heads, scale,
                     q_b, q_t, k_p, k_l, v_p, v_l, o_b, o_t, w_r, w_p,
                     Q_H: tl.constexpr, K_H: tl.constexpr, V_H: tl.constexpr, O_H: tl.constexpr,
                     DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, L0: tl.constexpr,
                     L1: tl.constexpr, M: tl.constexpr, UP: tl.constexpr,
                     PRECISION: tl.constexpr):  # fmt: skip
    """One head of M queries; neighbouring programs are heads of the same tokens, which share cache lines."""
    head, row = tl.program_id(0) % heads, tl.program_id(1).to(tl.int64)
    tokens = tl.program_id(0) // heads * M + tl.arange(0, M)
    q += row * q_b + head * Q_H
    q0 = _load(q, tokens, n_queries, q_t, 0, D0, DIM, UP)
    q1 = _load(q, tokens, n_queries, q_t, D0, D1, DIM, UP) if D1 > 0 else q0
    out0 = tl.zeros((M, D0), tl.float32)
    out1 = tl.zeros((M, D1 if D1 > 0 else 16), tl.float32)
    weights += tl.load(roles + row) * w_r
    for prompt in range(n_prompts):
        weight = tl.load(weights + prompt * w_p + tokens, tokens < n_queries, 0.0)
        if tl.max((weight != 0).to(tl.int32), 0) > 0:
            k_i, v_i = k + prompt * k_p + head * K_H, v + prompt * v_p + head * V_H
            p0, p1, total = _probabilities(q0, q1, k_i, k_l, n_keys, scale, DIM, D0, D1, L0, L1, UP,
                                           PRECISION)  # fmt: skip
            scale_p = (weight / total)[:, None]
            p0, p1 = p0 * scale_p, p1 * scale_p
            out0 = _add_values(out0, p0, p1, v_i, v_l, n_keys, 0, D0, DIM, L0, L1, UP, PRECISION)
            if D1 > 0:
                out1 = _add_values(out1, p0, p1, v_i, v_l, n_keys, D0, D1, DIM, L0, L1, UP, PRECISION)
    out += row * o_b + head * O_H
    _store(out, out0, tokens, n_queries, o_t, 0, D0, DIM)
    if D1 > 0:
        _store(out, out1, tokens, n_queries, o_t, D0, D1, DIM)


@triton.jit
def _store_maps(maps, m, first, n_chosen, start, N: tl.constexpr, tokens, n_queries):
    """Write the columns of m (keys from `start` on) that are among the n_chosen keys from `first` on."""
    slot = start + tl.arange(0, N) - first
    mask = (tokens < n_queries)[:, None] & ((slot >= 0) & (slot < n_chosen))[None, :]
    tl.store(maps + tokens[:, None] * n_chosen + slot[None, :], m, mask)


@triton.jit
def _attention_with_maps(q, k, v, out, maps, first, n_queries, n_keys, n_chosen, heads, heads_per, scale,
                         q_b, q_t, k_b, k_l, v_b, v_l, o_b, o_t, m_g, m_b,
                         Q_H: tl.constexpr, K_H: tl.constexpr, V_H: tl.constexpr, O_H: tl.constexpr,
                         DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, L0: tl.constexpr,
                         L1: tl.constexpr, M: tl.constexpr, UP: tl.constexpr,
                         PRECISION: tl.constexpr):  # fmt: skip
    """A group of heads of M queries, one after the other, so that the sum over heads needs no atomics."""
    group, row = tl.program_id(2), tl.program_id(1).to(tl.int64)
    tokens = tl.program_id(0) * M + tl.arange(0, M)
    sum0 = tl.zeros((M, L0), tl.float32)
    sum1 = tl.zeros((M, L1 if L1 > 0 else 16), tl.float32)
    for head in range(group * heads_per, tl.minimum((group + 1) * heads_per, heads)):
        q_i, k_i, v_i = q + row * q_b + head * Q_H, k + row * k_b + head * K_H, v + row * v_b + head * V_H
        q0 = _load(q_i, tokens, n_queries, q_t, 0, D0, DIM, UP)
        q1 = _load(q_i, tokens, n_queries, q_t, D0, D1, DIM, UP) if D1 > 0 else q0
        p0, p1, total = _probabilities(q0, q1, k_i, k_l, n_keys, scale, DIM, D0, D1, L0, L1, UP, PRECISION)
        p0, p1 = p0 / total[:, None], p1 / total[:, None]
        sum0 += p0
        if L1 > 0:
            sum1 += p1
        o_i = out + row * o_b + head * O_H
        out0 = tl.zeros((M, D0), tl.float32)
        out0 = _add_values(out0, p0, p1, v_i, v_l, n_keys, 0, D0, DIM, L0, L1, UP, PRECISION)
        _store(o_i, out0, tokens, n_queries, o_t, 0, D0, DIM)
        if D1 > 0:
            out1 = tl.zeros((M, D1), tl.float32)
            out1 = _add_values(out1, p0, p1, v_i, v_l, n_keys, D0, D1, DIM, L0, L1, UP, PRECISION)
            _store(o_i, out1, tokens, n_queries, o_t, D0, D1, DIM)
    maps += group * m_g + row * m_b
    _store_maps(maps, sum0 / heads, first, n_chosen, 0, L0, tokens, n_queries)
    if L1 > 0:
        _store_maps(maps, sum1 / heads, first, n_chosen, L0, L1, tokens, n_queries)


@triton.jit
def _blend_step(eps_uncond, eps_cond, weights, guidance, x_t, noise, x_next, x_0, n_styles, size, plane,
                clean_x, clean_e, next_x, next_e, next_z, NOISY: tl.constexpr,
                BLOCK: tl.constexpr):  # fmt: skip
    """BLOCK pixels of one channel plane: everything is read once, x_next and x_0 are written once."""
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < plane
    at = tl.program_id(1) * plane + pixel
    base = tl.load(eps_uncond + at, inside, 0.0).to(tl.float32)
    e = base
    for i in range(n_styles):
        scale = tl.load(weights + i * plane + pixel, inside, 0.0) * tl.load(guidance + i)
        e += scale * (tl.load(eps_cond + i * size + at, inside, 0.0).to(tl.float32) - base)
    x = tl.load(x_t + at, inside, 0.0).to(tl.float32)
    tl.store(x_0 + at, clean_x * x + clean_e * e, inside)
    x = next_x * x + next_e * e
    if NOISY:
        x += next_z * tl.load(noise + at, inside, 0.0).to(tl.float32)
    tl.store(x_next + at, x, inside)


def unsupported(name: str, *args) -> str | None:
    """Why the fused kernel `name` cannot compute this call, or None where it can."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    if not (tensors[0].is_cuda or INTERPRETED):
        return f"Triton needs tensors on a GPU, and these are on {tensors[0].device.type!r}"
    if any(t.requires_grad for t in tensors) and torch.is_grad_enabled():
        return "it has no backward pass; call it under torch.no_grad()"
    if name == "blend_step":
        if args[1].numel() >= 2**31:
            return f"eps_cond has {args[1].numel()} values, 2**31 or more"
        if args[4].dtype == torch.float64:
            return "x_t is float64, and it computes in float32"
        return None
    q, k, v, last, *_ = args
    if q.dtype not in DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        return f"q, k and v must share one of float16, bfloat16 and float32, got {q.dtype} and {k.dtype}"
    if q.shape[3] > 160:
        return f"head size {q.shape[3]} is above 160"
    if k.shape[2] > 160:
        return f"{k.shape[2]} keys are more than the 160 that stay on the chip"
    if name == "blend_attention" and last.weights.shape[1:] != (k.shape[0], q.shape[2]):
        return (
            f"the plan's weights {tuple(last.weights.shape)} do not fit {len(k)} prompts, {q.shape[2]} tokens"
        )
    return None


def blend_attention(q: Tensor, k: Tensor, v: Tensor, weights: Tensor, roles: Tensor) -> Tensor:
    """`reference.blend_attention`; weights float32 and contiguous, roles int32, as in an `AttentionPlan`."""
    batch, heads, n_queries, dim = q.shape
    q, k, v = (_rows(x) for x in (q, k, v))
    out = q.new_empty(batch, n_queries, heads, dim).transpose(1, 2)
    launch = _launch(q, n_queries)
    _blend_attention[(triton.cdiv(n_queries, launch["M"]) * heads, batch)](
        q, k, v, out, weights, roles, n_queries, k.shape[2], k.shape[0], heads, LOG2_E * dim**-0.5,
        *_strides(q, k, v, out), weights.stride(0), weights.stride(1), **launch, **_constants(q, k, v),
    )  # fmt: skip
    return out


def attention_with_maps(q: Tensor, k: Tensor, v: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    """`reference.attention_with_maps`."""
    batch, heads, n_queries, dim = q.shape
    q, k, v = (_rows(x) for x in (q, k, v))
    out = q.new_empty(batch, n_queries, heads, dim).transpose(1, 2)
    launch = _launch(q, n_queries)
    tiles = triton.cdiv(n_queries, launch["M"])
    groups = min(heads, triton.cdiv(2 * _processors(q.device), tiles * batch))
    per = triton.cdiv(heads, groups)
    groups = triton.cdiv(heads, per)
    maps = q.new_empty(groups, batch, n_queries, count, dtype=torch.float32)
    _attention_with_maps[(tiles, batch, groups)](
        q, k, v, out, maps, first, n_queries, k.shape[2], count, heads, per,
        LOG2_E * dim**-0.5, *_strides(q, k, v, out), maps.stride(0), maps.stride(1), **launch,
        **_constants(q, k, v),
    )  # fmt: skip
    return out, maps.sum(0) if groups > 1 else maps[0]


def blend_step(eps_uncond, eps_cond, weights, guidance, x_t, noise, step) -> tuple[Tensor, Tensor]:
    """`reference.blend_step`."""
    plane = x_t.shape[-2] * x_t.shape[-1]
    eps_uncond, eps_cond, x_t = eps_uncond.contiguous(), eps_cond.contiguous(), x_t.contiguous()
    weights, guidance = (t.to(x_t.device, torch.float32).contiguous() for t in (weights, guidance))
    noise = None if noise is None else noise.contiguous()
    x_next, x_0 = (torch.empty(x_t.shape, dtype=torch.float32, device=x_t.device) for _ in range(2))
    block = min(1024, max(16, triton.next_power_of_2(plane)))
    _blend_step[(triton.cdiv(plane, block), x_t.numel() // plane)](
        eps_uncond, eps_cond, weights, guidance, x_t, noise, x_next, x_0, len(eps_cond), x_t.numel(), plane,
        *step, NOISY=noise is not None, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return x_next, x_0


def _split(n: int) -> tuple[int, int]:
    """Two powers of two, the second perhaps 0, that just cover n: 77 becomes 64 + 16, 40 becomes 32 + 16."""
    whole = max(16, triton.next_power_of_2(n))
    if n <= 16 or whole == n:
        return whole, 0
    rest = max(16, triton.next_power_of_2(n - whole // 2))
    return (whole // 2, rest) if rest < whole // 2 else (whole, 0)


def _constants(q: Tensor, k: Tensor, v: Tensor) -> dict:
    """Constants of the attention kernels. The interpreter's bfloat16 products are wrong: it gets float32."""
    dim = q.shape[3]
    (d0, d1), (l0, l1) = _split(dim), _split(k.shape[2])
    heads = dict(Q_H=q.stride(1), K_H=k.stride(1), V_H=v.stride(1), O_H=dim)
    up = INTERPRETED and q.dtype == torch.bfloat16
    exact = q.dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
    return dict(DIM=dim, D0=d0, D1=d1, L0=l0, L1=l1, UP=up, PRECISION="ieee" if exact else "tf32", **heads)


def _strides(*tensors: Tensor) -> list[int]:
    """Row and token strides of (B, heads, T, d) tensors. Head strides are constants, so that loads align."""
    return [t.stride(axis) for t in tensors for axis in (0, 2)]


def _launch(q: Tensor, n_queries: int) -> dict:
    """Queries per program, and warps, that fit the registers and the shared memory of any GPU since Turing.

    float32 products do not run on tensor cores and need many registers. There is one stage, because the data that a
    pipeline would load ahead does not fit.
    """
    full, wide = q.dtype == torch.float32, q.shape[3] > 80
    most = (16 if wide else 32) if full else 64
    fitting = 64 if n_queries > 32 else 32 if n_queries > 16 else 16
    return dict(M=min(most, fitting), num_warps=8 if full or wide else 4, num_stages=1)


def _rows(x: Tensor) -> Tensor:
    """x, copied only where its rows are not contiguous."""
    return x if x.stride(3) == 1 else x.contiguous()


@functools.lru_cache
def _processors(device: torch.device) -> int:
    """Multiprocessors to keep busy."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
