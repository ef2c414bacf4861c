"""Many dialogues seen: they are those that are trained on, whole, and what people wrote in them is data."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from mtsft.config import DataConfig, default, flat_values
from mtsft.config_keys import config_keys
from mtsft.data.dialogue_hashes import split_point
from mtsft.data.open_store import open_store
from mtsft.diagnose import page
from mtsft.diagnose.viewed import Side, find_dialogues, viewed
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
    def draw(form, color=False, config=None):
        return list(page.FORMATS[form](viewed(files, spec), small_tokenizer, color, config or {}))

    return draw


class Page(HTMLParser):
    """The tags of a page, what stands in its headings, cells and in each of its trees, and the titles."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.headings, self.cells, self.trees, self.open = [], set(), [], [], [], []
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attributes}
        if tag not in ("meta", "input"):
            self.open.append(tag)
        if ("class", "mtsft-tree") in attributes:
            self.trees.append([])
        if tag == "span":
            self.trees[-1].append([dict(attributes)["title"], ""])

    def handle_endtag(self, tag):
        del self.open[len(self.open) - 1 - self.open[::-1].index(tag) :]

    def handle_data(self, data):
        if self.open and self.open[-1] == "h3":
            self.headings.append(data)
        if self.open and self.open[-1] == "td":
            self.cells.append(data)
        if self.open and self.open[-1] == "span":
            self.trees[-1][-1][1] += data


def test_it_shows_what_is_trained_in_the_order_of_training(files, spec, tmp_path):
    shown = list(viewed(files, spec))
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
    for line, (dialogue, tree, part, *_) in zip(lines, viewed(files, spec), strict=True):
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
    for spans, one in zip(pieces, viewed(files, spec), strict=True):
        tree, index, branch = one.tree, 0, 0
        depths = positions(tree.parents_N)
        for title, _ in spans:
            ids, position, turn, whose, weight = re.fullmatch(
                r"token ([\d ]+), position (\d+)(?:, branch \d+)?, turn (\d+), (message \d+|template), "
                r"(?:weight |context, weight )([\d.]+)",
                title,
            ).groups()
            branch += index > 0 and tree.parents_N[index] != index - 1
            assert (", branch 2," in title) == (branch == 1)
            ids = [int(token) for token in ids.split()]
            assert ids == tree.tokens_N[index : index + len(ids)].tolist()
            assert (int(position), int(turn)) == (depths[index], tree.turn_ids_N[index] + 1)
            message = tree.message_ids_N[index]
            assert whose == (f"message {message + 1}" if message >= 0 else "template")
            assert float(weight) == tree.response_mask_N[index]
            index += len(ids)
        assert index == len(tree)
    assert [any("branch 2" in title for title, _ in spans) for spans in pieces] == [False, False, True, False, False]


def test_a_page_needs_nothing_else(drawn):
    whole = "".join(drawn("html", config=flat_values(default())))
    parsed = Page(whole)
    assert set(parsed.tags) == {
        "html", "head", "meta", "title", "style", "body", "h1", "p", "details", "summary", "table", "tr", "td", "form",
        "input", "button", "output", "main", "section", "h3", "div", "span", "sup", "i", "footer", "script"
    }  # fmt: skip
    assert parsed.attributes == {
        "lang", "charset", "http-equiv", "content", "name", "class", "title", "open", "role", "hidden", "id", "type",
        "placeholder", "aria-label", "aria-live", "tabindex"
    }  # fmt: skip
    assert (parsed.tags.count("style"), parsed.tags.count("script")) == (1, 1)
    assert "://" not in whole
    assert "url(" not in whole
    assert whole.endswith("</body></html>\n")


def test_nothing_runs_and_nothing_styles_a_page_but_its_own(drawn):
    whole = "".join(drawn("html"))
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', whole)

    def source(tag):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", whole, re.DOTALL)
        return f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    assert policy.split("; ") == ["default-src 'none'", source("style"), source("script"), "form-action 'none'"]
    assert whole.index("Content-Security-Policy") < whole.index("<style>")


