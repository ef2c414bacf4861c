"""Chat templates with the habits of families of models, written by hand, and a tokenizer in which a byte is a token."""

import json
import re

import tokenizers

from mtsft.dialogue.schema import Dialogue, Message
from mtsft.encoding.spec import ChatFormat

CHATML = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# As Qwen3: an empty think block for the turn under way, none in the history.
THINKING = """\
{%- if tools %}{{ '<|im_start|>system\\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- set content = m.content if m.content is string else '' %}
    {%- if m.role == 'assistant' %}
        {%- set reasoning = m.reasoning_content if m.reasoning_content is string else '' %}
        {%- if not reasoning and '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}{{ content }}{% endif %}
        {%- for call in m.tool_calls or [] %}
            {{- '<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": ' }}
            {{- call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}{{ '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# As gpt-oss: what was the last word of all ends with <|return|>, and in the history with <|end|>.
RETURNING = """\
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- '<|start|>assistant<|message|>' + m.content + ('<|return|>' if loop.last else '<|end|>') }}
    {%- else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

# As GLM: nothing ends a turn but the header of whoever speaks next.
HEADED = """\
{{- '[gMASK]' }}
{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

# As DeepSeek: the prompt opens the reasoning, the history drops it.
OPENING = """\
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- set content = m.content.split('</think>')[-1] if '</think>' in m.content else m.content %}
        {{- '<|Assistant|>' + content + '<|eos|>' }}
    {%- else %}{{ '<|User|>' + m.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"""

# As gpt-oss: a thought goes into a channel of its own.
CHANNELS = """\
{%- for m in messages %}{{ '<|start|>' + m.role }}
    {%- if m.role == 'assistant' and m.reasoning_content %}
        {{- '<|channel|>analysis<|message|>' + m.reasoning_content + '<|end|><|start|>assistant' }}
    {%- endif %}
    {{- ('<|channel|>final' if m.role == 'assistant' else '') + '<|message|>' + m.content + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

TEMPLATES = {"chatml": CHATML, "thinking": THINKING, "returning": RETURNING, "headed": HEADED, "opening": OPENING}
STOPS = {"chatml": "<|im_end|>", "thinking": "<|im_end|>", "returning": "<|return|>", "opening": "<|eos|>"}
_CONTROL = re.compile(r"<\|\w+\|>|</?think>|</?tool_call>|\[gMASK\]")
_ROLES = ("<|user|>", "<|assistant|>", "<|system|>", "<|tool|>")


def controls_of(name):
    found = dict.fromkeys(_CONTROL.findall(TEMPLATES[name]))
    return [*found, *(_ROLES if name == "headed" else ())]


def byte_level(controls, **flags):
    """The files of a tokenizer of bytes that joins two newlines, and `yes`; flags: of the controls, by text."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merged = [("Ċ", "Ċ"), ("y", "e"), ("ye", "s")]
    vocab = {piece: i for i, piece in enumerate([*alphabet, *(a + b for a, b in merged)])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merged))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    for text in controls:
        special = "|" in text or text.startswith("[")  # tags are no special tokens
        tokenizer.add_tokens([tokenizers.AddedToken(text, special=special, normalized=False, **flags.get(text, {}))])
    return {"tokenizer.json": tokenizer.to_str().encode()}


def chat_of(name, **flags):
    """One of TEMPLATES with a tokenizer that knows what it writes."""
    controls = controls_of(name)
    files = byte_level(controls, **flags)
    if name in STOPS:
        files["tokenizer_config.json"] = json.dumps({"eos_token": STOPS[name]}).encode()
    return ChatFormat(files, {"default": TEMPLATES[name]}, name)


def reference(chat):
    """The Hugging Face tokenizer itself, which takes whatever spells a control for one."""
    return tokenizers.Tokenizer.from_str(chat.tokenizer["tokenizer.json"].decode())


def dialogue(*messages, **more):
    """From (role, content[, weight[, fields]])."""
    return Dialogue("d", tuple(Message(*message) for message in messages), "d.jsonl:7", **more)
