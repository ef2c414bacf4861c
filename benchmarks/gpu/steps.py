"""Whole training steps: tokens a second, share of the card's arithmetic, memory, and what takes the time."""

import gc
import inspect
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.gpu import measure, product, shapes

Line = dict[str, Any]
LORA = {"lora.rank": 16, "lora.alpha": 32.0, "model.param_dtype": "bfloat16"}
DETERMINISTIC = {"xla_gpu_deterministic_ops": True}
# Flags of XLA that others set, or that mtsft does.
ANY_ORDER = {"xla_gpu_exclude_nondeterministic_ops": False}
NO_TRITON = {"xla_gpu_enable_triton_gemm": False}
LATENCY = {"xla_gpu_enable_latency_hiding_scheduler": True}
CUDNN = {"xla_gpu_cudnn_gemm_fusion_level": 2}
# A profile shows a CUDA graph as one kernel, so that there may be none.
NO_GRAPHS = {"xla_gpu_enable_command_buffer": "", "xla_gpu_graph_min_graph_size": 1_000_000}


def step(
    name: str,
    rows: int,
    length: int,
    packed: bool,
    remat: str = "full",
    lora: bool = False,
    options: Line | None = None,
    profile: bool = False,
    **keys: Any,
) -> Line:
    """One training step of the project's own; halves the rows until they fit."""
    while True:
        try:
            return _time(_program(name, rows, length, packed, remat, lora, options, **keys), profile)
        except Exception as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or rows == 1:
                raise
        rows //= 2
        gc.collect()


class _Program(NamedTuple):
    run: Any
    batch: Any
    call: Callable
    needed: float  # floating-point operations
    line: Line  # what is known of it so far


_ahead: dict[Any, Future] = {}


def compile_ahead(names: Sequence[str]) -> None:
    """Compiles the steps among these cases, many at once: XLA itself sees to it that only one uses the card."""
    cases = [CASES[name] for name in names if getattr(CASES.get(name), "func", None) is step]
    with ThreadPoolExecutor(10) as threads:
        for case in cases:
            keys = {name: value for name, value in case.keywords.items() if name != "profile"}
            asked = _asked(*case.args, **keys)
            _ahead[repr(asked)] = threads.submit(_compile, *asked.args, **asked.kwargs)


def _program(name, rows, length, packed, remat="full", lora=False, options=None, **keys) -> _Program:
    """What was compiled ahead, or is compiled now."""
    asked = _asked(name, rows, length, packed, remat, lora, options, **keys)
    ahead = _ahead.pop(repr(asked), None)
    return ahead.result() if ahead else _compile(*asked.args, **asked.kwargs)


def _asked(*arguments, **keys) -> inspect.BoundArguments:
    """The arguments of `_program`, all of them."""
    asked = inspect.signature(_program).bind(*arguments, **keys)
    asked.apply_defaults()
    return asked


def _compile(name, rows, length, packed, remat, lora, options, **keys) -> _Program:
    sizes = shapes.SIZES[name]
    trees = shapes.full_rows(0, rows, length, sizes["vocab_size"], typical=length / 8 if packed else 0)
    batch = product.pack(trees, length)
    more = {"model.dtype": "bfloat16", "model.remat": remat, "train.batch_size": rows, "data.sequence_length": length}
    all_keys = shapes.keys_of(sizes, **more, **(LORA if lora else {}), **keys)
    most = max(map(len, trees))
    run = product.run_of(all_keys, (batch.response_mask > 0).sum(1), chains=True, most_trees=most)
    shape_of = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    lowered = product.compile_step(run).lower(run.shapes, run.frozen_shapes, shape_of)
    program, line = measure.compiled(lowered, options)
    line |= {"rows": rows, "remat": remat, "kernel": run.model.arch.attention_kernel}
    return _Program(run, batch, program, shapes.flops(sizes, trees, lora), line)


def _time(program: _Program, profile: bool) -> Line:
    run, rows, line = program.run, len(program.batch.tokens), dict(program.line)
    state, frozen, batch = run.create(), run.frozen(), run.partitioner.put(program.batch, rows)

    def call():
        nonlocal state
        state, metrics = program.call(state, frozen, batch)
        return metrics["loss"]

    seconds, spread = measure.seconds_each(call)
    line |= {
        "step_ms": round(seconds * 1e3, 2),
        "spread": round(spread, 4),
        "tokens_s": round(program.batch.tokens.size / seconds),
        "share": round(program.needed / seconds / measure.PEAK, 4),
        "loss": float(call()),
        "peak_gib": measure.peak_gib(),
    }
    if profile:
        try:
            line["profile"] = measure.top_kernels(call, program.call.as_text())
        except Exception as error:  # the times are known without it
            line["profile"] = {"note": f"no profile: {error!r}"[:300]}
    return line


