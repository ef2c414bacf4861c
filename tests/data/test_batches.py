import json
from collections import Counter

import numpy as np
import pytest

from mtsft.config import DataConfig
from mtsft.data.batches import BatchSource, PackedBatch, empty_batch, pack_row, read_ahead
from mtsft.data.epochs import Epochs
from mtsft.data.open_store import open_store
from mtsft.encoding.spec import EncodingSpec
from mtsft.encoding.token_tree import TokenTree

# The design's row: two trees, the second one branching after its third token; then padding.
ROW = """
tokens          1  2  3  4  5  11 12 13 14 15 16   0
segment_ids     1  1  1  1  1   2  2  2  2  2  2   0
positions       0  1  2  3  4   0  1  2  3  4  3   0
parents        -1  0  1  2  3  -1  5  6  7  8  7  -1
subtree_ends    5  5  5  5  5  11 11 11 10 10 11   0
response_mask   0  0  1  1  1   0  0  0  1  1  1   0
turn_ids        0  0  0  0  0   0  0  0  0  0  0   0
response_ids    1  1  1  1  1   1  1  1  1  1  2   0
"""
CHAIN = TokenTree(
    tokens_N=np.array([1, 2, 3, 4, 5]),
    parents_N=np.array([-1, 0, 1, 2, 3]),
    response_mask_N=np.array([0, 0, 1, 1, 1.0]),
    turn_ids_N=np.zeros(5, int),
    message_ids_N=np.zeros(5, int),
    response_ids_N=np.ones(5, int),
)
BRANCHING = TokenTree(
    tokens_N=np.array([11, 12, 13, 14, 15, 16]),
    parents_N=np.array([-1, 0, 1, 2, 3, 2]),
    response_mask_N=np.array([0, 0, 0, 1, 1, 1.0]),
    turn_ids_N=np.zeros(6, int),
    message_ids_N=np.zeros(6, int),
    response_ids_N=np.array([1, 1, 1, 1, 1, 2]),
)


