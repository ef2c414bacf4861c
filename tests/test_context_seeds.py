"""What the benchmark of context makes of the built-in corpus; slowly, what the diagnosis says of trained models."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1]))

from benchmarks.context_seeds import corrected, gains_by_need, last_round, needed_rounds, ranks, records_of, write_files
from mtsft.config_files import load_config
from mtsft.corpora import recall
from mtsft.dialogue.formats import parse_record
from mtsft.evaluation.context.options import ContextOptions
from mtsft.evaluation.context.scoring import ScoredResponse
from mtsft.runs.context_loss import ContextScorer
from mtsft.runs.evaluator import Evaluator

ROOT = Path(__file__).parents[1]
RECORDS = list(recall.dialogues(200, 5))
# As the corpus tells it: the city is corrected, the dog is of the first round, the name is of the first and the second.
STORY = {
    "id": "story",
    "asks": ["open", "recall", "open", "corrected", "combined"],
    "messages": [
        {"role": role, "content": content}
        for role, content in [
            ("user", "My name is Ada, I live in Rome and my dog is called Rex."),
            ("assistant", "Noted: your name is Ada, you live in Rome and your dog is called Rex."),
            ("user", "Who am I?"),
            ("assistant", "Your name is Ada."),
            ("user", "Actually, I live in Oslo."),
            ("assistant", "Noted: you live in Oslo."),
            ("user", "Where do I live?"),
            ("assistant", "You live in Oslo."),
            ("user", "What is my dog called, and who am I?"),
            ("assistant", "Your dog is called Rex and your name is Ada."),
        ]
    ],
}


def test_which_rounds_an_answer_needs():
    assert list(needed_rounds(STORY["messages"], STORY["asks"])) == [set(), {1}, set(), {1}, {3, 4}]


def test_every_depending_response_of_the_corpus_needs_some_round():
    for record in RECORDS:
        for ask, needed in zip(record["asks"], needed_rounds(record["messages"], record["asks"]), strict=True):
            assert bool(needed) == (ask in recall.DEPENDING)


def test_what_each_round_takes_off_is_sorted_by_need():
    nll = {"last 0": 20.0, "last 1": 10.0, "last 2": 9.5, "last 3": 6.0, "true": 1.0}
    scored = [ScoredResponse(0, "story", "", 4, 4, 9, nll), ScoredResponse(0, "story", "", 0, 0, 9, {"true": 1.0})]
    assert gains_by_need(scored, {"story": STORY}) == {True: [3.5, 5.0], False: [0.5]}


def test_a_corrected_value_has_the_one_before_as_its_rival():
    (found,) = corrected(parse_record(STORY, "d.jsonl:1"), STORY["asks"])
    assert (found.ask, found.is_after) == ("corrected", True)
    assert [each.messages[-1].content for each in (found.right, found.wrong)] == [
        "You live in Oslo.",
        "You live in Rome.",
    ]
    assert found.right.messages[:-1] == found.wrong.messages[:-1]


def test_before_the_correction_the_old_value_is_right():
    found = [each for record in RECORDS for each in corrected(parse_record(record, "d.jsonl:1"), record["asks"])]
    assert {each.is_after for each in found} == {True, False}
    for each in found:
        said = " ".join(message.content for message in each.right.messages[:-1])
        (new,) = {*_words(each.right)} - {*_words(each.wrong)}
        assert new in said
        assert each.ask in recall.DEPENDING


def _words(dialogue):
    return dialogue.messages[-1].content.rstrip(".").split()


def test_a_hidden_history_is_the_last_round_alone(tmp_path):
    assert last_round(STORY["messages"]) == STORY["messages"][-2:]
    files = write_files(tmp_path, 3, 4)
    whole, hidden = (records_of(files[name]).values() for name in ("whole", "hidden"))
    assert [each["messages"][-2:] for each in whole] == [each["messages"] for each in hidden]
    assert len(records_of(files["held_out"])) == 100


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(what the benchmark printed, its folder) of one seed."""
    folder = tmp_path_factory.mktemp("seeds")
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "benchmarks/context_seeds.py", "--seeds=1", f"--folder={folder}"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), folder


@pytest.mark.slow
def test_models_are_named_as_they_were_trained(trained):
    (_, whole, hidden, last), _ = trained
    assert whole.split()[:5] == ["0", "all", "uses", "its", "history"]
    assert hidden.split()[:6] == ["0", "last", "round", "ignores", "its", "history"]
    assert last.startswith("2 of 2 as they were trained; ")


@pytest.mark.slow
def test_the_gain_lies_in_the_rounds_that_say_the_answer_and_corrections_count(trained):
    _, folder = trained
    workdir, records = folder / "whole-0", records_of(str(folder / "held_out-0.jsonl"))
    scorer = ContextScorer(Evaluator.of(load_config(str(workdir / "config.json")), workdir))
    scored = scorer.score(ContextOptions(limit=0, perturbed=False, reshardings=0))
    gains = gains_by_need(scored.responses, records)
    assert len(gains[True]) > 50
    assert np.mean(gains[True]) > np.log(24)  # nats: a value that can only be guessed is one of 24
    assert np.mean(gains[False]) < np.mean(gains[True]) / 4
    margins = ranks(scorer, records)
    assert np.mean(np.array(margins[True]) > 0) > 0.85  # the corrected value before the one that it replaced,
    assert np.mean(np.array(margins[False]) > 0) > 0.85  # which was the more probable one until then
    assert min(len(margins[True]), len(margins[False])) > 20
