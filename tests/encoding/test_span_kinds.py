"""What the tokens of responses are part of."""

from chats import chat_of, dialogue

from mtsft.config import DataConfig
from mtsft.dialogue.schema import Message
from mtsft.encoding.encoder import Encoder
from mtsft.encoding.span_kinds import KINDS, SpanKinds

CALL = {"type": "function", "function": {"name": "f", "arguments": {"k": 1}}}
ASKED = Message("user", "q")


def kinds_of(messages, name="thinking", **keys):
    """By message: [(kind, text of the tokens)] of runs of tokens of one kind."""
    encoder = Encoder(*chat_of(name).open(), DataConfig(**({"sequence_length": 4000} | keys)))
    given = dialogue(*messages)
    [(_, tree)], _ = encoder.encode([given])
    found = SpanKinds(encoder).of(given)
    if found is None:
        return None
    runs = {}
    for message, kinds in found.items():
        ids = tree.tokens_N[(tree.response_ids_N == message) & (tree.response_mask_N > 0)].tolist()
        assert len(ids) == len(kinds)
        runs[message] = []
        for token, kind in zip(ids, kinds.tolist()):
            if runs[message] and runs[message][-1][0] == KINDS[kind]:
                runs[message][-1][1].append(token)
            else:
                runs[message].append((KINDS[kind], [token]))
    return {m: [(kind, encoder.tokenizer.decode(ids)) for kind, ids in each] for m, each in runs.items()}


def test_texts_thoughts_and_calls_are_told_apart():
    called = Message("assistant", "I look.", fields={"reasoning_content": "hm", "tool_calls": [CALL]})
    result = Message("tool", "5", fields={"name": "f"})
    assert kinds_of([ASKED, called, result, Message("assistant", "Five.")]) == {
        1: [
            ("reasoning", "<think>\nhm\n</think>"),
            ("text", "\n\nI look."),
            ("tool call", '<tool_call>\n{"name": "f", "arguments": {"k": 1}}\n</tool_call>'),
            ("text", "<|im_end|>"),
        ],
        3: [("reasoning", "<think>\n\n</think>"), ("text", "\n\nFive.<|im_end|>")],  # the template's own thought
    }


def test_a_thought_in_the_content_is_found_and_weights_do_not_matter():
    messages = [ASKED, Message("assistant", "<think>hm</think>So.", weight=3.0)]
    expected = {1: [("reasoning", "<think>\nhm\n</think>"), ("text", "\n\nSo.<|im_end|>")]}
    assert kinds_of(messages) == expected
    assert kinds_of(messages, trees="responses", weigh_per="turn") == expected


def test_plain_dialogues_are_all_text_from_the_second_on():
    encoder = Encoder(*chat_of("chatml").open(), DataConfig(sequence_length=4000))
    kinds = SpanKinds(encoder)
    first, second = (dialogue(ASKED, Message("assistant", words)) for words in ("one", "two"))
    assert not kinds.of(first)[1].any()
    assert kinds.of(second) is None
    assert kinds.of(dialogue(ASKED, Message("assistant", "<think>a</think>b")))[1].any()


def test_thoughts_that_a_template_writes_are_found_in_every_plain_dialogue():
    kinds = SpanKinds(Encoder(*chat_of("thinking").open(), DataConfig(sequence_length=4000)))
    found = [kinds.of(dialogue(ASKED, Message("assistant", words)))[1] for words in ("one", "two")]
    assert [each.tolist().count(1) for each in found] == [3, 3]  # the marks, and what is between them
