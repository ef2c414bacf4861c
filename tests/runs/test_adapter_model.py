"""PEFT folders of adapters, talked to and merged over their base."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mtsft.errors import InputError
from mtsft.model.generate import Sampling
from mtsft.runs import convert
from mtsft.runs.adapter_model import open_with_adapters
from mtsft.runs.chat_model import ChatModel

ASKED = [("user", "3?")]


@pytest.fixture(scope="module")
def adapters(folder, adapted):
    """A PEFT folder of the adapters of a run."""
    convert.to_hugging_face(adapted[0], folder / "peft", adapter=True)
    return folder / "peft"


@pytest.fixture
def copied(adapters, tmp_path):
    return shutil.copytree(adapters, tmp_path / "peft")


def change(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.slow
def test_adapters_over_their_base_are_the_run_that_they_come_from(adapters, adapted, exported):
    model, run = ChatModel.load(adapters), ChatModel.load(adapted[0])
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), model.params, run.params))
    assert model.reply(ASKED, 5) == run.reply(ASKED, 5)
    assert model.encoder.stop_ids == run.encoder.stop_ids
    assert model.name == f"{adapters}, adapters over {exported}"
    assert model.step == 0


def test_a_base_that_moved_is_asked_for_and_taken_from_its_new_place(copied, exported, tmp_path):
    change(copied / "adapter_config.json", base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"peft: its base model .*/gone is no folder here; name the .*--base=FOLDER"):
        ChatModel.load(copied)
    moved = shutil.copytree(exported, tmp_path / "moved")
    assert ChatModel.load(copied, places=[moved]).reply(ASKED, 5) == ChatModel.load(copied, places=[exported]).reply(
        ASKED, 5
    )
    with pytest.raises(InputError, match=rf"^--base={tmp_path}/none: no such folder; name the folder of the ba"):
        ChatModel.load(copied, places=[tmp_path / "none"])
    with pytest.raises(InputError, match=r"peft: its adapters have one base, and --base names 2; name one$"):
        ChatModel.load(copied, places=[moved, exported])
    change(copied / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(InputError, match=r"adapter_config\.json: names no base model; name its folder with --base="):
        ChatModel.load(copied)


def test_without_a_tokenizer_beside_them_they_speak_as_their_base(copied, exported):
    for path in list(copied.iterdir()):
        if not path.name.startswith("adapter_"):
            path.unlink()
    model = ChatModel.load(copied)
    assert model.prompt(ASKED) == ChatModel.load(exported).prompt(ASKED)
    assert model.encoder.stop_ids == ChatModel.load(exported).encoder.stop_ids


def test_a_template_and_sampling_that_lie_beside_them_are_theirs_and_others_the_base_s(copied, exported, tmp_path):
    base = shutil.copytree(exported, tmp_path / "base")
    change(base / "generation_config.json", do_sample=True, temperature=0.5, top_k=7)
    change(copied / "adapter_config.json", base_model_name_or_path=str(base))
    (copied / "generation_config.json").unlink()
    (copied / "chat_template.jinja").unlink()
    model = ChatModel.load(copied)
    assert model.defaults.sampling == Sampling(temperature=0.5, top_k=7)
    assert model.prompt(ASKED) == ChatModel.load(exported).prompt(ASKED)
    (copied / "chat_template.jinja").write_text("{{ messages[0].content }}<|im_end|>")
    (copied / "generation_config.json").write_text("{}")
    model = ChatModel.load(copied)
    assert model.encoder.tokenizer.decode(model.prompt(ASKED)) == "3?<|im_end|>"
    assert model.chat().sampling == Sampling()


def test_adapters_have_no_steps(adapters):
    with pytest.raises(InputError, match=r"peft: is an adapter folder, which holds no steps; leave --step out$"):
        ChatModel.load(adapters, step=2)


def test_a_folder_of_adapters_and_a_config_of_a_model_is_still_one_of_adapters(copied, exported):
    shutil.copy(exported / "config.json", copied / "config.json")
    assert ChatModel.load(copied).name.endswith(f"adapters over {exported}")


def test_merged_adapters_are_the_run_merged(adapters, adapted, tmp_path):
    convert.to_hugging_face(adapters, tmp_path / "from_peft")
    convert.to_hugging_face(adapted[0], tmp_path / "from_run")
    merged, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("from_peft", "from_run"))
    assert {*merged} == {*expected}
    assert all((merged[name] == expected[name]).all() for name in expected)
    with pytest.raises(InputError, match=r"peft: is no workdir of a run, whose adapters could be written"):
        convert.to_hugging_face(adapters, tmp_path / "again", adapter=True)


def test_a_head_of_more_tokens_beside_adapters_grows_the_base(copied, exported):
    """As PEFT saves a model whose embeddings were resized: both tables whole."""
    base = load_file(exported / "model.safetensors")
    rows = base["model.embed_tokens.weight"].shape[0] + 2
    tensors = load_file(copied / "adapter_model.safetensors")
    for name, prefix in (("embed_tokens", "base_model.model.model."), ("lm_head", "base_model.model.")):
        table = np.random.default_rng(0).normal(size=(rows, base["model.embed_tokens.weight"].shape[1]))
        tensors[f"{prefix}{name}.weight"] = table.astype(np.float32)
    save_file(tensors, copied / "adapter_model.safetensors")
    change(copied / "adapter_config.json", modules_to_save=["embed_tokens", "lm_head"])
    trained = open_with_adapters(copied)
    assert trained.fields["vocab_size"] == rows
    params = ChatModel.load(copied).params
    np.testing.assert_array_equal(params["embed"]["embedding"], tensors["base_model.model.model.embed_tokens.weight"])
