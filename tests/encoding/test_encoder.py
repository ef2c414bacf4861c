from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from mtsft.config import DataConfig
from mtsft.dialogue.schema import Dialogue, Message
from mtsft.encoding.encoder import Encoder
from mtsft.encoding.stats import EncodingStats
from mtsft.encoding.token_tree import paths
from mtsft.errors import InputError
from mtsft.tokenizer.load import from_files

ANY_LENGTH = DataConfig(sequence_length=100_000)
START, STOP = MARKERS = ("<|im_start|>", "<|im_end|>")
WORDS = "\u2581 system user assistant tool hi \u2581you be \u2581brief more ? no yes".split()


def make_tokenizer(words, placeholders):
    """A tokenizer of these pieces and all bytes; fewer pieces are likelier."""
    model = sentencepiece_model_pb2.ModelProto()
    kinds = model.SentencePiece
    pieces = [("<unk>", kinds.UNKNOWN, 0.0), *((text, kinds.USER_DEFINED, 0.0) for text in placeholders)]
    pieces += [(f"<0x{byte:02X}>", kinds.BYTE, 0.0) for byte in range(256)] + [(w, kinds.NORMAL, -1.0) for w in words]
    for piece, kind, score in pieces:
        model.pieces.add(piece=piece, type=kind, score=score)
    model.trainer_spec.model_type = model.trainer_spec.UNIGRAM
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    return from_files({"tokenizer.model": model.SerializeToString()}, MARKERS)


@pytest.fixture(scope="module")
def plain():
    return make_tokenizer(WORDS, [*MARKERS, "\n"])


@pytest.fixture(scope="module")
def merging():
    """A newline merges with what follows it: enc("assistant\\nyes") is not enc("assistant\\n") + enc("yes")."""
    return make_tokenizer([*WORDS, "\n", "\nyes", "\nhi", "\n\n"], MARKERS)


@pytest.fixture
def plain_encoder(chatml, plain):
    return Encoder(chatml, plain, ANY_LENGTH)


@pytest.fixture
def make_encoder(chatml, plain):
    return lambda max_length, over_length: Encoder(
        chatml, plain, DataConfig(sequence_length=max_length, over_length=over_length)
    )


def dialogue(*messages):
    """From (role, content) or (role, content, weight)."""
    return Dialogue("d", tuple(Message(*message) for message in messages), "d.jsonl:7")


def is_response(message):
    return message.role == "assistant" and message.weight > 0


def rows(tree, tokenizer):
    """(piece, mask, turn, message) of each token."""
    pieces = [tokenizer.decode([i]) for i in tree.tokens_N]
    columns = (tree.response_mask_N, tree.turn_ids_N, tree.message_ids_N)
    return list(zip(pieces, *(column.tolist() for column in columns)))


def defined_paths(tokenizer, messages):
    """(turn, context, response) of every response, straight from the definition: no tree, no template."""
    start, stop = (tokenizer.controls[marker].id for marker in MARKERS)
    history, turn, found = [], 0, []
    for message in messages:
        if message.role == "assistant":
            if message.weight:
                context = [*history, start, *tokenizer.encode("assistant\n")]
                found.append((turn, context, [*tokenizer.encode(message.content), stop]))
            turn += 1
        history += [start, *tokenizer.encode(f"{message.role}\n{message.content}"), stop, *tokenizer.encode("\n")]
    return found


def listed(found):
    return [(turn, context.tolist(), response.tolist()) for turn, context, response in found]


TWO_TURNS = dialogue(
    ("system", "be brief"), ("user", "hi you"), ("assistant", "hi"), ("user", "more?"), ("assistant", "no more you")
)  # fmt: skip


