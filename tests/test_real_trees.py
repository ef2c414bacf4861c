"""Invariant 3 on real dialogues: a tree trains like its paths, and how many tokens that saves."""

import json

import chats
import jax
import pytest
from support import small_model

from mtsft.config import DataConfig
from mtsft.dialogue.formats import parse_record
from mtsft.encoding.encoder import Encoder
from mtsft.encoding.spec import EncodingSpec
from mtsft.encoding.stats import EncodingStats
from mtsft.encoding.token_tree import is_one_chain
from mtsft.evaluation import identities
from mtsft.training.losses.forward import response_nll


def trees_of(encoder: Encoder, records, row: int, count: int):
    """The first few trees that branch and fit into a row; and what was counted of all up to the last of them."""
    branching, total = [], EncodingStats()
    for number, record in enumerate(records):
        trees, stats = encoder.encode([parse_record(record, f"{number}")])
        total += stats
        branching += [tree for _, tree in trees if len(tree) <= row and not is_one_chain(tree)]
        if len(branching) == count:
            break
    return branching, total


def compare(trees, vocab_size, row):
    model = small_model(vocab_size=vocab_size)

    def nll(params, batch):
        return response_nll(model, params, batch, chunk=64)

    return identities.compare(nll, model.init(jax.random.key(0)), trees, row)


def cut(record, characters):
    """A dialogue with its long words cut, so that a byte-level tokenizer has short work."""
    if "tree" in record:
        return {"tree": cut_node(record["tree"], characters)}
    kept = [m for m in record["messages"] if m["role"] != "tool"]
    return {"messages": [{**m, "content": m["content"][:characters], "tool_calls": None} for m in kept]}


def cut_node(node, characters):
    replies = [cut_node(reply, characters) for reply in node["replies"]]
    return {"role": node["role"], "content": node["content"][:characters], "replies": replies}


@pytest.mark.parametrize(("kind", "row"), [("replies", 256), ("reasoning", 512)])
def test_a_real_tree_trains_like_its_paths(kind, row, real_data, capsys):
    name = "oasst_trees_en.jsonl" if kind == "replies" else "reasoning_tool_use.jsonl"
    lines = real_data(name).read_text().split("\n")
    records = [json.loads(line) for line in lines if line]
    if kind == "reasoning":  # thoughts that the template drops from earlier turns, and words
        for record in records:
            for message in record["messages"]:
                thought, is_reasoning, words = message["content"].partition("</think>")
                if is_reasoning:
                    message |= {"content": words.strip(), "reasoning_content": thought[8:28]}
        records = [r for r in records if len(r["messages"]) > 4]
    records = [cut(record, 16) for record in records]
    chat = chats.chat_of("chatml" if kind == "replies" else "thinking")
    encoder = EncodingSpec(chat, DataConfig(sequence_length=1 << 20, refused="skip", unfaithful="skip")).encoder()
    trees, stats = trees_of(encoder, records, row, 2)
    assert len(trees) == 2
    report = compare(trees, encoder.tokenizer.vocab_size, row)
    saved = 1 - stats.tokens / stats.response_tokens
    with capsys.disabled():
        print(f"\n{kind}: {saved:.1%} of tokens saved against one sequence per response; {report}")
    assert report["responses"] > 4
    assert max(report["passes"]["loss"], report["packed"]["loss"]) < 1e-5
    assert max(report["passes"]["gradient"], report["packed"]["gradient"]) < 1e-5
