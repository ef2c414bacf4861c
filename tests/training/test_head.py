"""The head and its loss against the plain formula, which forms all logits of all slots."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mtsft.model.projection import Projection
from mtsft.model.shards import Shards
from mtsft.training.head import HeadLoss
from mtsft.training.sharding import BATCH, make_mesh
from mtsft.training.slots import chunk_of, for_chunks

B, L, D, V, PADDING = 8, 10, 8, 18, 6
CHUNKS = (1, 3, 4, 10, 33, 999, 0)
CLOSE = dict(rtol=1e-6, atol=2e-6)


class Data(NamedTuple):
    tokens: np.ndarray
    parents: np.ndarray
    weights: np.ndarray


@pytest.fixture(scope="module")
def data():
    """Trees, of which some tokens have many children; rows have very different numbers of supervised tokens."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, V, (B, L)).astype(np.int32)
    parents = np.array([[-1, *rng.integers(0, np.arange(1, L) // 2 + 1)] for _ in range(B)], np.int32)
    weights = np.zeros((B, L), np.float32)
    weights[0, [2, 3, 9]] = [1, 0.5, 2]
    weights[2, 1:] = 1  # the row between supervises nothing, as do the last four
    weights[3, 5] = 0.25
    return Data(tokens, parents, weights)


@pytest.fixture(scope="module")
def hidden():
    return np.random.default_rng(1).normal(size=(B, L, D)).astype(np.float32)


def projection_of(is_embedding=False, padding=0, apart=False, softcap=0.0):
    rng = np.random.default_rng(2)
    kernel = jnp.asarray(np.pad(rng.normal(size=(D, V)), ((0, 0), (0, padding))), jnp.float32)
    columns = jnp.asarray(rng.normal(size=(D, 4)), jnp.float32)
    return Projection(
        kernel=kernel.T if is_embedding else kernel,
        apart=(jnp.array([0, 7, 8, V - 1]), columns) if apart else None,
        is_embedding=is_embedding,
        vocab_size=V,
        softcap=softcap,
    )


EVERYTHING = dict(is_embedding=True, padding=PADDING, apart=True, softcap=3.0)
CASES = [
    *((kind, 4) for kind in (dict(is_embedding=True), dict(padding=PADDING), dict(apart=True), dict(softcap=3.0))),
    *(({}, chunk) for chunk in CHUNKS),
    *((EVERYTHING, chunk) for chunk in (1, 4, 33)),
]


def plain_each(hidden, projection, data):
    states = jnp.take_along_axis(hidden, jnp.maximum(data.parents, 0)[..., None], axis=1)
    logp = jax.nn.log_softmax(projection.logits(states))
    nll = -jnp.take_along_axis(logp, data.tokens[..., None], axis=-1)[..., 0]
    return jnp.where(data.weights > 0, nll, 0)


def plain(hidden, projection, data):
    return (plain_each(hidden, projection, data) * data.weights).sum()


def total(head, hidden, projection, data):
    return head.sum(hidden, projection, *data)


def by_both(function):
    """Its value and gradient by hidden states, kernel and columns apart."""

    @jax.jit
    def evaluate(hidden, projection, *data):
        ids, columns = projection.apart or (None, None)

        def of(hidden, kernel, columns):
            apart = projection.apart and (ids, columns)
            return function(hidden, replace(projection, kernel=kernel, apart=apart), *data)

        arguments = (0, 1) if columns is None else (0, 1, 2)
        return jax.value_and_grad(of, arguments)(hidden, projection.kernel, columns)

    return lambda *arguments: jax.device_get(evaluate(*arguments))


def assert_close(got, expected):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("chunk", CHUNKS)
def test_loss_is_cross_entropy_of_the_parent_whatever_the_chunk(hidden, data, chunk):
    logits = (hidden @ np.asarray(projection_of().kernel)).astype(np.float64)
    expected = np.zeros((B, L))
    for b, j in zip(*np.nonzero(data.weights)):
        of_parent = logits[b, data.parents[b, j]]
        expected[b, j] = np.log(np.exp(of_parent).sum()) - of_parent[data.tokens[b, j]]
    nll = HeadLoss(chunk=chunk).each(hidden, projection_of(), *data)
    np.testing.assert_allclose(nll, expected, **CLOSE)
    assert float(total(HeadLoss(chunk=chunk), hidden, projection_of(), data)) == pytest.approx(
        (expected * data.weights).sum(), rel=1e-6
    )


@pytest.mark.parametrize(("kind", "chunk"), CASES, ids=lambda x: x if isinstance(x, int) else ",".join(x) or "plain")
def test_loss_and_gradient_are_those_of_the_plain_formula(hidden, data, kind, chunk):
    projection = projection_of(**kind)
    expected = by_both(partial(plain, data=data))(hidden, projection)
    assert_close(by_both(partial(total, HeadLoss(chunk=chunk), data=data))(hidden, projection), expected)
    if kind == EVERYTHING:  # the loss of each, differentiated, is another way to the same

        def each(hidden, projection):
            return (HeadLoss(chunk=chunk).each(hidden, projection, *data) * data.weights).sum()

        assert_close(by_both(each)(hidden, projection), expected)


def test_gradient_scales_with_what_follows(hidden, data):
    projection = projection_of()

    def twice(loss):
        return lambda hidden, projection: jnp.square(loss(hidden, projection)) / 7

    expected = by_both(twice(partial(plain, data=data)))(hidden, projection)
    assert_close(by_both(twice(partial(total, HeadLoss(chunk=4), data=data)))(hidden, projection), expected)


def test_weights_below_zero_of_a_cotangent_count(hidden, data):
    signs = np.where(np.arange(L) % 3 == 0, -1.0, 2.0).astype(np.float32)[None]

    def signed(each):
        return lambda hidden, projection: (each(hidden, projection) * signs).sum()

    got = by_both(signed(lambda h, p: HeadLoss(chunk=4).each(h, p, *data)))(hidden, projection_of())
    assert_close(got, by_both(signed(partial(plain_each, data=data)))(hidden, projection_of()))


def test_where_nothing_is_supervised_nothing_is_computed(hidden, data):
    projection = projection_of()
    poisoned = replace(projection, kernel=projection.kernel * np.nan)
    none = data._replace(weights=np.zeros_like(data.weights))
    assert np.isnan(HeadLoss(chunk=4).each(hidden, poisoned, *data)).any()
    assert (np.asarray(HeadLoss(chunk=4).each(hidden, poisoned, *none)) == 0).all()
    value, gradients = by_both(partial(total, HeadLoss(chunk=4), data=none))(hidden, poisoned)
    assert value == 0
    assert not any(np.asarray(g).any() for g in gradients)


def test_unused_slots_of_the_last_chunk_count_for_nothing(hidden, data):
    """Whatever is in hidden states that predict nothing."""
    used = np.zeros((B, L), bool)
    for b, j in zip(*np.nonzero(data.weights)):
        used[b, data.parents[b, j]] = True
    assert not used[0, 9]
    assert not used[-1].any()
    poisoned = np.where(used[..., None], hidden, np.nan)
    projection = projection_of()
    assert_close(
        by_both(partial(total, HeadLoss(chunk=33), data=data))(poisoned, projection),
        by_both(partial(total, HeadLoss(chunk=33), data=data))(hidden, projection),
    )


@pytest.mark.parametrize("count", range(0, 40))
def test_chunks_cover_the_slots_once_and_no_more_than_a_part_beyond(count):
    seen, sizes = np.zeros(100, int), []

    def body(_, start, size):
        seen[int(start) : int(start) + size] += 1
        sizes.append(size)

    with jax.disable_jit():
        for_chunks(jnp.int32(count), 16, body, None)
    assert seen[: sum(sizes)].tolist() == [1] * sum(sizes)
    assert not seen[sum(sizes) :].any()
    assert count <= sum(sizes) < count + 4
    assert {*sizes} <= {16, 4}


def test_the_chunk_goes_by_the_slots():
    assert [chunk_of(slots) for slots in (1, 100, 2560, 4096, 8191, 8192, 16384, 32768, 10**6)] == [
        *(256, 256, 256, 512, 512, 1024, 2048, 2048, 2048)
    ]


def test_full_logits_are_never_formed():
    rows, length, vocab = 2, 256, 4096
    hidden, kernel = jnp.zeros((rows, length, D)), jnp.zeros((D, vocab))
    tokens = parents = jnp.zeros((rows, length), jnp.int32)

    def loss(hidden, kernel):
        projection = Projection(kernel=kernel, vocab_size=vocab)
        return HeadLoss(chunk=16).sum(hidden, projection, tokens, parents, jnp.ones((rows, length)))

    memory = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, kernel).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.2 * rows * length * vocab * 4


@pytest.mark.parametrize("is_embedding", [False, True])
@pytest.mark.parametrize("wanted", [0, 1])
def test_of_what_is_frozen_no_gradient_is_formed(hidden, data, wanted, is_embedding):
    projection = projection_of(is_embedding)

    def loss(hidden, kernel):
        return HeadLoss(chunk=4).sum(hidden, replace(projection, kernel=kernel), *data)

    arguments = hidden, projection.kernel
    jaxpr = str(jax.make_jaxpr(jax.grad(loss, wanted))(*arguments))
    # Of a whole chunk and of a part: logits, and what they are wanted for.
    assert jaxpr.count("dot_general") == 2 * 2
    assert str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(*arguments)).count("dot_general") == 2 * 3
    assert str(jax.make_jaxpr(loss)(*arguments)).count("dot_general") == 2


def test_weights_are_not_differentiated_by(hidden, data):
    def loss(weights):
        return HeadLoss(chunk=4).sum(hidden, projection_of(), data.tokens, data.parents, weights)

    with pytest.raises(TypeError, match=r"^a loss is not differentiated by its weights"):
        jax.grad(loss)(data.weights)


def test_gradients_are_in_the_dtypes_of_what_they_are_of_and_added_up_in_float32(hidden, data):
    rounded, kernel = jnp.asarray(hidden, jnp.bfloat16), projection_of().kernel
    many = data._replace(weights=np.full((B, L), 1 / 256, np.float32))

    def gradients(chunk):
        projection = Projection(kernel=kernel, vocab_size=V)
        return by_both(partial(total, HeadLoss(chunk=chunk), data=many))(rounded, projection)[1]

    of_hidden, of_kernel = gradients(1)  # one slot at a time: 80 additions
    assert (of_hidden.dtype, of_kernel.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(of_kernel, gradients(999)[1], rtol=1e-5, atol=1e-6)


def uneven(data):
    """The same, of which the first devices have all supervised tokens, or none at all."""
    return [data, data._replace(weights=np.roll(data.weights, 1, axis=0)), data._replace(weights=0 * data.weights)]


@pytest.mark.parametrize("kind", [dict(is_embedding=True, padding=PADDING), EVERYTHING | dict(is_embedding=False)])
@pytest.mark.parametrize("spec", ["data=8", "fsdp=8", "data=2,fsdp=2,tensor=2", "fsdp=2,tensor=4", "tensor=8"])
def test_over_a_mesh_the_numbers_are_the_same(hidden, data, spec, kind):
    mesh = make_mesh(spec)
    head = HeadLoss(chunk=4, shards=Shards(mesh, BATCH[0], "tensor"))
    projection = projection_of(**kind)
    rows = NamedSharding(mesh, BATCH)
    axes = [None, None]
    for axis, name, size in zip(projection.axes, ("fsdp", "tensor"), (D, projection.kernel.shape[projection.axes[1]])):
        axes[axis] = name if size % mesh.shape[name] == 0 else None
    kernel = jax.device_put(projection.kernel, NamedSharding(mesh, P(*axes)))
    placed, placed_hidden = replace(projection, kernel=kernel), jax.device_put(hidden, rows)
    gradients, each = by_both(partial(total, head)), jax.jit(lambda h, p, d: head.each(h, p, *d))
    for case in uneven(data):
        expected = by_both(plain)(hidden, projection, case)
        on_devices = jax.device_put(case, rows)
        assert_close(gradients(placed_hidden, placed, on_devices), expected)
        losses = each(placed_hidden, placed, on_devices)
        np.testing.assert_allclose(losses, plain_each(hidden, projection, case), **CLOSE)


def test_under_pmap_the_numbers_are_the_same(hidden, data):
    projection = projection_of(**EVERYTHING)

    def loss(hidden, kernel, data):
        return HeadLoss(chunk=4).sum(hidden, replace(projection, kernel=kernel), *data)

    function = jax.pmap(jax.value_and_grad(loss, (0, 1)), in_axes=(0, None, 0))
    for case in uneven(data):
        rows = jax.tree.map(lambda x: x[:, None], (hidden, case))
        value, (of_hidden, of_kernel) = jax.device_get(function(rows[0], projection.kernel, rows[1]))
        expected, (by_hidden, by_kernel, _) = by_both(partial(plain, data=case))(hidden, projection)
        assert_close((value.sum(), of_hidden[:, 0], of_kernel.sum(0)), (expected, by_hidden, by_kernel))


def test_in_micro_batches_the_numbers_are_the_same(hidden, data):
    projection = projection_of(**EVERYTHING)

    def loss(hidden, projection):
        def add(sum_, part):
            return sum_ + HeadLoss(chunk=4).sum(part[0], projection, *part[1]), None

        parts = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), (hidden, data))
        return jax.lax.scan(add, jnp.zeros(()), parts)[0]

    assert_close(by_both(loss)(hidden, projection), by_both(partial(plain, data=data))(hidden, projection))