def test_a_dialogue_token_by_token(plain_encoder, plain):
    [(_, tree)], stats = plain_encoder.encode([TWO_TURNS])
    assert rows(tree, plain) == [
        # piece      mask turn message
        (START,       0,   0,  -1),
        ("system",    0,   0,  -1),
        ("\n",        0,   0,  -1),
        ("be",        0,   0,   0),
        (" brief",    0,   0,   0),
        (STOP,        0,   0,  -1),
        ("\n",        0,   0,  -1),
        (START,       0,   0,  -1),
        ("user",      0,   0,  -1),
        ("\n",        0,   0,  -1),
        ("hi",        0,   0,   1),
        (" you",      0,   0,   1),
        (STOP,        0,   0,  -1),
        ("\n",        0,   0,  -1),
        (START,       0,   0,  -1),
        ("assistant", 0,   0,  -1),
        ("\n",        0,   0,  -1),
        ("hi",        1,   0,   2),
        (STOP,        1,   0,  -1),
        ("\n",        0,   1,  -1),
        (START,       0,   1,  -1),
        ("user",      0,   1,  -1),
        ("\n",        0,   1,  -1),
        ("more",      0,   1,   3),
        ("?",         0,   1,   3),
        (STOP,        0,   1,  -1),
        ("\n",        0,   1,  -1),
        (START,       0,   1,  -1),
        ("assistant", 0,   1,  -1),
        ("\n",        0,   1,  -1),
        ("no",        1,   1,   4),
        (" ",         1,   1,   4),
        ("more",      1,   1,   4),
        (" you",      1,   1,   4),
        (STOP,        1,   1,  -1),
    ]  # fmt: skip
    assert tree.parents_N.tolist() == list(range(-1, 34))
    assert tree.response_ids_N.tolist() == [2] * 19 + [4] * 16
    assert stats == EncodingStats(
        dialogues=1, responses=2, kept=1, tokens=35, chain_tokens=35, response_tokens=19 + 35,
        supervised_tokens=7, supervised_weight=7.0, by_turn=Counter({0: 2, 1: 5}), by_role=Counter(assistant=7),
    )  # fmt: skip


def test_weights_are_the_mask_and_zero_is_context(plain_encoder, plain):
    messages = [("assistant", "hi", 0.5), ("assistant", "no", 0.0), ("user", "?", 9.0), ("assistant", "yes", 2.0)]
    [(_, tree)], stats = plain_encoder.encode([dialogue(*messages)])
    assert [row for row in rows(tree, plain) if row[1]] == [
        ("hi", 0.5, 0, 0), (STOP, 0.5, 0, -1), ("yes", 2.0, 2, 3), (STOP, 2.0, 2, -1)
    ]  # fmt: skip
    assert [row for row in rows(tree, plain) if row[0] == "no"] == [("no", 0.0, 2, 1)]
    assert stats.responses == 2
    assert stats.supervised_weight == 5.0


def test_what_follows_the_last_response_is_not_stored(plain_encoder):
    more = dialogue(*((m.role, m.content) for m in TWO_TURNS.messages), ("user", "more"), ("tool", "yes"))
    assert plain_encoder(more).tokens_N.tolist() == plain_encoder(TWO_TURNS).tokens_N.tolist()


def test_a_turn_of_weight_zero_at_the_end_is_not_stored(plain_encoder, plain):
    tree = plain_encoder(dialogue(("user", "hi"), ("assistant", "yes"), ("user", "more"), ("assistant", "no", 0.0)))
    assert plain.decode(tree.tokens_N) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"


@pytest.mark.parametrize(
    "messages", [[("user", "hi")], [("user", "hi"), ("assistant", "no", 0.0)], [("system", "be"), ("tool", "yes")]]
)
def test_a_dialogue_without_a_response_is_counted_and_left_out(plain_encoder, messages):
    noted = {"without a response": ["d.jsonl:7"]}
    expected = EncodingStats(dialogues=1, without_response=1, examples=noted)
    assert plain_encoder.encode([dialogue(*messages)]) == ([], expected)
    assert plain_encoder(dialogue(*messages)) is None


def test_an_empty_response_is_its_stop(plain_encoder, plain):
    tree = plain_encoder(dialogue(("user", ""), ("assistant", "")))
    assert plain.decode(tree.tokens_N) == "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<|im_end|>"
    assert [row for row in rows(tree, plain) if row[1]] == [(STOP, 1, 0, -1)]
    assert set(tree.message_ids_N) == {-1}


