"""What the order of batches depends on: the seed and the epoch, in the source as in the plan."""

import json

import pytest

from mtsft.config import DataConfig
from mtsft.data.batches import BatchSource
from mtsft.data.packing import lay_out
from mtsft.data.store import open_store
from mtsft.encoding.spec import EncodingSpec

LENGTH = 128


@pytest.fixture(scope="module")
def store(tmp_path_factory, chat):
    folder = tmp_path_factory.mktemp("epochs")
    path = folder / "d.jsonl"
    turns = [[("user", f"{n}?"), ("assistant", "yes " * (1 + n % 5))] for n in range(30)]
    records = [{"messages": [{"role": role, "content": text} for role, text in turn]} for turn in turns]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return open_store([path], EncodingSpec(chat, DataConfig(sequence_length=LENGTH)), folder / "stores", progress=False)


def epochs(store, seed, count=3):
    """The rows of the first epochs, each as bytes."""
    layout = lay_out(store.lengths_N, LENGTH)
    source = BatchSource(store, layout, layout.num_rows, seed)
    return [[row.tobytes() for row in source[epoch].tokens] for epoch in range(count)]


def test_every_epoch_has_rows_of_its_own_in_an_order_of_its_own(store):
    first, second, third = epochs(store, seed=0)
    assert len(first) > 4
    assert not set(first) & set(second) & set(third)
    assert len({*first, *second, *third}) > 2 * len(first)


def test_another_seed_is_another_order_from_the_first_epoch_on(store):
    assert not set(epochs(store, seed=0, count=1)[0]) & set(epochs(store, seed=1, count=1)[0])
    assert epochs(store, seed=1) == epochs(store, seed=1)