def parts(name: str, rows: int) -> Line:
    """What a step is made of, each part as a program of its own: forward, with backward, attention, head."""
    sizes, length = shapes.SIZES[name], shapes.LONG
    trees = shapes.full_rows(0, rows, length, sizes["vocab_size"], typical=length / 8)
    batch = product.pack(trees, length)
    keys = {"model.dtype": "bfloat16", "model.remat": "full", "train.batch_size": rows}
    most = max(map(len, trees))
    run = product.run_of(shapes.keys_of(sizes, **keys), (batch.response_mask > 0).sum(1), chains=True, most_trees=most)
    params, batch = run.create().params, run.partitioner.put(batch, rows)
    total = product.nll(run)
    forward = measure.compiled(jax.jit(total).lower(params, batch))[0]
    both = measure.compiled(jax.jit(jax.value_and_grad(total)).lower(params, batch))[0]
    found = {
        "forward_ms": measure.seconds_each(partial(forward, params, batch))[0],
        "forward_backward_ms": measure.seconds_each(partial(both, params, batch))[0],
    }
    D, V, layers = sizes["hidden_size"], sizes["vocab_size"], sizes["num_hidden_layers"]
    H, G, K = sizes["num_attention_heads"], sizes["num_key_value_heads"], sizes["head_dim"]
    rng = np.random.default_rng(0)

    def some(*shape):
        return jax.device_put(rng.normal(size=shape).astype("bfloat16"))

    query, key, value = some(rows, length, H, K), some(rows, length, G, K), some(rows, length, G, K)

    def attend(query, key, value, layout):
        kernel = run.model.arch.attention_kernel
        return product.attention(query, key, value, layout, kernel, most).astype("float32").sum()

    call = partial(jax.jit(jax.grad(attend, argnums=(0, 1, 2))), query, key, value, product.layout_of(batch))
    found["attention_of_all_layers_ms"] = measure.seconds_each(call)[0] * layers
    call = jax.jit(partial(jax.grad(product.head_nll, argnums=(0, 1)), chunk=0))
    found["head_ms"] = measure.seconds_each(partial(call, some(rows, length, D), some(D, V), batch))[0]
    return {name: round(seconds * 1e3, 2) for name, seconds in found.items()} | {"rows": rows}


def head(chunk: int) -> Line:
    """The head alone: 8,192 supervised tokens of 4,096 meet a vocabulary of 128,256, forward and backward."""
    rows, length, D, V = (2, 64, 32, 512) if shapes.TINY else (2, 4096, 4096, 128_256)
    row = np.random.default_rng(0).integers(0, V, length), np.arange(-1, length - 1), np.ones(length)
    row[2][0] = 0
    batch = jax.device_put(product.pack([[row]] * rows, length))
    keys = jax.random.split(jax.random.key(0))
    hidden = jax.random.normal(keys[0], (rows, length, D), "bfloat16")
    projection = 0.02 * jax.random.normal(keys[1], (D, V), "bfloat16")
    both = jax.jit(jax.value_and_grad(partial(product.head_nll, chunk=chunk), argnums=(0, 1)))
    program, line = measure.compiled(both.lower(hidden, projection, batch))
    seconds, spread = measure.seconds_each(partial(program, hidden, projection, batch))
    needed = 6 * rows * length * D * V
    line |= {"step_ms": round(seconds * 1e3, 2), "spread": round(spread, 4), "tokens_s": round(rows * length / seconds)}
    return line | {"share": round(needed / seconds / measure.PEAK, 4), "peak_gib": measure.peak_gib()}


def scatter(options: Line | None = None, way: str = "scatter") -> Line:
    """The gradient of an embedding alone, (151,936, 896) of 32,768 tokens: their rows added up, in bfloat16.

    way: "scatter"; "products" with a matrix of ones and zeros, a part of the vocabulary at a time; "sorted", sums of
    tokens that stand side by side, in float32. The tokens are skewed, as words are.
    """
    tokens, D, V, step = (256, 16, 512, 128) if shapes.TINY else (32_768, 896, 151_936, 9496)
    ids = jax.device_put((np.random.default_rng(0).zipf(1.2, tokens) % V).astype(np.int32))
    rows = jax.random.normal(jax.random.key(0), (tokens, D), "bfloat16")

    def gradient(rows, ids):
        if way == "sorted":
            return _sums_of_sorted(rows, ids, V)
        if way == "scatter":
            return jax.numpy.zeros((V, D), rows.dtype).at[ids].add(rows)

        def part(first):
            hits = (ids[None] == first + jax.numpy.arange(step)[:, None]).astype(rows.dtype)
            return hits @ rows

        return jax.lax.map(part, jax.numpy.arange(0, V, step)).reshape(V, D)

    program, line = measure.compiled(jax.jit(gradient).lower(rows, ids), options)
    found, wanted = np.float64(program(rows, ids)), np.zeros((V, D))
    np.add.at(wanted, np.asarray(ids), np.float64(rows))
    line["error"] = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    return line | {"step_ms": round(measure.seconds_each(partial(program, rows, ids), 0.2)[0] * 1e3, 3)}


