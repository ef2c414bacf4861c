"""A run in Python: it trains as the loop does, and shows what came of it."""

import json

import pytest
from small_runs import SIZES

import mtsft
from mtsft.errors import InputError
from mtsft.runs import evaluator


class Watch:
    def __init__(self, wrong=False):
        self.records, self.closed, self.wrong = [], 0, wrong

    def __call__(self, record):
        self.records.append(record)
        if self.wrong:
            raise RuntimeError("wrong")

    def close(self):
        self.closed += 1


@pytest.fixture(scope="module")
def config(make_config):
    return make_config(**{f"model.{name}": value for name, value in SIZES.items()})


@pytest.fixture(scope="module")
def trained(folder, config):
    """(the run, its watch, its result)."""
    run, watch = mtsft.Run(config, folder / "in Python"), Watch()
    return run, watch, run.train(watch)


def test_it_trains_and_closes_what_watches(folder, trained):
    _, watch, result = trained
    assert json.loads(json.dumps(result)) == json.loads((folder / "in Python" / "result.json").read_text())
    logged = [json.loads(line) for line in (folder / "in Python" / "metrics.jsonl").read_text().splitlines()]
    assert watch.records == logged
    assert watch.closed == 1
    assert "<th style='text-align:left'>steps</th><td>2</td>" in result._repr_html_()


def test_what_watches_is_closed_after_a_failure_too(folder, config):
    watch = Watch(wrong=True)
    with pytest.raises(RuntimeError, match=r"^wrong$"):
        mtsft.Run(config, folder / "wrong").train(watch)
    assert watch.closed == 1


def test_a_plain_function_may_watch(folder, config):
    records = []
    mtsft.Run(config, folder / "plain").train(records.append)
    assert [record["step"] for record in records] == [1, 2]


def test_it_evaluates(folder, config, trained):
    run = trained[0]
    scores = run.evaluate()
    assert scores == evaluator.evaluate_workdir(config, folder / "in Python")
    assert str(scores).startswith(f"held-out loss {scores['loss']:.4f} (nats per supervised token), ")
    assert "<tr><th>turn</th><th>loss</th><th>interval</th>" in scores._repr_html_()
    with pytest.raises(InputError, match="holds no trained model"):
        mtsft.Run(config, folder / "nothing").evaluate()


def test_its_scores_are_drawn(trained):
    pytest.importorskip("matplotlib")
    scores = trained[0].evaluate(against=["@2"])
    assert "turn" in scores.figures()
    (axes,) = scores.figures("turn")["turn"].axes
    assert axes.lines[0].get_ydata() == [row["loss"] for row in scores["by_turn"]]
    assert len(axes.lines) == 2
    with pytest.raises(InputError, match=r"^no table 'turns' of more than one group; there are turn"):
        scores.figures("turns")


def test_it_is_talked_to(folder, trained):
    model = mtsft.ChatModel.load(folder / "in Python")
    chat = model.chat("Be kind.", max_new=3)
    reply = chat.say("3?")
    assert reply == model.reply([("system", "Be kind."), ("user", "3?")], 3)
    assert chat.messages == [("system", "Be kind."), ("user", "3?"), ("assistant", reply)]
    chat.reset()
    assert chat.messages == [("system", "Be kind.")]


def test_it_is_exported(folder, config, trained):
    said = trained[0].export(folder / "in Python, exported", dtype="bfloat16")
    assert "the best by held-out loss" in said or "checkpoint" in said
    arrays = (folder / "in Python, exported" / "config.json").read_text()
    assert json.loads(arrays)["torch_dtype"] == "bfloat16"
    chat = mtsft.ChatModel.load(folder / "in Python, exported").chat(max_new=2)
    assert isinstance(chat.say("3?"), str)
    with pytest.raises(InputError, match="trained without adapters"):
        trained[0].export(folder / "adapters", adapter=True)


def test_the_identities_are_checked(config):
    record = mtsft.check_identities(config)
    assert (record["dialogues"], record["responses"]) == (8, 8)
    for way in ("passes", "packed"):
        assert record[way]["loss"] < 1e-5
        assert record[way]["gradient"] < 1e-4
    assert "<summary>packed</summary>" in record._repr_html_()
    assert mtsft.Dataset.audit(config, numeric=True, progress=False)["numeric"] == record
