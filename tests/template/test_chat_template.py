"""Chat templates are given what transformers gives them, and nothing that reaches further."""

import datetime

import pytest
from chats import byte_level, dialogue

from mtsft.encoding.spec import ChatFormat
from mtsft.errors import InputError
from mtsft.template.built_in import CHATML
from mtsft.template.chat_template import ChatTemplate, find
from mtsft.template.jinja import Refused

TOOL = {"type": "function", "function": {"name": "f", "description": "<é>"}}
CALL = {"type": "function", "id": "c", "function": {"name": "f", "arguments": {"k": "é"}}}


def render(source, *messages, prompt=False, **more):
    given = dialogue(*(messages or [("user", "a")]), **more)
    now = datetime.datetime(2026, 1, 31)
    template = ChatTemplate({"default": source}, "t", {"bos_token": "<s>"}, {"shout": True}, now)
    return template.render(given.messages, prompt, given)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ tools | tojson }}", '[{"type": "function", "function": {"name": "f", "description": "<é>"}}]'),
        ("{{ [1, 'é'] | tojson(ensure_ascii=true, separators=(',', ':')) }}", '[1,"\\u00e9"]'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, indent=1) }}", '{\n "a": 2,\n "b": 1\n}'),
        ("{{ strftime_now('%d %b %Y') }}", "31 Jan 2026"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}.", "a."),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
        ("{{ dict(a=1).a }}{{ bos_token }}{{ shout }}{{ documents }}{{ add_generation_prompt }}", "1<s>TrueNoneFalse"),
        ("x\n  {% if true %}\ny\n  {% endif %}\nz", "x\ny\nz"),
    ],
)
def test_what_templates_are_given(source, text):
    assert render(source, tools=[TOOL]) == text


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ raise_exception('roles must ' ~ 'alternate') }}", "^roles must alternate$"),
        ("{{ messages.__class__.__mro__ }}", "unsafe|undefined"),
        ("{{ ''.__class__.__subclasses__() }}", "unsafe|undefined"),
        ("{{ messages.append(1) }}", "not safely callable|unsafe"),
        ("{{ messages[0].update({'content': 'x'}) }}", "not safely callable|unsafe"),
        ("{{ namespace(__init__=1) }}", "a namespace cannot hold '__init__'"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", "a namespace cannot hold '_x'"),
        ("{{ strftime_now.__globals__.os }}", "unsafe|undefined"),
        ("{{ 1 + 'x' }}", "^unsupported operand "),
        ("{{ messages[7].content }}", "no element 7|undefined"),
    ],
)
def test_what_templates_may_not_do(source, says):
    with pytest.raises(Refused, match=says):
        render(source)


@pytest.mark.parametrize("source", ["a\n{% if %}", "a\n{{ 'x }}", "a\n{% foo %}", "a\n{% for m in messages %}"])
def test_a_template_that_is_none_is_named_with_its_line(source):
    with pytest.raises(InputError, match=r"^t:2: not a Jinja template: [^\n]+$"):
        render(source)


def test_private_characters_in_a_template_are_refused():
    with pytest.raises(InputError, match=r"^t: holds characters of Unicode's private planes"):
        render("\U000f0000")


def test_the_template_for_tools_is_taken_for_dialogues_with_tools():
    template = ChatTemplate({"default": "plain", "tool_use": "tools"}, "t")
    assert template.render((), False, dialogue(tools=[TOOL])) == "tools"
    assert template.render((), False, dialogue(tools=[])) == template.render((), False) == "plain"


def test_a_dialogues_own_variables_go_before_the_templates():
    assert render("{{ shout }}", variables={"shout": "no", "messages": 3}) == "no"


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_found_under_its_names(name):
    said = ("assistant", "b", 1.0, {name: "hm"})
    assert render("{{ messages[0].reasoning_content }}{{ messages[0].thinking }}", said) == "hmhm"


def test_arguments_are_text_for_templates_that_write_them_as_they_are():
    head = "{% set call = (messages | last).tool_calls[0].function %}"
    said = ("assistant", "", 1.0, {"tool_calls": [CALL]})
    assert render(head + "{{ call.arguments }}", said) == '{"k": "é"}'
    assert render(head + "{{ call.arguments | tojson }}", said) == '{"k": "é"}'
    assert render(head + "{% for k, v in call.arguments.items() %}{{ k }}={{ v }}{% endfor %}", said) == "k=é"
    assert CALL["function"]["arguments"] == {"k": "é"}


def test_content_is_none_for_templates_that_ask_so():
    source = (
        "{% for m in messages %}{% if m.content is none %}{{ m.tool_calls | tojson }}{% else %}-{% endif %}{% endfor %}"
    )
    said = ("assistant", "", 1.0, {"tool_calls": [CALL]})
    assert render(source, ("user", "a"), said) == '-[{"type": "function", "id": "c", "function": {"name": "f", "arguments": {"k": "é"}}}]'  # fmt: skip # noqa: E501


def test_find(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("é")
    own = {"default": "d", "rag": "r"}
    assert find("chatml", own) == ({"default": CHATML}, "chatml")
    assert find(str(file), own) == ({"default": "é"}, "mine.jinja")
    assert find("", own) == (own, "of the tokenizer")
    assert find(":rag", own) == ({"default": "r"}, ":rag")
    with pytest.raises(InputError, match=r"^data\.template=':x': the tokenizer's own are :default, :rag; name one$"):
        find(":x", own)
    with pytest.raises(InputError, match=r"^data\.template='': the tokenizer has no chat template of its own; set "):
        find("", {})
    with pytest.raises(
        InputError,
        match=r"^data\.template='gone': neither a built-in template \(chatml, chatml-tools, llama3, gemma\) nor a ",
    ):
        find("gone", own)


def test_the_fingerprint_covers_what_may_be_written():
    def made(source="x", variables=None, day=1):
        now = datetime.datetime(2026, 1, day)
        return ChatTemplate({"default": source}, "t", None, variables, now).fingerprint

    clock = "{{ strftime_now('%d') }}"
    assert made() == made(day=2)
    assert len({made(), made("y"), made(variables={"a": 1}), made(clock), made(clock, day=2)}) == 5


def test_the_built_in_template_needs_its_markers_as_tokens():
    files = byte_level(["<|im_start|>"])
    with pytest.raises(InputError, match=r"^the tokenizer: has no piece '<\|im_end\|>', which the chat template needs"):
        ChatFormat(files, {"default": CHATML}, "chatml").open()
