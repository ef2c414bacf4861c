"""Runs that see a share of a file in every epoch: another part each time, and in all what the share says."""

import json
from collections import Counter

import numpy as np
import pytest
from small_runs import SIZES, parameters, same

from mtsft.errors import InputError
from mtsft.files import read_json_lines
from mtsft.runs import compiled, loop
from mtsft.runs.evaluator import evaluate_workdir
from mtsft.runs.identity import held_out_name, identity
from mtsft.runs.setup import TrainingSetup
from mtsft.runs.workdir import ROWS, TRAINED_ON
from mtsft.training.partitioner import Partitioner


@pytest.fixture
def make(make_config):
    """A config of a small run on a share of its file."""
    whole = make_config().data.train

    def make_shared(share, **changes):
        sizes = {f"model.{name}": value for name, value in SIZES.items()}
        more = {"data.train": f"{whole}={share}", "data.eval_fraction": 0.0}
        return make_config(**sizes | more | changes)

    return make_shared


def set_up(config):
    return TrainingSetup.of(config, progress=False)


def seen(run, store):
    """How often each dialogue of a store is in the batches of a run, in order."""
    numbers = {store[i].tokens_N.tobytes(): i for i in range(len(store))}
    counts, source = Counter(), run.train_batches()
    for step in range(run.steps):
        for tokens, segments in zip(source[step].tokens, source[step].segment_ids):
            counts.update(numbers[tokens[segments == n].tobytes()] for n in range(1, segments.max() + 1))
    return [counts[i] for i in range(len(store))]


@pytest.mark.parametrize(("share", "epochs", "times"), [(0.5, 2, 1), (0.5, 4, 2), (0.4, 5, 2), (2.5, 2, 5), (3, 1, 3)])
def test_epochs_of_a_share_train_every_dialogue_so_many_times(make, share, epochs, times):
    run = set_up(make(share, **{"train.steps": 0, "train.epochs": float(epochs)}))
    assert seen(run, run.dataset.train) == [times] * 40


def test_half_of_the_epochs_is_half_of_the_dialogues_at_most(make):
    run = set_up(make(0.5, **{"train.steps": 0, "train.epochs": 1.0}))
    first = seen(run, run.dataset.train)
    assert sorted(first) == [0] * 20 + [1] * 20
    other = set_up(make(0.5, **{"train.steps": 0, "train.epochs": 1.0, "train.seed": 1}))
    assert sorted(seen(other, other.dataset.train)) == [0] * 20 + [1] * 20
    assert seen(other, other.dataset.train) != first


def test_gradients_are_divided_by_the_mean_weight_of_a_batch(make, monkeypatch):
    given = {}
    monkeypatch.setattr(Partitioner, "compile_step", lambda self, *_, **arguments: given.update(arguments))
    run = set_up(make(0.4, **{"train.steps": 0, "train.epochs": 5.0}))
    compiled.compile_step(run)
    source = run.train_batches()
    weight = sum(float(source[step].response_mask.sum()) for step in range(run.steps))
    assert given["weight_per_batch"] == pytest.approx(weight / run.num_rows * 8, rel=1e-12)


def test_what_is_printed_and_logged_counts_epochs_that_differ_in_rows(make, tmp_path, write_jsonl, capsys):
    # A row has one of the five, and the epochs of a half of them have three and two.
    turns = [("user", "?"), ("assistant", "zyxwvutsrq ponmlkjihg fedcba " * 3)]
    path = write_jsonl([turns] * 5)
    changes = {"data.train": f"{path}=0.5", "train.steps": 0, "train.epochs": 4.0, "train.batch_size": 8}
    changes |= {"data.sequence_length": 128, "data.vocab_size": 300}
    config = make(0.5, **changes)
    epochs = set_up(config).dataset.epochs
    assert [epochs.num_rows(epoch) for epoch in range(4)] == [3, 2, 3, 2]
    result = loop.train(config, tmp_path / "run")
    assert (result["steps"], result["rows"]) == (2, 10)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [3.0, 4.0]
    said = capsys.readouterr().out
    assert "; mixed to 3 dialogues in the first epoch, and others in the next; 3 rows of 128, fill " in said
    assert "epoch 4.00" in said


