"""Steps taken again to the bit, however the run computes them, and whichever leg took them."""

import json

import jax
import numpy as np
import pytest
from small_runs import SIZES
from support import DIVERGING

from mtsft.errors import InputError
from mtsft.files import read_json_lines
from mtsft.runs import legs, loop
from mtsft.runs.batch_losses import BatchLosses, trees_of
from mtsft.runs.replay import replay
from mtsft.runs.replay_page import as_sentences
from mtsft.runs.setup import TrainingSetup

FRESH = {f"model.{name}": value for name, value in SIZES.items()} | {"eval.every": 0}


def checks(workdir):
    return {check["name"]: check for check in json.loads((workdir / "preflight.json").read_text())["checks"]}


def written(workdir):
    (folder,) = (workdir / "bad_steps").iterdir()
    return json.loads((folder / "record.json").read_text())


def assert_watched(workdir, kind="diverged"):
    """The run was looked at first, wrote one step down, and that step is what it was; returns the record and it."""
    logged = read_json_lines(workdir / "metrics.jsonl")
    found = checks(workdir)
    assert found["loss"]["loss"] == found["overfit"]["first"] == logged[0]["step_loss"]
    assert found["gradients"]["status"] == "ok"
    record = written(workdir)
    assert record["kind"] == kind
    again = replay(workdir, record["step"])
    assert [dict(one.different) for one in again.comparisons] == [{}, {}]
    assert again.restored == record["step"] - 1
    assert not again.notes
    losses = np.concatenate([list(tree.losses.values()) for tree in again.trees])
    assert len(losses) == record["supervised_tokens"]
    return record, again, losses


@pytest.mark.slow
def test_under_pmap_a_bad_step_is_seen_written_and_taken_again(make_config, tmp_path):
    config = make_config(**FRESH | DIVERGING | {"parallel.mode": "pmap"})
    loop.train(config, tmp_path / "run")
    record, _, losses = assert_watched(tmp_path / "run")
    assert losses.mean() == pytest.approx(record["loss"], rel=1e-5)  # before the update, as the step saw them
    assert [*record["grad_norms"]] == ["embed", "layers/0", "layers/1", "norm", "head"]
    assert sum(norm**2 for norm in record["grad_norms"].values()) == pytest.approx(record["grad_norm"] ** 2, rel=1e-5)


def test_losses_of_a_batch_are_the_same_under_jit_and_pmap(make_config):
    found = []
    for mode in ("jit", "pmap"):
        setup = TrainingSetup.of(make_config(**FRESH, **{"parallel.mode": mode}), progress=False)
        state, losses = setup.create(), BatchLosses(setup)
        found.append((losses(state.params, {}, 2), losses.entropy(state.params, {}, 2)))
        trees = trees_of(setup, 2, found[-1][0])
        supervised = sum(len(tree.losses) for tree in trees)
        assert supervised == sum(tree.record(setup)["supervised_tokens"] for tree in trees) > 0
        assert np.count_nonzero(found[-1][0]) == supervised
        total = sum(loss for tree in trees for loss in tree.losses.values())  # each tree has those of its own slots
        assert total == pytest.approx(found[-1][0].sum(), rel=1e-5)
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)
    assert 0.8 * np.log(300) < found[0][1] < np.log(300)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_adapters_noise_averages_and_parts_of_a_batch_are_taken_again(make_config, exported, tmp_path, mode):
    changes = {"model.init_from": str(exported), "lora.rank": 2, "lora.dropout": 0.1, "train.batch_size": 16}
    changes |= {"train.microbatches": 2, "train.neftune_alpha": 5.0, "train.average_decay": 0.9, "parallel.mode": mode}
    config = make_config(**DIVERGING | changes | {"model.param_dtype": "float32", "train.learning_rate": 300.0})
    loop.train(config, tmp_path / "run")
    _, again, _ = assert_watched(tmp_path / "run", "not finite")
    assert "those before its update, without the noise and dropout of training." in as_sentences(again)[1]
    page = (tmp_path / "run" / "bad_steps" / str(again.step) / "page.html").read_text()
    assert f"those that step {again.step} saw, before its update, without the noise and dropout of training." in page
    assert again.setup.microbatches == 2
    assert again.setup.frozen_shapes


@pytest.mark.slow
def test_frozen_parameters_have_no_norm_and_are_taken_again(make_config, tmp_path):
    config = make_config(**FRESH | DIVERGING | {"train.freeze": "embed|layers/attention", "train.average_decay": 0.9})
    loop.train(config, tmp_path / "run")
    record, again, _ = assert_watched(tmp_path / "run")
    assert [*record["grad_norms"]] == ["layers/0", "layers/1", "norm", "head"]
    assert again.setup.frozen_shapes


def test_a_step_that_is_not_finite_shows_the_losses_that_it_saw(make_config, tmp_path):
    config = make_config(**FRESH | DIVERGING | {"train.learning_rate": 1e15, "checkpoint.every": 4})
    loop.train(config, tmp_path / "run")
    record = written(tmp_path / "run")
    assert (record["step"], record["kind"]) == (2, "not finite")
    assert record["losses_are_of_the_step"]
    assert record["losses_after_steps"] == 3  # it changed nothing, nor did the next one
    assert record["loss"] is None
    again = replay(tmp_path / "run", 2)
    assert again.skipped
    assert [dict(one.different) for one in again.comparisons] == [{}, {}]
    assert "It was not finite, and changed nothing." in as_sentences(again)[0]
    shown = [
        json.loads(line) for line in (tmp_path / "run" / "bad_steps" / "2" / "tokens.jsonl").read_text().splitlines()
    ]
    assert {loss for one in shown for loss in one["losses"]} == {None}


