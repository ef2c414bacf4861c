"""Which dialogues every epoch has, and in which rows: the shares of files, the seed and the epoch."""

import hashlib
import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtsft.config import DataConfig
from mtsft.data.batches import BatchSource, empty_batch
from mtsft.data.epochs import Epochs
from mtsft.data.open_store import open_store
from mtsft.data.packing import deal, lay_out
from mtsft.encoding.spec import EncodingSpec
from mtsft.errors import InputError

LENGTH = 128
SIZES = (30, 7)  # dialogues of the two files


@pytest.fixture(scope="module")
def store(tmp_path_factory, chat):
    """Two files of dialogues of many lengths, no two with the same words."""
    folder = tmp_path_factory.mktemp("epochs")
    paths = []
    for name, size in zip("ab", SIZES):
        turns = [[("user", f"{name}{n}?"), ("assistant", "yes " * (1 + n % 5))] for n in range(size)]
        records = [{"messages": [{"role": role, "content": text} for role, text in turn]} for turn in turns]
        paths.append(folder / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps(record) + "\n" for record in records))
    spec = EncodingSpec(chat, DataConfig(sequence_length=LENGTH))
    return open_store(paths, spec, folder / "stores", progress=False)


class Lengths:
    """A store of nothing but lengths."""

    content = "a digest"

    def __init__(self, *sizes, length=5):
        self.files = list(range(len(sizes)))
        self.file_of_N = np.repeat(self.files, sizes)
        self.lengths_N = length + np.arange(sum(sizes)) % 7

    def __len__(self):
        return len(self.lengths_N)


def trees_of(epochs, epoch):
    """The trees of an epoch in the order of its rows, by their index in the store."""
    plan = epochs.plan(epoch)
    return np.concatenate([plan.row(r) for r in range(plan.num_rows)]).tolist() if plan.num_rows else []


def count_times(epochs, numbers):
    """How often each tree of the store is in these epochs, in all."""
    seen = Counter(tree for epoch in numbers for tree in trees_of(epochs, epoch))
    return [seen[tree] for tree in range(len(epochs.store))]


# Which rows


def rows(store, seed, count=3):
    """The rows of the first epochs, each as bytes."""
    epochs = Epochs(store, LENGTH, seed=seed)
    source = BatchSource(epochs, epochs.num_rows(0))
    return [[row.tobytes() for row in source[epoch].tokens] for epoch in range(count)]


def test_every_epoch_has_rows_of_its_own_in_an_order_of_its_own(store):
    first, second, third = rows(store, seed=0)
    assert len(first) > 4
    assert not set(first) & set(second) & set(third)
    assert len({*first, *second, *third}) > 2 * len(first)


def test_another_seed_is_another_order_from_the_first_epoch_on(store):
    assert not set(rows(store, seed=0, count=1)[0]) & set(rows(store, seed=1, count=1)[0])
    assert rows(store, seed=1) == rows(store, seed=1)


def test_whole_files_are_dealt_as_their_lengths_are(store):
    layout = lay_out(store.lengths_N, LENGTH)
    for shares in ((), (1, 1)):
        epochs = Epochs(store, LENGTH, shares, seed=3)
        for epoch in (0, 1, 5):
            assert epochs.layout(epoch) == layout
            dealt = deal(layout, store.lengths_N, 3, epoch)
            for name in ("members_N", "offsets", "row_order"):
                np.testing.assert_array_equal(getattr(epochs.plan(epoch), name), getattr(dealt, name))
        assert epochs.content == store.content


# Shares


@pytest.mark.parametrize(
    ("share", "epochs", "times"),
    [(0.5, 2, 1), (0.4, 5, 2), (0.1, 10, 1), (0.125, 8, 1), (0.3, 10, 3), (2.5, 2, 5), (2.3, 10, 23), (3.0, 1, 3)],
)
def test_after_so_many_epochs_every_dialogue_was_there_equally_often(store, share, epochs, times):
    made = Epochs(store, LENGTH, (share, 1.0), seed=1)
    assert made.period == epochs
    for first in (0, epochs, 3):
        seen = count_times(made, range(first, first + epochs))
        assert seen == [times] * SIZES[0] + [epochs] * SIZES[1]