def test_the_script_of_a_page_is_one_that_a_browser_can_read(drawn, tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("reading JavaScript needs node")
    (script,) = re.findall("<script>(.*?)</script>", "".join(drawn("html")), re.DOTALL)
    (tmp_path / "page.js").write_text(script)
    subprocess.run([node, "--check", tmp_path / "page.js"], check=True)
    (tmp_path / "page.js").write_text(script + "}")
    assert subprocess.run([node, "--check", tmp_path / "page.js"], capture_output=True).returncode == 1


def test_a_page_has_the_config_in_its_head_what_is_changed_first(drawn):
    values = flat_values(default()) | {"data.train": EVIL, "train.steps": 7}
    parsed = Page("".join(drawn("html", config=values)))
    shown = "".join(parsed.cells)
    assert parsed.cells[:3] == [
        "data.train",
        json.dumps(EVIL, ensure_ascii=False).replace("\x9b", "<U+009B>").replace("\u202e", "<U+202E>"),
        f'not "": {config_keys()["data.train"].meaning}',
    ]
    assert parsed.cells[3:5] == ["train.steps", "7"]
    assert parsed.cells[6:9] == ["data.train", parsed.cells[1], config_keys()["data.train"].meaning]
    assert len(parsed.cells) == 3 * (2 + len(values))
    assert not {"\x1b", "\x9b", "\u202e"} & {*shown}
    assert f"Config: 2 of {len(values)} keys are not the default" in "".join(drawn("html", config=values))
    assert Page("".join(drawn("html"))).cells == []


def test_what_people_wrote_is_shown_and_not_obeyed(drawn):
    shown = "␛[2J<U+009B><U+202E><script>alert('x')</script>"
    parsed = Page("".join(drawn("html")))
    assert parsed.headings[1].startswith(f"{shown} 2  (")
    assert "".join(text for _, text in parsed.trees[1]).count(shown) == 2
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
        return {one.dialogue.id for one in viewed(files, split)}

    points = {one.dialogue.id: split_point(one.dialogue) for one in viewed(files, spec) if not one.part}
    del points["long"]
    middle = sorted(points.values())[2]
    assert ids(0, middle) == {name for name, point in points.items() if point < middle}
    assert ids(middle, 1) == {name for name, point in points.items() if point >= middle}


def test_many_dialogues_come_in_chunks_and_none_is_lost(tmp_path, spec):
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "messages": asked(f"{i}?", f"{i}!")}) + "\n" for i in range(40)))
    assert [one.dialogue.id for one in viewed([path, path], spec)] == [str(i) for i in range(40)] * 2


def test_a_dialogue_that_is_too_large_is_passed_over_where_training_does(tmp_path, chat):
    path = tmp_path / "d.jsonl"
    dialogues = [asked("a?", "b"), asked("a?", "b" * 300), asked("c?", "d")]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in dialogues))
    config = DataConfig(sequence_length=96, max_dialogue_bytes=300)
    skipping = EncodingSpec(chat, replace(config, refused="skip"))
    assert [one.dialogue.source for one in viewed([path], skipping)] == [f"{path}:1", f"{path}:3"]
    with pytest.raises(InputError, match=r"d.jsonl:2: a dialogue of \d+ bytes, and data.max_dialogue_bytes is 300"):
        list(viewed([path], EncodingSpec(chat, config)))


def test_it_refuses_what_training_refuses(files, chat):
    with pytest.raises(InputError, match=r"d.jsonl:5: .*data.over_length"):
        list(viewed(files, EncodingSpec(chat, DataConfig(sequence_length=96))))


@pytest.fixture
def sides(files, chat, tmp_path):
    """What is trained on and what is held out of the files, and of another one."""
    config = DataConfig(sequence_length=96, over_length="drop")
    points = sorted(split_point(one.dialogue) for one in viewed(files, EncodingSpec(chat, config)))
    first, rest = EncodingSpec(chat, config, (points[1], 1.0)), EncodingSpec(chat, config, (0.0, points[1]))
    return [Side(files, first, False), Side(files, rest, True)]


