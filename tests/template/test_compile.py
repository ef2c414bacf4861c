"""Contexts and responses under templates of every habit, against the definition: plain renderings, tokenised whole."""

import re
import textwrap
from functools import cache

import numpy as np
import pytest
from chats import STOPS, TEMPLATES, chat_of, controls_of, dialogue, reference
from hypothesis import given, settings
from hypothesis import strategies as st

import mtsft.template
from mtsft.config import DataConfig
from mtsft.dialogue.schema import Message
from mtsft.encoding.encoder import Encoder
from mtsft.encoding.spec import EncodingSpec
from mtsft.encoding.token_tree import paths
from mtsft.errors import InputError
from mtsft.template.built_in import CHATML
from mtsft.template.chat_template import ChatTemplate
from mtsft.template.compile import TemplateCompiler
from mtsft.template.placeholders import Placeholder, text_of
from mtsft.template.spans import TurnPlan
from mtsft.template.tracked_dialogue import TrackedDialogue


@cache
def opened(name):
    chat = chat_of(name)
    return chat, *chat.open(), reference(chat)


def encoder(name, **options):
    _, template, tokenizer, _ = opened(name)
    return Encoder(template, tokenizer, DataConfig(sequence_length=100_000, **options))


def spelled(encoder, tree):
    """What is supervised between marks, a line a branch; parents where a branch begins."""
    text, supervised = "", False
    for node, (token, parent, weight) in enumerate(zip(tree.tokens_N, tree.parents_N.tolist(), tree.response_mask_N)):
        if bool(weight) != supervised or parent != node - 1:
            text += "⟧" if supervised else ""
            text += "" if parent == node - 1 else f"\n{parent}:"
            text += "⟦" if weight else ""
            supervised = bool(weight)
        text += encoder.tokenizer.decode([token]).replace("\n", "⏎")
    return text + ("⟧" if supervised else "")


TWO = dialogue(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("chatml",
         "<|im_start|>user⏎a<|im_end|>⏎<|im_start|>assistant⏎⟦b<|im_end|>⟧⏎"
         "<|im_start|>user⏎c<|im_end|>⏎<|im_start|>assistant⏎⟦d<|im_end|>⟧"),
        ("thinking",
         "<|im_start|>user⏎a<|im_end|>⏎<|im_start|>assistant⏎⟦<think>⏎⏎</think>⏎⏎b<|im_end|>⟧\n"
         "19:b<|im_end|>⏎<|im_start|>user⏎c<|im_end|>⏎<|im_start|>assistant⏎⟦<think>⏎⏎</think>⏎⏎d<|im_end|>⟧"),
        ("returning",
         "<|start|>user<|message|>a<|end|><|start|>assistant⟦<|message|>b<|return|>⟧\n"
         "19:<|end|><|start|>user<|message|>c<|end|><|start|>assistant⟦<|message|>d<|return|>⟧"),
        ("headed", "[gMASK]<|user|>⏎a<|assistant|>⟦⏎b<|user|>⟧⏎c<|assistant|>⟦⏎d<|user|>⟧"),
        ("opening",
         "<|User|>a<|Assistant|><think>⏎⟦b<|eos|>⟧\n2:b<|eos|><|User|>c<|Assistant|><think>⏎⟦d<|eos|>⟧"),
    ],
)  # fmt: skip
def test_two_turns_as_each_template_has_them(name, picture):
    made = encoder(name, unfaithful="emit")
    assert spelled(made, made(TWO)) == picture


def test_what_a_prompt_opens_the_reply_goes_on_from():
    made = encoder("opening", unfaithful="emit")
    messages = ("user", "a"), ("assistant", "<think>\nhm</think>b"), ("user", "c"), ("assistant", "d")
    [(_, tree)], stats = made.encode([dialogue(*messages)])
    assert spelled(made, tree) == (
        "<|User|>a<|Assistant|><think>⏎⟦hm</think>b<|eos|>⟧\n2:b<|eos|><|User|>c<|Assistant|><think>⏎⟦d<|eos|>⟧"
    )
    assert stats.unfaithful == {"prompt": 2}
    with pytest.raises(
        InputError, match=r"^d\.jsonl:7: message 2 \(assistant\): not faithful under the chat template "
    ):
        encoder("opening")(TWO)


