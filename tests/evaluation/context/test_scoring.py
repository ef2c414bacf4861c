"""Responses encoded and scored after their histories; the model stands for one whose loss is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from told import told

from mtsft.config import DataConfig
from mtsft.encoding.spec import ChatFormat, EncodingSpec
from mtsft.evaluation.context import scoring
from mtsft.evaluation.context.donors import Donors
from mtsft.evaluation.context.scoring import score_last_responses, score_variants
from mtsft.evaluation.context.variants import NO_DONOR, ONE_WAY, Variation

FILE = Path("d.jsonl")
TWO = told("u:one. more.", "a:1", "u:two", "a:22", line=1)
OTHER = told("u:x", "a:y", "u:z", "a:w", line=2)
STRICT = """{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles') }}
{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


class Model:
    """Scores a tree by the number of its tokens, and remembers the trees that it was given at a time."""

    def __init__(self):
        self.calls = []

    def __call__(self, trees):
        self.calls.append([tree.tokens_N.tobytes() for tree in trees])
        for tree in trees:
            assert (tree.parents_N == np.arange(-1, len(tree) - 1)).all()
        return np.array([len(tree) for tree in trees], np.float64)


def scored(chat, *dialogues, row_length=10_000, config=None, **options):
    spec, model = EncodingSpec(chat, config or DataConfig()), Model()
    read = [(FILE, dialogue) for dialogue in dialogues]
    found = score_variants(read, spec, Variation(Donors(read, 0), 0, **options), model, row_length)
    return found, model


def test_a_response_is_scored_after_each_history(chat):
    found, _ = scored(chat, TWO, OTHER)
    first, second, *others = found.responses
    assert [(each.id, each.source, each.turn, each.rounds) for each in (first, second)] == [
        ("d1", "d.jsonl:1", 0, 0),
        ("d1", "d.jsonl:1", 1, 1),
    ]
    assert [each.dialogue for each in found.responses] == [0, 0, 1, 1]
    assert (found.dialogues, len(others)) == (2, 2)
    assert {*first.nll} == {"true"}
    encoder = EncodingSpec(chat, DataConfig()).encoder()
    assert second.nll["true"] == len(encoder(TWO))
    assert second.nll["last 0"] == len(encoder(replace(TWO, messages=TWO.messages[2:])))
    foreign = (*OTHER.messages[:2], *TWO.messages[2:])
    assert second.nll["foreign"] == len(encoder(replace(TWO, messages=foreign)))
    assert second.tokens == 3  # "2", "2" and the stop
    assert second.nll["first utterance dropped"] == second.nll["last utterance alone"]


def test_what_is_the_same_is_scored_once(chat):
    found, model = scored(chat, TWO, OTHER)
    (trees,) = model.calls
    assert len({*trees}) == len(trees) < sum(len(each.nll) for each in found.responses)


def test_only_what_the_run_supervises_is_a_response(chat):
    found, _ = scored(chat, TWO, OTHER, config=DataConfig(responses="last"))
    assert [(each.id, each.turn) for each in found.responses] == [("d1", 1), ("d2", 1)]
    found, _ = scored(chat, TWO, OTHER, config=DataConfig(responses="user,assistant"))
    assert [(each.id, each.turn) for each in found.responses] == [("d1", 0), ("d1", 1), ("d2", 0), ("d2", 1)]


def test_what_weighs_nothing_is_no_response_and_weights_change_no_loss(chat):
    plain, _ = scored(chat, TWO, OTHER)
    weights = (1.0, 0.0, 1.0, 0.5)
    messages = tuple(message._replace(weight=weight) for message, weight in zip(TWO.messages, weights))
    found, _ = scored(chat, replace(TWO, messages=messages), OTHER, config=DataConfig(weigh_per="dialogue"))
    assert found.responses[0] == plain.responses[1]


def test_what_is_longer_than_a_row_is_counted(chat):
    length = len(EncodingSpec(chat, DataConfig()).encoder()(OTHER))
    found, _ = scored(chat, TWO, OTHER, row_length=length, perturbed=False, reshardings=0)
    assert [(each.id, each.turn, [*each.nll]) for each in found.responses] == [
        ("d1", 0, ["true"]),
        ("d2", 0, ["true"]),
        ("d2", 1, ["true", "last 0"]),
    ]
    assert found.left_out.counts == {("true", scoring.TOO_LONG): 1, ("foreign", scoring.TOO_LONG): 1}
    assert found.left_out.first["true", scoring.TOO_LONG] == "d.jsonl:1: message 4"


def test_what_the_template_refuses_is_counted(chat):
    strict = ChatFormat(chat.tokenizer, {"default": STRICT}, "strict")
    found, _ = scored(strict, TWO, OTHER)
    assert {key: count for key, count in found.left_out.counts.items() if key[1] != ONE_WAY} == {
        (name, scoring.REFUSED): 2
        for name in ("first utterance dropped", "last utterance dropped", "last utterance alone")
    }
    assert "words shuffled" in found.responses[1].nll


def test_a_response_with_other_tokens_is_counted(chat, monkeypatch):
    trees = scoring._trees

    def altered(encoder, dialogues, row_length):
        made = trees(encoder, dialogues, row_length)
        for i, dialogue in enumerate(dialogues):
            if len(dialogue.messages) == 2 and dialogue.messages[0].content == "two":
                made[i].tokens_N[-1] += 1
        return made

    monkeypatch.setattr(scoring, "_trees", altered)
    found, _ = scored(chat, TWO, OTHER)
    assert found.left_out.counts["last 0", scoring.OTHER_TOKENS] == 1
    assert "last 0" not in found.responses[1].nll


def test_without_a_donor(chat):
    found, _ = scored(chat, TWO)
    assert found.left_out.counts["foreign", NO_DONOR] == 1


def test_so_many_tokens_are_held_at_once(chat, monkeypatch):
    whole, one = scored(chat, TWO, OTHER)
    monkeypatch.setattr(scoring, "_CHUNK_TOKENS", 1)
    chunked, many = scored(chat, TWO, OTHER)
    assert (len(one.calls), len(many.calls)) == (1, 2)
    assert chunked.responses == whole.responses


def test_in_a_tree_of_replies_each_response_has_its_own_path(chat):
    tree = told("u:one", "a:1", "u:two", "a:2", "a:other", "u:three", "a:3", line=5, parents=(-1, 0, 1, 2, 0, 4, 5))
    found, _ = scored(chat, tree, OTHER)
    encoder = EncodingSpec(chat, DataConfig()).encoder()
    path = replace(tree, messages=tuple(tree.messages[i] for i in (0, 4, 5, 6)), parents=None)
    assert found.responses[3].nll["true"] == len(encoder(path))
    assert [(each.turn, each.rounds) for each in found.responses[:4]] == [(0, 0), (1, 1), (0, 0), (1, 1)]


@pytest.mark.parametrize("row_length", [10_000, 10])
def test_last_responses_alone(chat, row_length):
    found = score_last_responses([TWO, told("u:hello?")], EncodingSpec(chat, DataConfig()), Model(), row_length)
    length = len(EncodingSpec(chat, DataConfig()).encoder()(TWO))
    assert found == [(3, length) if row_length > 10 else scoring.TOO_LONG, scoring.REFUSED]
