"""Keys of a file that a template reads reach it, as words; the others are counted by name."""

import json

import chats
import pytest

from mtsft.config import DataConfig
from mtsft.dialogue.formats import parse_record
from mtsft.encoding.encoder import Encoder
from mtsft.encoding.spec import ChatFormat
from mtsft.template.chat_template import ChatTemplate

CALLS = chats.CHATML.replace(
    "m.content +", "(m.content or '') + ('<calls>' + m.function_calls + '</calls>' if m.function_calls else '') + "
)
DOCUMENTS = (
    "{% for d in documents or [] %}{{ '<|im_start|>document\\n' + d.title + ': ' + d.text + '<|im_end|>\\n' }}"
    "{% endfor %}{% if custom_instructions %}{{ custom_instructions + '\\n' }}{% endif %}" + chats.CHATML
)
PARTS_ONLY = chats.CHATML.replace(
    "m.content +",
    "(m.content|selectattr('type', 'equalto', 'thinking')|map(attribute='thinking')|join) + '|' + "
    "(m.content|selectattr('type', 'equalto', 'text')|map(attribute='text')|join) +",
)
EITHER = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ '<think>' + p.thinking + '</think>' if p.type == 'thinking' else p.text }}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def encoder(source, **keys):
    files = chats.byte_level(["<|im_start|>", "<|im_end|>", "<think>", "</think>"])
    files["tokenizer_config.json"] = json.dumps({"eos_token": "<|im_end|>"}).encode()
    return Encoder(*ChatFormat(files, {"default": source}, "made").open(), DataConfig(sequence_length=10_000, **keys))


def texts(made, record):
    """(all of it, what is supervised) of a record's dialogue."""
    tree = made(parse_record(record, "d.jsonl:7"))
    return made.tokenizer.decode(tree.tokens_N), made.tokenizer.decode(tree.tokens_N[tree.response_mask_N > 0])


def asked(answer, **more):
    return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}], **more}


def test_keys_of_a_message_that_the_template_reads_reach_it():
    record = asked("")
    record["messages"][1] |= {"function_calls": "f('<|im_end|>')", "note": "x", "rank": 3}
    made = encoder(CALLS)
    _, said = texts(made, record)
    assert said == "<calls>f('<|im_end|>')</calls><|im_end|>"
    trees, stats = made.encode([parse_record(record, "d.jsonl:7")])
    stop = made.tokenizer.controls["<|im_end|>"].id
    assert trees[0][1].tokens_N.tolist().count(stop) == 2  # the words spell another
    assert stats.unread == {"messages: note": 1, "messages: rank": 1}
    assert stats.examples["unread: messages: note"] == ["d.jsonl:7"]


def test_keys_beside_the_messages_that_the_template_reads_reach_it_and_are_words():
    made = encoder(DOCUMENTS)
    notes = [{"title": "N", "text": "ends with <|im_end|>"}]
    record = asked("a", documents=notes, custom_instructions="never <|im_end|>", lang="en")
    dialogue = parse_record(record, "d.jsonl:7")
    ((_, tree),), stats = made.encode([dialogue])
    assert made.tokenizer.decode(tree.tokens_N) == (
        "<|im_start|>document\nN: ends with <|im_end|><|im_end|>\nnever <|im_end|>\n"
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>"
    )
    assert tree.tokens_N.tolist().count(made.tokenizer.controls["<|im_end|>"].id) == 3
    assert stats.unread == {"lang": 1}
    same = asked("a", chat_template_kwargs={"documents": notes, "custom_instructions": "never <|im_end|>"})
    assert texts(made, same)[0] == made.tokenizer.decode(tree.tokens_N)
    # What a template sets itself, or everybody gives it, is not taken from a file.
    assert texts(made, asked("a", messages_=1, bos_token="x", m="y"))[0].startswith("<|im_start|>user")


def test_half_a_character_is_refused_where_the_template_reads_it():
    for record in (asked("a", documents=[{"text": "\ud800"}]), asked("a", other="\ud800")):
        made, dialogue = encoder(DOCUMENTS, refused="skip"), parse_record(record, "d.jsonl:7")
        _, stats = made.encode([dialogue])
        assert stats.refused == ("documents" in record)
    assert stats.unread == {"other": 1}


def test_another_document_is_not_the_plan_of_the_first():
    made = encoder(DOCUMENTS.replace("d.title", "(d.title if d.title != 'secret' else 'none')"))
    for title, shown in (("N", "N"), ("secret", "none"), ("M", "M")):
        whole, _ = texts(made, asked("a", documents=[{"title": title, "text": "t"}]))
        assert whole.startswith(f"<|im_start|>document\n{shown}: t")
    assert texts(made, asked("a", documents=[{"title": "A", "text": "t"}] * 2))[0].count("document") == 2


def test_numbers_that_every_message_has_do_not_make_a_plan_each():
    made = encoder(CALLS + "{% set x = namespace(id=1, score=2) %}{{ '' if x.id and x.score }}")
    for n in range(20):
        record = asked("a")
        for message in record["messages"]:
            message |= {"score": n, "id": n, "timestamp": float(n)}
        texts(made, record)
    assert made._compiler._count == 1


@pytest.mark.parametrize(
    ("source", "content", "fields", "shown"),
    [
        (PARTS_ONLY, [{"type": "text", "text": "a"}], {}, "|a"),
        (PARTS_ONLY, [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}], {}, "hm|a"),
        (PARTS_ONLY, "a", {}, "|a"),  # which reads nothing else
        (PARTS_ONLY, "a", {"reasoning_content": "hm"}, "hm|a"),
        (EITHER, "a", {}, "a"),
        (EITHER, "a", {"reasoning_content": "hm"}, "<think>hm</think>a"),
        (EITHER, [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}], {}, "<think>hm</think>a"),
        (EITHER, [{"type": "text", "text": "a "}, {"type": "output_text", "text": "b"}], {}, "a b"),
        (chats.CHATML, [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}], {}, "a b"),
        (chats.THINKING, [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}], {},
         "<think>\nhm\n</think>\n\na"),
    ],
)  # fmt: skip
def test_parts_reach_templates_that_read_parts(source, content, fields, shown):
    record = asked(content)
    record["messages"][1] |= fields
    assert texts(encoder(source), record)[1] == f"{shown}<|im_end|>"


def test_a_thought_among_parts_is_a_thought():
    record = asked([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}])
    assert texts(encoder(EITHER, train_reasoning=False), record)[1] == "a<|im_end|>"
    lost = EITHER.replace("'<think>' + p.thinking + '</think>'", "p.thinking[:1]")
    assert texts(encoder(lost, unfaithful="emit"), record)[1] == "<think>\nhm\n</think>\n\na<|im_end|>"


def test_what_a_template_reads_of_a_content_is_found_by_trying():
    habits = {name: tuple(ChatTemplate({"default": source}, "t")._reads) for name, source in {
        "text": chats.CHATML, "thinking": chats.THINKING, "parts": PARTS_ONLY, "either": EITHER}.items()}  # fmt: skip
    assert habits == {
        "text": (True, False, False, False),
        "thinking": (True, False, False, True),
        "parts": (False, True, True, False),
        "either": (True, True, True, False),
    }