def _sums_of_sorted(rows, ids, size: int):
    """Segmented sums by an associative scan (Blelloch 1990, section 1.5): nothing is scattered."""
    order = jax.numpy.argsort(ids)
    ids, values = ids[order], rows[order].astype("float32")
    begins = jax.numpy.concatenate([jax.numpy.ones(1, bool), ids[1:] != ids[:-1]])[:, None]

    def add(left, right):
        return left[0] | right[0], jax.numpy.where(right[0], right[1], left[1] + right[1])

    sums = jax.lax.associative_scan(add, (begins, values))[1]
    last = jax.numpy.searchsorted(ids, jax.numpy.arange(size), side="right") - 1
    found = (last >= 0) & (ids[last] == jax.numpy.arange(size))
    return jax.numpy.where(found[:, None], sums[last], 0)


# What packed chains of a GPU do not get by themselves; not on a CPU, where the scripts are tried.
CUDNN_ATTENTION = {} if shapes.TINY else {"model.attention_kernel": "cudnn"}


def _case(*arguments, **keys) -> Callable[[], Line]:
    return partial(step, *arguments, **keys)


L, S = shapes.LONG, shapes.SHORT
CASES = {
    "step 0.5B packed": _case("0.5B", 8, L, True),
    "step 0.5B packed, profile": _case("0.5B", 8, L, True, options=NO_GRAPHS, profile=True),
    "step 8B lora packed": _case("8B", 4, L, True, lora=True),
    "step 1.5B packed": _case("1.5B", 8, L, True),
    "step 3B packed": _case("3B", 4, L, True),
    "step 0.5B packed none": _case("0.5B", 8, L, True, "none"),
    "step 0.5B packed, deterministic": _case("0.5B", 8, L, True, options=DETERMINISTIC),
    "step 0.5B packed, cudnn": _case("0.5B", 8, L, True, **CUDNN_ATTENTION),
    "step 0.5B packed, plain attention": _case("0.5B", 8, L, True, **{"model.attention_kernel": "plain"}),
    "step 0.5B packed attention": _case("0.5B", 8, L, True, "attention"),
    "step 1.5B packed attention": _case("1.5B", 8, L, True, "attention"),
    "step 1.5B packed dots": _case("1.5B", 4, L, True, "dots"),
    "step 1.5B packed dots_no_batch": _case("1.5B", 4, L, True, "dots_no_batch"),
    "step 1.5B packed dots, profile": _case("1.5B", 4, L, True, "dots", options=NO_GRAPHS, profile=True),
    "step 1.5B packed dots, no Triton products": _case("1.5B", 4, L, True, "dots", options=NO_TRITON),
    "step 1.5B packed dots, any order": _case("1.5B", 4, L, True, "dots", options=ANY_ORDER),
    "step 1.5B packed dots, no graphs": _case("1.5B", 4, L, True, "dots", options=NO_GRAPHS),
    "step 1.5B packed dots, latency hiding": _case("1.5B", 4, L, True, "dots", options=LATENCY),
    "step 1.5B packed dots, cudnn fusions": _case("1.5B", 4, L, True, "dots", options=CUDNN),
    "step 3B packed dots": _case("3B", 2, L, True, "dots"),
    "step 1.5B packed none": _case("1.5B", 4, L, True, "none"),
    "step 1.5B packed offload": _case("1.5B", 8, L, True, "offload"),
    "step 1.5B packed dots, fp8": _case("1.5B", 4, L, True, "dots", **{"model.matmul": "fp8"}),
    "step 8B lora packed dots": _case("8B", 2, L, True, "dots", lora=True),
    "step 0.5B packed dots": _case("0.5B", 8, L, True, "dots"),
    "step 0.5B packed dots_no_batch": _case("0.5B", 8, L, True, "dots_no_batch"),
    "step 0.5B plain": _case("0.5B", 32, S, False),
    "step 1.5B plain": _case("1.5B", 32, S, False),
    "step 3B plain": _case("3B", 16, S, False),
    "parts 0.5B": partial(parts, "0.5B", 8),
    "head": partial(head, 0),
    "head 512": partial(head, 512),
    "head 1024": partial(head, 1024),
    "head 2048": partial(head, 2048),
    "scatter plain": scatter,
    "scatter no atomics": partial(scatter, {"xla_gpu_exclude_nondeterministic_ops": True}),
    "scatter sorted": partial(scatter, way="sorted"),
    "step 1.5B packed dots, apart": _case("1.5B", 4, L, True, "dots", **{"model.scan_layers": False}),
    "scatter by products": partial(scatter, way="products"),
}