def test_every_role_but_the_assistant_is_context_under_its_name(plain_encoder, plain):
    given = dialogue(*zip("system tool user assistant tool assistant".split(), "be yes hi no hi ?".split()))
    tree = plain_encoder(given)
    assert plain.decode(tree.tokens_N) == (
        "<|im_start|>system\nbe<|im_end|>\n<|im_start|>tool\nyes<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nno<|im_end|>\n<|im_start|>tool\nhi<|im_end|>\n<|im_start|>assistant\n?<|im_end|>"
    )
    assert [row[0] for row in rows(tree, plain) if row[1]] == ["no", STOP, "?", STOP]


# Longer than a row

PREFIX_TOKENS = 19  # of TWO_TURNS, up to the stop of its first response


def test_a_dialogue_as_long_as_a_row_fits(make_encoder):
    encoder = make_encoder(35, "error")
    assert len(encoder(TWO_TURNS)) == 35


def test_over_length_error_names_the_place_and_what_to_do(make_encoder):
    with pytest.raises(InputError, match=r"^d\.jsonl:7: 35 tokens, more than data\.sequence_length=34; raise it, or"):
        make_encoder(34, "error")(TWO_TURNS)


def test_over_length_drop_counts_what_it_drops(make_encoder):
    trees, stats = make_encoder(34, "drop").encode([TWO_TURNS])
    assert trees == []
    assert stats == EncodingStats(
        dialogues=1, responses=2, over_length=1, over_length_dropped=1, over_length_responses=2,
        over_length_supervised_tokens=7,
    )  # fmt: skip


@pytest.mark.parametrize("max_length", [PREFIX_TOKENS, 34])
def test_over_length_keep_first_keeps_whole_turns(make_encoder, plain, max_length):
    [(_, tree)], stats = make_encoder(max_length, "keep_first").encode([TWO_TURNS])
    alone = make_encoder(1000, "error")(dialogue(*((m.role, m.content) for m in TWO_TURNS.messages[:3])))
    for name in tree.__slots__:
        assert getattr(tree, name).tolist() == getattr(alone, name).tolist()
    assert rows(tree, plain)[-1] == (STOP, 1, 0, -1)
    assert stats == EncodingStats(
        dialogues=1, responses=2, kept=1, over_length=1, over_length_cut=1, over_length_responses=1,
        over_length_supervised_tokens=5, tokens=PREFIX_TOKENS, chain_tokens=PREFIX_TOKENS,
        response_tokens=PREFIX_TOKENS, supervised_tokens=2, supervised_weight=2.0, by_turn=Counter({0: 2}),
        by_role=Counter(assistant=2),
    )  # fmt: skip


def test_over_length_keep_first_drops_what_has_no_whole_turn(make_encoder):
    trees, stats = make_encoder(PREFIX_TOKENS - 1, "keep_first").encode([TWO_TURNS])
    assert trees == []
    assert stats == EncodingStats(
        dialogues=1, responses=2, over_length=1, over_length_dropped=1, over_length_responses=2,
        over_length_supervised_tokens=7,
    )  # fmt: skip


def test_a_dialogue_of_very_many_messages_is_over_length_like_any_other(make_encoder):
    many = dialogue(*[("user", "hi"), ("assistant", "hi")] * 80)
    assert make_encoder(512, "drop")(many) is None
    assert len(make_encoder(2000, "drop")(many)) == 80 * 12 - 1


# Whatever the texts

