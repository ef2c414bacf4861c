"""Parameters before the first step: drawn at random, or read from what a run starts from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mtsft.errors import InputError
from mtsft.model.block import MATRICES
from mtsft.model.lora import ADAPTERS, NO_LORA, TOKEN_ROWS, LoRA
from mtsft.model.parameters import VOCABULARY_AXES, Params, are_stacked, join, names, select, split, unstack_layers
from mtsft.model.quantization import is_quantized, quantize_kernel
from mtsft.model.transformer import Model
from mtsft.progress import Progress
from mtsft.runs.grow_vocab import before_growth, grown
from mtsft.runs.hub_model import ShardingsOf


class BaseModel(Protocol):
    """A model that a run starts from: a HubModel or a WorkdirModel. fields: of its Architecture."""

    fields: dict[str, Any]

    def adapters(self, path: str | Path) -> tuple[LoRA, Params]:
        """The adapters for it in a PEFT folder, layers stacked, on the host."""

    def read(self, shapes: Params, shardings_of: ShardingsOf, progress: bool = False) -> Params:
        """Those of its parameters that `shapes` has, in these dtypes, stacked or apart."""

    def read_each(self, shapes: Sequence[Params], shardings_of: ShardingsOf) -> Iterator[Params]:
        """Those of its parameters that each of `shapes` has, layers apart."""


def initial_params(
    shapes: Params,
    model: Model,
    base: BaseModel | None,
    seed: int,
    shardings_of: ShardingsOf,
    progress: bool = False,
    adapters: str = "",
    grow_vocab: str = "",
) -> Params:
    """Parameters before the first step, each made on the devices that hold it, and the same on any devices.

    Args:
        shapes: of the parameters wanted, all or some of the model's.
        model: whose parameters they are.
        base: what they are read from; None to draw them at random.
        seed: of what is drawn.
        shardings_of: from shapes to the shardings of their arrays.
        progress: whether to show a progress bar.
        adapters: a PEFT folder to read adapters from; "" to draw them.
        grow_vocab: how rows are made for tokens that `base` lacks, see grow_vocab.py; "" where it lacks none.
    """
    quantized, plain = split(shapes, is_quantized)
    parts = [_quantized(quantized, model, base, seed, shardings_of, progress)] if quantized else []
    if base is None:
        return reduce(join, [*parts, _draw(plain, model, seed, shardings_of)])

    def read(shapes):
        smaller = before_growth(shapes, base.fields["vocab_size"]) if grow_vocab else shapes
        params = base.read(smaller, shardings_of, progress)
        return grown(params, shapes, grow_vocab, seed, shardings_of(shapes)) if grow_vocab else params

    lora, given = base.adapters(adapters) if adapters else (NO_LORA, {})
    rows, others = split(plain, lambda name: name.endswith(TOKEN_ROWS))
    from_adapters, others = split(others, names(given).__contains__)
    drawn, others = split(others, lambda name: name.endswith(ADAPTERS))
    if rows:
        parts.append(_token_rows(rows, model, read, (lora, given), shardings_of))
    if from_adapters:
        arrays = select(given if are_stacked(from_adapters) else unstack_layers(given), from_adapters)
        _check_vocabulary(arrays, from_adapters, adapters)
        parts.append(jax.tree.map(_put, arrays, shardings_of(from_adapters)))
    if drawn:
        parts.append(_draw(drawn, model, seed, shardings_of))
    if others:
        parts.append(read(others))
    return reduce(join, parts)


def _token_rows(
    shapes: Params,
    model: Model,
    read: Callable[[Params], Params],
    before: tuple[LoRA, Params],
    shardings_of: ShardingsOf,
) -> Params:
    """The rows of tokens that are trained apart: those of adapters that a run starts from, else the base's own.

    Args:
        shapes: of the rows.
        model: whose parameters they are.
        read: from shapes to parameters of the base.
        before: what the adapters that the run starts from train, and their parameters.
        shardings_of: from shapes to the shardings of their arrays.
    """
    whole = jax.eval_shape(model.init, jax.random.key(0))
    tables = read({part: {leaf: whole[part][leaf]} for part, leaf in VOCABULARY_AXES if part in shapes})
    shardings, rows = shardings_of(shapes), {}
    for (part, leaf), axis in VOCABULARY_AXES.items():
        if part not in shapes:
            continue
        ids, at = model.lora.tokens_of(part), {token: i for i, token in enumerate(before[0].tokens_of(part))}
        kept = [i for i, token in enumerate(ids) if token in at]
        trained_NxD = before[1][part][TOKEN_ROWS][[at[ids[i]] for i in kept]] if kept else None

        def rows_of(table, axis=axis, ids=ids, kept=kept, trained_NxD=trained_NxD):
            rows_NxD = jnp.moveaxis(table, axis, 0)[np.array(ids)].astype(jnp.float32)
            return rows_NxD.at[np.array(kept)].set(trained_NxD) if kept else rows_NxD

        made = jax.jit(rows_of, out_shardings=shardings[part][TOKEN_ROWS])(tables[part][leaf])
        rows[part] = {TOKEN_ROWS: made}
    return rows


def _check_vocabulary(params: Params, shapes: Params, folder: str) -> None:
    """Raises InputError for an embedding or head of adapters that is of another vocabulary than the model's."""
    for (part, leaf), axis in VOCABULARY_AXES.items():
        if leaf in params.get(part, {}) and params[part][leaf].shape != shapes[part][leaf].shape:
            count, wanted = (tree[part][leaf].shape[axis] for tree in (params, shapes))
            raise InputError(
                f"{folder}: its {part} has {count:,} tokens, and the model {wanted:,}; give the tokenizer that the "
                "adapters were trained with (data.tokenizer), and model.grow_vocab='mean' where that has more tokens "
                "than the base"
            )


