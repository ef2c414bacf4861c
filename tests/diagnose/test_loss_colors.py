"""Losses of tokens as colors and numbers: in a terminal, on a page, as JSON."""

import json
import math

import numpy as np
import pytest

from mtsft.diagnose import page
from mtsft.diagnose.html_page import html_page
from mtsft.diagnose.loss_colors import LEVELS, STYLE, css_class, legend, level_of
from mtsft.diagnose.token_view import as_fragment, as_text
from mtsft.diagnose.viewed import ViewedDialogue
from mtsft.dialogue.schema import Dialogue, Message


@pytest.fixture
def tokenizer(chat):
    return chat.open()[1]


@pytest.fixture
def viewed(encoder):
    messages = (Message("user", "Hello there"), Message("assistant", "I am well."))
    dialogue = Dialogue("d", messages, "d.jsonl:1")
    ((_, tree),) = encoder.encode([dialogue])[0]
    places = np.flatnonzero(tree.response_mask_N).tolist()
    losses = {place: 0.5 * n for n, place in enumerate(places)}
    losses[places[-1]] = math.nan
    return ViewedDialogue(dialogue, tree, 0, False, losses)


def test_levels_follow_one_another():
    assert [level_of(loss) for loss in (0.0, 0.05, 0.49, 0.5, 7.9, 8.0, 1e9)] == [0, 1, 2, 3, 7, 8, 8]
    assert level_of(math.nan) == level_of(math.inf) == len(LEVELS)
    for index in range(len(LEVELS) + 1):
        assert STYLE.count(f".mtsft-tree .loss{index},") == 2  # light and dark


def test_without_color_numbers_stand_after_what_is_supervised_alone(viewed, tokenizer):
    text = as_text(viewed.tree, tokenizer, color=False, losses=viewed.losses)
    assert text.count("{") == len(viewed.losses)
    before, after = text.split("\u27e6")
    assert "{" not in before
    assert "{0.00}" in after
    assert "{nan}\u27e7" in after
    assert as_text(viewed.tree, tokenizer, color=False).count("{") == 0


def test_a_terminal_has_backgrounds_and_a_legend(viewed, tokenizer):
    pieces = "".join(page.FORMATS["text"]([viewed], tokenizer, True, {}))
    assert pieces.startswith(legend(True))
    assert f"\x1b[48;5;{LEVELS[0].terminal};38;5;16m" in pieces
    plain = viewed._replace(losses=None)
    assert "48;5" not in "".join(page.FORMATS["text"]([plain], tokenizer, True, {}))


def test_json_has_a_loss_for_every_token(viewed, tokenizer):
    (line,) = page.FORMATS["json"]([viewed], tokenizer, False, {})
    record = json.loads(line)
    finite = {place: loss for place, loss in viewed.losses.items() if math.isfinite(loss)}
    assert record["losses"] == [finite.get(place) for place in range(len(viewed.tree))]
    (line,) = page.FORMATS["json"]([viewed._replace(losses=None)], tokenizer, False, {})
    assert "losses" not in json.loads(line)


def test_a_page_says_loss_and_probability_where_the_mouse_rests(viewed, tokenizer):
    fragment = as_fragment(viewed.tree, tokenizer, viewed.losses)
    assert 'weight 1, loss 0.5000, probability 0.6065"' in fragment
    assert 'weight 1, loss not finite"' in fragment
    assert f'class="supervised {css_class(0.5)}"' in fragment
    whole = "".join(html_page([viewed], tokenizer, {}, "A <title>", ["<b>words"], True))
    assert "<h1>A &lt;title&gt;</h1>" in whole
    assert "<p>&lt;b&gt;words</p>" in whole
    assert '<p class="losses">' in whole
    assert "loss0" not in "".join(html_page([viewed._replace(losses=None)], tokenizer, {}))