@pytest.mark.parametrize("share", [0.5, 0.4, 0.9, 2.5, 2.3])
def test_every_epoch_has_its_share_and_another_part_than_the_one_before(store, share):
    epochs = Epochs(store, LENGTH, (share, share))
    drawn = [Counter(trees_of(epochs, epoch)) for epoch in range(6)]
    for counts in drawn:
        for low, high in ((0, 30), (30, 37)):
            of_file = [counts[tree] for tree in range(low, high)]
            assert set(of_file) <= {int(share), int(share) + 1}
            assert abs(sum(of_file) - share * (high - low)) < 1
    for one, other in pairwise(drawn):
        assert one != other
    one, other = (counts - Counter(dict.fromkeys(counts, int(share))) for counts in drawn[:2])
    assert len(one & other) <= max(0.0, 2 * (share % 1) - 1) * 37 + 2  # they overlap no more than they must


def test_an_epoch_is_a_function_of_the_seed_and_its_number_alone(store):
    shares = (0.4, 2.5)
    forwards = Epochs(store, LENGTH, shares, seed=5)
    plans = [trees_of(forwards, epoch) for epoch in range(12)]
    for epoch in (11, 3, 0, 7):
        assert trees_of(Epochs(store, LENGTH, shares, seed=5), epoch) == plans[epoch]
        assert trees_of(forwards, epoch) == plans[epoch]
    assert sorted(plans[0]) == sorted(plans[10]) != sorted(plans[1])
    assert plans[0] != plans[10]  # the same dialogues, dealt anew
    other = trees_of(Epochs(store, LENGTH, shares, seed=6), 0)
    assert sorted(other) != sorted(plans[0])


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    tenths=st.lists(st.integers(1, 25), min_size=3, max_size=3),
    seed=st.integers(0, 3),
)
def test_any_shares_of_any_files(sizes, tenths, seed):
    shares = [tenth / 10 for tenth in tenths[: len(sizes)]]
    if sum(tenth * size for tenth, size in zip(tenths, sizes)) < 10:
        with pytest.raises(InputError, match=r"^data.train: an epoch has less than one of the \d+ dialogues"):
            Epochs(Lengths(*sizes), 16, shares, seed)
        return
    epochs = Epochs(Lengths(*sizes), 16, shares, seed)
    seen = np.array(count_times(epochs, range(10)))
    assert (seen == np.repeat(tenths[: len(sizes)], sizes)).all()
    np.testing.assert_allclose(seen / 10, epochs.times_N())
    # The rows of all epochs follow each other, and none is left out.
    starts = [epochs.start(epoch) for epoch in range(24)]
    places = [(e, r) for e in range(23) for r in range(epochs.layout(e).num_rows)]
    assert starts == [sum(epochs.layout(e).num_rows for e in range(epoch)) for epoch in range(24)]
    fresh = Epochs(epochs.store, 16, shares, seed)
    assert [fresh.locate(row) for row in range(starts[23])] == places
    assert fresh.locate(7 * starts[10] + 1) == (70 + places[1][0], places[1][1])
    assert epochs.start(10**6) == starts[10] * 10**5
    assert epochs.mean_rows == starts[10] / 10


# Counting rows and epochs


def test_rows_of_epochs_that_differ_in_rows():
    # A row holds one of these, and the epochs of a half of five have three and two in turn.
    epochs = Epochs(Lengths(5, length=7), 13, (0.5,))
    assert [epochs.num_rows(epoch) for epoch in range(4)] == [3, 2, 3, 2]
    assert epochs.mean_rows == 2.5
    wanted = {0.1: 1, 1: 3, 1.5: 4, 2: 5, 2.5: 7, 3: 8, 100: 250}
    assert {number: epochs.count_rows(number) for number in wanted} == wanted
    assert [epochs.count_epochs(row) for row in range(8)] == pytest.approx([0, 1 / 3, 2 / 3, 1, 1.5, 2, 7 / 3, 8 / 3])
    for number in range(30):
        assert epochs.count_epochs(epochs.count_rows(number)) == number


