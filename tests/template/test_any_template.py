"""Whatever a template does: nobody's words but the model's own are supervised, in the context that a server would send.

Templates are drawn that close replies or do not, and that reorder, repeat, drop, shorten and merge messages; what is
trained under each is held against the definition, rendered plainly.
"""

import chats
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtsft.config import DataConfig
from mtsft.encoding.encoder import Encoder
from mtsft.encoding.spec import ChatFormat
from mtsft.encoding.token_tree import paths
from mtsft.errors import InputError

STOP, CALLS = "<|im_end|>", "<|calls|>"
CONTROLS = ["<|im_start|>", STOP, CALLS, "<think>", "</think>"]

HEADER, PROMPT = "'<|im_start|>' ~ m.role ~ '\\n'", "'<|im_start|>assistant\\n"
# What a message begins with, and what a prompt ends with.
headers = st.sampled_from([
    (HEADER, f"{PROMPT}'"),
    (HEADER, f"{PROMPT}'"),
    (HEADER, f"{PROMPT}'"),
    ("m.role|upper ~ ': '", "'ASSISTANT: '"),
    ("m.role|upper ~ ': '", "'ASSISTANT: '"),
    (HEADER, f"{PROMPT}<think>\\n'"),
    (HEADER, f"{PROMPT}<think>\\n\\n</think>\\n\\n'"),
    (HEADER, f"messages[-1].content ~ {PROMPT}'"),
    (f"{HEADER} if loop.first or messages[loop.index0 - 1].role != 'tool' else ''", f"{PROMPT}'"),
    ("'<|im_start|>' ~ ('assistant' if m.role == 'tool' else m.role) ~ '\\n'", f"{PROMPT}'"),
    ("m.role|upper ~ ': '", f"{PROMPT}'"),
    ("''", "''"),
])  # fmt: skip
bodies = st.sampled_from([
    *["m.content"] * 4,
    "m.content|trim",
    "m.content if loop.last else m.content[:2]",  # shortened in the history
    "m.content if m.role != 'tool' else ''",  # dropped
    "m.content ~ m.content",  # repeated
    "(messages[loop.index0 - 1].content ~ ' ' ~ m.content) if loop.index0 and m.role == 'assistant' else m.content",
    "((messages[loop.index0 - 1].content ~ m.content)|trim) if loop.index0 else m.content",  # merged in one string
    "messages[0].content ~ '; ' ~ m.content",
    "'' if loop.last and m.role == 'assistant' else m.content",  # lost
    "'<think>\\n\\n</think>\\n\\n' ~ m.content if loop.last and m.role == 'assistant' else m.content",
])  # fmt: skip
ends = st.sampled_from([
    *["'<|im_end|>\\n'"] * 3,
    "'\\n'",
    "''",
    "'<|im_end|>\\n' if m.role != 'assistant' else '\\n'",
    "'<|im_end|>' if m.role != 'assistant' else ''",
    "'<|calls|>' if m.role == 'assistant' and not loop.last and loop.nextitem.role == 'tool' else '<|im_end|>'",
    "'<|im_end|>' if loop.last else ''",
    "'' if loop.last else loop.nextitem.content ~ '<|im_end|>'",
])  # fmt: skip
orders = st.sampled_from([*["messages"] * 8, "messages|reverse", "messages[1:] + messages[:1]"])


@st.composite
def templates(draw):
    header, prompt = draw(headers)
    loop = f"{{{{ ({header}) ~ ({draw(bodies)}) ~ ({draw(ends)}) }}}}"
    return (
        f"{{%- for m in {draw(orders)} %}}{loop}{{% endfor %}}"
        f"{{%- if add_generation_prompt %}}{{{{ {prompt} }}}}{{% endif %}}"
    )


roles = st.lists(st.sampled_from(["user", "assistant", "assistant", "tool"]), min_size=1, max_size=4)


def words_of(index):
    """What message `index` says: letters that stand in no other message, and in no template."""
    return "QWZKJV"[index] * 3 + " "


@pytest.mark.parametrize("policy", ["error", "skip", "emit"])
@given(source=templates(), turns=roles)
@settings(max_examples=150, deadline=None)
def test_only_the_models_own_words_are_supervised(policy, source, turns):
    dialogue = chats.dialogue(*((role, words_of(i)) for i, role in enumerate(["user", *turns])))
    chat = ChatFormat(
        chats.byte_level(CONTROLS) | {"tokenizer_config.json": b'{"eos_token": "<|im_end|>"}'}, {"default": source}
    )
    template, tokenizer = chat.open()
    made = Encoder(template, tokenizer, DataConfig(sequence_length=100_000, unfaithful=policy, refused="skip"))
    try:
        trees, stats = made.encode([dialogue])
    except InputError:
        assert policy == "error"
        return
    trained = 0
    for _, tree in trees:
        supervised = tree.response_mask_N > 0
        authors = tree.message_ids_N[supervised]
        assert ((authors == -1) | (authors == tree.response_ids_N[supervised])).all()
        ends = {int(i) for i in tree.response_ids_N[supervised]}
        for (_, context, response), message in zip(paths(tree), sorted(ends), strict=True):
            trained += 1
            before, said = tokenizer.decode(context), tokenizer.decode(response)
            assert before == template.render(dialogue.messages[:message], True)
            assert response[-1] in made.stop_ids
            own = words_of(message).strip()
            assert own in said
            others = {words_of(i).strip()[0] for i in range(len(dialogue.messages)) if i != message}
            assert not others & {*said}
            assert "x" not in said  # of what is made up to see what a template writes
            whole = template.render(dialogue.messages[: message + 1], False)
            if whole.startswith(before) and policy != "emit":
                after = whole[len(before) :]
                stop = tokenizer.piece(response[-1])
                assert said.removesuffix(stop) in after  # the definition
                if stop in after[after.rindex(own) :]:
                    assert said == after[: after.index(stop, after.rindex(own)) + len(stop)]
    assert trained + stats.skipped_turns == sum(role == "assistant" for role in turns) or stats.refused