def test_a_call_that_the_template_does_not_write_wants_another_template_and_emit_is_no_way_on():
    call = {"type": "function", "id": "c", "function": {"name": "f", "arguments": {"k": "v"}}}
    called = dialogue(("user", "q"), ("assistant", "", 1.0, {"tool_calls": [call]}), ("user", "r"), ("assistant", "d"))
    with pytest.raises(InputError) as caught:
        encoder("chatml")(called)
    assert str(caught.value).endswith(
        "the template does not write all of its words (tool_calls); use a template that writes calls, such as "
        "data.template='chatml-tools', or set data.unfaithful='skip' to leave such turns out"
    )
    [(_, tree)], stats = encoder("chatml", unfaithful="emit").encode([called])
    assert spelled(encoder("chatml"), tree).split("⟦")[1:] == ["d<|im_end|>⟧"]
    assert (stats.skipped_turns, stats.examples["left out"]) == (1, ["d.jsonl:7: message 2"])


def test_unfaithful_turns_can_be_skipped_and_are_counted():
    trees, stats = encoder("opening", unfaithful="skip").encode([TWO])
    assert trees == []
    assert (stats.skipped_turns, stats.without_response, stats.responses) == (2, 1, 2)


def test_the_stop_that_is_said_is_the_stop():
    made = encoder("chatml", stops="<|im_start|>")
    said = spelled(made, made(TWO)).split("⟦")
    assert [part.split("⟧")[0] for part in said[1:]] == ["b<|im_end|>⏎<|im_start|>", "d<|im_end|>⏎<|im_start|>"]
    assert [encoder(name).stop_ids for name in ("chatml", "returning", "headed")] == [
        tuple(sorted(opened(name)[2].controls[stop].id for stop in stops))
        for name, stops in (
            ("chatml", ["<|im_end|>"]),
            ("returning", ["<|return|>"]),
            ("headed", ["<|user|>", "<|tool|>"]),
        )
    ]
    with pytest.raises(InputError, match=r"^data\.stops: '<\|eos\|>' is no control token of "):
        encoder("chatml", stops="<|eos|>")


@pytest.mark.parametrize("flag", ["lstrip", "rstrip"])
def test_a_control_that_eats_white_space_eats_it(flag):
    chat = chat_of("chatml", **{"<|im_start|>": {flag: True}, "<|im_end|>": {flag: True}})
    made = EncodingSpec(chat, DataConfig(sequence_length=1000)).encoder()
    given = dialogue(("user", " a\n "), ("assistant", " b "), ("user", "\n"), ("assistant", "d"))
    template, whole = chat.open()[0], reference(chat)
    tree = made(given)
    contexts = [whole.encode(template.render(given.messages[:i], True)).ids for i in (1, 3)]
    assert [context.tolist() for _, context, _ in paths(tree)] == contexts
    said = [made.tokenizer.decode(response) for _, _, response in paths(tree)]
    assert said == [" b" + "<|im_end|>" if flag == "lstrip" else " b <|im_end|>", "d<|im_end|>"]


def test_a_prompt_is_the_context_of_what_is_trained():
    for name in TEMPLATES:
        made = encoder(name, unfaithful="emit")
        contexts = [context.tolist() for _, context, _ in paths(made(TWO))]
        assert contexts == [made.prompt(dialogue(*((m.role, m.content) for m in TWO.messages[:i]))) for i in (1, 3)]


def test_replies_to_one_message_are_branches():
    made = encoder("chatml")
    messages = (("user", "a"), ("assistant", "b"), ("assistant", "c"), ("user", "d"), ("assistant", "e"))
    [(_, tree)], stats = made.encode([dialogue(*messages, parents=(-1, 0, 0, 2, 3))])
    header = "<|im_start|>user⏎a<|im_end|>⏎<|im_start|>assistant⏎"
    assert spelled(made, tree) == (
        f"{header}⟦b<|im_end|>⟧\n19:⟦c<|im_end|>⟧⏎<|im_start|>user⏎d<|im_end|>⏎<|im_start|>assistant⏎⟦e<|im_end|>⟧"
    )
    assert tree.turn_ids_N[tree.response_mask_N > 0].tolist() == [0, 0, 0, 0, 1, 1]
    assert tree.response_ids_N[tree.response_mask_N > 0].tolist() == [1, 1, 2, 2, 4, 4]
    assert stats.not_prefix_preserving == 0
    assert stats.branching == 1


# Whatever the texts

