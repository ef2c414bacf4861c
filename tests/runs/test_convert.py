"""Out of a run and in again."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_runs import parameters, same

from mtsft.config import default
from mtsft.errors import InputError
from mtsft.runs import convert, evaluator
from mtsft.runs.chat_model import ChatModel
from mtsft.runs.hub_model import HubModel
from mtsft.runs.trained_model import WorkdirModel, open_base
from mtsft.runs.training_record import training_record


def test_a_run_goes_out_and_comes_in_bit_for_bit(folder, base, exported):
    assert isinstance(open_base(exported), HubModel)
    assert same(parameters(base), parameters(exported))
    assert json.loads((exported / "config.json").read_text())["max_position_embeddings"] == 64  # what it was trained on
    convert.from_hugging_face(exported, folder / "back")
    convert.to_hugging_face(folder / "back", folder / "again")
    assert {p.name for p in exported.iterdir()} == {p.name for p in (folder / "again").iterdir()}
    for file in {*exported.iterdir()} - {exported / "README.md"}:
        assert file.read_bytes() == (folder / "again" / file.name).read_bytes(), file.name
    assert "did not train" in (folder / "again" / "README.md").read_text()
    assert ChatModel.load(folder / "back").reply([("user", "3?")], 4) == ChatModel.load(base).reply([("user", "3?")], 4)


def test_adapters_alone_go_out_as_a_folder(folder, adapted, exported):
    workdir, _ = adapted
    (remark,) = convert.to_hugging_face(workdir, folder / "adapter", adapter=True)
    assert f"names its base by the folder {exported}; --base_name=" in remark
    described = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (described["r"], described["base_model_name_or_path"]) == (2, str(exported))
    assert convert.to_hugging_face(workdir, folder / "named", adapter=True, base_name="maker/model") == []
    described = json.loads((folder / "named" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == "maker/model"
    card = (folder / "named" / "README.md").read_text()
    assert 'base_model: "maker/model"\n' in card
    assert "base_model:" not in (folder / "adapter" / "README.md").read_text()
    beside = {path.name for path in (folder / "named").iterdir()}
    assert beside >= {"chat_template.jinja", "generation_config.json", "tokenizer_config.json"}
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    np.testing.assert_array_equal(tensors[name], parameters(workdir)["layers"][1]["mlp"]["up"]["lora_b"].T)


def test_a_folder_says_how_it_was_trained_and_no_path_of_its_maker(folder, adapted, exported):
    workdir, _ = adapted
    convert.to_hugging_face(workdir, folder / "tuned")
    card = (folder / "tuned" / "README.md").read_text()
    assert str(folder) not in card
    assert "# tuned\n\nexported, fine-tuned with mtsft" in card
    (loss,) = [record["loss"] for record in map(json.loads, (workdir / "eval.jsonl").read_text().splitlines())]
    assert f"These are the weights of step 2. Their held-out loss is {loss:.4f} nats per supervised token" in card
    assert f"| step | held-out loss |\n| ---: | ---: |\n| 2 | {loss:.4f} |\n" in card
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rows = "".join(f"| {record['step']} | {record['loss']:.4f} |\n" for record in records)
    assert f"| step | training loss |\n| ---: | ---: |\n{rows}" in card
    assert "Data:\n\n```\ndialogues.jsonl\n```\n" in card
    assert r"Held out: 25\.0\% of the dialogues." in card
    config = json.loads(card.split("```json\n")[1].split("```")[0])
    assert config["model.init_from"] == "exported"
    assert config["data.train"] == "dialogues.jsonl"
    assert (config["lora.rank"], config["train.learning_rate"]) == (2, 0.01)
    assert not {"data.cache_dir", "parallel.compilation_cache", "model.hidden_size"} & {*config}


def test_losses_of_other_held_out_dialogues_and_of_later_steps_are_not_told(adapted, tmp_path):
    shutil.copytree(adapted[0], tmp_path / "run")
    evaluations = tmp_path / "run" / "eval.jsonl"
    (own,) = [json.loads(line) for line in evaluations.read_text().splitlines()]
    others = [own | {"step": 1, "held_out": "others"}, own | {"step": 1, "loss": 9.5}, own, own | {"step": 3}]
    evaluations.write_text("".join(json.dumps(record) + "\n" for record in [*others, own | {"step": 1, "loss": None}]))
    record = training_record(WorkdirModel(tmp_path / "run"))
    assert record.held_out_losses == [(1, 9.5), (2, own["loss"])]


def test_what_is_named_by_several_paths_is_told_by_their_last_parts(folder, make_config, base, tmp_path):
    shutil.copytree(base, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["data"] |= {"train": ["/home/ada/a.jsonl", "gs://bucket/b/*.jsonl=0.5"], "eval": "/x/y.jsonl,/x/z/"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    record = training_record(WorkdirModel(tmp_path / "run"))
    assert record.data == ["a.jsonl", "*.jsonl=0.5"]
    assert record.held_out == "y.jsonl,z"
    assert record.config["data.train"] == ["a.jsonl", "*.jsonl=0.5"]
    assert record.base == ""


def test_conversions_that_make_no_sense_are_named(folder, base, exported):
    with pytest.raises(InputError, match="is the workdir of a run, not a Hugging Face folder"):
        convert.from_hugging_face(base, folder / "x")
    with pytest.raises(InputError, match=r"was trained without adapters \(lora.rank=0\)"):
        convert.to_hugging_face(base, folder / "x", adapter=True)
    with pytest.raises(InputError, match="is there already"):
        convert.to_hugging_face(base, exported)
    with pytest.raises(InputError, match="is a Hugging Face folder, which holds no steps; leave --step out"):
        convert.to_hugging_face(exported, folder / "x", step=0)
    with pytest.raises(InputError, match=r"set model\.init_from to it and leave out --workdir"):
        evaluator.evaluate_workdir(default(), exported)
    assert not (folder / "x").exists()


@pytest.mark.parametrize("adapter", [False, True])
def test_an_output_that_cannot_be_written_is_refused_before_a_model_is_read(
    adapted, exported, tmp_path, monkeypatch, adapter
):
    def read(*_, **__):
        raise AssertionError("the model is read")

    monkeypatch.setattr(WorkdirModel, "restore", read)
    said = f"{exported}: is there already; choose a folder that is not, or an empty one"
    with pytest.raises(InputError, match=rf"^{re.escape(said)}$"):
        convert.to_hugging_face(adapted[0], exported, adapter=adapter)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=rf"^{tmp_path}/file/out: cannot be written \(.*\); choose another folder$"):
        convert.to_hugging_face(adapted[0], tmp_path / "file" / "out", adapter=adapter)
    with pytest.raises(AssertionError, match="the model is read"):
        convert.to_hugging_face(adapted[0], tmp_path / "out", adapter=adapter)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_adapters_on_positions_of_their_own_go_out_merged_alone(adapted, exported, tmp_path):
    workdir = shutil.copytree(adapted[0], tmp_path / "run")
    recorded = json.loads((workdir / "config.json").read_text())
    recorded["model"]["rope_theta"] = 5e5
    (workdir / "config.json").write_text(json.dumps(recorded))
    with pytest.raises(InputError, match=rf"was trained with another model.rope_theta than {exported} has"):
        convert.to_hugging_face(workdir, tmp_path / "out", adapter=True)


@pytest.mark.parametrize("origin", ["a run", "nothing"])
def test_adapters_on_what_peft_cannot_load_go_out_merged_alone(folder, adapted, base, tmp_path, origin):
    workdir = shutil.copytree(adapted[0], tmp_path / "run")
    recorded = json.loads((workdir / "config.json").read_text())
    recorded["model"]["init_from"] = str(base) if origin == "a run" else ""
    (workdir / "config.json").write_text(json.dumps(recorded))
    named = f"the run in {base}" if origin == "a run" else "random parameters"
    with pytest.raises(InputError, match=rf"^{workdir}: its adapters are for {named}, which PEFT cannot load; "):
        convert.to_hugging_face(workdir, tmp_path / "out", adapter=True)
