"""What a notebook shows; nothing of the data can change the page."""

import numpy as np
import pytest
from support import chain, pack

from mtsft.diagnose.notebook_views import (
    EncodedDialogue,
    EncodedDialogues,
    ShownBatch,
    ShownFigures,
    ShownRecord,
    ShownText,
)
from mtsft.diagnose.token_view import as_columns, as_html, as_text

HOSTILE = "<script>\x1b[2J"


class FewDialogues:
    """Stands for a store."""

    def __init__(self, count):
        self.trees = [chain([0, 0, 1, 1], seed=seed) for seed in range(count)]

    def __len__(self):
        return len(self.trees)

    def __getitem__(self, index):
        return self.trees[index]

    def id(self, index):
        return f"{HOSTILE}{index}"

    def source(self, index):
        return "file.jsonl", index + 1


@pytest.fixture
def dialogues(small_tokenizer):
    return EncodedDialogues(FewDialogues(8), small_tokenizer)


def test_a_dialogue_is_shown_marked(small_tokenizer):
    tree = chain([0, 0, 1, 1])
    dialogue = EncodedDialogue(tree, small_tokenizer)
    assert repr(dialogue) == as_text(tree, small_tokenizer, color=False)
    assert dialogue._repr_html_() == as_html(tree, small_tokenizer)
    assert len(dialogue) == 4


def test_dialogues_are_a_sequence(dialogues):
    assert len(dialogues) == 8
    assert [one.source for one in dialogues[5:]] == ["file.jsonl:6", "file.jsonl:7", "file.jsonl:8"]
    assert dialogues[2:6][-1].source == dialogues[5].source == dialogues[-3].source
    np.testing.assert_array_equal(dialogues[3].tree.tokens_N, chain([0, 0, 1, 1], seed=3).tokens_N)
    with pytest.raises(IndexError):
        dialogues[8]
    assert repr(dialogues[1:3]) == "<2 dialogues>"


def test_the_first_few_dialogues_are_shown(dialogues):
    shown = dialogues._repr_html_()
    assert shown.count('<div class="mtsft-tree">') == 5
    assert "<p>and 3 more</p>" in shown
    assert "file.jsonl:5; 4 tokens" in shown
    assert "<script>" not in shown
    assert "\x1b" not in shown
    assert "more" not in dialogues[:5]._repr_html_()


def test_a_batch_is_shown_as_columns():
    batch = pack([[chain([0, 1, 1])], [chain([0, 0, 1, 1])]], 40)
    shown = ShownBatch(*batch)
    assert shown.tokens is batch.tokens
    fields = batch._asdict()
    assert repr(shown) == as_columns(fields, stop=24)
    assert shown.columns(1, 3, row=1) == as_columns(fields, 1, 1, 3)
    assert shown._repr_html_() == f"<pre>{as_columns(fields, stop=24)}</pre>"
    assert repr(shown.columns()) == as_columns(fields)


def test_text_is_shown_as_it_is():
    text = ShownText("a <b>\nc\x1b")
    assert repr(text) == "a <b>\nc\x1b"
    assert text._repr_html_() == "<pre>a &lt;b&gt;\nc\u241b</pre>"


def test_a_record_is_shown_as_a_table():
    record = ShownRecord(
        loss=1.23456,
        steps=12345,
        finished=True,
        name=HOSTILE,
        tiny=2e-6,
        by_turn=[{"turn": 0, "loss": 2.0}, {"turn": 1, "loss": 0.5}],
        data={"train": {"kept": 7, "by_turn": {3: 8}}},
    )
    shown = record._repr_html_()
    for cell in ("1.2346", "12,345", "True", "2e-06", "2.0000", "0.5000", "7", "8", "&lt;script&gt;\u241b[2J"):
        assert f"<td>{cell}</td>" in shown
    assert "<tr><th>turn</th><th>loss</th></tr>" in shown
    assert "<details><summary>data</summary><details><summary>train</summary><table>" in shown
    assert "<script>" not in shown
    assert record == dict(record)


def test_figures_are_pictures_with_their_names():
    figure = pytest.importorskip("matplotlib.figure").Figure(figsize=(1, 1))
    shown = ShownFigures({"turn": figure, HOSTILE: figure})._repr_html_()
    assert shown.count('src="data:image/png;base64,iVBOR') == 2
    assert '<img alt="turn" ' in shown
    assert "<script>" not in shown
