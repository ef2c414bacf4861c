"""A run from scratch, it as a folder, and adapters that were trained on that folder."""

import json

import pytest
from small_runs import SIZES

from mtsft.config import default
from mtsft.runs import convert, loop


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pretrained")


@pytest.fixture(scope="session")
def make_config(folder):
    path = folder / "dialogues.jsonl"
    with path.open("w") as file:
        for n in range(40):
            messages = [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n} it is"}]
            file.write(json.dumps({"messages": messages}) + "\n")

    def make(**changes):
        config = default()
        config.data.update(train=str(path), eval_fraction=0.25, sequence_length=64, vocab_size=300)
        config.data.cache_dir = str(folder / "cache")
        config.train.update(steps=2, batch_size=8, learning_rate=0.01, warmup_steps=1, log_every=1)
        config.eval.every = 2
        config.checkpoint.every = 2
        config.parallel.compilation_cache = ""
        config.update_from_flattened_dict(changes)
        return config

    return make


@pytest.fixture(scope="session")
def base(folder, make_config):
    """The workdir of a run from scratch."""
    sizes = {f"model.{name}": value for name, value in SIZES.items()}
    loop.train(make_config(**sizes), folder / "base")
    return folder / "base"


@pytest.fixture(scope="session")
def exported(folder, base):
    """It as a Hugging Face folder."""
    convert.to_hugging_face(base, folder / "exported")
    return folder / "exported"


@pytest.fixture(scope="session")
def adapted(folder, exported, make_config):
    """(workdir, config) of adapters that were trained on that folder."""
    config = make_config(**{"model.init_from": str(exported), "lora.rank": 2, "lora.dropout": 0.1})
    config.model.param_dtype = "float32"
    loop.train(config, folder / "adapted")
    return folder / "adapted", config
