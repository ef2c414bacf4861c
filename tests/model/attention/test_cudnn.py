import jax.numpy as jnp
import numpy as np
import pytest

from mtsft.model.attention.cudnn import segments
from mtsft.model.attention.layout import AttentionLayout

#            two chains and padding    padding alone       one chain
IDS = [[1, 1, 1, 2, 2, 0, 0, 0], [0] * 8, [1] * 8]


@pytest.mark.parametrize("most", [3, 5, 9])
def test_segments_are_the_chains_and_the_padding(most):
    ids = jnp.array(IDS)
    lengths, offsets = segments(AttentionLayout(ids, ids, ids), most)

    def filled(rows, width):
        return [row + [-1] * (width - len(row)) for row in rows]

    assert lengths.tolist() == filled([[3, 2, 3], [8], [8]], most)
    assert offsets.tolist() == filled([[0, 3, 5], [0], [0]], most + 1)
    assert lengths.dtype == offsets.dtype == np.int32
