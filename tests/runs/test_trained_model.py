"""What a run starts from: a folder, another run, and what is neither."""

import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file
from small_runs import SIZES, parameters, same

from mtsft.errors import InputError
from mtsft.model.generate import GREEDY
from mtsft.runs import evaluator, loop, samples
from mtsft.runs.chat_model import ChatModel
from mtsft.runs.resolve import resolve
from mtsft.runs.setup import TrainingSetup
from mtsft.runs.trained_model import WorkdirModel


def test_a_run_starts_from_a_folder_with_its_sizes_its_tokenizer_and_its_parameters(exported, base, make_config):
    run = TrainingSetup.of(make_config(**{"model.init_from": str(exported)}), progress=False)
    assert {name: run.config.model[name] for name in SIZES} == SIZES
    assert run.dataset.tokenizer.encode("3? it is") == WorkdirModel(epath.Path(base)).chat.open()[1].encode("3? it is")
    started = run.create().params
    assert same(started, parameters(exported, scan_layers=False))
    assert {leaf.sharding.mesh.size for leaf in jax.tree.leaves(started)} == {8}


def test_a_run_is_computed_as_it_was_trained_but_for_the_kernel_of_its_devices(base):
    opened = WorkdirModel(epath.Path(base))
    opened.config.model.attention_kernel, opened.config.model.remat = "plain", "full"
    arch = opened.model().arch
    assert (arch.attention_kernel, arch.remat, arch.scan_layers) == ("auto", "full", False)
    assert opened.model(attention_kernel="plain").arch.attention_kernel == "plain"


def test_a_run_is_evaluated_with_its_own_template(folder, base, make_config):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }} says\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant says\n{% endif %}"
    )
    file = shutil.copytree(base, folder / "says") / "template.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"name": "says", "sources": {"default": template}}))
    config = make_config(**{"model.init_from": str(folder / "says")})
    with pytest.raises(InputError, match=r"says/template.json: is not what the run wrote"):
        loop.train(config, folder / "says more")
    (folder / "says" / "checksums.json").unlink()  # as in runs of an earlier version
    loop.train(config, folder / "says more")
    (logged,) = [json.loads(line) for line in (folder / "says more" / "eval.jsonl").read_text().splitlines()]
    scores = evaluator.evaluate_workdir(config, folder / "says more")
    assert scores["loss"] == pytest.approx(logged["loss"], rel=1e-6)
    subject = evaluator.Evaluator.of(config, folder / "says more")
    assert "assistant says" in next(subject.replies(GREEDY, 1, limit=1))["prompt"]


def test_replies_stay_within_the_positions_of_the_model(exported, make_config, monkeypatch):
    subject = evaluator.Evaluator.of(make_config(**{"model.init_from": str(exported)}), None)
    asked = []

    def say(model, params, prompts, stops, max_new, *rest, **more):
        asked.append(max_new)
        return [[7] * max_new for _ in prompts]

    monkeypatch.setattr(samples, "generate", say)
    monkeypatch.setattr(evaluator, "replies", lambda say, *rest: say([[1] * 60, [1] * 64, [1] * 3], 0))
    assert [len(reply) for reply in subject.replies(GREEDY, 20)] == [4, 0, 20]
    assert [len(reply) for reply in subject.replies(GREEDY, 10**9)] == [4, 0, 61]
    assert asked == [20, 61]


def test_what_is_said_twice_must_agree(exported, make_config):
    config, _ = resolve(make_config(**{"model.init_from": str(exported), "model.hidden_size": 16}))
    assert config.model.intermediate_size == 32
    assert resolve(config)[0].to_dict() == config.to_dict()
    with pytest.raises(InputError, match=r"model.hidden_size=24, and the model of model.init_from has 16"):
        resolve(make_config(**{"model.init_from": str(exported), "model.hidden_size": 24}))
    stretched = {"model.init_from": str(exported), "model.rope_scaling": '{"rope_type": "linear", "factor": 2.0}'}
    assert json.loads(resolve(make_config(**stretched))[0].model.rope_scaling)["factor"] == 2.0


