"""Kernels of attention that could be used or written: what runs here, how fast, and how right.

One layer, forward and backward: rows of 4,096, batch 4, 16 query heads over 8 key-value heads of 128, bfloat16. Those
that know of packed dialogues get some twelve a row, or trees, where they know of them; the others one whole row. Errors
are relative, to the plain formula in float32. The time with backward is that of the gradients of query, key and value.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu import measure, product, shapes

B, L, H, G, K = (2, 128, 4, 2, 64) if shapes.TINY else (4, 4096, 16, 8, 128)
# As mtsft compiles its step: a kernel whose gradient is added up in any order may be another then.
FLAGS = product.compiler_options(jax.default_backend())
UNTUNED = {"xla_gpu_autotune_level": 0}  # of what is not timed
SCALE = K**-0.5


def _inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (H, G, G, H)
    return [jax.random.normal(key, (B, L, n, K), jnp.bfloat16) for key, n in zip(keys, heads)]


@lru_cache(maxsize=3)
def _layout(kind: str):
    """The layout of rows that hold no padding, in numpy. kind: "packed" chains, packed "trees", "whole rows"."""
    make = shapes.branching if kind == "trees" else shapes.chain
    rows = shapes.full_rows(1, B, L, 100, make, typical=0 if kind == "whole rows" else L / 12)
    return product.layout_of(product.pack(rows, L))


@lru_cache(maxsize=3)
def _reference(kind: str) -> tuple[jax.Array, ...]:
    """What comes out, and the gradients of query, key and value: by the plain formula, in float32 throughout."""
    query, key, value, weight = (x.astype(jnp.float32) for x in _inputs())
    ends, places = jnp.asarray(_layout(kind).subtree_ends), jnp.arange(L)

    @jax.checkpoint
    def row(query, key, value, ends):
        key, value = (jnp.repeat(x, H // G, axis=1) for x in (key, value))
        seen = (places[None] <= places[:, None]) & (places[:, None] < ends[None])
        scores = jnp.where(seen, jnp.einsum("qhk,shk->hqs", query, key) * SCALE, -jnp.inf)
        return jnp.einsum("hqs,shk->qhk", jax.nn.softmax(scores), value)

    def both(query, key, value):
        def total(query, key, value):
            out = jax.lax.map(lambda each: row(*each), (query, key, value, ends))
            return (out * weight).sum(), out

        gradients, out = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(query, key, value)
        return out, *gradients

    with jax.default_matmul_precision("highest"):
        return jax.jit(both).lower(query, key, value).compile(UNTUNED)(query, key, value)


def _errors(found, wanted) -> float:
    """The largest of the relative errors."""
    pairs = [(x.astype(jnp.float32), y) for x, y in zip(found, wanted)]
    return max(float(jnp.linalg.norm(x - y) / jnp.linalg.norm(y)) for x, y in pairs)


def _time(attend: Callable, kind: str, backward: bool = True) -> dict[str, Any]:
    query, key, value, _ = inputs = _inputs()
    layout, wanted = jax.device_put(_layout(kind)), _reference(kind)

    def total(query, key, value, weight, layout):
        return (attend(query, key, value, layout) * weight).astype(jnp.float32).sum()

    forward, line = measure.compiled(jax.jit(attend).lower(query, key, value, layout), FLAGS)
    line["error"] = _errors([forward(query, key, value, layout)], wanted[:1])
    line["forward_ms"] = round(measure.seconds_each(partial(forward, query, key, value, layout), 0.2)[0] * 1e3, 3)
    needed = 4 * K * H * float((layout.positions + 1).astype(jnp.float32).sum())  # a query sees its path
    line["forward_share"] = round(needed / line["forward_ms"] * 1e3 / measure.PEAK, 4)
    if backward:
        both, more = measure.compiled(jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*inputs, layout), FLAGS)
        line["gib"], line["compile_s"] = more["gib"], round(line["compile_s"] + more["compile_s"], 1)
        line["gradient_error"] = _errors(both(*inputs, layout), wanted[1:])
        line["step_ms"] = round(measure.seconds_each(partial(both, *inputs, layout), 0.2)[0] * 1e3, 3)
        line["share"] = round(3 * needed / line["step_ms"] * 1e3 / measure.PEAK, 4)
    return line


def tiles(kernel: str) -> list[dict[str, Any]]:
    """Tiles of one of our kernels, "forward", "query" or "key", the others as they are; the fastest few.

    Milliseconds are of forward alone, or of forward and backward. Tiles that cannot be compiled are left out.
    """
    query, key, value, _ = inputs = _inputs()
    layout = jax.device_put(_layout("packed"))

    def total(how, query, key, value, weight, layout):
        return (_ours(how, query, key, value, layout) * weight).astype(jnp.float32).sum()

    def compiled(how):
        if kernel == "forward":
            return jax.jit(partial(_ours, how)).lower(query, key, value, layout).compile(FLAGS)
        return jax.jit(jax.grad(partial(total, how), argnums=(0, 1, 2))).lower(*inputs, layout).compile(FLAGS)

    def attempt(how):
        try:
            return compiled(how)
        except Exception:
            return None

    names = ["pallas", *[name for name in product.ATTENTION if name.startswith(f"pallas, {kernel} ")]]
    with ThreadPoolExecutor(12) as threads:
        programs = dict(zip(names, threads.map(attempt, names)))
    arguments = (query, key, value, layout) if kernel == "forward" else (*inputs, layout)
    lines = []
    for name, program in programs.items():
        try:
            seconds, spread = measure.seconds_each(partial(program, *arguments), 0.05)
        except Exception:  # none, or one that asks for more than a multiprocessor has
            continue
        lines.append({"what": name, "step_ms": round(seconds * 1e3, 3), "spread": round(spread, 3)})
    best = sorted(lines, key=lambda line: line["step_ms"])
    return [line for place, line in enumerate(best) if place < 6 or line["what"] == "pallas"]


def _ours(how: str, query, key, value, layout):
    return product.attention(query, key, value, layout, how, most_trees=_most_trees())


def _most_trees() -> int:
    return int(_layout("packed").segment_ids.max())


def _jax(implementation: str, query, key, value, layout):
    how = dict(scale=SCALE, implementation=implementation)
    return jax.nn.dot_product_attention(query, key, value, is_causal=True, **how)


def _jax_masked(implementation: str, query, key, value, layout):
    places = jnp.arange(L)
    mask = (places[None, None] <= places[None, :, None]) & (places[None, :, None] < layout.subtree_ends[:, None])
    how = dict(scale=SCALE, implementation=implementation)
    return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None], **how)


def _triton(query, key, value, layout):
    """The flash attention in Pallas' Triton that JAX ships as an example; it knows segments and no groups."""
    from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha

    blocks = BlockSizes(64, 64, 64, 64, 64, 64)
    key, value = (jnp.repeat(x, H // G, axis=2) for x in (key, value))
    how = dict(sm_scale=SCALE, causal=True, block_sizes=blocks, interpret=shapes.TINY)
    return mha(query, key, value, layout.segment_ids, **how)


def _mosaic(query, key, value, layout):
    """The flash attention in Pallas' Mosaic that JAX ships as an example: in float16 alone, and it scales nothing."""
    from jax.experimental.pallas.ops.gpu.attention_mgpu import TuningConfig, attention

    config = TuningConfig(block_q=64, block_kv=128, max_concurrent_steps=2, causal=True)
    return attention((query * SCALE).astype("float16"), key.astype("float16"), value.astype("float16"), config)


def _double(x_ref, y_ref):
    y_ref[...] = x_ref[...] * 2


def _pallas(kind: str) -> dict[str, Any]:
    """Whether a kernel of one line compiles and runs."""
    shape = jax.ShapeDtypeStruct((512, 128), jnp.float32)
    if kind == "triton":
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import triton

        block = pl.BlockSpec((128, 128), lambda i: (i, 0))
        how = dict(compiler_params=triton.CompilerParams(), interpret=shapes.TINY)
        call = pl.pallas_call(_double, grid=(4,), in_specs=[block], out_specs=block, out_shape=shape, **how)
    else:  # a pallas_call with Mosaic's parameters is not lowered in JAX 0.11
        from jax.experimental.pallas import mosaic_gpu

        call = mosaic_gpu.kernel(_double, out_type=shape)
    x = jax.random.normal(jax.random.key(0), shape.shape)
    program, line = measure.compiled(jax.jit(call).lower(x))
    return {"right": bool((program(x) == 2 * x).all()), "compile_s": line["compile_s"]}


CASES = {
    "attention plain, packed": partial(_time, partial(_ours, "plain"), "packed"),
    "attention plain, whole rows": partial(_time, partial(_ours, "plain"), "whole rows"),
    "attention plain, trees": partial(_time, partial(_ours, "plain"), "trees"),
    "attention cudnn, packed": partial(_time, partial(_ours, "cudnn"), "packed"),
    "attention cudnn, whole rows": partial(_time, partial(_ours, "cudnn"), "whole rows"),
    **{f"tiles of {kernel}": partial(tiles, kernel) for kernel in ("forward", "query", "key")},
    **{
        f"attention pallas, {kind}": partial(_time, partial(_ours, "pallas"), kind)
        for kind in ("packed", "trees", "whole rows")
    },
    "attention jax xla, whole rows": partial(_time, partial(_jax, "xla"), "whole rows"),
    "attention jax cudnn, whole rows": partial(_time, partial(_jax, "cudnn"), "whole rows"),
    "attention jax cudnn mask, packed": partial(_time, partial(_jax_masked, "cudnn"), "packed"),
    "attention pallas triton example, packed": partial(_time, _triton, "packed"),
    "attention pallas mosaic example, whole rows": partial(_time, _mosaic, "whole rows", backward=False),
    "pallas triton": partial(_pallas, "triton"),
    "pallas mosaic": partial(_pallas, "mosaic"),
}
