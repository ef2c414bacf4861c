# ruff: noqa: RUF001
"""Families of models: their chat templates, as trl ships them, and tokenizers made here of the kinds that they use.

A tokenizer is made with the `tokenizers` package, as a folder that transformers reads: the family's pre-tokenisation,
its added tokens with their flags, its stops in generation_config.json. Its vocabulary is small, learnt from the
dialogues that it will read.
"""

import importlib.util
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
GPT4O = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
DEEPSEEK = (
    r"\p{N}{1,3}",
    r"[一-龥\u0800-一가-퟿]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
PREPEND = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
MERGED = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@dataclass(frozen=True)
class Family:
    """A family. template: trl's file without its ending, or a Jinja text. kind: of tokenizer, see KINDS.

    special, added: texts of its added tokens, special and not. named: bos_token and so on. stops: the ids that
    generation_config.json lists, by text. reply, calls: (the token that ends a turn, what the template writes after it
    in the turn's own rendering); None for the second where the stop is the next message's header. puts_space: whether
    the tokenizer puts a space before a text that is none. variables: of the template.
    """

    name: str
    template: str
    kind: str
    special: tuple[str, ...]
    added: tuple[str, ...] = ()
    named: dict[str, str] = field(default_factory=dict)
    stops: tuple[str, ...] = ()
    reply: tuple[str, str | None] = ("<|im_end|>", "\n")
    calls: tuple[str, str | None] | None = None
    flags: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, Any] = field(default_factory=dict)

    @property
    def puts_space(self) -> bool:
        return self.kind in ("llama2", "mistral")

    @property
    def sentence_piece(self) -> bool:
        return self.puts_space or self.kind == "gemma"

    def end(self, calls: bool) -> tuple[str, str | None]:
        return self.calls or self.reply if calls else self.reply


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOOLS = ("<tool_call>", "</tool_call>")
QWEN3 = (*TOOLS, "<tool_response>", "</tool_response>", "<think>", "</think>")
QWEN_STOPS = ("<|im_end|>", "<|endoftext|>")
QWEN_NAMED = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA31 = (*LLAMA, "<|eom_id|>", "<|python_tag|>")
LLAMA_NAMED = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|end_of_text|>"}
GEMMA_NAMED = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
GEMMA4 = tuple(f"<|{name}>" for name in "turn channel tool tool_call tool_response".split())
GEMMA4 = ("<pad>", "<eos>", "<bos>", "<unk>", *GEMMA4, *(f"<{text[2:-1]}|>" for text in GEMMA4), '<|"|>', "<|think|>")
BLANKS = ("\n\n", "\n\n\n", "  ", "   ", "<table>")  # Gemma has them as tokens
PHI = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>", "<|placeholder1|>")
PHI_NAMED = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}
PHI_FLAGS = {text: {"rstrip": True} for text in PHI[1:]}
DEEP = "calls▁begin calls▁end call▁begin call▁end outputs▁begin outputs▁end output▁begin output▁end sep".split()
DEEPSEEK_ADDED = ("<｜User｜>", "<｜Assistant｜>", *(f"<｜tool▁{name}｜>" for name in DEEP), "<think>", "</think>")
DEEPSEEK_NAMED = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
DEEPSEEK_SPECIAL = tuple(DEEPSEEK_NAMED.values())
GLM = ("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")
GLM += ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
GLM_ADDED = (*QWEN3, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "/nothink")
GPT = tuple(f"<|{n}|>" for n in "startoftext endoftext return constrain channel start end message call".split())
LFM = ("<|pad|>", "<|startoftext|>", *CHATML)
LFM_TOOLS = tuple(f"<|tool_{n}_{e}|>" for n in ("list", "call", "response") for e in ("start", "end"))
LFM_NAMED = {"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
COHERE = tuple(f"<|{n}_TOKEN|>" for n in "START_OF_TURN END_OF_TURN USER CHATBOT SYSTEM".split())
COHERE = ("<PAD>", "<UNK>", "<BOS_TOKEN>", "<EOS_TOKEN>", *COHERE)
COHERE_NAMED = {"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>", "pad_token": "<PAD>"}
MISTRAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")
MISTRAL += ("[TOOL_RESULTS]", "[/TOOL_RESULTS]")
MISTRAL_NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
MUSE = tuple(f"<|{name}|>" for name in "begin_of_text end_of_text start message eom eot patch video".split())

# In the manner of Mistral-7B-Instruct-v0.3 and Mistral-Nemo: tools before the last user message, system prompt in it.
MISTRAL_TEMPLATE = """\
{%- set has_system = messages and messages[0]["role"] == "system" -%}
{%- set turns = messages[1:] if has_system else messages -%}
{%- set users = turns | selectattr("role", "equalto", "user") | list -%}
{%- set state = namespace(expects_user=true, users=0) -%}
{%- for m in turns if m["role"] == "user" or (m["role"] == "assistant" and not m.get("tool_calls")) -%}
    {%- if (m["role"] == "user") != state.expects_user -%}
        {{- raise_exception("user and assistant must take turns") -}}
    {%- endif -%}
    {%- set state.expects_user = not state.expects_user -%}
{%- endfor -%}
{{- bos_token -}}
{%- for m in turns -%}
    {%- if m["role"] == "user" -%}
        {%- set state.users = state.users + 1 -%}
        {%- if tools and state.users == users | length -%}
            {{- "[AVAILABLE_TOOLS] " + (tools | tojson) + "[/AVAILABLE_TOOLS]" -}}
        {%- endif -%}
        {%- if has_system and state.users == users | length -%}
            {{- "[INST] " + messages[0]["content"] + "\\n\\n" + m["content"] + "[/INST]" -}}
        {%- else -%}
            {{- "[INST] " + m["content"] + "[/INST]" -}}
        {%- endif -%}
    {%- elif m["role"] == "assistant" and m.get("tool_calls") -%}
        {{- "[TOOL_CALLS] [" -}}
        {%- for call in m["tool_calls"] -%}
            {{- '{"name": "' + call["function"]["name"] + '", "arguments": ' -}}
            {%- if call["function"]["arguments"] is string -%}
                {{- call["function"]["arguments"] -}}
            {%- else -%}
                {{- call["function"]["arguments"] | tojson -}}
            {%- endif -%}
            {{- ', "id": "' + (call["id"] | default("000000000"))[:9] + '"}' + ("" if loop.last else ", ") -}}
        {%- endfor -%}
        {{- "]" + eos_token -}}
    {%- elif m["role"] == "assistant" -%}
        {{- " " + m["content"] | trim + eos_token -}}
    {%- elif m["role"] == "tool" -%}
        {{- '[TOOL_RESULTS] {"content": ' + (m["content"] | tojson) + "}[/TOOL_RESULTS]" -}}
    {%- else -%}
        {{- raise_exception("only user, assistant and tool follow the system message") -}}
    {%- endif -%}
{%- endfor -%}
"""

# In the manner of Llama-2-chat and Mistral-7B-Instruct-v0.1, whose marks are text: the reply goes on from it.
LLAMA2_TEMPLATE = """\
{%- for m in messages -%}
    {%- if (m["role"] == "user") != (loop.index0 % 2 == 0) -%}
        {{- raise_exception("user and assistant must take turns") -}}
    {%- endif -%}
    {%- if m["role"] == "user" -%}
        {{- bos_token + "[INST] " + m["content"] | trim + " [/INST]" -}}
    {%- elif m["role"] == "assistant" -%}
        {{- " " + m["content"] | trim + " " + eos_token -}}
    {%- endif -%}
{%- endfor -%}
"""


def _qwen(name: str, template: str, **more) -> Family:
    return Family(name, template, "qwen", CHATML, QWEN3, QWEN_NAMED, QWEN_STOPS, **more)


def _deepseek(name: str, template: str) -> Family:
    end = ("<｜end▁of▁sentence｜>", "")
    return Family(name, template, "deepseek", DEEPSEEK_SPECIAL, DEEPSEEK_ADDED, DEEPSEEK_NAMED, end[:1], end)


def _phi(name: str, template: str) -> Family:
    stops, reply = ("<|endoftext|>", "<|assistant|>", "<|end|>"), ("<|end|>", "\n<|endoftext|>")
    return Family(name, template, "llama2", ("<unk>", "<s>", *PHI), ("</s>",), PHI_NAMED, stops, reply, flags=PHI_FLAGS)


FAMILIES = {
    family.name: family
    for family in (
        Family("Qwen2.5", "qwen2_5", "qwen", CHATML, TOOLS, QWEN_NAMED, QWEN_STOPS),
        _qwen("Qwen3", "qwen3"),
        _qwen("Qwen3 no thinking", "qwen3", variables={"enable_thinking": False}),
        _qwen("Qwen3-2507", "qwen3_instruct_2507"),
        _qwen("Qwen3.5", "qwen3_5_think"),
        _qwen("Qwen3.6", "qwen3_6"),
        Family("Llama 3", "llama3", "llama3", LLAMA, (), LLAMA_NAMED, ("<|end_of_text|>", "<|eot_id|>"),
               ("<|eot_id|>", "")),
        *(Family(name, template, "llama3", LLAMA31, (), LLAMA_NAMED, ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
                 ("<|eot_id|>", "")) for name, template in (("Llama 3.1", "llama3_1"), ("Llama 3.2", "llama3_2"))),
        *(Family(name, template, "gemma", GEMMA, BLANKS, GEMMA_NAMED, ("<eos>", "<end_of_turn>"),
                 ("<end_of_turn>", "\n")) for name, template in (("Gemma 2", "gemma"), ("Gemma 3", "gemma3"))),
        *(Family(name, "gemma4_v5", "gemma", GEMMA4, BLANKS, GEMMA_NAMED, ("<eos>", "<turn|>", "<|tool_response>"),
                 ("<turn|>", "\n"), ("<|tool_response>", ""), variables=variables)
          for name, variables in (("Gemma 4", {}), ("Gemma 4 thinking", {"enable_thinking": True}))),
        _phi("Phi-3", "phi3"),
        _phi("Phi-3.5", "phi3_5"),
        _deepseek("DeepSeek-V3.1", "deepseekv3"),
        _deepseek("DeepSeek-R1-Distill", "deepseek_r1_distill"),
        Family("GLM-4.5", "glm4moe", "llama3", GLM, GLM_ADDED,
               {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
               ("<|endoftext|>", "<|user|>", "<|observation|>"), ("<|user|>", None), ("<|observation|>", None)),
        Family("GLM-4.5 no thinking", "glm4moe", "llama3", GLM, GLM_ADDED,
               {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
               ("<|endoftext|>", "<|user|>", "<|observation|>"), ("<|user|>", None), ("<|observation|>", None),
               variables={"enable_thinking": False}),
        Family("gpt-oss", "gptoss", "gpt4o", GPT, (), {"bos_token": "<|startoftext|>", "eos_token": "<|return|>",
               "pad_token": "<|endoftext|>"}, ("<|return|>", "<|endoftext|>", "<|call|>"), ("<|return|>", ""),
               ("<|call|>", "")),
        Family("LFM2", "lfm2_v2", "llama3", (*LFM, *LFM_TOOLS), (), LFM_NAMED, ("<|im_end|>",)),
        Family("LFM2.5", "lfm2_2_5", "llama3", (*LFM, *LFM_TOOLS), ("<think>", "</think>"), LFM_NAMED, ("<|im_end|>",)),
        Family("LFM2.5 v2", "lfm2_2_5_v2", "llama3", (*LFM, *LFM_TOOLS), ("<think>", "</think>"), LFM_NAMED,
               ("<|im_end|>",)),
        Family("Cohere", "cohere", "qwen", COHERE, (), COHERE_NAMED, ("<|END_OF_TURN_TOKEN|>",),
               ("<|END_OF_TURN_TOKEN|>", "")),
        Family("Cohere 2", "cohere2", "qwen", (*COHERE, "<|START_RESPONSE|>", "<|END_RESPONSE|>"), (), COHERE_NAMED,
               ("<|END_OF_TURN_TOKEN|>",), ("<|END_OF_TURN_TOKEN|>", "")),
        Family("Nemotron 3 Nano", "nemotron_3_nano", "gpt4o", ("<unk>", "<s>", "</s>", *CHATML[1:]), QWEN3,
               {"bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "<unk>"}, ("</s>", "<|im_end|>")),
        Family("Nemotron 3 Super", "nemotron_3_super", "gpt4o", ("<unk>", "<s>", "</s>", *CHATML[1:]), QWEN3,
               {"bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "<unk>"}, ("</s>", "<|im_end|>"),
               variables={"enable_thinking": False}),
        _qwen("Qwen3.8 no thinking", "qwen3_8", variables={"enable_thinking": False}),
        Family("Muse Glimmer", "muse_glimmer", "gpt4o", MUSE, (), {"bos_token": "<|begin_of_text|>",
               "eos_token": "<|eot|>"}, ("<|eot|>",), ("<|eot|>", "")),
        Family("Mistral v0.3", MISTRAL_TEMPLATE, "mistral", MISTRAL, (), MISTRAL_NAMED, ("</s>",), ("</s>", "")),
        Family("Mistral, Llama-2 tokenizer", MISTRAL_TEMPLATE, "llama2", MISTRAL, (), MISTRAL_NAMED, ("</s>",),
               ("</s>", "")),
        Family("Llama 2", LLAMA2_TEMPLATE, "llama2", ("<unk>", "<s>", "</s>"), (), MISTRAL_NAMED, ("</s>",),
               ("</s>", "")),
        Family("Mistral Nemo", MISTRAL_TEMPLATE, "gpt4o", MISTRAL, (), MISTRAL_NAMED, ("</s>",), ("</s>", "")),
    )
}  # fmt: skip


def trl_templates() -> Path | None:
    """The folder of trl's chat templates; None without trl, which is not imported."""
    spec = importlib.util.find_spec("trl")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) / "chat_templates" if places else None


def template_of(family: Family, training: bool = False) -> str | None:
    """The Jinja text; of trl's twin with generation marks where `training`, None if there is none."""
    if "{" in family.template:
        return None if training else family.template
    path = trl_templates() / f"{family.template}{'_training' if training else ''}.jinja"
    return path.read_text() if path.exists() else None


def _byte_level(patterns: Sequence[str], normalizer: Any = None) -> tuple[Any, Any]:
    cuts = [{"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False} for p in patterns]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return normalizer, {"type": "Sequence", "pretokenizers": [*cuts, level]}


KINDS = {  # (normalizer, pre-tokenizer)
    "qwen": _byte_level([QWEN], {"type": "NFC"}),
    "llama3": _byte_level([LLAMA3]),
    "gpt4o": _byte_level([GPT4O]),
    "deepseek": _byte_level(DEEPSEEK),
    "llama2": (PREPEND, None),
    "mistral": (None, METASPACE),
    "gemma": (REPLACE, MERGED),
}


def train(kind: str, texts: Iterable[str], size: int = 2500) -> dict:
    """A BPE model of that kind as JSON, learnt from texts."""
    normalizer, pre_tokenizer = KINDS[kind]
    byte_level = kind not in ("llama2", "mistral", "gemma")
    model = models.BPE()
    learner = tokenizers.Tokenizer(model)
    alphabet: list[str] = []
    if byte_level:
        parts = {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "added_tokens": [], "version": "1.0"}
        empty = {"type": "BPE", "vocab": {}, "merges": []}
        learner = tokenizers.Tokenizer.from_str(json.dumps(parts | {"model": empty}))
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:  # words, each with the space before it, or for Gemma with the one after it; newlines by themselves
        cut = pre_tokenizers.Split("\n", "isolated")
        words = pre_tokenizers.Metaspace("▁", "never", split=True)
        learner.pre_tokenizer = pre_tokenizers.Sequence([cut, words])
        # Common characters only: the rest are bytes. Llama's and Mistral's vocabularies hold no newline.
        texts = [text.replace("\n", "" if kind != "gemma" else "\n") for text in texts]
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, limit_alphabet=900, show_progress=False),
    )
    return json.loads(learner.to_str())["model"]


def write(family: Family, model: dict, folder: Path) -> Path:
    """The family's tokenizer as a folder that transformers reads."""
    folder.mkdir(parents=True, exist_ok=True)
    normalizer, pre_tokenizer = KINDS[family.kind]
    if family.kind in ("llama2", "mistral", "gemma"):
        names = ["<unk>", "<s>", "</s>"] if family.kind != "gemma" else ["<pad>", "<eos>", "<bos>", "<unk>"]
        pieces = dict.fromkeys([*names, *BYTES, "▁", *model["vocab"]])
        model = model | {"vocab": {piece: i for i, piece in enumerate(pieces)}, "byte_fallback": True}
        model |= {"unk_token": "<unk>", "fuse_unk": True}
    ids = dict(model["vocab"])
    added = []
    for text in (*family.special, *family.added):
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        flags |= {"special": text in family.special} | family.flags.get(text, {})
        added.append({"id": ids.setdefault(text, len(ids)), "content": text, **flags})
    added.sort(key=lambda token: token["id"])
    parts = {"version": "1.0", "added_tokens": added, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    (folder / "tokenizer.json").write_text(json.dumps(parts | {"model": model}))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **family.named}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(template_of(family))
    generation = {"eos_token_id": [ids[text] for text in family.stops]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder
