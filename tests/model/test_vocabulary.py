import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import VOCAB, nll_and_gradient, small_model, uneven_batch

from mtsft.model.generate import Sampling, generate
from mtsft.model.parameters import VOCABULARY_AXES
from mtsft.model.vocabulary import padding_for, resized, without_padding


def padded(**changes):
    """(a model, the same with five rows of padding)."""
    model = small_model(**changes)
    return model, type(model)(model.arch, padding=5)


@pytest.mark.parametrize(("size", "multiple", "padding"), [(96, 8, 0), (97, 8, 7), (300, 16, 4), (5, 1, 0)])
def test_padding_makes_a_multiple(size, multiple, padding):
    assert padding_for(size, multiple) == padding


def test_logits_of_padding_are_never_counted():
    logits = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(without_padding(logits, 2), [[0, 1, -np.inf], [3, 4, -np.inf]])
    assert without_padding(logits, 3) is logits


def test_arrays_get_and_lose_zeros_alone():
    arrays = {"a": jnp.ones((3, 2)), "b": jnp.ones(4)}
    shapes = {"a": jax.ShapeDtypeStruct((5, 2), np.float32), "b": jax.ShapeDtypeStruct((2,), np.float32)}
    made = resized(arrays, shapes, {"a": None, "b": None})
    np.testing.assert_array_equal(made["a"], [[1, 1]] * 3 + [[0, 0]] * 2)
    np.testing.assert_array_equal(made["b"], [1, 1])


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True, "final_logit_softcapping": 2.0}])
def test_a_padded_model_is_the_model(changes):
    model, more = padded(**changes)
    params, fresh = model.init(jax.random.key(0)), more.init(jax.random.key(0))
    batch = uneven_batch(rows=4)
    (nll, gradient), (nll_more, gradient_more) = (
        nll_and_gradient(each, of, batch) for each, of in ((model, params), (more, fresh))
    )
    np.testing.assert_allclose(nll_more, nll, rtol=1e-6, atol=1e-6)
    for path, leaf in jax.tree_util.tree_leaves_with_path(fresh):
        keys = tuple(entry.key for entry in path)
        axis = VOCABULARY_AXES.get(keys)
        at = lambda tree: tree if not keys else at_path(tree, keys)  # noqa: B023, E731
        if axis is None:
            np.testing.assert_array_equal(leaf, at(params))
            continue
        kept, rest = (np.split(np.moveaxis(np.asarray(x), axis, 0), [VOCAB]) for x in (leaf, at(gradient_more)))
        np.testing.assert_array_equal(kept[0], np.moveaxis(np.asarray(at(params)), axis, 0))
        np.testing.assert_allclose(rest[0], np.moveaxis(np.asarray(at(gradient)), axis, 0), rtol=1e-4, atol=1e-6)
        for padding in (kept[1], rest[1]):
            assert padding.shape == (5, 32)
            assert not padding.any()
    for sampling in (Sampling(), Sampling(temperature=5.0, top_k=90, top_p=0.95)):
        said = [generate(each, of, [[1, 2], [3]], [], 12, sampling) for each, of in ((model, params), (more, fresh))]
        assert said[1] == said[0] if not sampling.temperature else max(map(max, said[1])) < VOCAB


def at_path(tree, keys):
    for key in keys:
        tree = tree[key]
    return tree
