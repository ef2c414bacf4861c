import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import small_model

from mtsft.errors import InputError
from mtsft.training.optimizer import build_optimizer, decay_mask, learning_rate_schedule

SETTINGS = dict(clip_norm=0.0, weight_decay=0.1, b1=0.9, b2=0.95, eps=1e-8)


def test_schedule_warms_up_then_follows_the_cosine():
    schedule = learning_rate_schedule(2.0, steps=110, warmup_steps=10, end_factor=0.1)
    rates = [float(schedule(step)) for step in range(111)]
    assert rates[:3] == pytest.approx([0.2, 0.4, 0.6])
    assert rates[9] == pytest.approx(2.0)
    assert rates[10] == pytest.approx(2.0)
    assert rates[60] == pytest.approx(1.1)
    assert rates[110] == pytest.approx(0.2)
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)


def test_adamw_is_its_formula():
    optimizer = build_optimizer("adamw", **SETTINGS)
    params = {"kernel": jnp.array([[2.0]]), "scale": jnp.array([2.0])}
    gradient = {"kernel": jnp.array([[0.5]]), "scale": jnp.array([0.5])}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    # After one step both moments are corrected to the gradient itself: its sign, and decay for the matrix alone.
    assert float(updates["kernel"][0, 0]) == pytest.approx(-1 - 0.1 * 2.0, rel=1e-5)
    assert float(updates["scale"][0]) == pytest.approx(-1, rel=1e-5)


def test_clipping_is_by_global_norm():
    optimizer = build_optimizer("adamw", **SETTINGS | {"clip_norm": 1.0, "weight_decay": 0.0, "eps": 1.0})
    params = {"kernel": jnp.zeros((1, 2))}
    updates, _ = optimizer.update({"kernel": jnp.array([[3.0, 4.0]])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [[-0.6 / 1.6, -0.8 / 1.8]], rtol=1e-5)


@pytest.mark.parametrize("scan", [True, False])
def test_decay_takes_matrices_and_leaves_norms(scan):
    params = small_model(scan_layers=scan).init(jax.random.key(0))
    for path, decayed in jax.tree_util.tree_leaves_with_path(decay_mask(params)):
        assert decayed == (path[-1].key in ("kernel", "embedding")), path


def test_muon_orthogonalises_each_layer_alone_scanned_or_not():
    settings = SETTINGS | {"weight_decay": 0.0}
    updates = {}
    for scan in (True, False):
        model = small_model(scan_layers=scan)
        params = model.init(jax.random.key(0))
        optimizer = build_optimizer("muon", **settings)
        updates[scan], _ = optimizer.update(params, optimizer.init(params), params)
    for layer in range(2):
        stacked = updates[True]["layers"]["mlp"]["up"]["kernel"][layer]
        np.testing.assert_allclose(stacked, updates[False]["layers"][layer]["mlp"]["up"]["kernel"], atol=1e-5)
        singular = np.linalg.svd(np.asarray(stacked), compute_uv=False)
        assert singular.max() / singular.min() < 2.5


def test_unknown_optimizer_is_named():
    with pytest.raises(InputError, match=r"train.optimizer='sgd': use one of adamw, muon"):
        build_optimizer("sgd", **SETTINGS)


def test_updates_are_at_learning_rate_one():
    ours = build_optimizer("adamw", **SETTINGS | {"weight_decay": 0.0})
    params = {"kernel": jnp.array([[1.0, -3.0]])}
    gradient = {"kernel": jnp.array([[0.1, 0.2]])}
    theirs = optax.adamw(0.01, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0)
    mine, _ = ours.update(gradient, ours.init(params), params)
    expected, _ = theirs.update(gradient, theirs.init(params), params)
    np.testing.assert_allclose(0.01 * mine["kernel"], expected["kernel"], rtol=1e-5)