@pytest.mark.slow
def test_a_run_resumed_at_the_edges_of_epochs_is_the_run_that_was_not_interrupted(make, tmp_path):
    changes = {"train.schedule": "constant", "train.warmup_steps": 0, "train.warmup_fraction": 0.0}
    changes |= {"train.batch_size": 8, "data.sequence_length": 24, "checkpoint.every": 100}
    run = set_up(make(1.25, **changes, **{"train.steps": 0, "train.epochs": 3.0}))
    edges = [run.dataset.epochs.start(epoch) / 8 for epoch in (1, 2)]
    assert all(edge % 1 for edge in edges)  # the next batch has rows of two epochs
    loop.train(make(1.25, **changes, **{"train.steps": run.steps}), tmp_path / "whole")
    for steps in (*map(int, edges), run.steps):
        loop.train(make(1.25, **changes, **{"train.steps": steps}), tmp_path / "resumed")
    assert same(parameters(tmp_path / "whole"), parameters(tmp_path / "resumed"))
    names = ("step", "loss", "epoch", "supervised_tokens", "grad_norm")
    whole, resumed = (
        [[record[name] for name in names] for record in read_json_lines(tmp_path / folder / "metrics.jsonl")]
        for folder in ("whole", "resumed")
    )
    assert resumed == whole
    assert len(whole) == run.steps


def test_a_share_is_part_of_what_a_run_is(make, tmp_path):
    plain = make(1)
    plain.data.train = plain.data.train.removesuffix("=1")
    runs = [set_up(plain), *(set_up(make(share)) for share in (1, 1.0, 0.5, 2)), set_up(make(0.5, **{"train.seed": 1}))]
    whole, one, same_one, half, twice, other_seed = map(identity, runs)
    assert whole == one == same_one
    assert whole[TRAINED_ON] == runs[0].dataset.train.content
    for other in (half, twice):
        assert [name for name in whole if whole[name] != other[name]] == [TRAINED_ON, ROWS]  # the first is named
    assert half != twice
    assert [name for name in half if half[name] != other_seed[name] and name != ROWS] == ["train.seed"]  # not the data
    loop.train(make(0.5), tmp_path / "run")
    with pytest.raises(InputError, match=r"run holds a run with another data.train \(tokenised\)"):
        loop.train(make(0.25), tmp_path / "run")


def test_a_share_of_nearly_nothing_is_refused_before_anything_is_written(make, tmp_path):
    with pytest.raises(InputError, match=r"^data.train: an epoch has less than one of the 40 dialogues on average"):
        loop.train(make(0.02), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batches_of_a_step_do_not_depend_on_what_was_asked_before(make):
    config = make(2.3, **{"train.steps": 50})
    source = set_up(config).train_batches()
    forwards = [source[step].tokens for step in range(50)]
    for step in (49, 7, 0, 23):
        np.testing.assert_array_equal(set_up(config).train_batches()[step].tokens, forwards[step])


@pytest.mark.slow
def test_held_out_files_have_shares_too_and_are_the_same_in_every_evaluation(make, make_config, tmp_path):
    loop.train(make(1), tmp_path / "run")
    file = make_config().data.train

    def evaluated(eval, **changes):
        return evaluate_workdir(
            make_config(**{"data.eval": eval, "data.eval_fraction": 0.0} | changes), tmp_path / "run"
        )

    once, twice, half = (evaluated(f"{file}{share}") for share in ("", "=2", "=0.5"))
    assert [scores["dialogues"] for scores in (once, twice, half)] == [40, 80, 20]
    assert twice["supervised_tokens"] == 2 * once["supervised_tokens"]
    assert twice["loss"] == pytest.approx(once["loss"], rel=1e-6)
    assert half["loss"] == evaluated(f"{file}=0.5", **{"train.seed": 3})["loss"] != once["loss"]
    wholes, shares = ({"data.eval": f"{file}{share}", "data.eval_fraction": 0.0} for share in ("", "=0.5"))
    assert held_out_name(set_up(make(1, **wholes))) != held_out_name(set_up(make(1, **shares)))
    said = set_up(make(1, **shares)).dataset.summary()[1]
    assert "; mixed to 20 dialogues, always the same" in said
    with pytest.raises(InputError, match=r"^data.eval: an epoch has less than one of the 40 dialogues on average"):
        set_up(make(1, **shares | {"data.eval": f"{file}=0.01"})).dataset.summary()
