"""What a run is evaluated under: its own config, and what somebody changes on purpose; which model, on which words."""

import json
import shutil

import jax
import numpy as np
import pytest

from mtsft.config import default
from mtsft.data.dialogue_hashes import words_digest
from mtsft.dialogue.schema import Dialogue, Message
from mtsft.errors import InputError
from mtsft.runs import loop
from mtsft.runs.evaluator import Evaluator
from mtsft.runs.trained_model import open_trained


def logged(workdir):
    return [json.loads(line) for line in (workdir / "eval.jsonl").read_text().splitlines()]


def records(numbers):
    for n in numbers:
        yield {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n} it is"}]}


@pytest.fixture
def write(tmp_path):
    """Writes dialogues like those of the runs, and returns the file."""

    def write(name, numbers):
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records(numbers)))
        return str(tmp_path / name)

    return write


def changed(config, **keys):
    config = config.copy_and_resolve_references()
    with config.ignore_type():
        config.update_from_flattened_dict({key.replace("__", "."): value for key, value in keys.items()})
    return config


def test_the_workdir_alone_says_how_it_is_evaluated(adapted):
    workdir, _ = adapted
    subject = Evaluator.of(default(), workdir)
    scores = subject.evaluate()
    (evaluation,) = logged(workdir)
    assert scores["loss"] == pytest.approx(evaluation["loss"], rel=1e-6)
    assert (scores["step"], scores["trained_on"], scores["notes"]) == (2, 0, [])
    assert scores["checkpoint"] == f"step 2, the best by held-out loss {evaluation['loss']:.4f} of one evaluation"
    assert subject.setup.dataset.train is None
    assert subject.setup.model.lora.rank == 2


@pytest.mark.parametrize(
    "keys",
    [
        {"eval.batch_size": 1, "parallel.mesh": "tensor=8"},
        {"eval.batch_size": 3, "parallel.mesh": "tensor=8"},
        {"eval.batch_size": 16, "data.sequence_length": 512, "parallel.mesh": "data=4,fsdp=2"},
        {"eval.batch_size": 8, "data.sequence_length": 300, "parallel.mesh": "data=2,tensor=4"},
        {"parallel.mode": "pmap", "parallel.mesh": ""},
    ],
    ids=str,
)
def test_scores_do_not_hang_on_batches_rows_or_devices(adapted, keys):
    workdir, _ = adapted
    config = default()
    config.update_from_flattened_dict(keys)
    usual, other = (
        Evaluator.of(each, workdir, told=told).evaluate() for each, told in ((default(), ()), (config, tuple(keys)))
    )
    given = default()
    given.update_from_flattened_dict(keys)
    assert config.to_dict() == given.to_dict()  # the caller's, as it was
    numbers, others = (flat(scores) for scores in (usual, other))
    assert numbers.keys() == others.keys()
    for name, number in numbers.items():
        assert others[name] == pytest.approx(number, rel=2e-5), name


def flat(scores):
    """The numbers of a record, by their path."""
    paths = jax.tree_util.tree_leaves_with_path({k: v for k, v in scores.items() if k not in ("notes", "checkpoint")})
    return {jax.tree_util.keystr(path): leaf for path, leaf in paths if isinstance(leaf, int | float)}


def test_a_config_beside_the_workdir_says_which_dialogues_and_no_more(adapted, write):
    workdir, config = adapted
    other = write("other.jsonl", [*range(50, 60), 3])
    beside = changed(config, data__eval=other, data__template="llama3", data__sequence_length=32, train__seed=7)
    subject = Evaluator.of(beside, workdir)
    data = subject.setup.config.data
    assert (data.eval, data.sequence_length, data.template) == (other, 64, str(workdir / "template.json"))
    assert len(subject.setup.dataset.eval) == 11
    purpose, left = subject.notes[:2]
    assert purpose == f"changed on purpose: data.eval={_short(other)} (the run's: '')"
    assert left == "taken from the run, where --config has others: data.sequence_length=64, data.template=''"


def _short(text):
    return repr(text) if len(repr(text)) <= 60 else repr(text)[:57] + "..."


def test_a_key_that_is_told_changes_even_to_its_default(adapted):
    workdir, config = adapted
    keep = Evaluator.of(changed(config, data__eval_fraction=0.0), workdir)
    assert keep.setup.config.data.eval_fraction == 0.25  # what a file leaves at the default is the run's
    with pytest.raises(InputError, match=r"^nothing is held out to evaluate on; "):
        Evaluator.of(changed(config, data__eval_fraction=0.0), workdir, told=["data.eval_fraction"])
    whole = Evaluator.of(changed(config, model__dtype="bfloat16"), workdir, told=["model.dtype"])
    assert whole.setup.model.arch.dtype == "bfloat16"
    with pytest.raises(InputError, match=r"holds a model with lora.rank=2, and here it is 3; leave the config to the "):
        Evaluator.of(changed(config, lora__rank=3), workdir, told=["lora.rank"])


