import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from support import SIZES, assert_trees_close, small_model

from mtsft.config import default
from mtsft.dialogue.schema import Message
from mtsft.errors import InputError
from mtsft.evaluation.score_table import as_table
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.generate import GREEDY, Sampling
from mtsft.model.parameters import stack_layers
from mtsft.runs import chat_model, evaluator, workdir
from mtsft.runs.build_model import model_of
from mtsft.runs.chat_model import ChatModel
from mtsft.training.checkpoint import Checkpoints
from mtsft.training.optimizer import build_optimizer
from mtsft.training.state import new_state

LOSSES = {1: 2.0, 2: 1.0, 3: None, 4: 3.0}  # held-out loss by step, where it was measured; two are kept, and the best


def make_config():
    config = default()
    config.model.update({name: value for name, value in SIZES.items() if name != "vocab_size"})
    config.model.scan_layers = False
    config.data.cache_dir = "/nowhere"
    config.parallel.compilation_cache = ""
    return config


def make_workdir(folder, config, chat, vocab_size, losses=LOSSES):
    """A workdir as a run leaves it, each checkpoint with parameters of its own; {step: parameters}."""
    folder.mkdir()
    workdir.write_config(epath.Path(folder), config)
    workdir.write_run_files(epath.Path(folder), chat)
    (folder / workdir.FINGERPRINT).write_text("{}")
    model = model_of(config, vocab_size)
    optimizer = build_optimizer("adamw", clip_norm=1.0, weight_decay=0.1, b1=0.9, b2=0.95, eps=1e-8)
    saved = {}
    with Checkpoints(epath.Path(folder / "checkpoints"), model, keep=2) as checkpoints:
        for step, loss in losses.items():
            saved[step] = model.init(jax.random.key(step))
            checkpoints.save(step, new_state(saved[step], optimizer), loss)
    return saved


@pytest.fixture(scope="module")
def run(tmp_path_factory, chat, small_tokenizer):
    """(workdir, {step: parameters})."""
    folder = tmp_path_factory.mktemp("run") / "work"
    return folder, make_workdir(folder, make_config(), chat, small_tokenizer.vocab_size)


@pytest.fixture
def copied(run, tmp_path):
    """A workdir to spoil."""
    return epath.Path(shutil.copytree(run[0], tmp_path / "work"))


def test_the_best_by_held_out_loss_is_loaded(run):
    folder, saved = run
    model = ChatModel.load(folder)
    assert model.step == 2
    assert_trees_close(model.params, saved[2], rtol=0, atol=1e-30)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(model.params)} == {8}


def test_a_step_can_be_chosen(run):
    folder, saved = run
    assert_trees_close(ChatModel.load(folder, step=3).params, saved[3], rtol=0, atol=1e-30)
    with pytest.raises(InputError, match=r"holds no checkpoint of step 1; it has 2, 3, 4$"):
        ChatModel.load(folder, step=1)


def test_the_newest_is_best_where_nothing_was_held_out(tmp_path, chat, small_tokenizer):
    make_workdir(tmp_path / "work", make_config(), chat, small_tokenizer.vocab_size, dict.fromkeys(LOSSES))
    assert ChatModel.load(tmp_path / "work").step == max(LOSSES)


def change(folder, group, name, value):
    """Changes a key of the config that lies in a workdir."""
    config = json.loads((folder / "config.json").read_text())
    config[group][name] = value
    (folder / "config.json").write_text(json.dumps(config))


def test_layers_scanned_or_unrolled_load_from_the_same_checkpoint(run, copied):
    change(copied, "model", "scan_layers", True)  # layers are decoded one by one all the same
    assert_trees_close(ChatModel.load(copied).params, run[1][2], rtol=0, atol=1e-30)
    assert_trees_close(ChatModel.load(copied, scan_layers=True).params, stack_layers(run[1][2]), rtol=0, atol=1e-30)


def test_a_relative_workdir_will_do(run, monkeypatch):
    folder, _ = run
    monkeypatch.chdir(folder.parent)
    assert ChatModel.load("work").step == 2


def test_reading_leaves_everything_as_it_is(copied):
    half_written = copied / "checkpoints" / "5.orbax-checkpoint-tmp"
    half_written.mkdir()
    before = sorted(Path(copied).rglob("*"))
    ChatModel.load(copied)
    assert sorted(Path(copied).rglob("*")) == before


def test_a_config_with_several_files_is_read_back(copied):
    change(copied, "data", "train", ["a.jsonl", "b.jsonl"])
    assert list(workdir.read_run_config(copied).data.train) == ["a.jsonl", "b.jsonl"]


