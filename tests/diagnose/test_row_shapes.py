"""How full rows of several lengths are, what attention they need, and which of them suit."""

import numpy as np
import pytest

from mtsft.data.packing import Layout, lay_out
from mtsft.diagnose.row_shapes import RowShape, advice, attention_work, row_shapes, shapes_as_text, suited


def test_the_row_that_the_module_draws():
    allowed, in_blocks = attention_work(Layout(512, (((300, 200), 1),)))
    assert allowed == (300 * 301 // 2 + 200 * 201 // 2) / (512 * 513 // 2)
    assert in_blocks == (1 + 2 + 3 + 2) / 10


@pytest.mark.parametrize("row_length", [256, 300, 1024])
def test_blocks_are_those_that_hold_a_pair_of_one_dialogue(row_length):
    layout = lay_out(np.random.default_rng(0).integers(1, 250, 60), row_length)
    pairs = blocks = 0
    for row, times in layout.patterns:
        segments = np.zeros(row_length, int)
        segments[: sum(row)] = np.repeat(np.arange(1, len(row) + 1), row)
        mask = np.tril((segments[:, None] == segments) & (segments > 0))
        queries, keys = np.nonzero(mask)
        pairs += times * len(queries)
        blocks += times * len(set(zip((queries // 128).tolist(), (keys // 128).tolist())))
    count = -(-row_length // 128)
    whole = (row_length * (row_length + 1) // 2, count * (count + 1) // 2)
    work = np.array(attention_work(layout)) * layout.num_rows
    np.testing.assert_allclose(work, [pairs / whole[0], blocks / whole[1]], rtol=1e-12)


def test_one_dialogue_as_long_as_its_row_needs_all_of_it():
    assert attention_work(Layout(1024, (((1024,), 7),))) == (1.0, 1.0)


def test_the_shortest_full_rows_that_hold_every_dialogue_suit():
    lengths_N = np.array([256] * 40 + [512] * 4)
    shapes = row_shapes(lengths_N, [256, 512, 700, 1024], slots=4096)
    assert [(s.row_length, s.rows, s.fill, s.too_long, s.batch_size) for s in shapes] == [
        (256, 40, 1.0, 4, 16),
        (512, 24, 1.0, 0, 8),
        (700, 24, round(12288 / 24 / 700, 4), 0, 6),
        (1024, 12, 1.0, 0, 4),
    ]
    assert suited(shapes).row_length == 512
    assert advice(shapes, 1024).startswith("data.sequence_length=512 and train.batch_size=8 would suit")
    assert advice(shapes, 512).startswith("data.sequence_length=512 and train.batch_size=8 suits")
    assert suited(shapes[2:3]).row_length == 700  # the fullest of what holds every one
    assert suited(shapes[:1]) is None
    assert "data.over_length" in advice(shapes[:1], 256)


def test_where_no_run_is_known_no_batch_is_named():
    shapes = row_shapes(np.array([5, 5]), [10])
    text = "\n".join(shapes_as_text(shapes, 10))
    assert "batch" not in text
    assert RowShape(**shapes[0].as_record()) == shapes[0]
    assert list(shapes_as_text([], 10)) == []
