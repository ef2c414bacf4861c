"""A run whose data grew: refused where it is, and gone on with in a new workdir by the command that the error has."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_runs import SIZES, parameters, same

from mtsft.config_files import load_config
from mtsft.errors import InputError
from mtsft.model.parameters import split
from mtsft.runs import convert, loop
from mtsft.runs.legs import continued


def is_adapter(name):
    return name.rpartition("/")[2] in ("lora_a", "lora_b")


def append(config, path, count=20):
    """A copy of a config's data with more dialogues."""
    shutil.copy(config.data.train, path)
    with path.open("a") as file:
        for n in range(count):
            messages = [{"role": "user", "content": f"What of {n}?"}, {"role": "assistant", "content": f"It is {n}."}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return str(path)


def command_in(error):
    """The command that an error ends with, as the config and the workdir that it gives."""
    _, found, command = str(error.value).partition("; restore it, or train on from it in a new workdir: ")
    assert found
    words = shlex.split(command)
    assert words[:2] == ["mtsft", "train"]
    flags = dict(word.removeprefix("--").split("=", 1) for word in words[2:])
    name, workdir = flags.pop("config"), flags.pop("workdir")
    return load_config(name, {key.removeprefix("config."): value for key, value in flags.items()}), workdir


@pytest.fixture
def grown(make_config, tmp_path):
    """Trains a config, lets its data grow, and obeys the error: (first workdir, second config, second workdir)."""

    def train(**changes):
        config, first = make_config(**changes), tmp_path / "a run"
        loop.train(config, first)
        config.data.train = append(config, tmp_path / "more.jsonl")
        before = parameters(first)
        with pytest.raises(InputError, match=r"^.*a run holds a run with another data.train \(tokenised\)") as error:
            loop.train(config, first)
        assert same(parameters(first), before)
        again, second = command_in(error)
        assert second == f"{first}-2"
        with again.unlocked():
            again.train.learning_rate = 0.0  # what it starts from is what it ends with
        assert loop.train(again, second)["finished"]
        assert parameters(second).keys() == before.keys()
        return first, again, second

    return train


def files_of(workdir):
    kept = [Path(workdir) / "template.json", *sorted((Path(workdir) / "tokenizer").iterdir())]
    return {path.name: path.read_bytes() for path in kept}


@pytest.mark.slow
def test_a_run_from_scratch_goes_on_with_its_tokenizer_and_template(grown):
    first, again, second = grown(**{f"model.{name}": value for name, value in SIZES.items()})
    assert again.model.init_from == str(first)
    assert files_of(first) == files_of(second)
    assert same(parameters(first), parameters(second))


def test_a_run_of_all_parameters_goes_on_from_what_it_trained(grown, exported):
    first, again, second = grown(**{"model.init_from": str(exported)})
    assert again.model.init_from == str(first)
    assert not same(parameters(exported), parameters(second))
    assert same(parameters(first), parameters(second))
    assert files_of(first) == files_of(second)


@pytest.mark.slow
def test_adapters_go_on_over_their_base(grown, exported, tmp_path):
    first, again, second = grown(**{"model.init_from": str(exported), "lora.rank": 2, "lora.modules_to_save": "^norm$"})
    assert (again.model.init_from, again.lora.init_from) == (str(exported), str(first))
    before, after = (split(parameters(path), is_adapter)[0] for path in (first, second))
    assert max(np.abs(layer["mlp"]["up"]["lora_b"]).max() for layer in before["layers"].values()) > 1e-3
    assert same(before, after)
    assert same(parameters(first), parameters(second))
    convert.to_hugging_face(second, tmp_path / "adapter", adapter=True)
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(exported)  # not a workdir, which PEFT cannot read
    assert loop.train(again, second)["finished"]


def test_adapters_of_a_run_are_for_its_base_alone(adapted, exported, base, make_config, folder):
    workdir, _ = adapted
    for model, adapters, says in (
        (exported, base, "was trained without adapters"),
        (base, workdir, f"{workdir}: its adapters are for {exported}, and model.init_from is another model"),
    ):
        config = make_config(**{"model.init_from": str(model), "lora.init_from": str(adapters)})
        with pytest.raises(InputError, match=says):
            loop.train(config, folder / "never")


def test_the_command_has_what_was_changed_fit_for_a_shell(make_config, tmp_path):
    (tmp_path / "it's").mkdir()
    (tmp_path / "it's-2").mkdir()
    changed = {
        "data.train": ("a.jsonl", ["b c.jsonl", "d.jsonl"]),
        "train.learning_rate": (0.1, 0.2),
        "model.init_from": ("", "elsewhere"),
        "model.old": (1, None),
    }
    words = shlex.split(continued(tmp_path / "it's", make_config(), changed))
    assert words == [
        "mtsft", "train", f"--config={tmp_path}/it's", f"--workdir={tmp_path}/it's-3",
        f"--config.model.init_from={tmp_path}/it's", "--config.data.train=b c.jsonl,d.jsonl",
        "--config.train.learning_rate=0.2",
    ]  # fmt: skip
