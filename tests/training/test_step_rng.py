"""What is drawn at random: bounded as the paper says, a function of seed, step and tokens."""

import jax
import numpy as np
from support import pack, random_chain, small_model

from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.lora import LoRA
from mtsft.model.shards import Shards
from mtsft.training.step_rng import step_rng_of

RNG = np.random.default_rng(0)
TREES = [random_chain(RNG, length) for length in (4, 9, 16)]
BATCH = pack([[TREES[0], TREES[1]], [TREES[2]]], 20)


def test_nothing_is_drawn_where_nothing_asks_for_it():
    assert step_rng_of(small_model(), 0, 0.0) is None
    assert step_rng_of(small_model(LoRA(rank=2, dropout=0.0)), 0, 0.0) is None
    assert step_rng_of(small_model(LoRA(rank=0, dropout=0.1)), 0, 0.0) is None
    assert step_rng_of(small_model(LoRA(rank=2, dropout=0.1)), 0, 0.0)(0, BATCH).embedding_bounds_BxL is None


def test_the_bound_goes_by_the_length_of_each_dialogue():
    bounds = np.asarray(step_rng_of(small_model(), 0, 5.0)(0, BATCH).embedding_bounds_BxL)
    expected = np.zeros((2, 20))
    for row, start, length in ((0, 0, 4), (0, 4, 9), (1, 0, 16)):
        expected[row, start : start + length] = 5.0 / np.sqrt(length * 32)
    np.testing.assert_allclose(bounds, expected, rtol=1e-6)


def test_seed_step_and_words_decide_what_is_drawn():
    def keys(seed, step, batch):
        return np.asarray(jax.random.key_data(step_rng_of(small_model(), seed, 5.0)(step, batch).keys_B))

    first = keys(0, 0, BATCH)
    assert (keys(0, 0, BATCH) == first).all()
    assert (keys(0, 0, jax.tree.map(lambda x: x[::-1], BATCH)) == first[::-1]).all()
    for other in (keys(1, 0, BATCH), keys(0, 1, BATCH)):
        assert (other != first).any(axis=1).all()
    assert (first[0] != first[1]).any()
    tokens = BATCH.tokens.copy()
    tokens[1, 3:5] = tokens[1, 4:2:-1]  # the same tokens in another order
    changed = keys(0, 0, BATCH._replace(tokens=tokens))
    assert (changed != first).any(axis=1).tolist() == [False, True]


def test_embeddings_move_within_the_bound_and_padding_not_at_all():
    model = small_model(scale_embeddings=True)
    params = model.init(jax.random.key(0))
    step_rng = step_rng_of(model, 0, 5.0)(0, BATCH)
    seen = [np.asarray(_embedded(model, params, drawn)) for drawn in (None, step_rng)]
    change = seen[1] - seen[0]
    moved = np.abs(change)
    bounds = np.asarray(step_rng.embedding_bounds_BxL)
    assert (moved <= bounds[..., None] * (1 + 1e-4)).all()
    filled = BATCH.segment_ids > 0
    assert (moved.max(-1)[filled] > 0.8 * bounds[filled]).all()
    for side in (change, -change):
        assert (side.max(-1)[filled] > 0.3 * bounds[filled]).all()
    assert moved[~filled].max() == 0


def test_embeddings_keep_their_dtype():
    model = small_model(dtype="bfloat16")
    params = jax.eval_shape(model.init, jax.random.key(0))
    step_rng = step_rng_of(model, 0, 5.0)(0, BATCH)
    assert jax.eval_shape(lambda params: _embedded(model, params, step_rng), params).dtype == "bfloat16"


def _embedded(model, params, step_rng):
    """What enters the first layer."""
    entered = []

    class Watched(Shards):
        def constrain(self, x_BxLxD):
            entered.append(x_BxLxD)
            return x_BxLxD

    model.apply(params, BATCH.tokens, AttentionLayout.of(BATCH), Watched(), step_rng)
    return entered[0]
