"""Chat templates by name, for tokenizers that come with none: written after the formats' public descriptions.

chatml         github.com/openai/openai-python, chatml.md (2023): text alone
chatml-tools   the same with functions, calls and results as Hermes and Qwen have them
               (github.com/NousResearch/Hermes-Function-Calling), and thoughts between <think> marks; of dialogues that
               have none of these it writes what chatml writes. Thoughts of earlier turns stay, as they were emitted.
llama3         llama.com/docs/model-cards-and-prompt-formats/meta-llama-3
gemma          ai.google.dev/gemma/docs/formatting
"""

from typing import NamedTuple


class BuiltIn(NamedTuple):
    """A template. markers: the tokens that a tokenizer must have, or no turn would end."""

    text: str
    markers: tuple[str, ...]


_CHATML_MARKERS = ("<|im_end|>", "<|im_start|>")
CHATML = """\
{%- for message in messages -%}
    {%- if message.content is not string -%}
        {{- raise_exception('it writes nothing but text, and there is none, as where tools are only called') -}}
    {%- endif -%}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

_CHATML_TOOLS = """\
{%- set has_system = messages and messages[0].role == 'system' -%}
{%- if tools -%}
    {{- '<|im_start|>system\\n' -}}
    {%- if has_system -%}{{- messages[0].content + '\\n\\n' -}}{%- endif -%}
    {{- 'These functions may be called, one on a line as JSON:\\n<tools>\\n' -}}
    {%- for tool in tools -%}{{- tool | tojson + '\\n' -}}{%- endfor -%}
    {{- '</tools>\\nA call is one JSON object with the name and the arguments of a function, between tags:\\n' -}}
    {{- '<tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call><|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'tool' -%}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' -}}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
    {%- elif not (tools and has_system and loop.first) -%}
        {{- '<|im_start|>' + message.role + '\\n' -}}
        {%- if message.reasoning_content -%}
            {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' -}}
        {%- endif -%}
        {{- message.content or '' -}}
        {%- for call in message.tool_calls or [] -%}
            {%- if message.content or not loop.first -%}{{- '\\n' -}}{%- endif -%}
            {{- '<tool_call>\\n{"name": ' + call.function.name | tojson + ', "arguments": ' -}}
            {%- if call.function.arguments is string -%}
                {{- call.function.arguments -}}
            {%- else -%}
                {{- call.function.arguments | tojson -}}
            {%- endif -%}
            {{- '}\\n</tool_call>' -}}
        {%- endfor -%}
        {{- '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

_LLAMA3 = """\
{{- bos_token | default('') -}}
{%- for message in messages -%}
    {%- if message.content is not string or message.tool_calls -%}
        {{- raise_exception('it writes text and no calls; use the template of Llama 3.1, or chatml-tools') -}}
    {%- endif -%}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""

_GEMMA = """\
{{- bos_token | default('') -}}
{%- set state = namespace(before='') -%}
{%- for message in messages -%}
    {%- if message.content is not string or message.tool_calls or message.role == 'tool' -%}
        {{- raise_exception('it writes the words of users and models, no calls and no results of tools') -}}
    {%- endif -%}
    {%- if message.role in ('system', 'developer') -%}
        {%- set state.before = state.before + message.content | trim + '\\n\\n' -%}
    {%- else -%}
        {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\\n' + state.before -}}
        {{- message.content | trim + '<end_of_turn>\\n' -}}
        {%- set state.before = '' -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<start_of_turn>model\\n' -}}
{%- endif -%}
"""

DEFAULT = "chatml-tools"  # for a tokenizer without a template of its own
BUILT_IN = {
    "chatml": BuiltIn(CHATML, _CHATML_MARKERS),
    "chatml-tools": BuiltIn(_CHATML_TOOLS, _CHATML_MARKERS),
    "llama3": BuiltIn(_LLAMA3, ("<|end_header_id|>", "<|eot_id|>", "<|start_header_id|>")),
    "gemma": BuiltIn(_GEMMA, ("<end_of_turn>", "<start_of_turn>")),
}
