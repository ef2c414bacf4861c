"""The same numbers on the GPU as on the CPU: loss and gradients of a small model, and attention against float64."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu import product, shapes

LENGTH, ROWS = (64, 2) if shapes.TINY else (320, 4)  # two blocks of queries, the second one short
# How the same model is computed: the compute dtype, and the precision of products.
HOWS = {"float32 highest": ("float32", "highest"), "float32": ("float32", None), "bfloat16": ("bfloat16", None)}
FULL = {"model.remat": "full"}


FP8, OFFLOAD = {"model.matmul": "fp8"}, {"model.remat": "offload"}


def _compile(batch, device, how: str, scan: bool = True, keys: dict[str, Any] = FULL) -> Callable:
    dtype, precision = HOWS[how]
    keys = {"model.dtype": dtype, "model.scan_layers": scan, **keys}
    if device.platform == "cpu":
        keys["model.attention_kernel"] = "plain"
    run = product.run_of(shapes.keys_of(shapes.SMALL, **keys))
    with jax.default_matmul_precision(precision):
        params = jax.device_put(_params(run), device)
        program = jax.jit(jax.value_and_grad(product.nll(run))).lower(params, jax.device_put(batch, device)).compile()

    def call(batch):
        loss, gradient = jax.device_get(program(params, jax.device_put(batch, device)))
        return float(loss), gradient if scan else _stack(gradient)

    return call


def _params(run):
    with jax.default_device(jax.devices("cpu")[0]):
        return run.model.init(jax.random.key(0))


def _stack(gradient):
    layers = [gradient["layers"][i] for i in range(len(gradient["layers"]))]
    return {**gradient, "layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}


def _distance(found, wanted) -> float:
    leaves = list(zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True))
    apart = sum(float(np.square(np.float64(a) - np.float64(b)).sum()) for a, b in leaves)
    return float(np.sqrt(apart / sum(float(np.square(np.float64(b)).sum()) for _, b in leaves)))


def model() -> list[dict[str, Any]]:
    """Packed chains, and trees; each way of computing, layers scanned and apart, on both devices.

    Products in 8 bits are compared with the CPU's in 8 bits, which must be nearer than the CPU's others are.
    """
    gpu, cpu, vocab = jax.devices()[0], jax.devices("cpu")[0], shapes.SMALL["vocab_size"]
    kinds = {"chains": (shapes.chain, 100.0), "trees": (shapes.branching, 100.0)}
    batches = {
        kind: product.pack(shapes.full_rows(2, ROWS, LENGTH, vocab, make, typical), LENGTH)
        for kind, (make, typical) in kinds.items()
    }
    wanted = [(gpu, how) for how in HOWS] + [(gpu, "float32 highest", False), (gpu, "bfloat16", False)]
    wanted += [(gpu, "float32 highest", True, OFFLOAD), (gpu, "bfloat16", True, FP8)]
    wanted += [(cpu, "float32 highest"), (cpu, "bfloat16"), (cpu, "bfloat16", True, FP8)]
    with ThreadPoolExecutor(10) as threads:
        calls = list(threads.map(lambda each: _compile(batches["chains"], *each), wanted))
    lines = []
    for kind, batch in batches.items():
        found = [call(batch) for call in calls]
        loss, gradient = found[-3]
        rounded, in_8_bits = _distance(found[-2][1], gradient), _distance(found[-1][1], gradient)
        for (_, how, *more), (its_loss, its_gradient) in zip(wanted[:-3], found):
            scan, keys = more[0] if more else True, more[1] if len(more) > 1 else FULL
            error, off = _distance(its_gradient, found[-1][1] if keys is FP8 else gradient), abs(its_loss - loss) / loss
            allowed = {"float32 highest": 1e-5, "float32": 3e-3, "bfloat16": 2 * rounded}[how]
            allowed = in_8_bits if keys is FP8 else allowed
            layers = "scanned" if scan else "apart"
            lines.append(
                {
                    "what": f"{kind}, {how}, {layers}, {', '.join(map(str, keys.values()))}",
                    "loss_error": off,
                    "gradient_error": error,
                    "allowed": allowed,
                    "right": bool(error < allowed and off < 3e-3),
                }
            )
    return lines


def attention() -> list[dict[str, Any]]:
    """The package's kernels, chains and trees, against numpy in float64; their gradients, against the plain one's."""
    return [*_kernels("chains", shapes.chain), *_kernels("trees", shapes.branching)]


def _kernels(kind: str, make: Callable) -> list[dict[str, Any]]:
    length, H, G, K = (64, 4, 2, 16) if shapes.TINY else (700, 8, 2, 64)
    rng = np.random.default_rng(0)
    batch = product.pack(shapes.full_rows(3, 2, length, 100, make, 150.0), length)
    x = [rng.normal(size=(2, length, heads, K)).astype("bfloat16") for heads in (H, G, G)]
    expected = _attend64(*(np.float64(each) for each in x), batch.subtree_ends)
    layout, most = product.layout_of(jax.device_put(batch)), int(batch.segment_ids.max())
    weights = jnp.asarray(rng.normal(size=expected.shape), "bfloat16")
    gradients = _gradients(x, layout, weights, "plain", "float32 highest", most)[1]

    def compare(kernel: str, how: str) -> dict[str, Any]:
        allowed = {"float32 highest": 1e-5, "float32": 3e-3, "bfloat16": 1e-2}[how]
        line = {"what": f"{kernel}, {kind}, {how}", "allowed": allowed}
        try:
            out, found = _gradients(x, layout, weights, kernel, how, most)
        except Exception as error:
            return line | {"failed": f"{type(error).__name__}: {error}"[:300], "right": False}
        error, worst = _error(out, expected), max(map(_error, found, gradients))
        return line | {"error": error, "gradient_error": worst, "right": error < allowed and worst < 2 * allowed}

    cases = [
        (kernel, how)
        for kernel in ("plain", "pallas", "cudnn")
        for how, (dtype, _) in HOWS.items()
        if product.can_attend(kernel, kind, dtype, H, G, K, most)
    ]
    with ThreadPoolExecutor(len(cases)) as threads:  # most of the time goes into compiling
        return list(threads.map(compare, *zip(*cases)))


def _gradients(x, layout, weights, kernel: str, how: str, most: int):
    """What a kernel gives, and the gradients of query, key and value."""
    dtype, precision = HOWS[how]

    def total(query, key, value, layout, weights):
        out = product.attention(query, key, value, layout, kernel, most)
        return (out * weights).astype("float32").sum(), out

    with jax.default_matmul_precision(precision):
        arrays = (jnp.asarray(each, dtype) for each in x)
        gradients, out = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*arrays, layout, weights.astype(dtype))
    return out, gradients


def _error(found, wanted) -> float:
    found, wanted = np.float64(found), np.float64(wanted)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def _attend64(query, key, value, ends):
    key, value = (np.repeat(x, query.shape[2] // key.shape[2], axis=2) for x in (key, value))
    scores = np.einsum("bqhk,bshk->bhqs", query, key) * query.shape[-1] ** -0.5
    places = np.arange(query.shape[1])
    seen = (places[None, None] <= places[None, :, None]) & (places[None, :, None] < ends[:, None])
    scores = np.where(seen[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhqs,bshk->bqhk", weights / weights.sum(-1, keepdims=True), value)


CASES = {"correct attention": attention, "correct model": partial(model)}