def named(found):
    return [(one.dialogue.id, one.part, one.held_out) for one in found]


def test_a_dialogue_is_found_by_file_and_line_or_id_on_either_side(sides, files):
    ids = ["first", EVIL + "\n2", "tree"]
    held_out = {one.dialogue.id for one in viewed(*sides[1])}
    assert len(held_out) == 1
    for line, name in zip((1, 2, 4), ids):
        for at in (
            f"{files[0]}:{line}",
            f"d.jsonl:{line}",
            f"{files[0].parent.name}/d.jsonl:{line}",
            f"{line}",
            f":{line}",
        ):
            assert named(find_dialogues(sides, at)) == [(name, 0, name in held_out)]
        assert named(find_dialogues(sides, id=name)) == [(name, 0, name in held_out)]
        assert named(find_dialogues(sides, f"d.jsonl:{line}", name)) == [(name, 0, name in held_out)]


def test_it_is_shown_as_a_training_shows_it_and_a_held_out_one_says_so(sides, small_tokenizer):
    for side in sides:
        (one, *_) = viewed(*side)
        (found,) = find_dialogues(sides, id=one.dialogue.id)
        assert (found.tree.tokens_N == one.tree.tokens_N).all()
        (text,) = page.FORMATS["text"]([found], small_tokenizer, False, {})
        assert ("  (held out; " in text) == side.held_out


def test_all_parts_and_all_of_one_name_are_found(files, chat, tmp_path):
    again = tmp_path / "other" / "d.jsonl"
    again.parent.mkdir()
    again.write_text(json.dumps(RECORDS[0]) + "\n")
    side = Side([*files, again], EncodingSpec(chat, DataConfig(sequence_length=96, over_length="windows")), False)
    assert named(find_dialogues([side], id="long")) == [("long", 0, False), ("long", 1, False)]
    assert [one.dialogue.source for one in find_dialogues([side], id="first")] == [f"{files[0]}:1", f"{again}:1"]
    assert named(find_dialogues([side], "other/d.jsonl:1")) == [("first", 0, False)]
    with pytest.raises(
        InputError, match=rf"^--at=d\.jsonl:1: several files are called that; name one of {files[0]}, {again}$"
    ):
        find_dialogues([side], "d.jsonl:1")
    with pytest.raises(InputError, match=r"^--at=1: say which file; name one of "):
        find_dialogues([side], "1")


@pytest.mark.parametrize(
    ("at", "id", "wrong"),
    [
        ("d.jsonl", "", "--at=d.jsonl: write FILE:LINE, lines counted from 1"),
        ("d.jsonl:0", "", "--at=d.jsonl:0: write FILE:LINE"),
        ("e.jsonl:1", "", "--at=e.jsonl:1: no such file is read; name one of .*d.jsonl$"),
        ("d.jsonl:9", "", r".*d\.jsonl:9: holds no dialogue$"),
        ("d.jsonl:1", "tree", r".*d\.jsonl:1: holds no dialogue of the id tree$"),
        ("", "nobody", "no dialogue has the id nobody, nor is any the line of a file of that name$"),
        ("", "silent", r".*d\.jsonl:3: nothing of it is trained: it has no response$"),
        ("5", "", r".*:5: nothing of it is trained: it is longer than a row, and data\.over_length=drop drops it$"),
    ],
)
def test_what_is_not_found_says_why(sides, at, id, wrong):
    with pytest.raises(InputError, match=f"^{wrong}"):
        find_dialogues(sides, at, id)


def test_a_wrong_line_is_told_where_it_is_asked_for_and_passed_over_elsewhere(sides, files):
    files[0].write_text(files[0].read_text() + "{broken\n")
    assert [one.dialogue.id for one in find_dialogues(sides, id="tree")] == ["tree"]
    with pytest.raises(InputError, match=r"d\.jsonl:6: not JSON"):
        find_dialogues(sides, "d.jsonl:6")
