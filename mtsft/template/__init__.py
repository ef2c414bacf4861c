"""From a dialogue to its contexts and responses: which text, and which characters of it are whose words.

A chat template is a Jinja program. Running it for every prefix of every dialogue would be slow, and its output, a plain
string, would not say which characters are a message's words and which are markup. So a dialogue is *compiled*: the
template is given *tracked strings* (provenance.py), whose content is a private character, one for each *placeholder* (a
string of the dialogue), and its output is read back into template text and placeholders. What the template asks of a
tracked string is answered from the real words, and recorded as a *guard*. The result, a `TurnPlan`, holds no words: it
is *cached* by the dialogue's structure (roles, fields, which messages are responses), and is the plan of every dialogue
of that structure that passes its guards, as a jit-compiled function is of all arguments of one shape.

An example. Under the template

    {%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' and not m.content.startswith('<think>') %}{{ '<think></think>' }}{% endif %}
    {{- m.content + '<|im_end|>\\n' }}
    {%- endfor %}
    {%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}

the dialogue [user "2 + 2?", assistant "4"] is rendered to the buffer

    <|im_start|>user\\n①<|im_end|>\\n<|im_start|>assistant\\n<think></think>②<|im_end|>\\n

where ① and ② are the private characters U+F0000 and U+F0001, of the placeholders <messages.0.content> and
<messages.1.content>. The template asked one thing, so there is one guard: ②.startswith("<think>") is False. What
follows the generation prompt, up to the control token that ends the turn, is the response. Cut at the control tokens,
the plan is (one turn; spans in parentheses)

    context    <|im_start|>  ("user\\n" ①)  <|im_end|>  ("\\n")  <|im_start|>  ("assistant\\n")
    response   ("<think></think>" ②)  <|im_end|>

A second dialogue, [user "Hi!", assistant "Hello."], has the same structure and passes the guard: it has the same plan,
and the template does not run. `Placeholder.value` puts its words in. A third, whose reply is "<think>so</think>Hello.",
does not pass; it is rendered, and its plan is cached beside the first.

Files, low to high: placeholders (placeholders, guards, bindings), provenance and tracked_containers (what a template is
given), written (what it writes), remembered_run, loop_memory, search_memory, searches, loop_bodies, read_order, sandbox
and jinja (how it runs), chat_template (with which variables), spans (text cut at control tokens), tracked_dialogue (a
dialogue under a template), context_cuts, reasoning, prefix_diff, stops and lost_words (one question each), own_words
(what is trained of a turn that is not faithful), one_pass and prefix_by_prefix (two ways to render all turns),
render_turns (the plan), compile (the cache).
"""
