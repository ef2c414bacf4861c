"""README.md of a model's folder: what it is of, how it was trained, how it is loaded.

The head is YAML as the Hub reads it (https://huggingface.co/docs/hub/model-cards) and as PEFT writes it. Whatever a
user named or wrote stands in it as data: quoted in YAML, escaped or fenced in Markdown.
"""

import json
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtsft import __version__
from mtsft.errors import one_line

CARD = "README.md"
_ROWS = 20  # of a table of losses, about
_PUNCTUATION = re.compile(f"([{re.escape(string.punctuation)}])")
_PEFT = """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

folder = "path/to/this/folder"
model = AutoPeftModelForCausalLM.from_pretrained(folder)"""
_TRANSFORMERS = """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"
model = AutoModelForCausalLM.from_pretrained(folder)"""
_TALK = """
tokenizer = AutoTokenizer.from_pretrained(folder)
messages = [{"role": "user", "content": "Hello!"}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
reply = model.generate(**prompt, max_new_tokens=256)
print(tokenizer.decode(reply[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))"""


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What a card says of a training.

    Attributes:
        step: of the checkpoint; 0 for a model that was not trained.
        base: the name of the model that it started from; "" for none.
        data: what it was trained on, each with its weight where that is not 1.
        held_out: what the held-out loss is of, in words; "" where nothing was held out.
        config: the keys that have another value than their default.
        losses: (step, mean training loss since the step before it in the list, in nats per supervised token).
        held_out_losses: (step, held-out loss, in nats per supervised token).
    """

    step: int
    base: str
    data: Sequence[str]
    held_out: str
    config: Mapping[str, Any]
    losses: Sequence[tuple[int, float]]
    held_out_losses: Sequence[tuple[int, float]]


def model_card(name: str, training: TrainingRecord, hub_base: str = "", adapter: bool = False) -> bytes:
    """The README.md of a folder.

    Args:
        name: of the model, the title.
        training: how it was trained.
        hub_base: its base model's name on the Hub; "" where it has none there, since the Hub takes no other.
        adapter: whether the folder holds PEFT adapters alone.
    """
    base = _escaped(hub_base or training.base)
    parts = [
        _head(hub_base, adapter),
        f"# {_escaped(name) or 'Model'}\n",
        f"{_about(base, training.step, adapter)}\n",
        f"## Use\n\n{_fenced((_PEFT if adapter else _TRANSFORMERS) + _TALK, 'python')}",
    ]
    if adapter and not hub_base:
        parts.append(
            f"The base model is the folder {base}; `adapter_config.json` says where it was. If it is not there, load "
            "it from its place, and the adapters over it with `peft.PeftModel.from_pretrained(model, folder)`.\n"
        )
    if training.step:
        parts += _training(training)
    return "\n".join(parts).encode()


def _about(base: str, step: int, adapter: bool) -> str:
    """One sentence. base: the name of the base model, escaped; "" for none."""
    if not step:
        return f"The weights of {base}, as they were." if base else "The weights of a model that mtsft did not train."
    kind = f"LoRA adapters for {base}" if adapter else f"{base}, fine-tuned" if base else "A model trained from scratch"
    return f"{kind}{', trained' * adapter} with mtsft {_escaped(__version__)}."


def _head(hub_base: str, adapter: bool) -> str:
    fields = {"base_model": hub_base} if hub_base else {}
    if hub_base and not adapter:
        fields["base_model_relation"] = "finetune"
    fields |= {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-generation"}
    tags = [f"base_model:adapter:{hub_base}"] * bool(adapter and hub_base)
    tags += ["lora"] * adapter + ["mtsft", "sft", "transformers"]
    lines = [f"{name}: {_quoted(value)}" for name, value in fields.items()]
    return "\n".join(["---", *lines, "tags:", *(f"- {_quoted(tag)}" for tag in tags), "---", ""])


def _training(training: TrainingRecord) -> Iterable[str]:
    at = dict(training.held_out_losses)
    said = f"These are the weights of step {training.step:,}."
    if training.step in at:
        lowest = ", the lowest of those measured up to there" if at[training.step] == min(at.values()) else ""
        said += f" Their held-out loss is {at[training.step]:.4f} nats per supervised token{lowest}."
    yield f"## Training\n\n{said}\n"
    yield f"Data:\n\n{_fenced(chr(10).join(one_line(entry, 200) for entry in training.data))}"
    if training.held_out:
        yield f"Held out: {_escaped(training.held_out)}.\n"
    config = json.dumps(dict(training.config), indent=2, ensure_ascii=False)
    yield f"Config, where it is not the default:\n\n{_fenced(config, 'json')}"
    if training.held_out_losses:
        yield _table("held-out loss", training.held_out_losses)
    if training.losses:
        yield _table("training loss", training.losses)


def _table(name: str, losses: Sequence[tuple[int, float]]) -> str:
    """Losses by step, thinned to about _ROWS rows; the first and the last stay."""
    every = -(-len(losses) // _ROWS)
    kept = [row for i, row in enumerate(losses) if i % every == 0 or i == len(losses) - 1]
    return "\n".join(
        [f"| step | {name} |", "| ---: | ---: |", *(f"| {step:,} | {loss:.4f} |" for step, loss in kept), ""]
    )


def _quoted(text: str) -> str:
    """A double-quoted scalar of YAML 1.2: JSON's, but for characters that YAML wants escaped and JSON does not."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is: CommonMark takes a backslash before any ASCII punctuation."""
    return _PUNCTUATION.sub(r"\\\1", one_line(text, 200))


def _fenced(text: str, language: str = "") -> str:
    """A block of code, whose fence is longer than any run of backticks in it."""
    text = "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)  # JSON stays JSON
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 0)
    return f"{fence}{language}\n{text}\n{fence}\n"
