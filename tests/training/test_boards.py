"""Weights & Biases, as a stand-in of its own hears it, and where it is not installed."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest

from mtsft.errors import InputError
from mtsft.training.boards import WeightsAndBiases, check_installed
from mtsft.training.metrics import Log


class Refused(Exception):
    pass


@pytest.fixture
def heard(monkeypatch):
    """What is said to it: (name of what is called, arguments, keywords)."""
    heard = []

    def hear(name, gives=None):
        return lambda *arguments, **keys: heard.append((name, arguments, keys)) or gives

    names = ("define_metric", "log", "finish")
    run = SimpleNamespace(**{name: hear(name) for name in names})
    module = SimpleNamespace(init=hear("init", run), Settings=lambda **keys: keys, Error=Refused)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return heard


def test_all_starts_of_a_run_are_one_run_there_and_those_of_another_are_not(tmp_path, heard):
    for name in ("a", "a", "b"):
        (tmp_path / name).mkdir(exist_ok=True)
        WeightsAndBiases(tmp_path / name, "dialogues", {"train.seed": 1}).close()
    first, again, other = [keys for name, _, keys in heard if name == "init"]
    assert first == again
    assert first["id"] != other["id"]
    assert first["id"] == (tmp_path / "a" / "wandb_id.txt").read_text()
    assert (first["project"], first["name"], first["resume"]) == ("dialogues", "a", "allow")
    assert first["config"] == {"train.seed": 1}
    assert first["dir"] == str(tmp_path / "a")


def test_scalars_are_drawn_by_the_step_of_the_run(tmp_path, heard):
    with Log(tmp_path, 0, [WeightsAndBiases(tmp_path, "dialogues", {})], active=True) as log:
        log.train({"step": 10, "loss": 2.0, "grad_norms": {"mlp": 1.0}})
        log.evaluation({"step": 10, "loss": 1.0, "held_out": "x", "by_turn": [{"turn": 0, "loss": 3.0}]})
        log.sync()
    assert [(name, arguments, keys) for name, arguments, keys in heard if name != "init"] == [
        ("define_metric", ("step",), {}),
        ("define_metric", ("*",), {"step_metric": "step"}),
        ("log", ({"train/loss": 2.0, "train_grad_norms/mlp": 1.0, "step": 10},), {}),
        ("log", ({"eval/loss": 1.0, "step": 10},), {}),
        ("log", ({"eval_loss_by_turn/assistant_turn_01": 3.0, "step": 10},), {}),
        ("finish", (), {}),
    ]


def test_who_is_not_logged_in_is_told_what_to_do(tmp_path, heard, monkeypatch):
    def refuse(**_):
        raise Refused("api_key not configured\n(no-tty)")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(InputError, match=r"^train.wandb='dialogues': .*api_key not configured.*WANDB_MODE=offline$"):
        WeightsAndBiases(tmp_path, "dialogues", {})


def test_where_it_is_not_installed_the_error_has_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_installed(False, "")
    with pytest.raises(InputError, match=r"^train.wandb='dialogues': .*pip install 'mtsft\[wandb\]'$"):
        check_installed(False, "dialogues")
    with pytest.raises(InputError, match=r"^train.tensorboard=True: .*pip install 'mtsft\[tensorboard\]'$"):
        check_installed(True, "")