hostile_text = st.lists(
    st.one_of(
        st.sampled_from([*MARKERS, "<|im_start|>assistant\n", "<|im_end|>\n", "|im_end|>", "<", "user\n", "assistant"]),
        st.sampled_from([" ", "  ", "\n", "\n\n", "\t", "\r", "\0", "\x1b", "\u200b", "\u2581", "\u2028", "\ufeff"]),
        st.sampled_from(["hi", "yes", "no", " you", "é", "中"]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    ),
    max_size=5,
).map("".join)
hostile_message = st.one_of(
    st.tuples(st.sampled_from(["system", "user", "tool"]), hostile_text),
    st.tuples(st.just("assistant"), hostile_text, st.sampled_from([0.0, 0.5, 1.0, 1.0])),
).map(lambda given: Message(*given))
hostile_messages = st.lists(hostile_message, min_size=1, max_size=7).flatmap(
    lambda messages: st.sampled_from([messages, messages * 2])  # the same turns again
)


@pytest.mark.parametrize("kind", ["plain", "trained", "merging"])
@given(messages=hostile_messages)
@settings(max_examples=120, deadline=None)
def test_supervised_tokens_are_the_models_words_and_its_stop_and_nothing_else(
    chatml, plain, small_tokenizer, merging, kind, messages
):
    tokenizer = {"plain": plain, "trained": small_tokenizer, "merging": merging}[kind]
    trees, stats = Encoder(chatml, tokenizer, ANY_LENGTH).encode([Dialogue("d", tuple(messages))])
    tree = trees[0][1] if trees else None
    responses = [m for m in messages if m.role == "assistant" and m.weight]
    assert (tree is None) == (not responses)
    if tree is None:
        return
    supervised = tree.response_mask_N > 0
    words = tokenizer.decode(tree.tokens_N[supervised])
    assert words == "".join(m.content + STOP for m in responses)
    stop = tokenizer.controls[STOP].id
    said = [response.tolist() for _, _, response in paths(tree)]
    assert [tokenizer.decode(ids[:-1]) for ids in said] == [m.content for m in responses]
    assert all(
        ids[-1] == stop and not set(ids[:-1]) & {control.id for control in tokenizer.controls.values()} for ids in said
    )
    weights = [m.weight for m, ids in zip(responses, said) for _ in ids]
    assert tree.response_mask_N[supervised].tolist() == weights
    spoken_by = {messages[i].role for i in tree.message_ids_N[supervised] if i >= 0}
    assert spoken_by <= {"assistant"}
    assert stats.altered == 0


@pytest.mark.parametrize("kind", ["plain", "trained"])
@given(messages=hostile_messages)
@settings(max_examples=100, deadline=None)
def test_the_words_of_each_message_are_marked_with_its_index(chatml, plain, small_tokenizer, kind, messages):
    tokenizer = {"plain": plain, "trained": small_tokenizer}[kind]
    tree = Encoder(chatml, tokenizer, ANY_LENGTH)(Dialogue("d", tuple(messages)))
    stored = max((i for i, m in enumerate(messages) if is_response(m)), default=-1) + 1
    for index, message in enumerate(messages):
        ids = [] if tree is None else tree.tokens_N[tree.message_ids_N == index]
        assert tokenizer.decode(ids) == (message.content if index < stored else "")
    if tree is not None:
        rest = tokenizer.decode(tree.tokens_N[tree.message_ids_N == -1])
        headers = [f"{START}{m.role}\n{STOP}\n" for m in messages[:stored]]
        assert rest == "".join(headers).removesuffix("\n")


@pytest.mark.parametrize("kind", ["plain", "trained"])
@given(messages=hostile_messages)
@settings(max_examples=100, deadline=None)
def test_the_chain_is_every_context_and_response_encoded_separately(chatml, plain, small_tokenizer, kind, messages):
    tokenizer = {"plain": plain, "trained": small_tokenizer}[kind]
    encoder = Encoder(chatml, tokenizer, ANY_LENGTH)
    trees, stats = encoder.encode([Dialogue("d", tuple(messages))])
    tree = trees[0][1] if trees else None
    separately = []
    for index, message in enumerate(messages):
        if is_response(message):
            history = [Message(m.role, m.content, 0.0) for m in messages[:index]]
            separately += listed(paths(encoder(Dialogue("d", (*history, message)))))
    together = listed(paths(tree)) if tree is not None else []
    assert together == separately == defined_paths(tokenizer, messages)
    assert stats.branching == 0
    if tree is not None:
        assert len(tree) == len(separately[-1][1]) + len(separately[-1][2])


# A tokenizer that reads history otherwise than the model emitted it


def test_where_the_newline_merges_the_tree_branches_after_the_header(chatml, merging):
    assert merging.encode("assistant\nyes") != merging.encode("assistant\n") + merging.encode("yes")
    encoder = Encoder(chatml, merging, ANY_LENGTH)
    messages = ("user", "hi"), ("assistant", "yes"), ("user", "no"), ("assistant", "no")
    [(_, tree)], stats = encoder.encode([dialogue(*messages)])
    pieces = [row[:3] for row in rows(tree, merging)]
    assert list(zip(range(len(tree)), tree.parents_N.tolist(), pieces)) == [
        # node parent piece    mask turn
        (0,  -1, (START,        0, 0)),
        (1,   0, ("user",       0, 0)),
        (2,   1, ("\nhi",       0, 0)),
        (3,   2, (STOP,         0, 0)),
        (4,   3, ("\n",         0, 0)),
        (5,   4, (START,        0, 0)),
        (6,   5, ("assistant",  0, 0)),
        (7,   6, ("\n",         0, 0)),
        (8,   7, ("yes",        1, 0)),
        (9,   8, (STOP,         1, 0)),
        (10,  6, ("\nyes",      0, 1)),
        (11, 10, (STOP,         0, 1)),
        (12, 11, ("\n",         0, 1)),
        (13, 12, (START,        0, 1)),
        (14, 13, ("user",       0, 1)),
        (15, 14, ("\n",         0, 1)),
        (16, 15, ("no",         0, 1)),
        (17, 16, (STOP,         0, 1)),
        (18, 17, ("\n",         0, 1)),
        (19, 18, (START,        0, 1)),
        (20, 19, ("assistant",  0, 1)),
        (21, 20, ("\n",         0, 1)),
        (22, 21, ("no",         1, 1)),
        (23, 22, (STOP,         1, 1)),
    ]  # fmt: skip
    assert stats.branching == 1


@given(messages=hostile_messages)
@settings(max_examples=150, deadline=None)
def test_the_paths_of_a_branching_tree_are_the_contexts_and_responses_as_defined(chatml, merging, messages):
    tree = Encoder(chatml, merging, ANY_LENGTH)(Dialogue("d", tuple(messages)))
    assert ([] if tree is None else listed(paths(tree))) == defined_paths(merging, messages)


def test_a_branching_tree_is_cut_to_the_tree_of_its_first_turns(chatml, merging):
    messages = [("user", "hi"), ("assistant", "yes"), ("user", "no"), ("assistant", "hi"), ("assistant", "?")]
    whole = Encoder(chatml, merging, ANY_LENGTH)(dialogue(*messages))
    shorter = DataConfig(sequence_length=len(whole) - 1, over_length="keep_first")
    cut = Encoder(chatml, merging, shorter)(dialogue(*messages))
    alone = Encoder(chatml, merging, ANY_LENGTH)(dialogue(*messages[:4]))
    for name in cut.__slots__:
        assert getattr(cut, name).tolist() == getattr(alone, name).tolist()


def test_an_encoder_returns_what_it_counted_and_keeps_nothing_of_it(plain_encoder):
    many = [TWO_TURNS, dialogue(("user", "hi")), TWO_TURNS]
    trees, stats = plain_encoder.encode(many)
    assert [index for index, _ in trees] == [0, 2]
    assert (stats.dialogues, stats.kept, stats.without_response) == (3, 2, 1)
    again, same = plain_encoder.encode(many)
    assert same == stats
    assert [index for index, _ in again] == [0, 2]
    assert plain_encoder.encode([]) == ([], EncodingStats())
    alone = [plain_encoder.encode([one])[1] for one in many]
    assert alone[0] + alone[1] + alone[2] == stats


def test_a_response_that_the_tokenizer_alters_is_counted(chatml):
    model = sentencepiece_model_pb2.ModelProto.FromString(make_tokenizer(WORDS, MARKERS).files["tokenizer.model"])
    model.trainer_spec.byte_fallback = False
    kept = [p for p in model.pieces if p.type != p.BYTE]
    del model.pieces[:]
    model.pieces.extend(kept)
    encoder = Encoder(chatml, from_files({"tokenizer.model": model.SerializeToString()}, MARKERS), ANY_LENGTH)
    for words, altered in ((("§", "hi"), 0), (("hi", "§"), 1)):
        _, stats = encoder.encode([dialogue(*zip(("user", "assistant"), words))])
        assert stats.altered == altered