TAG = re.compile(r"(</?(?:think|tool_call)>)")  # which are tokens in a reply's words
SPELLINGS = ["<|im_start|>", "<|im_end|>", "<|return|>", "<|end|>", "<|eos|>", "<|user|>", "<think>", "<tool_call>"]
harmless = st.lists(st.sampled_from(["hi", "yes", " ", "\n", "é", "中", "no\n\n"]), max_size=4).map("".join)
hostile = st.lists(
    st.one_of(
        st.sampled_from([*SPELLINGS, "<|im_start|>assistant\n", "|im_end|>", "<|", "[gMASK]", "</tool_call>"]),
        st.sampled_from([" ", "\n", "\n\n", "\t", "\r", "\0", "\x1b", "\x1c", "\u200b", "\u2581", "\u2028", "\ufeff"]),
        st.sampled_from(
            ["hi", "yes", "é", "中", "\u0627", "\U0001f600", "\U000f0000", "\U000f0001", "\U0010fffd", "\ue000"]
        ),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
    ),
    max_size=4,
).map("".join)


def alternating(turns):
    """With somebody's words before each reply: templates that look at the last message rewrite a reply to a reply."""
    found = [("user", "q")]
    for role, content in turns:
        found += [("user", "q")] if role == found[-1][0] == "assistant" else []
        found.append((role, content))
    return found


def conversations(words):
    turn = st.tuples(st.sampled_from(["user", "user", "assistant", "assistant", "tool", "system"]), words)
    messages = st.lists(turn, min_size=1, max_size=5).map(alternating)
    return messages.flatmap(lambda turns: st.sampled_from([turns, turns, turns * 2]))


def defined(name, given, stop):
    """(context, response) of every reply as plain texts, straight from the definition."""
    template = opened(name)[1]
    for i, message in enumerate(given.messages):
        if message.role == "assistant":
            prompt, whole = template.render(given.messages[:i], True), template.render(given.messages[: i + 1], False)
            assert whole.startswith(prompt)
            yield prompt, whole[len(prompt) : whole.rindex(stop) + len(stop)]


FAITHFUL = ["chatml", "thinking", "returning"]


@pytest.mark.parametrize("name", FAITHFUL)
@given(turns=conversations(harmless))
@settings(max_examples=40, deadline=None)
def test_paths_are_the_plain_renderings_tokenised_whole(name, turns):
    given, whole = dialogue(*turns), opened(name)[3]
    tree = encoder(name)(given)
    found = [] if tree is None else [(c.tolist(), r.tolist()) for _, c, r in paths(tree)]
    wanted = defined(name, given, STOPS[name])
    assert found == [(whole.encode(context).ids, whole.encode(response).ids) for context, response in wanted]


def disarmed(turns):
    """The same with words that spell no control but the tags in replies, and as many characters."""
    calm = []
    for role, content in turns:
        pieces = TAG.split(content) if role == "assistant" else [content]
        pieces[::2] = [piece.replace("<", "\u1438").replace("[", "⟦") for piece in pieces[::2]]
        calm.append((role, "".join(pieces)))
    return calm


@pytest.mark.parametrize("name", FAITHFUL)
@given(turns=conversations(hostile))
@settings(max_examples=60, deadline=None)
def test_words_never_become_control_tokens(name, turns):
    given, whole = dialogue(*turns), opened(name)[3]
    made = encoder(name)
    tree = made(given)
    ids = {control.id for control in made.tokenizer.controls.values()}
    tags = {control.id for control in made.tokenizer.controls.values() if not control.special}
    found = [] if tree is None else [(c.tolist(), r.tolist()) for _, c, r in paths(tree)]
    for (context, response), (prompt, said), (calm, calm_said) in zip(
        found,
        defined(name, given, STOPS[name]),
        defined(name, dialogue(*disarmed(turns)), STOPS[name]),
        strict=True,
    ):
        assert made.tokenizer.decode(context) == prompt
        assert made.tokenizer.decode(response) == said
        assert [i for i in context if i in ids] == [i for i in whole.encode(calm).ids if i in ids]
        assert [i for i in response if i in ids] == [i for i in whole.encode(calm_said).ids if i in ids]
    if tree is not None:
        owners = {given.messages[i].role for i in tree.message_ids_N[tree.response_mask_N > 0] if i >= 0}
        assert owners <= {"assistant"}
        by_replies = np.isin(tree.message_ids_N, [i for i, m in enumerate(given.messages) if m.role == "assistant"])
        assert set(tree.tokens_N[by_replies].tolist()) & ids <= tags
        assert not set(tree.tokens_N[(tree.message_ids_N >= 0) & ~by_replies].tolist()) & ids