def test_reply_continues_the_rendered_conversation(run, monkeypatch):
    model = ChatModel.load(run[0])
    tokenizer, asked = model.encoder.tokenizer, []
    stop = tokenizer.controls["<|im_end|>"].id

    def generate(_, params, prompts, stop_ids, max_new, sampling, **_options):
        assert sampling == GREEDY
        asked.extend([*prompts, stop_ids, max_new])
        return [[*tokenizer.encode("I am well."), stop]]

    monkeypatch.setattr(chat_model, "generate", generate)
    said = [("system", "Be kind."), ("user", "Hello there"), ("assistant", "Hi"), ("user", "How are you?")]
    assert model.reply(said) == "I am well."
    assert tokenizer.decode(asked[0]) == (
        "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in said) + "<|im_start|>assistant\n"
    )
    assert asked[0].count(stop) == 4
    assert asked[1:] == [(stop,), 256]
    assert model.reply([Message(*pair, weight=0.5) for pair in said], max_new=7) == "I am well."
    assert asked[3] == asked[0]
    assert asked[5] == 7


def test_reply_is_decoded_greedily(run, monkeypatch):
    model, seen = ChatModel.load(run[0]), []
    generate = chat_model.generate

    def watched(*arguments, **options):
        seen.extend([arguments[2][0], *generate(*arguments, **options)])
        return seen[1:]

    monkeypatch.setattr(chat_model, "generate", watched)
    reply = model.reply([("user", "Hi")], max_new=3)
    prompt, said = seen
    assert len(said) == 3
    tokens = np.array([prompt + said], np.int32)
    length = tokens.shape[1]
    layout = AttentionLayout.of_chains(np.array([length], np.int32), length)
    hidden, projection, _ = jax.jit(model.model.apply)(model.params, tokens, layout)
    assert projection.logits(hidden[0, len(prompt) - 1 : -1]).argmax(-1).tolist() == said
    assert reply == model.encoder.tokenizer.decode(said)


def in_place_of(model, monkeypatch, **changes):
    """`model` with fresh parameters of another architecture, and the list of what it comes to say, token by token."""
    other, tokens = small_model(scan_layers=False, **changes), []
    generate, stream = chat_model.generate, chat_model.stream

    def watched(*arguments, **options):
        (said,) = generate(*arguments, **options)
        tokens.append(said)
        return [said]

    def watched_stream(*arguments, **options):
        tokens.append([])
        for token in stream(*arguments, **options):
            tokens[-1].append(token)
            yield token

    monkeypatch.setattr(chat_model, "generate", watched)
    monkeypatch.setattr(chat_model, "stream", watched_stream)
    return replace(model, model=other, params=other.init(jax.random.key(0))), tokens


def test_ids_that_the_tokenizer_does_not_have_are_never_said(run, monkeypatch):
    base = ChatModel.load(run[0])
    size = base.encoder.tokenizer.vocab_size
    model, tokens = in_place_of(base, monkeypatch, vocab_size=8 * size)
    arguments = ([("user", "Hi")], 12, Sampling(temperature=1e6))
    assert "".join(model.stream(*arguments)) == model.reply(*arguments)
    assert [len(said) for said in tokens] == [12, 12]
    assert max(tokens[0]) < size


def test_prompt_and_reply_stay_within_the_positions_that_the_model_is_made_for(run, monkeypatch):
    base = ChatModel.load(run[0])
    said = [("user", "Hello there")]
    length = len(base.prompt(said))
    size = base.encoder.tokenizer.vocab_size
    free, tokens = in_place_of(base, monkeypatch, vocab_size=size)
    assert free.reply(said, max_new=6)
    texts = [base.encoder.tokenizer.decode(tokens[0][:count]) for count in range(7)]
    assert len({*texts}) == 7
    model, _ = in_place_of(base, monkeypatch, vocab_size=size, max_position_embeddings=length + 3)
    assert "".join(model.stream(said, max_new=6)) == model.reply(said, max_new=6) == texts[3]
    assert "".join(model.stream(said, max_new=2)) == model.reply(said, max_new=2) == texts[2]
    longer = [("user", "Hello there" + " and more" * 99)]
    count = f"{len(base.prompt(longer)):,}"
    refused = (
        rf"^the conversation has {count} tokens, and the model is made for {length + 3}; /reset, or start with less"
    )
    for refuses in (model.prompt, model.reply, lambda said: list(model.stream(said))):
        with pytest.raises(InputError, match=refused):
            refuses(longer)
    full, _ = in_place_of(base, monkeypatch, vocab_size=size, max_position_embeddings=length)
    with pytest.raises(InputError, match=rf"has {length} tokens, and the model is made for {length};"):
        full.prompt(said)