def test_dialogues_that_were_trained_on_are_counted(adapted, write, tmp_path):
    workdir = shutil.copytree(adapted[0], tmp_path / "run")
    trained = 40 - logged(workdir)[0]["dialogues"]
    assert 25 < trained < 40
    # All forty dialogues of the run's file, those that it held out among them, and five new ones.
    config = changed(default(), data__eval=write("mixed.jsonl", range(45)))
    subject = Evaluator.of(config, workdir)
    assert subject.trained_on == trained
    said = f"{trained} of the 45 dialogues are word for word among those that the model was trained on"
    assert said in subject.evaluate()["notes"]
    # Neither the training file nor its tokens are needed.
    recorded = json.loads((workdir / "config.json").read_text())
    recorded["data"] |= {"train": str(tmp_path / "gone.jsonl"), "cache_dir": str(tmp_path / "cache")}
    (workdir / "config.json").write_text(json.dumps(recorded))
    assert Evaluator.of(config, workdir).trained_on == trained
    with pytest.raises(InputError, match=r"gone.jsonl"):
        Evaluator.of(default(), workdir)  # which held out a share of it


@pytest.mark.parametrize("damage", [None, b"", b"half", "pickle", "floats", "zeroed"])
def test_what_cannot_be_checked_is_said(adapted, tmp_path, damage):
    workdir = shutil.copytree(adapted[0], tmp_path / "run")
    file = workdir / "trained_dialogues.npz"
    content = bytearray(file.read_bytes())
    file.unlink()
    if damage in ("pickle", "floats"):
        np.savez(file, digests_N=np.array([{}] if damage == "pickle" else [1.0]))
    elif damage == "zeroed":
        middle = len(content) // 2
        assert content[middle]
        content[middle] = 0
        file.write_bytes(content)
    elif damage is not None:
        file.write_bytes(damage)
    subject = Evaluator.of(default(), workdir)
    assert subject.trained_on is None
    (note,) = subject.notes
    assert note.startswith("whether the model was trained on these dialogues could not be checked: ")
    assert ("keeps no list" if damage is None else str(file)) in note


def test_a_run_that_goes_on_from_another_was_trained_on_its_dialogues_too(adapted, make_config, write, tmp_path):
    before = 40 - logged(adapted[0])[0]["dialogues"]
    new = write("new.jsonl", range(60, 72))
    config = make_config(**{"model.init_from": str(adapted[0]), "data.train": new, "data.eval_fraction": 0.0})
    config.eval.every = 0
    loop.train(config, tmp_path / "later")
    evaluated = changed(default(), data__eval=write("all.jsonl", range(80)))
    subject = Evaluator.of(evaluated, tmp_path / "later")
    assert subject.trained_on == before + 12
    assert str(subject.checkpoint) == "step 2, the newest: nothing was held out"
    # Without a workdir, too.
    direct = changed(evaluated, model__init_from=str(adapted[0]), data__cache_dir=config.data.cache_dir)
    direct.data.sequence_length = 64
    assert Evaluator.of(direct, None).trained_on == before


def test_the_digest_of_a_dialogue_stays_what_runs_have_kept(chatml):
    """Another number here would make every list of training dialogues that runs keep count nothing: see
    runs/trained_dialogues.py, whose file then needs another name."""
    messages = [Message("user", "Hi"), Message("assistant", "Hello\n")]
    assert words_digest(Dialogue("d", messages), chatml) == 2271866193112155164


def test_the_step_is_the_one_that_is_asked_for(folder, make_config, tmp_path):
    config = make_config(**{"train.steps": 4, "eval.every": 1, "checkpoint.every": 1, "checkpoint.keep": 4})
    config.model.update(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    config.model.update(num_key_value_heads=1, head_dim=8)
    loop.train(config, tmp_path / "run")
    losses = {record["step"]: record["loss"] for record in logged(tmp_path / "run")}
    best = min(losses, key=losses.get)
    assert str(open_trained(tmp_path / "run").checkpoint) == (
        f"step {best}, the best by held-out loss {losses[best]:.4f} of 4 evaluations"
    )
    second = Evaluator.of(default(), tmp_path / "run", step=2)
    assert str(second.checkpoint) == "step 2, as --step asks"
    assert second.evaluate()["loss"] == pytest.approx(losses[2], rel=1e-6)
    with pytest.raises(InputError, match=r"holds no checkpoint of step 9; it has 1, 2, 3, 4$"):
        Evaluator.of(default(), tmp_path / "run", step=9)


@pytest.mark.parametrize(
    ("mesh", "taken"), [("fsdp=4", "fsdp=-1"), ("data=2,tensor=2", "fsdp=-1"), ("tensor=2,data=4", "tensor=2,data=4")]
)
def test_a_mesh_of_other_devices_is_replaced(adapted, tmp_path, mesh, taken):
    workdir = shutil.copytree(adapted[0], tmp_path / "run")
    recorded = json.loads((workdir / "config.json").read_text())
    recorded["parallel"]["mesh"] = mesh
    (workdir / "config.json").write_text(json.dumps(recorded))
    subject = Evaluator.of(default(), workdir)
    assert subject.setup.config.parallel.mesh == taken
    assert subject.evaluate()["loss"] == pytest.approx(logged(workdir)[0]["loss"], rel=1e-5)
    with pytest.raises(InputError, match=r"parallel.mesh='data=3'"):
        Evaluator.of(changed(default(), parallel__mesh="data=3"), workdir, told=["parallel.mesh"])
