"""What a run computes by its plan, against what its batches hold."""

import json

import numpy as np
import pytest

from mtsft.config import data_config
from mtsft.data.dataset import open_dataset
from mtsft.runs.template_date import with_template_date
from mtsft.runs.tokens_seen import tokens_seen
from mtsft.runs.train_batches import train_batches


@pytest.fixture
def file(tmp_path):
    """Dialogues of one to three turns, the last of them with two replies to one message."""
    with (tmp_path / "d.jsonl").open("w") as file:
        for n in range(9):
            messages = [
                {"role": role, "content": f"{n} it"} for _ in range(1 + n % 3) for role in ("user", "assistant")
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
        replies = [{"role": "assistant", "content": text, "replies": []} for text in ("yes", "no it is not")]
        file.write(json.dumps({"tree": {"role": "user", "content": "so?", "replies": replies}}) + "\n")
    return str(tmp_path / "d.jsonl")


@pytest.mark.parametrize(
    "changes",
    [
        {"train.steps": 2},
        {"train.steps": 7},
        {"train.steps": 0, "train.epochs": 2.5},
        {"data.trees": "paths"},
        {"data.responses": "last"},
        {"objective.loss": "all_roles"},
    ],
    ids=str,
)
def test_sums_are_those_of_the_batches(file, make_config, changes):
    keys = {"data.train": file, "data.eval_fraction": 0.0, "train.batch_size": 2, "data.sequence_length": 96}
    config = with_template_date(make_config(**(keys | changes)))
    dataset = open_dataset(data_config(config), config.train.seed)
    batches = train_batches(config, dataset)
    every = [batches[step] for step in range(len(batches))]
    slots = np.arange(96)
    sees = sum(
        int(((slots[:, None] >= slots) & (slots[:, None] < row[None, :])).sum())
        for batch in every
        for row in batch.subtree_ends
    )
    seen = tokens_seen(config, dataset)
    assert seen.tokens == sum(int((batch.segment_ids > 0).sum()) for batch in every)
    assert seen.pairs == sees
    trained = "parents" if config.objective.loss == "all_roles" else "response_mask"
    least = 0 if trained == "parents" else 1e-9
    assert seen.supervised_tokens == sum(
        int(((getattr(batch, trained) >= least) & (batch.segment_ids > 0)).sum()) for batch in every
    )
    rows = sum((batch.segment_ids > 0).any(1).sum() for batch in every)
    assert seen.slots == 96 * rows or changes.get("train.epochs")  # whole batches but for the last
    assert seen.sequences == sum(int(batch.segment_ids.max(1).sum()) for batch in every)


def test_a_part_of_a_dialogue_counts_by_its_part(file, make_config):
    keys = {"data.train": file, "data.eval_fraction": 0.0, "train.steps": 0, "train.epochs": 1.0}
    for trees, sequences in (("tree", 10), ("paths", 11)):
        config = with_template_date(make_config(**keys, **{"data.trees": trees, "data.sequence_length": 96}))
        seen = tokens_seen(config, open_dataset(data_config(config), 0))
        assert (seen.dialogues, seen.sequences) == (pytest.approx(10.0), sequences)