def test_reply_refuses_what_no_dialogue_can_hold(run):
    model = ChatModel.load(run[0])
    with pytest.raises(InputError, match=r"^the conversation: message 1 has the unknown role \"robot\""):
        model.reply([("robot", "Hi")])
    with pytest.raises(InputError, match=r"^the conversation: message 2 \(user\) has content that is a number"):
        model.reply([("user", "Hi"), ("user", 3)])


@pytest.mark.parametrize("lack", ["config.json", "fingerprint.json", "tokenizer", "checkpoints"])
def test_says_what_is_missing(copied, lack):
    path = copied / lack
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    says = rf"^{copied}/{lack}: is missing, without which the run cannot be read; restore it from a copy$"
    if lack == "checkpoints":
        says = rf"^{copied} holds no trained model \(no {lack}\); train one first with python -m mtsft.train .*$"
    with pytest.raises(InputError, match=says):
        ChatModel.load(copied)
    with pytest.raises(InputError, match=says):
        evaluator.evaluate_workdir(default(), copied)
    assert not path.exists()


def test_a_template_that_is_missing_or_broken_is_named(copied):
    (copied / "template.json").write_text("{")
    with pytest.raises(InputError, match=rf"^{copied}/template.json: is not what the run wrote \(its checksum is "):
        ChatModel.load(copied)
    (copied / "checksums.json").unlink()  # as in runs of an earlier version
    with pytest.raises(InputError, match=rf"^{copied}/template.json: not the template of a run of this version: "):
        ChatModel.load(copied)
    (copied / "template.json").unlink()
    with pytest.raises(InputError, match=r"holds no trained model \(no template.json\); train one first with"):
        ChatModel.load(copied)


def test_says_that_no_checkpoint_is_whole(copied):
    for step in (2, 3, 4):
        shutil.rmtree(copied / "checkpoints" / str(step))
    with pytest.raises(InputError, match=r"holds no trained model \(no checkpoint is whole yet\)"):
        ChatModel.load(copied)


@pytest.mark.parametrize("text", ["{", '{"data": {"unheard_of": 1}}', "[]"])
def test_a_config_that_cannot_be_read_is_named(copied, text):
    (copied / "config.json").write_text(text)
    with pytest.raises(InputError, match=rf"^{copied}/config.json: not the config of a run"):
        ChatModel.load(copied)


@pytest.fixture
def copied_and_config(copied, tmp_path, write_jsonl):
    """(workdir, a config that evaluates it)."""
    config = default()
    config.update(json.loads((copied / "config.json").read_text()))
    turns = [("user", "Hello there"), ("assistant", "I am well"), ("user", "And you?"), ("assistant", "Hi")]
    config.data.train = str(write_jsonl([turns] * 8))
    config.data.eval = str(write_jsonl([turns[:2], turns], "held_out.jsonl"))
    config.data.cache_dir = str(tmp_path / "cache")
    config.data.sequence_length = 64
    config.data.workers = 1
    return copied, config


def test_evaluation_is_of_the_best_with_its_own_tokenizer(copied_and_config, small_tokenizer):
    folder, config = copied_and_config
    config.train.optimizer = "muon"  # the optimizer does not matter any more
    scores = evaluator.evaluate_workdir(config, folder)
    assert config.data.tokenizer == ""
    assert [entry["supervised_tokens"] for entry in scores["by_turn"]] == [
        2 * (len(small_tokenizer.encode("I am well")) + 1),
        len(small_tokenizer.encode("Hi")) + 1,
    ]
    assert scores["dialogues"] == 2
    for step in (3, 4):
        shutil.rmtree(folder / "checkpoints" / str(step))
    again = evaluator.evaluate_workdir(config, folder)
    said = [each.pop("checkpoint") for each in (scores, again)]
    assert said == [
        f"step 2, the best by held-out loss 1.0000 of {count}" for count in ("2 evaluations", "one evaluation")
    ]
    assert again == scores
    head, turns, *_ = as_table(scores).split("\n\n")
    assert head.startswith(f"held-out loss {scores['loss']:.4f} (nats per supervised token), ")
    assert turns.splitlines()[-1].split()[0] == "2"


def test_evaluation_refuses_another_model(copied_and_config):
    folder, config = copied_and_config
    config.model.intermediate_size = 48
    with pytest.raises(InputError, match=r"holds a model with model.intermediate_size=64, and here it is 48; "):
        evaluator.evaluate_workdir(config, folder)


def test_evaluation_needs_something_held_out(copied_and_config):
    folder, config = copied_and_config
    config.data.eval = ""
    with pytest.raises(InputError, match=r"^nothing is held out .* set data.eval or data.eval_fraction$"):
        evaluator.evaluate_workdir(config, folder)