def test_a_part_of_an_epoch_is_counted_in_decimals():
    # 0.7 * 10 is 7.000000000000001 in floats, and 7 rows.
    epochs = Epochs(Lengths(10, length=7), 13)
    assert epochs.num_rows(0) == 10
    assert [epochs.count_rows(part) for part in (0.7, 2.3, 0.71, 1e-9)] == [7, 23, 8, 1]
    assert epochs.count_epochs(7) == 0.7


def test_an_epoch_without_a_dialogue_has_no_rows_and_is_passed_over():
    epochs = Epochs(Lengths(1, 1, length=7), 13, (0.5, 0.5))
    assert [epochs.num_rows(epoch) for epoch in range(4)] == [2, 0, 2, 0]
    assert [epochs.locate(row) for row in range(5)] == [(0, 0), (0, 1), (2, 0), (2, 1), (4, 0)]
    assert (epochs.count_rows(1), epochs.count_rows(2), epochs.count_rows(2.5)) == (2, 2, 3)
    with pytest.raises(InputError, match=r"less than one of the 3 dialogues on average; raise the shares of its files"):
        Epochs(Lengths(3), 11, (0.3,))
    with pytest.raises(InputError, match=r"^no dialogue is left to train on"):
        Epochs(Lengths(0), 11, (0.3,)).locate(0)


def test_a_batch_reaches_across_the_edge_of_an_epoch(store):
    shares = (0.5, 2.5)
    whole = BatchSource(Epochs(store, LENGTH, shares, seed=2), 5)
    epochs = Epochs(store, LENGTH, shares, seed=2)
    seen = Counter()
    steps = -(-epochs.start(4) // 5)
    assert epochs.start(1) % 5 or epochs.start(2) % 5
    for step in range(steps):
        fresh = BatchSource(Epochs(store, LENGTH, shares, seed=2), 5, max_rows=epochs.start(4))
        for row in range(5):
            number = 5 * step + row
            tokens = fresh[step].tokens[row]
            if number >= epochs.start(4):
                np.testing.assert_array_equal(tokens, empty_batch(1, LENGTH).tokens[0])
                continue
            np.testing.assert_array_equal(whole[step].tokens[row], tokens)
            epoch, of_epoch = epochs.locate(number)
            trees = epochs.plan(epoch).row(of_epoch).tolist()
            words = np.concatenate([store[tree].tokens_N for tree in trees])
            np.testing.assert_array_equal(tokens[: len(words)], words)
            seen.update(trees)
    assert [seen[tree] for tree in range(37)] == [2] * SIZES[0] + [10] * SIZES[1]


# What makes it this data


def test_shares_are_part_of_the_content_and_the_seed_is_not(store):
    def content(*shares, seed=0):
        return Epochs(store, LENGTH, shares, seed).content

    made = [content(*shares) for shares in ((1, 1), (2, 1), (1, 2), (0.5, 1), (1, 0.5), (0.5, 0.5), (2.5, 1))]
    assert len(set(made)) == len(made)
    assert made[0] == store.content
    assert [content(*shares, seed=9) for shares in ((1, 1), (2, 1), (0.5, 1))] == [made[0], made[1], made[3]]
    # What runs on files that are seen a whole number of times had before shares moved on.
    order = np.concatenate([np.arange(30), np.arange(30), np.arange(30, 37)]).astype(np.int64)
    assert made[1] == hashlib.sha256(store.content.encode() + order.tobytes()).hexdigest()


def test_how_many_trees_a_row_holds_at_most():
    epochs = Epochs(Lengths(30, 7), 40)
    assert epochs.most_trees == np.diff(epochs.plan(3).offsets).max()
    twice = Epochs(Lengths(30, 7), 40, (1.0, 2.0))
    assert twice.most_trees == np.diff(twice.plan(0).offsets).max()
    assert Epochs(Lengths(30, 7), 40, (1.0, 0.4)).most_trees == 0  # other dialogues in each epoch
