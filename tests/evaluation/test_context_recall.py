import sys
from dataclasses import replace

import jax
import pytest
from support import small_model

from mtsft.config import DataConfig
from mtsft.corpora import recall
from mtsft.dialogue.formats import parse_record
from mtsft.encoding.encoder import Encoder
from mtsft.encoding.token_tree import paths
from mtsft.evaluation import context_recall

RECORDS = list(recall.dialogues(3, seed=1))
ASKS = [ask for record in RECORDS for ask in record["asks"]]
DEPENDING = sum(ask in recall.DEPENDING for ask in ASKS)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "recall.jsonl"
    recall.write_corpus(path, len(RECORDS), seed=1)
    return path


@pytest.fixture(scope="module")
def encoder(chatml, small_tokenizer):
    return Encoder(chatml, small_tokenizer, DataConfig(sequence_length=sys.maxsize))


@pytest.fixture(scope="module")
def turns(encoder):
    """Of every dialogue, what is to be said in each true context."""
    trees = [encoder(parse_record(record, "the corpus")) for record in RECORDS]
    return [[(tuple(context), response.tolist()) for _, context, response in paths(tree)] for tree in trees]


@pytest.fixture
def speak(monkeypatch, turns):
    """In place of the model, one that says what is right in a true context, but for what is `spoilt`."""

    def put(spoilt=()):
        asked = []
        right = dict(turn for dialogue in turns for turn in dialogue) | dict(spoilt)

        def generate(model, params, prompts, stop_ids, max_new, vocab_size):
            asked.append(prompts)
            return [right.get(tuple(prompt), [*stop_ids])[:max_new] for prompt in prompts]

        monkeypatch.setattr(context_recall, "generate", generate)
        monkeypatch.setattr(context_recall, "_MAX_NEW", 1000)  # the tokenizer of the tests spells letter by letter
        return asked

    return put


def test_a_model_that_learned_nothing_has_no_answer_right(encoder, corpus, monkeypatch):
    monkeypatch.setattr(context_recall, "_MAX_NEW", 2)
    model = small_model(vocab_size=encoder.tokenizer.vocab_size, num_hidden_layers=1)
    scores = context_recall.measure(model, model.init(jax.random.key(0)), encoder, corpus)
    assert scores == {
        "context_accuracy": 0.0,
        "hidden_history_accuracy": 0.0,
        "by_kind": dict.fromkeys(sorted({*ASKS} - {"open"}), 0.0),
        "turns": DEPENDING,
    }


def test_a_model_that_says_what_is_right_is_right_and_without_the_history_it_is_not(speak, encoder, corpus):
    speak()
    assert context_recall.measure(None, None, encoder, corpus) == {
        "context_accuracy": 1.0,
        "hidden_history_accuracy": 0.0,
        "by_kind": dict.fromkeys(sorted({*ASKS} - {"open"}), 1.0),
        "turns": DEPENDING,
    }


def test_hidden_history_is_the_last_user_message_alone(speak, encoder, corpus):
    asked = speak()
    context_recall.measure(None, None, encoder, corpus)
    last = [
        before["content"]
        for record in RECORDS
        for before, message in zip(record["messages"], record["messages"][1:])
        if message["role"] == "assistant"
    ]
    shown = [words for words, ask in zip(last, ASKS, strict=True) if ask != "open"]
    assert [encoder.tokenizer.decode(prompt) for prompt in asked[1]] == [
        f"<|im_start|>user\n{words}<|im_end|>\n<|im_start|>assistant\n" for words in shown
    ]


@pytest.mark.parametrize(
    "spoil",
    [lambda r: r[:-1], lambda r: r[1:], lambda r: [*r[:-1], *r[-2:]], lambda r: [r[-1]]],
    ids=["no stop", "no beginning", "a token twice", "nothing"],
)
def test_an_answer_is_right_only_if_every_token_is_its_stop_included(speak, turns, encoder, corpus, spoil):
    turn = next(i for i, ask in enumerate(RECORDS[1]["asks"]) if ask == "corrected")
    prompt, reply = turns[1][turn]
    speak([(prompt, spoil(reply))])
    scores = context_recall.measure(None, None, encoder, corpus)
    assert scores["context_accuracy"] == 1 - 1 / DEPENDING
    expected = dict.fromkeys({*ASKS} - {"open"}, 1.0) | {"corrected": round(1 - 1 / ASKS.count("corrected"), 4)}
    assert scores["by_kind"] == expected


def test_a_conversation_marks_what_is_wrong_and_nothing_else(speak, turns, encoder, corpus):
    prompt, reply = turns[2][-1]
    speak([(prompt, [*encoder.tokenizer.encode("I do not know."), reply[-1]])])
    lines = context_recall.answered_conversation(None, None, encoder, corpus, index=2).splitlines()
    shown = [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]
    messages = [(m["role"].replace("assistant", "model"), m["content"]) for m in RECORDS[2]["messages"]]
    assert messages[-1][0] == "model"
    assert shown == [*messages[:-1], ("model", f"I do not know.   (should be: {messages[-1][1]})")]


@pytest.mark.parametrize(
    "changes",
    [{"responses": "last"}, {"responses": "first"}, {"sequence_length": 64, "over_length": "drop"}],
    ids=str,
)
def test_every_turn_is_asked_for_whichever_were_trained(speak, encoder, corpus, changes):
    asked = speak()
    other = Encoder(encoder.template, encoder.tokenizer, replace(encoder.config, **changes))
    scores = context_recall.measure(None, None, other, corpus)
    assert (scores["context_accuracy"], scores["turns"]) == (1.0, DEPENDING)
    usual = [*asked]
    asked.clear()
    context_recall.measure(None, None, encoder, corpus)
    assert asked == usual
    assert context_recall.answered_conversation(None, None, other, corpus).count("  model ") == len(RECORDS[0]["asks"])