def _draw(shapes: Params, model: Model, seed: int, shardings_of: ShardingsOf) -> Params:
    draw = jax.jit(lambda key: select(model.init(key), shapes), out_shardings=shardings_of(shapes))
    return draw(jax.random.key(seed))


def _quantized(
    shapes: Params,
    model: Model,
    base: BaseModel | None,
    seed: int,
    shardings_of: ShardingsOf,
    progress: bool = False,
) -> Params:
    """The layers' matrices, quantised on the devices one by one; of a folder, only one of them is there whole.

    Each is quantised by a program of its own, which the programs around it cannot round otherwise: the same on any
    devices, and at every start.

    Args:
        shapes: the quantised matrices of all layers, stacked or apart.
        model: whose parameters they are.
        base: what they are read from; None to draw them at random.
        seed: of what is drawn.
        shardings_of: from shapes to the shardings of their arrays.
        progress: whether to show a progress bar.
    """
    stacked, layers, lora = are_stacked(shapes), range(model.arch.num_hidden_layers), model.lora
    whole = Model(model.unrolled.arch, replace(lora, quantize=""))
    layer_shapes, plain = (jax.eval_shape(each.init, jax.random.key(0))["layers"] for each in (model.unrolled, whole))
    matrices = [name.split("/")[1:] for name in MATRICES]
    kernels = [
        _nest({"kernel": plain[i][part][matrix]["kernel"]}, "layers", i, part, matrix)
        for part, matrix in matrices
        for i in layers
    ]

    def shardings_at(shapes, *path):
        wanted = {name: shape for name, shape in shapes.items() if is_quantized(name)}
        return reduce(dict.get, path, shardings_of(_nest(wanted, *path)))

    if base is None:
        drawn = _draw(reduce(join, kernels), whole, seed, shardings_of)
        one_by_one = (select(drawn, each) for each in kernels)
    else:
        one_by_one = base.read_each(kernels, shardings_of)
    quantized: Params = {}
    with Progress("quantizing weights", len(kernels), "matrices", progress) as bar:
        for part, matrix in matrices:
            shardings = shardings_at(layer_shapes[0][part][matrix], "layers", 0, part, matrix)
            quantize = jax.jit(partial(quantize_kernel, kind=lora.quantize), out_shardings=shardings)
            made = []
            for _ in layers:
                made.append(jax.block_until_ready(quantize(*jax.tree.leaves(next(one_by_one)))))
                bar.advance()
            if stacked:
                path = ("layers", part, matrix)
                stack = jax.jit(_stack, out_shardings=shardings_at(shapes["layers"][part][matrix], *path))
                quantized = join(quantized, _nest(stack(made), *path))
            else:
                apart = [_nest(each, "layers", i, part, matrix) for i, each in enumerate(made)]
                quantized = reduce(join, apart, quantized)
    return quantized


def _nest(leaves: Params, *path: Any) -> Params:
    """Those leaves alone as parameters, at this path."""
    return reduce(lambda tree, key: {key: tree}, reversed(path), leaves)


def _stack(layers: Sequence[Params]) -> Params:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def _put(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
