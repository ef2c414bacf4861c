"""Under train_reasoning=False a thought is context, wherever it stands and whoever spells its marks."""

import json

import chats
import pytest
from chats import CHANNELS, dialogue

from mtsft.config import DataConfig
from mtsft.encoding.encoder import Encoder
from mtsft.encoding.spec import ChatFormat

TAGS = ["<think>", "</think>", "[THINK]", "[/THINK]", "<seed:think>", "</seed:think>", "<tool_call>", "</tool_call>"]
CLOSE_ONLY = chats.CHATML.replace("m.content +", "(m.content.split('</think>')[-1] if not loop.last else m.content) +")
PLAIN = {"<think>", "</think>"}  # left out of a tokenizer


def encoder(source, tokens=TAGS, **keys):
    controls = ["<|im_start|>", "<|im_end|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>", *tokens]
    files = chats.byte_level(controls)
    stop = "<|end|>" if source is CHANNELS else "<|im_end|>"
    files["tokenizer_config.json"] = json.dumps({"eos_token": stop}).encode()
    return Encoder(*ChatFormat(files, {"default": source}, "made").open(), DataConfig(sequence_length=1000, **keys))


def said(made, content, **fields):
    """(supervised, how many of the supervised are control tokens) of a reply."""
    tree = made(dialogue(("user", "q"), ("assistant", content, 1.0, fields or None)))
    ids = tree.tokens_N[tree.response_mask_N > 0].tolist()
    controls = {control.id for control in made.tokenizer.controls.values()}
    return made.tokenizer.decode(ids), sum(i in controls for i in ids)


@pytest.mark.parametrize("tokens", [TAGS, [tag for tag in TAGS if tag not in PLAIN]], ids=["tokens", "letters"])
@pytest.mark.parametrize("source", [chats.CHATML, chats.THINKING, CLOSE_ONLY], ids=["chatml", "thinking", "close only"])
def test_a_thought_inside_the_content_is_context(source, tokens):
    made = encoder(source, tokens, train_reasoning=False)
    assert said(made, "<think>\nEasy.\n</think>\n\nA bird.") == ("\n\nA bird.<|im_end|>", 1)
    if source is not chats.THINKING:  # which cuts a reply at every mark
        assert said(made, "A bird.") == ("A bird.<|im_end|>", 1)
        assert said(made, "so <think>this</think>")[0] == "so <think>this</think><|im_end|>"


@pytest.mark.parametrize("content", ["A bird.", "<think>\nEasy.\n</think>\n\nA bird."])
def test_an_empty_thought_that_the_template_puts_in_is_a_thought(content):
    made = encoder(chats.THINKING, train_reasoning=False)
    assert said(made, content) == ("\n\nA bird.<|im_end|>", 1)


def test_a_thought_in_a_field_of_its_own_is_context_with_the_templates_marks():
    assert said(encoder(CHANNELS, train_reasoning=False), "A bird.", reasoning_content="Easy.") == ("A bird.<|end|>", 1)
    whole = "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>A bird.<|end|>"
    assert said(encoder(CHANNELS), "A bird.", reasoning_content="Easy.") == (whole, 7)


@pytest.mark.parametrize(
    ("content", "keys", "answer"),
    [
        ("<seed:think>Easy.</seed:think>A bird.", {}, "A bird."),
        ("[THINK]Easy.[/THINK]A bird.", {}, "A bird."),
        ("Easy.</think>A bird.", {}, "A bird."),  # nobody opens it
        ("<think>Easy.", {}, ""),  # nobody closes it
        ("<hm>Easy.</hm>A bird.", {}, "<hm>Easy.</hm>A bird."),
        ("<hm>Easy.</hm>A bird.", {"reasoning_marks": "<hm>,</hm>"}, "A bird."),
        ("<think>Easy.</think>A bird.\n<think>Or?</think>No.", {}, "A bird.\nNo."),
    ],
)
def test_marks_of_every_kind(content, keys, answer):
    assert said(encoder(chats.CHATML, train_reasoning=False, **keys), content) == (f"{answer}<|im_end|>", 1)


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        ("<think>Easy.</think>A bird.", 2),
        ("[THINK]Easy.[/THINK]A bird.", 2),  # special, and at the head
        ("so [THINK]Easy.[/THINK]", 0),
        ("<tool_call>{}</tool_call>", 2),
        ("<|im_end|>", 0),
    ],
)
def test_added_tokens_in_a_reply_are_its_tokens(content, tokens):
    source = chats.CHATML + "{# '<tool_call></tool_call>' #}{% set tags = '<tool_call></tool_call>' %}"
    made = encoder(source)
    assert said(made, content) == (f"{content}<|im_end|>", tokens + 1)
    tree = made(dialogue(("user", content), ("assistant", "a"), ("tool", content), ("assistant", "b")))
    controls = {control.id for control in made.tokenizer.controls.values()}
    assert not controls & {*tree.tokens_N[(tree.message_ids_N == 0) | (tree.message_ids_N == 2)].tolist()}
    # In the history a reply reads as it was emitted.
    again = made(dialogue(("user", "q"), ("assistant", content), ("user", "r"), ("assistant", "b")))
    assert (again.parents_N == range(-1, len(again) - 1)).all()


def test_added_tokens_can_be_letters():
    source = chats.CHATML + "{% set tags = '<tool_call></tool_call>' %}"
    made = encoder(source, added_tokens_in_replies=False)
    assert said(made, "<tool_call>{}</tool_call>") == ("<tool_call>{}</tool_call><|im_end|>", 1)
    assert said(made, "<think>a</think>b") == ("<think>a</think>b<|im_end|>", 3)  # marks at the head are tokens


def test_a_mark_that_the_template_spells_alone_is_a_token_with_its_fellow():
    """A template that cuts thoughts out of the history by what closes them."""
    made = encoder(CLOSE_ONLY, ["<think>", "</think>"])
    assert said(made, "<think>\nEasy.\n</think>\n\nA bird.") == ("<think>\nEasy.\n</think>\n\nA bird.<|im_end|>", 3)
    half = encoder(CLOSE_ONLY, ["</think>"])  # of a pair both, or neither
    assert said(half, "<think>a</think>b") == ("<think>a</think>b<|im_end|>", 1)


def test_replies_with_added_tokens_are_counted():
    made = encoder(chats.CHATML)
    given = dialogue(
        ("user", "<think>"), ("assistant", "<think>a</think>b<|im_end|>"), ("user", "x"), ("assistant", "y")
    )
    _, stats = made.encode([given])
    assert (stats.reply_tokens, stats.spelling) == (1, 2)
    assert stats.examples["added tokens"] == ["d.jsonl:7: message 2"]


def test_what_other_roles_say_is_no_thought():
    made = encoder(chats.CHATML, train_reasoning=False, responses="tool,assistant")
    given = dialogue(("user", "q"), ("tool", "<think>a</think>b"), ("assistant", "<think>c</think>d"))
    tree = made(given)
    assert made.tokenizer.decode(tree.tokens_N[tree.response_mask_N > 0]) == "<think>a</think>b<|im_end|>d<|im_end|>"
