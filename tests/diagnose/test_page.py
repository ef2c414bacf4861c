"""Many dialogues seen: they are those that are trained on, whole, and what people wrote in them is data."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from mtsft.config import DataConfig
from mtsft.data.store import open_store, split_point
from mtsft.diagnose import page
from mtsft.encoding.spec import EncodingSpec
from mtsft.encoding.token_tree import positions
from mtsft.errors import InputError

EVIL = "\x1b[2J\x9b\u202e<script>alert('x')</script>"
TREE = [
    {"id": "a", "role": "user", "content": "What is it?"},
    {"id": "b", "parent_id": "a", "role": "assistant", "content": "Paris", "weight": 0.5},
    {"id": "c", "parent_id": "a", "role": "assistant", "content": "the fox"},
]


def asked(*replies):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(replies)]


RECORDS = [
    {"id": "first", "messages": asked("Hello there", "Hi you.", "And you?", "I am well")},
    {"id": EVIL + "\n2", "messages": asked(EVIL, f"no {EVIL}")},
    {"id": "silent", "messages": asked("Is anybody there?")},
    {"id": "tree", "messages": TREE},
    {"id": "long", "messages": asked("Hello there", "Hi you.", "how are you?", "z" * 64)},
]


@pytest.fixture
def files(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return [path]


@pytest.fixture
def spec(chat):
    return EncodingSpec(chat, DataConfig(sequence_length=96, over_length="windows"))


@pytest.fixture
def drawn(files, spec, small_tokenizer):
    def draw(form, color=False):
        return list(page.FORMATS[form](page.viewed(files, spec), small_tokenizer, color))

    return draw


class Page(HTMLParser):
    """The tags of a page, what stands in its headings and in each of its trees, and the titles."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.headings, self.trees, self.open = [], set(), [], [], []
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attributes}
        self.open.append(tag)
        if tag == "pre":
            self.trees.append([])
        if tag == "span":
            self.trees[-1].append([dict(attributes)["title"], ""])

    def handle_endtag(self, tag):
        del self.open[len(self.open) - 1 - self.open[::-1].index(tag) :]

    def handle_data(self, data):
        if self.open and self.open[-1] == "h3":
            self.headings.append(data)
        if self.open and self.open[-1] == "span":
            self.trees[-1][-1][1] += data


def test_it_shows_what_is_trained_in_the_order_of_training(files, spec, tmp_path):
    shown = list(page.viewed(files, spec))
    assert [(one.dialogue.id[:5], one.part) for one in shown] == [
        ("first", 0), (EVIL[:5], 0), ("tree", 0), ("long", 0), ("long", 1)
    ]  # fmt: skip
    store = open_store(files, spec, tmp_path / "stores", 1, False)
    assert len(store) == len(shown)
    for i, one in enumerate(shown):
        for name in one.tree.__slots__:
            np.testing.assert_array_equal(getattr(one.tree, name), getattr(store[i], name))


def test_json_says_every_field_of_the_trees(drawn, files, spec):
    lines = drawn("json")
    assert all(line.count("\n") == 1 and line.endswith("\n") for line in lines)
    for line, (dialogue, tree, part) in zip(lines, page.viewed(files, spec), strict=True):
        assert json.loads(line) == {
            "id": dialogue.id,
            "source": dialogue.source,
            "part": part,
            "tokens": tree.tokens_N.tolist(),
            "parents": tree.parents_N.tolist(),
            "response_mask": tree.response_mask_N.tolist(),
            "turn_ids": tree.turn_ids_N.tolist(),
            "message_index": tree.message_ids_N.tolist(),
            "response_ids": tree.response_ids_N.tolist(),
            "positions": positions(tree.parents_N).tolist(),
        }
    branching = json.loads(lines[2])
    assert sorted({*branching["response_mask"]}) == [0, 0.5, 1]
    assert branching["message_index"][-3:].count(2) >= 1
    (leaves,) = np.nonzero(np.diff(branching["positions"]) != 1)
    assert len(leaves) == 1


