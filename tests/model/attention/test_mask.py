import jax.numpy as jnp

from mtsft.model.attention.mask import tree_mask


def test_mask_is_the_picture():
    ends = jnp.array([[6, 6, 6, 5, 5, 6, 0]])
    assert tree_mask(ends)[0].astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]
