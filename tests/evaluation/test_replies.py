from types import SimpleNamespace

from support import tree

from mtsft.evaluation.replies import count_replies, replies

STOP, OTHER = 90, 91
# Two turns on a chain, and a dialogue whose last message has two replies.
CHAIN = tree(range(-1, 7), [0, 0, 1, 1, 0, 0, 1, 1], [1, 2, 3, STOP, 5, 6, 7, STOP], turns=[0, 0, 0, 0, 0, 1, 1, 1])
FORK = tree([-1, 0, 1, 1, 3], [0, 0, 1, 1, 1], [11, 12, STOP, 13, 14], turns=[0, 0, 0, 1, 1])


class Store(list):
    def id(self, index):
        return f"d{index}"

    def source(self, index):
        return "f.jsonl", 10 + index


TOKENIZER = SimpleNamespace(decode=lambda ids: "".join(f"<{i}>" for i in ids))


def test_every_supervised_response_is_asked_for_in_its_own_context():
    asked = []

    def generate(prompts, first):
        asked.extend(prompts)
        return [[3, STOP], [8], [STOP], []]

    records = list(replies(generate, Store([CHAIN, FORK]), TOKENIZER, [STOP]))
    assert asked == [[1, 2], [1, 2, 3, STOP, 5, 6], [11, 12], [11, 12]]
    assert records[0] == {
        "id": "d0",
        "source": "f.jsonl:10",
        "turn": 0,
        "prompt": "<1><2>",
        "reference": "<3>",
        "reply": "<3>",
        "stopped": True,
        "same": True,
    }
    assert [(r["turn"], r["reference"], r["reply"], r["stopped"], r["same"]) for r in records[1:]] == [
        (1, "<7>", "<8>", False, False),
        (0, "", "", True, True),
        (1, "<13><14>", "", False, False),
    ]


def test_any_of_the_stops_ends_a_text_and_none_is_taken_from_within_it_or_from_a_prompt():
    stop_in_both = tree(range(-1, 4), [0, 0, 1, 1, 1], [1, STOP, 3, STOP, 4])
    generated = [[3, OTHER], [3, STOP, 4], [3, STOP, 4, STOP]]
    records = list(replies(lambda prompts, first: generated, Store([stop_in_both] * 3), TOKENIZER, [STOP, OTHER]))
    assert {(r["prompt"], r["reference"]) for r in records} == {("<1><90>", "<3><90><4>")}
    assert [(r["source"], r["reply"], r["stopped"], r["same"]) for r in records] == [
        ("f.jsonl:10", "<3>", True, False),
        ("f.jsonl:11", "<3><90><4>", False, True),
        ("f.jsonl:12", "<3><90><4>", True, False),
    ]


def test_so_many_dialogues_as_asked_for():
    records = replies(lambda prompts, first: [[]] * len(prompts), Store([CHAIN, FORK]), TOKENIZER, [STOP], limit=1)
    assert [record["id"] for record in records] == ["d0", "d0"]
    assert list(replies(lambda prompts, first: [], Store([]), TOKENIZER, [STOP], limit=3)) == []
    assert [count_replies(Store([CHAIN, FORK]), limit) for limit in (0, 1, 9)] == [4, 2, 4]


def test_no_more_is_read_and_held_than_is_replied_to(monkeypatch):
    monkeypatch.setattr("mtsft.evaluation.replies._AT_A_TIME", 3)
    read, asked = [], []

    class Endless(Store):
        def __len__(self):
            return 10**9

        def __getitem__(self, index):
            read.append(index)
            return CHAIN

    def generate(prompts, first):
        asked.append((first, len(prompts)))
        return [[] for _ in prompts]

    records = replies(generate, Endless(), TOKENIZER, [STOP])
    assert (read, asked) == ([], [])  # nothing is, before it is asked for
    assert [next(records)["id"] for _ in range(3)] == ["d0", "d0", "d1"]
    assert (max(read), asked) == (1, [(0, 3)])
    assert [next(records)["id"] for _ in range(3)] == ["d1", "d2", "d2"]
    assert (max(read), asked) == (2, [(0, 3), (3, 3)])
