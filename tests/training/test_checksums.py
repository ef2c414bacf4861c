"""Checksums of arrays: of their bits and places, and of nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mtsft.training.checksums import checksums
from mtsft.training.sharding import make_mesh


def of(array):
    return checksums({"x": array})["['x']"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "int8"])
def test_every_bit_and_every_place_counts(dtype):
    x = np.random.default_rng(0).integers(0, 2, (6, 8)).astype(dtype)
    expected = of(jnp.asarray(x))
    assert expected[0] == dtype
    seen = {expected[1:]}
    for i in range(x.size):  # one entry is another
        other = x.reshape(-1).copy()
        other[i] = not other[i]
        seen.add(of(jnp.asarray(other.reshape(x.shape)))[1:])
    assert len(seen) == x.size + 1
    assert of(jnp.asarray(x[::-1]))[1:] not in seen  # rows are exchanged
    assert of(jnp.zeros(x.shape, dtype))[1:] != of(jnp.zeros((8, 8), dtype))[1:]


def test_signs_of_zero_and_nans_count():
    values = [0.0, -0.0, np.nan, np.inf]
    assert len({of(jnp.array([value], jnp.float32)) for value in values}) == 4


def test_they_do_not_depend_on_devices():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 32)), jnp.float32)
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    for spec in (P("fsdp", "tensor"), P(("data", "fsdp", "tensor")), P()):
        assert of(jax.device_put(x, NamedSharding(mesh, spec))) == of(x)
    assert of(jnp.float32(3)) != of(jnp.float32(4))