def assert_same(one, other):
    for name, a, b in zip(PackedBatch._fields, one, other, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_the_picture_of_a_row():
    batch = empty_batch(3, 12)
    pack_row(batch, 1, [CHAIN, BRANCHING])
    for name, *cells in map(str.split, ROW.strip().splitlines()):
        np.testing.assert_array_equal(getattr(batch, name)[1], np.array(cells, int), err_msg=name)
        padding = -1 if name == "parents" else 0
        assert (getattr(batch, name)[[0, 2]] == padding).all()


def test_a_row_filled_to_its_last_slot():
    batch = empty_batch(1, 11)
    pack_row(batch, 0, [BRANCHING, CHAIN])
    assert batch.segment_ids[0].tolist() == [1] * 6 + [2] * 5
    assert batch.parents[0].tolist() == [-1, 0, 1, 2, 3, 2, -1, 6, 7, 8, 9]
    assert batch.subtree_ends[0].tolist() == [6, 6, 6, 5, 5, 6] + [11] * 5


def test_arrays_have_the_types_and_shapes_that_are_promised():
    batch = empty_batch(2, 5)
    assert [array.shape for array in batch] == [(2, 5)] * 8
    assert {name: array.dtype.name for name, array in batch._asdict().items() if array.dtype != np.int32} == {
        "response_mask": "float32"
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory, chat):
    """Dialogues of many lengths, no two of them with the same words."""
    folder = tmp_path_factory.mktemp("batches")
    path = folder / "d.jsonl"
    with path.open("w") as file:
        for n in range(40):
            turns = [("user", f"what is {n}?"), ("assistant", f"it is {n}, " * (1 + n % 7))] * (1 + n % 3)
            messages = [{"role": role, "content": f"{text}{i}"} for i, (role, text) in enumerate(turns)]
            file.write(json.dumps({"messages": messages}) + "\n")
    return open_store([path], EncodingSpec(chat, DataConfig(sequence_length=512)), folder / "stores", progress=False)


@pytest.fixture(scope="module")
def num_rows(store):
    """Rows of an epoch."""
    return Epochs(store, 512).num_rows(0)


@pytest.fixture
def make_source(store):
    def make(batch_size=4, seed=0, shares=(), **options):
        return BatchSource(Epochs(store, 512, shares, seed), batch_size, **options)

    return make


def segments(batch):
    """(tokens, mask) of every packed dialogue, as tuples."""
    found = []
    for row in range(len(batch.tokens)):
        for segment in range(1, batch.segment_ids[row].max() + 1):
            here = batch.segment_ids[row] == segment
            found.append((tuple(batch.tokens[row, here].tolist()), tuple(batch.response_mask[row, here].tolist())))
    return found


def stored(store):
    return [
        (tuple(tree.tokens_N.tolist()), tuple(tree.response_mask_N.tolist()))
        for tree in map(store.__getitem__, range(len(store)))
    ]


def test_a_batch_depends_on_nothing_but_its_step(make_source):
    source = make_source()
    forwards = [source[step] for step in range(20)]
    for step in [19, 3, 3, 0, 11, 7, 15, 1]:
        assert_same(source[step], forwards[step])
        assert_same(make_source()[step], forwards[step])


def test_a_batch_is_the_readers_own(make_source):
    source = make_source()
    source[0].tokens[:] = -5
    assert (source[0].tokens >= 0).all()


def test_seeds_and_steps_give_other_batches(make_source):
    tokens = {make_source(seed=seed)[step].tokens.tobytes() for seed in range(3) for step in range(6)}
    assert len(tokens) == 18


@pytest.mark.parametrize("batch_size", [4, 7])
def test_processes_read_the_rows_of_one_batch(make_source, batch_size):
    parts = [make_source(batch_size, rows=range(0, 3)), make_source(batch_size, rows=range(3, batch_size))]
    whole = make_source(batch_size)
    for step in range(8):
        assert_same(PackedBatch(*map(np.concatenate, zip(*(part[step] for part in parts)))), whole[step])


def test_rows_come_in_the_order_asked_for(make_source):
    batch = make_source(4, rows=[2, 0])[1]
    whole = make_source(4)[1]
    np.testing.assert_array_equal(batch.tokens, whole.tokens[[2, 0]])


def test_rows_do_not_depend_on_how_many_make_a_batch(make_source):
    small, large = make_source(2), make_source(6)
    for step in range(5):
        threes = [small[3 * step + i] for i in range(3)]
        assert_same(PackedBatch(*map(np.concatenate, zip(*threes))), large[step])


@pytest.mark.parametrize("batch_size", [1, 4, 5])
def test_each_epoch_trains_every_supervised_token_of_the_dataset_exactly_once(make_source, store, num_rows, batch_size):
    source, everything = make_source(batch_size), Counter(stored(store))
    assert set(everything.values()) == {1}
    steps = -(-3 * num_rows // batch_size)
    rows = [source[step] for step in range(steps)]
    rows = [PackedBatch(*(array[r : r + 1] for array in batch)) for batch in rows for r in range(batch_size)]
    for epoch in range(3):
        of_epoch = rows[epoch * num_rows : (epoch + 1) * num_rows]
        assert Counter(s for row in of_epoch for s in segments(row)) == everything
        assert sum((row.response_mask > 0).sum() for row in of_epoch) == store.stats.supervised_tokens


def test_rows_after_the_last_are_empty(make_source, store, num_rows):
    rows = num_rows
    source = make_source(rows + 2, max_rows=rows)
    batch = source[0]
    assert Counter(segments(batch)) == Counter(stored(store))
    assert_same(PackedBatch(*(array[rows:] for array in batch)), empty_batch(2, 512))
    assert_same(source[1], empty_batch(rows + 2, 512))


def test_max_rows_may_end_within_a_later_epoch(make_source, num_rows):
    rows = num_rows
    endless, ended = make_source(1), make_source(1, max_rows=rows + 2)
    assert_same(ended[rows + 1], endless[rows + 1])
    assert_same(ended[rows + 2], empty_batch(1, 512))


@pytest.mark.parametrize("start", [0, 3, 9, 10])
def test_reading_ahead_gives_the_batches_from_a_step_on(make_source, start):
    source = make_source(3, steps=10)
    ahead = list(read_ahead(source, start))
    assert len(ahead) == 10 - start
    for step, batch in enumerate(ahead, start):
        assert_same(batch, source[step])