def test_a_page_holds_every_token_with_all_there_is_to_know(drawn, files, spec):
    pieces = Page("".join(drawn("html"))).trees
    for spans, one in zip(pieces, page.viewed(files, spec), strict=True):
        tree, index, branch = one.tree, 0, 0
        depths = positions(tree.parents_N)
        for title, _ in spans:
            ids, position, turn, whose, weight = re.fullmatch(
                r"token ([\d ]+), position (\d+)(?:, branch \d+)?, turn (\d+), (message \d+|template), "
                r"(?:weight |context, weight )([\d.]+)",
                title,
            ).groups()
            branch += index > 0 and tree.parents_N[index] != index - 1
            assert (", branch 1," in title) == (branch == 1)
            ids = [int(token) for token in ids.split()]
            assert ids == tree.tokens_N[index : index + len(ids)].tolist()
            assert (int(position), int(turn)) == (depths[index], tree.turn_ids_N[index])
            message = tree.message_ids_N[index]
            assert whose == (f"message {message}" if message >= 0 else "template")
            assert float(weight) == tree.response_mask_N[index]
            index += len(ids)
        assert index == len(tree)
    assert [any("branch 1" in title for title, _ in spans) for spans in pieces] == [False, False, True, False, False]


def test_a_page_needs_nothing_else_and_runs_nothing(drawn):
    whole = "".join(drawn("html"))
    viewed = Page(whole)
    assert set(viewed.tags) == {
        "html", "head", "meta", "title", "style", "body", "p", "h3", "pre", "span", "sup", "i"
    }  # fmt: skip
    assert viewed.attributes == {"lang", "charset", "class", "title"}
    assert viewed.tags.count("style") == 1
    assert "http" not in whole
    assert "url(" not in whole
    assert "<script" not in whole
    assert whole.endswith("</body></html>\n")


def test_what_people_wrote_is_shown_and_not_obeyed(drawn):
    shown = "␛[2J<U+009B><U+202E><script>alert('x')</script>"
    viewed = Page("".join(drawn("html")))
    assert viewed.headings[1].startswith(f"{shown} 2  (")
    assert "".join(text for _, text in viewed.trees[1]).count(shown) == 2
    text = "".join(drawn("text"))
    assert text.count(shown) == 3
    assert not set("\x1b\x9b\u202e") & set(text)
    assert set(re.findall("\x1b[^m]*m", "".join(drawn("text", color=True)))) == {
        "\x1b[2m", "\x1b[1;32m", "\x1b[4m", "\x1b[0m"
    }  # fmt: skip


def test_text_names_each_dialogue_and_its_parts(drawn, files):
    titles = [piece.split("\n")[0] for piece in drawn("text")]
    lines = [re.sub(r"; \d+ tokens, \d+ supervised\)$", "", title) for title in titles]
    assert [lines[0], *lines[2:]] == [
        f"first  ({files[0]}:1",
        f"tree  ({files[0]}:4",
        f"long  ({files[0]}:5",
        f"long, part 2  ({files[0]}:5",
    ]
    assert "⟦\u00d70.5 Paris<|im_end|>⟧" in drawn("text")[2]


def test_each_side_of_a_split_shows_its_own(files, spec):
    def ids(first, last):
        split = EncodingSpec(spec.chat, DataConfig(sequence_length=96, over_length="drop"), (first, last))
        return {one.dialogue.id for one in page.viewed(files, split)}

    points = {one.dialogue.id: split_point(one.dialogue) for one in page.viewed(files, spec) if not one.part}
    del points["long"]
    middle = sorted(points.values())[2]
    assert ids(0, middle) == {name for name, point in points.items() if point < middle}
    assert ids(middle, 1) == {name for name, point in points.items() if point >= middle}


def test_many_dialogues_come_in_chunks_and_none_is_lost(tmp_path, spec):
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "messages": asked(f"{i}?", f"{i}!")}) + "\n" for i in range(40)))
    assert [one.dialogue.id for one in page.viewed([path, path], spec)] == [str(i) for i in range(40)] * 2


def test_it_refuses_what_training_refuses(files, chat):
    with pytest.raises(InputError, match=r"d.jsonl:5: .*data.over_length"):
        list(page.viewed(files, EncodingSpec(chat, DataConfig(sequence_length=96))))