@given(turns=conversations(hostile))
@settings(max_examples=40, deadline=None)
def test_a_header_that_ends_a_turn_is_never_what_somebody_spelled(turns):
    made = encoder("headed")
    tree = made(dialogue(*turns))
    stop = made.stop_ids
    replies = [content for role, content in turns if role == "assistant"]
    said = [] if tree is None else [response.tolist() for _, _, response in paths(tree)]
    assert [made.tokenizer.decode(response[:-1]) for response in said] == [f"\n{content}" for content in replies]
    roles = {made.tokenizer.controls[f"<|{role}|>"].id for role in ("user", "assistant", "system", "tool")}
    assert all(response[-1] in roles for response in said)
    assert all(not set(response[:-1]) & {c.id for c in made.tokenizer.controls.values()} for response in said)
    assert stop


untagged = hostile.filter(lambda text: not TAG.search(text))
call_words = st.one_of(hostile, st.sampled_from([*SPELLINGS, "</tool_call>", "f"]))
values = st.recursive(
    st.one_of(call_words, st.integers(), st.none(), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(call_words, inner, max_size=2)),
    max_leaves=4,
)


@given(
    name=call_words, arguments=st.dictionaries(call_words, values, max_size=3), expected=hostile, reasoning=untagged,
    description=hostile, content=st.one_of(st.none(), untagged),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_calls_and_tools_spell_nothing_either(name, arguments, expected, reasoning, description, content):
    call = {"type": "function", "id": name, "function": {"name": name, "arguments": arguments}}
    tool = {"type": "function", "function": {"name": name, "description": description, "parameters": arguments}}
    fields = {"tool_calls": [call], "reasoning_content": reasoning}
    given = dialogue(
        ("user", "q"), ("assistant", content, 1.0, fields), ("tool", expected), ("assistant", "yes"), tools=[tool]
    )
    made = encoder("thinking", unfaithful="emit")
    template = opened("thinking")[1]
    [(_, tree)], stats = made.encode([given])
    found = paths(tree)
    control_ids = {control.id for control in made.tokenizer.controls.values()}
    counts = []
    for (_, context, response), i in zip(found, (1, 3), strict=True):
        prompt = template.render(given.messages[:i], True, given)
        whole = template.render(given.messages[: i + 1], False, given)
        assert made.tokenizer.decode(context) == prompt
        assert made.tokenizer.decode(response) == whole.removeprefix(prompt).removesuffix("\n")
        counts.append([sum(token in control_ids for token in ids) for ids in (context, response)])
    # Tools, user and header: 2 + 2 + 1; think and call tags and the stop; the same in history but for empty reasoning.
    assert counts[0] == [5, 5]
    thought = bool(reasoning)
    assert counts[1] == [5 + 2 * thought + 3 + 2 + 1, 3]
    assert stats.altered == 0


@given(many=st.lists(conversations(st.one_of(harmless, hostile, st.sampled_from(["", "<think>\nx\n</think>\n\ny"]))),
                     min_size=1, max_size=5))  # fmt: skip
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("name", ["thinking", "opening", "headed"])
def test_an_encoder_that_caches_plans_encodes_as_a_fresh_one(name, many):
    given = [dialogue(*turns) for turns in many]
    for made in (keeper(name), encoder(name, unfaithful="emit")):
        together, _ = made.encode(given)
        alone = [(i, tree) for i, one in enumerate(given)
                 for _, tree in encoder(name, unfaithful="emit").encode([one])[0]]  # fmt: skip
        assert [i for i, _ in together] == [i for i, _ in alone]
        for (_, tree), (_, fresh) in zip(together, alone):
            for column in tree.__slots__:
                assert getattr(tree, column).tolist() == getattr(fresh, column).tolist(), column


@cache
def keeper(name):
    """One encoder over all examples: the plans of one are in its cache for the next."""
    return encoder(name, unfaithful="emit")


@pytest.mark.parametrize("fields", [None, {"reasoning_content": "hm"}])
def test_an_empty_reply_of_the_same_structure_teaches_nothing_about_others(fields):
    made = encoder("opening", unfaithful="emit")
    empty = {"reasoning_content": ""} if fields else None
    for content, thought in (("", empty), ("hi", fields), ("", empty), ("hi", fields)):
        tree = made(dialogue(("user", "q"), ("assistant", content, 1.0, thought)))
        words = made.tokenizer.decode(tree.tokens_N[tree.response_mask_N > 0])
        hm = "hm\n</think>\n\n" if thought and thought["reasoning_content"] else ""
        assert words == f"{hm}{content}<|eos|>"


def test_controls_are_those_that_the_templates_write():
    assert controls_of("returning") == ["<|start|>", "<|message|>", "<|return|>", "<|end|>"]
    assert Message("user", "x").as_record() == {"role": "user", "content": "x"}


def test_a_plan_that_would_train_the_words_of_others_cannot_be_made():
    made = encoder("chatml")
    plan = made._compiler.compile(TWO, (1, 3), made.template.bind(TWO))
    first, second = plan.turns
    with pytest.raises(AssertionError, match="the response of message 4 holds words of others"):
        TurnPlan((first, second._replace(response=first.response)), (), ())
    left_out = second._replace(response=first.response, trained=False)
    assert TurnPlan((first, left_out), (), ()).turns[1] == left_out


# The cache of plans, as the docstring of mtsft.template has it


def example():
    """(the template of the docstring, a compiler under it)."""
    lines = mtsft.template.__doc__.split("Under the template\n\n")[1].split("\n\n")[0]
    chat = chat_of("chatml")
    template, tokenizer = type(chat)(chat.tokenizer, {"default": textwrap.dedent(lines)}, "made").open()
    return template, TemplateCompiler(template, tokenizer.controls, ["<|im_end|>"])


def test_the_example_is_rendered_and_planned_as_the_docstring_says():
    template, compiler = example()
    given = dialogue(("user", "2 + 2?"), ("assistant", "4"))
    buffer = str(TrackedDialogue(template, given).render(1, False))
    picture = buffer.replace("\n", "\\n").replace("\U000f0000", "①").replace("\U000f0001", "②")
    assert f"    {picture}\n" in mtsft.template.__doc__
    plan = compiler.compile(given, (1,), template.bind(given))
    [turn] = plan.turns
    [guard] = plan.guards
    assert repr(guard.parts) == "(<messages.1.content>,)"
    assert (guard.method, guard.args, guard.expected) == ("startswith", ("<think>",), False)

    def drawn(segments):
        return [s if isinstance(s, str) else [p if isinstance(p, str) else repr(p) for p in s.parts] for s in segments]

    user = ["<|im_start|>", ["user\n", "<messages.0.content>"], "<|im_end|>"]
    assert drawn(turn.context) == [*user, ["\n"], "<|im_start|>", ["assistant\n"]]
    assert drawn(turn.response) == [["<think></think>", "<messages.1.content>"], "<|im_end|>"]


def test_a_plan_is_reused_while_its_guards_hold_and_not_beyond():
    template, compiler = example()
    rendered = []
    template.run = lambda *args, run=template.run: rendered.append(args) or run(*args)

    def compiled(user, reply):
        given = dialogue(("user", user), ("assistant", reply))
        bindings, rendered[:] = template.bind(given), []
        plan = compiler.compile(given, (1,), bindings)
        [turn] = plan.turns
        spans = [span for span in (*turn.context, *turn.response) if not isinstance(span, str)]
        return plan, "".join(text_of(span.parts, bindings) for span in spans)

    first, text = compiled("2 + 2?", "4")
    assert text == "user\n2 + 2?\nassistant\n<think></think>4"
    second, text = compiled("Hi!", "Hello.")
    assert second is first
    assert not rendered
    assert text == "user\nHi!\nassistant\n<think></think>Hello."
    third, text = compiled("Hi!", "<think>so</think>Hello.")
    assert third is not first
    assert rendered
    assert text == "user\nHi!\nassistant\n<think>so</think>Hello."
    assert compiled("", "")[0] is first
    assert compiled("", "<think>")[0] is third


def test_the_records_of_a_dialogue_are_made_only_when_they_are_asked_for():
    template = ChatTemplate({"default": CHATML}, "t")
    made = []
    template.record = lambda message, record=template.record: made.append(message) or record(message)
    bindings = template.bind(TWO)
    assert bindings.records["tools"] is None
    assert made == []
    content = Placeholder("\U000f0000", (("messages", 2, "content"), "upper", (), None, ()), 2, "content")
    assert content.value(bindings) == "C"
    assert len(made) == 4
    assert bindings.values == {content: "C"}