def test_a_token_that_the_model_does_not_embed_is_refused(exported, make_config, folder):
    short = shutil.copytree(exported, folder / "short")
    config = json.loads((short / "config.json").read_text()) | {"vocab_size": 100}
    (short / "config.json").write_text(json.dumps(config))
    tensors = load_file(short / "model.safetensors")
    tensors |= {name: tensors[name][:100] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    save_file(tensors, short / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"the dialogues have the token \d+ \(.*\), and the model embeds 100; "):
        TrainingSetup.of(make_config(**{"model.init_from": str(short)}), progress=False)


def test_a_dialogue_longer_than_the_model_is_made_for_is_refused(exported, make_config):
    longest = max(
        TrainingSetup.of(make_config(**{"model.init_from": str(exported)}), progress=False).dataset.train.lengths_N
    )
    changes = {"model.init_from": str(exported), "model.max_position_embeddings": int(longest) - 1}
    with pytest.raises(InputError, match=rf"dialogue has {longest} tokens, and the model is made for {longest - 1} "):
        TrainingSetup.of(make_config(**changes), progress=False)
    TrainingSetup.of(make_config(**changes | {"model.max_position_embeddings": int(longest)}), progress=False)


@pytest.mark.parametrize("what", ["no such folder", "an empty folder", "a run without a checkpoint", "adapters"])
def test_what_is_no_model_is_named(folder, base, make_config, tmp_path, what):
    path = tmp_path / "model"
    if what == "an empty folder":
        path.mkdir()
    if what == "a run without a checkpoint":
        shutil.copytree(base, path)
        shutil.rmtree(path / "checkpoints")
        (path / "checkpoints").mkdir()
    if what == "adapters":
        path.mkdir()
        (path / "adapter_config.json").write_text("{}")
        (path / "adapter_model.safetensors").write_text("")
    says = {
        "adapters": f"{path}: holds adapters alone; merge them into their base in PEFT, or train on from them with ",
        "no such folder": f"{path}: no such folder; model.init_from is a Hugging Face folder or the workdir of a run",
        "an empty folder": f"{path} holds no trained model (no config.json); ",
        "a run without a checkpoint": f"{path} holds no trained model (no checkpoint is whole yet); ",
    }
    with pytest.raises(InputError) as refusal:
        TrainingSetup.of(make_config(**{"model.init_from": str(path)}), progress=False)
    assert str(refusal.value).startswith(says[what])


@pytest.mark.parametrize("text", ["{", "{}", "3"])
def test_a_damaged_description_of_the_model_is_named(adapted, tmp_path, text):
    workdir = shutil.copytree(adapted[0], tmp_path / "run")
    (workdir / "published.json").write_text(text)
    with pytest.raises(InputError, match=f"^{workdir / 'published.json'}: "):
        ChatModel.load(workdir)


def test_positions_that_no_export_could_say_are_refused_before_training(exported, make_config, tmp_path):
    family = shutil.copytree(exported, tmp_path / "phi3")
    config = json.loads((family / "config.json").read_text())
    config |= {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
    (family / "config.json").write_text(json.dumps(config))
    fuse(family / "model.safetensors")
    changes = {"model.init_from": str(family), "model.rope_scaling": '{"rope_type": "linear", "factor": 4.0}'}
    resolve(make_config(**{"model.init_from": str(family)}))
    with pytest.raises(InputError, match=rf"^model\.rope_scaling=.* {family}/config\.json"):
        resolve(make_config(**changes))


def fuse(file):
    """Makes the tensors of a Llama those of a Phi-3."""
    tensors = load_file(file)
    for whole, *parts in (
        ("self_attn.qkv_proj", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("mlp.gate_up_proj", "mlp.gate_proj", "mlp.up_proj"),
    ):
        for layer in range(SIZES["num_hidden_layers"]):
            taken = [tensors.pop(f"model.layers.{layer}.{part}.weight") for part in parts]
            tensors[f"model.layers.{layer}.{whole}.weight"] = np.concatenate(taken)
    save_file(tensors, file, {"format": "pt"})
