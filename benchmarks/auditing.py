"""How fast a dataset is audited, tokenising included, beside the usual Python tools.

    python benchmarks/auditing.py --data=dialogues.jsonl [--dialogues=100000] [--messages=4] [--template=FILE]

Dialogues of so many messages are cut from the file's, each with words of its own, so that no text is met twice; the
tokenizer is a byte-level BPE of 30,000 tokens with Qwen2's pre-tokenisation, trained on the file. One process does all.
The other side is what trainers do with transformers: apply_chat_template with tokenize=True and the mask of the
assistant's tokens, for a sample of the same dialogues; it checks nothing. Needs transformers (the `parity` extra) and
a template with {% generation %} marks for its mask; the one below serves both sides unless --template names another.

Measured on one of two shared cores (speed drifts by a quarter), 100,000 dialogues out of 13 files of the Schema-Guided
Dialogue dataset, three rounds:

    messages  tokens each  dialogues/s       transformers   ratio
           2           41  16,800 to 21,100   5,900 to 7,600  2.2 to 3.4
           4           85  12,400 to 13,400   4,200 to 4,500  2.9 to 3.0

Where the time goes, of 4 messages: a third to tokenising, a sixth to reading JSON, the rest to laying tokens out and to
checks. Python's garbage collector, which took a tenth, rests while a piece of a file is encoded.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from mtsft.config import data_config, default
from mtsft.data.data_files import DataFiles
from mtsft.diagnose.audit import audit

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' -}}
{%- generation -%}{{- message.content + '<|im_end|>' -}}{%- endgeneration -%}{{- '\\n' -}}
{%- else -%}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def write_dialogues(path: Path, source: Path, count: int, length: int = 4) -> None:
    rng = random.Random(0)
    dialogues = [json.loads(line)["messages"] for line in source.read_text().split("\n") if line]
    words = sorted({word for messages in dialogues for m in messages for word in m["content"].split()})
    with path.open("w") as file:
        for number in range(count):
            messages = rng.choice(dialogues)
            start = rng.randrange(0, max(1, len(messages) - length), 2)
            cut = [dict(m) for m in messages[start : start + length]]
            for message in cut:  # other words in the place of two of them: no text is met twice
                written = message["content"].split(" ")
                for _ in range(2):
                    written[rng.randrange(len(written))] = rng.choice(words)
                message["content"] = " ".join(written)
            file.write(json.dumps({"id": f"d{number}", "messages": cut}) + "\n")


def write_tokenizer(folder: Path, source: Path, template: str) -> None:
    backend = Backend(models.BPE())
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=30_000, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(source.read_text().split("\n"), trainer)
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")])
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def ours(data: Path, folder: Path, cache: Path) -> tuple[float, dict]:
    config = default()
    config.data.train, config.data.tokenizer = str(data), str(folder)
    config.data.cache_dir, config.data.workers = str(cache), 1
    began = time.perf_counter()
    report = audit(DataFiles.find(data_config(config)), progress=False)
    return time.perf_counter() - began, report


def theirs(data: Path, folder: Path, sample: int) -> float:
    """Seconds for `sample` dialogues."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    with data.open() as file:
        dialogues = [json.loads(next(file)) for _ in range(sample)]
    began = time.perf_counter()
    for dialogue in dialogues:
        tokenizer.apply_chat_template(
            dialogue["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dialogues", type=int, default=100_000)
    parser.add_argument("--messages", type=int, default=4)
    parser.add_argument("--template", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    template = flags.template.read_text() if flags.template else TEMPLATE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dialogues(folder / "short.jsonl", flags.data, flags.dialogues, flags.messages)
        write_tokenizer(folder / "tokenizer", flags.data, template)
        sample = min(2000, flags.dialogues)
        print(f"{'':>8} {'seconds':>8} {'dialogues/s':>12} {'tokens/s':>12} {'transformers':>13} {'ratio':>6}")
        for number in range(flags.rounds):
            seconds, report = ours(folder / "short.jsonl", folder / "tokenizer", folder / f"cache{number}")
            rate = flags.dialogues / seconds
            peer = sample / theirs(folder / "short.jsonl", folder / "tokenizer", sample)
            tokens = report["train"]["tokens"] / seconds
            print(f"{number + 1:>8} {seconds:>8.2f} {rate:>12,.0f} {tokens:>12,.0f} {peer:>13,.0f} {rate / peer:>6.1f}")


if __name__ == "__main__":
    main()