@pytest.fixture
def two_legs(make_config, tmp_path, request):
    """The workdir of a run whose second leg has another learning rate; request.param: its mode."""
    usual = FRESH | {"parallel.mode": request.param, "train.schedule": "constant", "checkpoint.every": 2}
    usual |= {"checkpoint.keep": 9, "train.warmup_steps": 0}
    for steps, rate in ((4, 0.01), (8, 0.02)):
        loop.train(make_config(**usual, **{"train.steps": steps, "train.learning_rate": rate}), tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
@pytest.mark.parametrize("two_legs", ["jit", "pmap"], indirect=True)
def test_a_step_of_each_leg_is_taken_again_under_its_own_config(two_legs):
    for step, restored, rate in ((3, 2, 0.01), (4, 2, 0.01), (5, 4, 0.02)):
        again = replay(two_legs, step)
        assert (again.restored, again.setup.config.train.learning_rate) == (restored, rate)
        assert again.numbers["learning_rate"] == pytest.approx(rate)
        assert [(one.file, dict(one.different)) for one in again.comparisons] == [("metrics.jsonl", {})]
    # No checkpoint is left between the legs: steps 1 to 4 are those of the first one.
    for saved in ("2", "4"):
        (two_legs / "checkpoints" / saved).rename(two_legs / f"moved-{saved}")
    again = replay(two_legs, 6)
    assert again.restored == 0
    assert [dict(one.different) for one in again.comparisons] == [{}]
    with pytest.raises(InputError, match=r"--step=9: is no step of the run in .*; it has 8 steps"):
        replay(two_legs, 9)


def test_a_leg_of_other_devices_is_taken_again_and_the_difference_said(make_config, tmp_path):
    workdir = tmp_path / "run"
    loop.train(make_config(**FRESH, **{"parallel.mesh": "data=4,fsdp=2"}), workdir)
    (leg,) = read_json_lines(workdir / "legs.jsonl")
    here = {"devices": 8, "kind": "cpu", "processes": 1, "jax": jax.__version__}
    assert leg["machine"] == here
    assert legs.taken_elsewhere(leg) == ""
    leg["machine"] |= {"devices": 16, "processes": 2}
    leg["config"]["parallel.mesh"] = "data=8,fsdp=2"
    (workdir / "legs.jsonl").write_text(json.dumps(leg) + "\n")
    again = replay(workdir, 1)
    assert again.setup.config.parallel.mesh == ""
    was, now = (
        f"{devices} cpu device(s) of {processes} process(es) under JAX {jax.__version__}"
        for devices, processes in ((16, 2), (8, 1))
    )
    said = f"what follows step 0 was taken on {was}, and this is {now}: sums may differ in their last digits"
    assert again.notes == [said]
    assert f"W{said[1:]}." in as_sentences(again)
    (logged, _) = read_json_lines(workdir / "metrics.jsonl")
    assert again.numbers["loss"] == pytest.approx(logged["step_loss"], rel=1e-5)
    del leg["machine"]  # of an earlier version, which did not write it down
    assert legs.taken_elsewhere(leg) == ""


def test_what_differs_is_said_with_how_far(make_config, tmp_path):
    workdir = tmp_path / "run"
    loop.train(make_config(**FRESH), workdir)
    first, second = read_json_lines(workdir / "metrics.jsonl")
    first["grad_norm"] *= 1.001
    (workdir / "metrics.jsonl").write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
    again = replay(workdir, 1)
    losses = np.concatenate([list(tree.losses.values()) for tree in again.trees])
    assert losses.mean() == pytest.approx(first["step_loss"], rel=1e-5)
    assert len(losses) == first["supervised_tokens"]
    (compared,) = again.comparisons
    assert [*compared.different] == ["grad_norm"]
    assert (
        f"not equal to metrics.jsonl: 1 of {compared.numbers} numbers differ, by 0.001 of themselves at most: "
        in str(compared)
    )


@pytest.mark.slow
def test_what_was_written_of_a_step_that_comes_again_is_forgotten(make_config, tmp_path):
    workdir, usual = tmp_path / "run", FRESH | DIVERGING | {"train.bad_steps_kept": 2}
    loop.train(make_config(**usual), workdir)
    assert sorted(path.name for path in (workdir / "bad_steps").iterdir()) == ["2", "3"]
    # As a run that was killed in its third step, and goes on with a rate at which nothing is wrong.
    for saved in ("3", "4"):
        (workdir / "checkpoints" / saved).rename(tmp_path / saved)
    (workdir / "result.json").unlink()
    usual |= {"train.learning_rate": 0.0, "train.bad_steps_kept": 1}
    loop.train(make_config(**usual), workdir)
    assert [path.name for path in (workdir / "bad_steps").iterdir()] == ["2"]
