"""What peers are given: the dialogues of a file and a tokenizer that renders them as ChatML, needing transformers."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

# With the model's words and the token that ends its turn marked, which is what mtsft supervises of the same template.
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def dialogues_of(file: str) -> list[dict[str, Any]]:
    """The messages of each line, with nothing but a role and content."""
    lines = [json.loads(line) for line in Path(file).read_text().split("\n") if line.strip()]
    keep = ("role", "content")
    return [{"messages": [{name: m[name] for name in keep} for m in line["messages"]]} for line in lines]


def tokenizer_of(settings: dict[str, Any]) -> PreTrainedTokenizerBase:
    """That of the folder "model", or of the file "tokenizer" where there is none."""
    if settings.get("model"):
        tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    else:
        file = settings["tokenizer"]
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=file, pad_token="<|pad|>", eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer
