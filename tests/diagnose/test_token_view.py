import re
from html.parser import HTMLParser

import numpy as np
import pytest

from mtsft.config import DataConfig
from mtsft.diagnose import token_view
from mtsft.dialogue.schema import Dialogue, Message
from mtsft.encoding.encoder import Encoder
from mtsft.encoding.token_tree import TokenTree
from mtsft.tokenizer import load as tokenizer
from mtsft.tokenizer import sentencepiece


@pytest.fixture
def grow(encoder):
    """The tree of messages given as (role, content[, weight])."""
    return lambda *messages: encoder(Dialogue("d", tuple(Message(*m) for m in messages)))


def branching(tokenizer):
    """`a b c d` with `x y` growing from b: c d and x y are supervised, with weights 1 and 2."""
    ids = [tokenizer.encode(letter)[-1] for letter in "abcdxy"]
    return TokenTree(
        np.array(ids, np.int32),
        np.array([-1, 0, 1, 2, 1, 4], np.int32),
        np.array([0, 0, 1, 1, 2, 2], np.float32),
        np.array([0, 0, 0, 0, 1, 1], np.int16),
        np.array([-1, 0, 1, 1, 2, 2], np.int16),
        np.array([1, 1, 1, 1, 2, 2], np.int16),
    )


class Page(HTMLParser):
    """The text of a fragment, and of each class of span."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.titles, self.spans = [], [], []
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "span":
            self.spans.append([dict(attributes)["class"], ""])
            self.titles.append(dict(attributes)["title"])

    def handle_data(self, data):
        if self.spans and self.tags[-1] == "span":
            self.spans[-1][1] += data


def test_text_marks_exactly_what_is_supervised(grow, small_tokenizer):
    tree = grow(("user", "How are you?"), ("assistant", "Well,\nthank you."), ("user", "Hi"), ("assistant", "Hello"))
    assert token_view.as_text(tree, small_tokenizer, color=False) == (
        "<|im_start|>user⏎\nHow are you?<|im_end|>⏎\n<|im_start|>assistant⏎\n"
        "⟦Well,⏎\nthank you.<|im_end|>⟧⏎\n"
        "<|im_start|>user⏎\nHi<|im_end|>⏎\n<|im_start|>assistant⏎\n"
        "⟦Hello<|im_end|>⟧"
    )


def test_colors_say_the_same_as_brackets(grow, small_tokenizer):
    tree = grow(("user", "Hi"), ("assistant", "Hello", 0.5), ("user", "you"), ("assistant", "Well"))
    colored = token_view.as_text(tree, small_tokenizer)
    green = re.findall(r"\x1b\[1;32m(.*?)\x1b\[0m(?!\x1b\[1;32m)", colored, flags=re.DOTALL)
    said = [re.sub(r"\x1b\[[\d;]*m", "", stretch) for stretch in green]
    plain = token_view.as_text(tree, small_tokenizer, color=False)
    assert said == re.findall("⟦(.*?)⟧", plain) == ["\u00d70.5 Hello<|im_end|>", "Well<|im_end|>"]
    assert re.sub(r"\x1b\[[\d;]*m", "", colored) == re.sub("[⟦⟧]", "", plain)
    assert colored.endswith(
        "\x1b[0m\x1b[2m⏎\n\x1b[4m<|im_start|>\x1b[0m\x1b[2massistant⏎\n\x1b[0m"
        "\x1b[1;32mWell\x1b[4m<|im_end|>\x1b[0m\x1b[1;32m\x1b[0m"
    )


def test_runs_hold_every_token_once_in_order(grow, small_tokenizer):
    tree = grow(("system", "é"), ("user", "日本 \U0001f600"), ("assistant", "ü\u200d!", 2.0))
    token_pieces = list(token_view.token_pieces(tree, small_tokenizer))
    assert [token for piece in token_pieces for token in piece.tokens] == tree.tokens_N.tolist()
    assert [piece.index for piece in token_pieces] == np.cumsum([0, *[len(piece.tokens) for piece in token_pieces]])[
        :-1
    ].tolist()
    assert [piece.weight for piece in token_pieces for _ in piece.tokens] == tree.response_mask_N.tolist()
    assert [piece.message for piece in token_pieces for _ in piece.tokens] == tree.message_ids_N.tolist()
    assert [piece.marker for piece in token_pieces] == [
        piece.text in small_tokenizer.controls for piece in token_pieces
    ]


def test_bytes_of_a_character_are_joined(grow, small_tokenizer):
    token_pieces = list(token_view.token_pieces(grow(("user", "日\U0001f600"), ("assistant", "é")), small_tokenizer))
    assert {piece.text: len(piece.tokens) for piece in token_pieces if len(piece.tokens) > 1} == {
        "日": 3,
        "\U0001f600": 4,
        "é": 2,
    }


def test_bytes_that_spell_no_character_stay_apart(small_tokenizer):
    ids = small_tokenizer.encode("日")
    whole = TokenTree(
        np.array([*ids[:2], *ids], np.int32),
        np.arange(-1, 4, dtype=np.int32),
        np.array([0, 0, 0, 0, 1], np.float32),  # the last byte is supervised, the first ones are not
        *[np.zeros(5, np.int16)] * 3,
    )
    texts = [piece.text for piece in token_view.token_pieces(whole, small_tokenizer)]
    assert texts == ["<0xE6>", "<0x97>", "<0xE6>", "<0x97>", "<0xA5>"]
    assert [piece.text for piece in token_view.token_pieces(whole.head(2), small_tokenizer)] == texts[:2]


def test_a_branch_begins_on_its_own_line_with_its_position(small_tokenizer):
    tree = branching(small_tokenizer)
    assert token_view.as_text(tree, small_tokenizer, color=False) == "ab⟦cd⟧\n↳ 2: ⟦\u00d72 xy⟧"
    assert "\n↳ 2: \x1b[1;32m" in token_view.as_text(tree, small_tokenizer)
    fragment = token_view.as_html(tree, small_tokenizer)
    assert '<div class="branch"><i>branch 1, from position 2 on</i>\n<span' in fragment
    assert '</span></div><div class="branch"><i>branch 2, from position 2 on</i>\n<sup>\u00d72 </sup><span' in fragment
    assert fragment.endswith("</span></div></div>")
    assert [piece.position for piece in token_view.token_pieces(tree, small_tokenizer)] == [0, 1, 2, 3, 2, 3]


def test_sibling_branches_of_one_weight_are_told_apart(small_tokenizer):
    tree = branching(small_tokenizer)
    tree.response_mask_N[2:] = 1
    assert token_view.as_text(tree, small_tokenizer, color=False) == "ab⟦cd⟧\n↳ 2: ⟦xy⟧"


def test_html_marks_exactly_what_is_supervised(grow, small_tokenizer):
    page = Page(token_view.as_html(grow(("user", "Hi"), ("assistant", "Well, you")), small_tokenizer))
    assert "".join(text for kind, text in page.spans if "supervised" in kind) == "Well, you<|im_end|>"
    assert [text for kind, text in page.spans if "marker" in kind] == [
        "<|im_start|>",
        "<|im_end|>",
        "<|im_start|>",
        "<|im_end|>",
    ]
    stop = small_tokenizer.controls["<|im_end|>"].id
    assert page.titles[-1] == f"token {stop}, position {len(page.titles) - 1}, turn 1, template, weight 1"
    assert any(re.search(r"turn 1, message 1, context", title) for title in page.titles)


@pytest.fixture(scope="module")
def tags_tokenizer(chatml):
    """A tokenizer that has whole tags among its pieces."""
    markers = ["<|im_start|>", "<|im_end|>", "<b>", "&lt;", "<|x"]
    return tokenizer.from_files(sentencepiece.train_sentencepiece(["a b c"], 300, markers), chatml.literals)


@pytest.mark.parametrize("wrote", ["<b>&lt;", "<script>alert(\"&amp;\")</script></pre><b title='x'>"])
def test_what_people_wrote_is_data_to_a_page(wrote, chatml, tags_tokenizer):
    tree = Encoder(chatml, tags_tokenizer, DataConfig())(
        Dialogue("d", (Message("user", wrote), Message("assistant", wrote)))
    )
    assert {"<b>", "&lt;"} <= {tags_tokenizer.piece(i) for i in range(tags_tokenizer.vocab_size)}
    page = Page(token_view.as_html(tree, tags_tokenizer))
    assert set(page.tags) == {"style", "div", "span"}
    assert "".join(text for _, text in page.spans).count(wrote) == 2


def test_only_control_tokens_are_markers(chatml, tags_tokenizer):
    wrote = Dialogue("d", (Message("user", "<|x|> <|im_end|>"), Message("assistant", "<|x|>")))
    token_pieces = list(token_view.token_pieces(Encoder(chatml, tags_tokenizer, DataConfig())(wrote), tags_tokenizer))
    assert [piece.marker for piece in token_pieces if piece.text == "<|x"] == [False, False]
    assert [piece.text for piece in token_pieces if piece.marker] == [*["<|im_start|>", "<|im_end|>"] * 2]


def test_what_people_wrote_does_not_steer_a_terminal(grow, small_tokenizer):
    tree = grow(("user", "a\x1b[2J\r\x07\x9b\u202eb\u200b"), ("assistant", "\U000e0041"))
    plain = token_view.as_text(tree, small_tokenizer, color=False)
    assert "a␛[2J␍␇<U+009B><U+202E>b<U+200B>" in plain
    assert "⟦<U+E0041><|im_end|>⟧" in plain
    assert "\x1b[2J" not in token_view.as_text(tree, small_tokenizer)
    assert "\u202e" not in token_view.as_html(tree, small_tokenizer)


def test_a_spelled_marker_is_no_marker(grow, small_tokenizer):
    token_pieces = list(token_view.token_pieces(grow(("user", "<|im_end|>"), ("assistant", "x")), small_tokenizer))
    assert "".join(piece.text for piece in token_pieces if not piece.marker and piece.message == 0) == "<|im_end|>"
    assert sum(piece.marker for piece in token_pieces) == 4


def test_columns_are_aligned():
    fields = {"tokens": np.array([[7, 7, 7], [10, 200, 3]]), "response_mask": np.array([[0.0] * 3, [0.0, 1.0, 0.5]])}
    assert token_view.as_columns(fields, row=1).splitlines() == [
        "slot            0   1   2",
        "tokens         10 200   3",
        "response_mask   0   1 0.5",
    ]
    assert token_view.as_columns(fields, start=1, stop=2).splitlines()[0] == "slot          1"
