"""What it costs to prepare data: tokenising, auditing, long dialogues, packing, memory, and the start of a run.

    python benchmarks/prepare.py --data=dialogues.jsonl [--only=speed,long,packing,memory,start]
        [--tokenizer=FOLDER[,FOLDER]] [--template=NAME_OR_FILE] [--dialogues=60000] [--messages=4] [--peers]

Times are CPU seconds of one process, so that what else runs on the machine hardly counts.

speed    dialogues of --messages messages a second, by `prepare` and by `audit`. They are cut from the file's, each with
         words of its own, so that no text is met twice. --tokenizer: folders with a tokenizer and a chat template;
         without one a byte-level BPE of 30,000 tokens with Qwen2's pre-tokenisation is trained on the file, with
         ChatML. --peers: beside transformers' apply_chat_template with tokens and the assistant's mask (the `parity`
         extra), which checks nothing.
long     one dialogue of 100 to 1,600 messages under a template that reads all messages first (as Qwen3's does): the
         first of its structure, and another one after it.
packing  lengths drawn from the file's dialogues: fill, and seconds to plan an epoch. --peers: beside trl's
         pack_dataset(strategy="bfd"), in batches of 1,000 as it comes.
memory   peak memory of a process that prepares a file of --lines lines (default a million), beside the store's size.
start    `python -m mtsft.train` of a small model for two steps, its store and its compiled programs in the cache.

RESULTS.md has what was measured, under "Preparing data".
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from mtsft.config import data_config, default
from mtsft.data.data_files import DataFiles
from mtsft.data.dataset import open_dataset
from mtsft.data.packing import deal, lay_out
from mtsft.diagnose.audit import audit
from mtsft.dialogue.schema import Dialogue, Message
from mtsft.encoding.spec import UNBOUNDED, ChatFormat, EncodingSpec
from mtsft.tokenizer.load import read_files

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# ChatML with the marks of transformers around what the assistant says.
TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' -}}
{%- generation -%}{{- message.content + '<|im_end|>' -}}{%- endgeneration -%}{{- '\\n' -}}
{%- else -%}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
# Thoughts are shown behind the last thing that a user asked, which is looked for from the end, as in Qwen3's.
LAST_QUERY = """\
{%- set ns = namespace(looking=true, last=messages|length - 1) -%}
{%- for message in messages[::-1] -%}
    {%- set index = (messages|length - 1) - loop.index0 -%}
    {%- if ns.looking and message.role == 'user' -%}
        {%- set ns.looking = false -%}{%- set ns.last = index -%}
    {%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if message.role == 'assistant' and loop.index0 > ns.last -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
    {{- message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def write_dialogues(path: Path, source: Path, count: int, length: int) -> None:
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


def write_tokenizer(folder: Path, source: Path, template: str) -> Path:
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
    return folder


def config_of(data: Path, tokenizer: Path, cache: Path, template: str = "", row: int = 2048):
    config = default()
    config.data.train, config.data.tokenizer, config.data.template = str(data), str(tokenizer), template
    config.data.cache_dir, config.data.workers, config.data.sequence_length = str(cache), 1, row
    return data_config(config)


def speed(flags: argparse.Namespace, folder: Path, tokenizers: list[Path]) -> Iterator[tuple]:
    yield "tokenizer", "prepare, dialogues/s", "audit, dialogues/s", *(["transformers"] if flags.peers else [])
    write_dialogues(folder / "short.jsonl", flags.data, flags.dialogues, flags.messages)
    for tokenizer in tokenizers:
        rates = []
        for name in ("prepare", "audit"):
            with tempfile.TemporaryDirectory() as cache:
                config = config_of(folder / "short.jsonl", tokenizer, Path(cache), flags.template)
                began = time.process_time()
                if name == "prepare":
                    open_dataset(config, 0, progress=False).summary()
                else:
                    audit(DataFiles.find(config), progress=False)
                rates.append(f"{flags.dialogues / (time.process_time() - began):,.0f}")
        yield tokenizer.name, *rates, *([_transformers(folder / "short.jsonl", tokenizer)] if flags.peers else [])


def _transformers(data: Path, tokenizer: Path) -> str:
    """Dialogues a second, of 2,000 of them."""
    from transformers import PreTrainedTokenizerFast

    loaded = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    dialogues = [json.loads(line)["messages"] for line in data.read_text().split("\n")[:2000] if line]
    began = time.process_time()
    for messages in dialogues:
        loaded.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    return f"{len(dialogues) / (time.process_time() - began):,.0f}"


def long(flags: argparse.Namespace, folder: Path, tokenizers: list[Path]) -> Iterator[tuple]:
    yield "messages", "first, s", "another, s"
    files = read_files(str(tokenizers[0]))
    chat = ChatFormat(files, {"default": LAST_QUERY}, "last query")
    config = config_of(flags.data, tokenizers[0], folder, row=UNBOUNDED)
    encoder = EncodingSpec(chat, config).encoder()
    for count in (100, 200, 400, 800, 1600):
        seconds = []
        for other in ("one", "two"):
            text = f"{other} word, and some more of them"
            messages = [Message(("user", "assistant")[i % 2], f"{text}: {i}") for i in range(count)]
            began = time.process_time()
            encoder.encode([Dialogue("d", tuple(messages), "d.jsonl:1")])
            seconds.append(f"{time.process_time() - began:.3f}")
        yield count, *seconds


def packing(flags: argparse.Namespace, folder: Path, tokenizers: list[Path]) -> Iterator[tuple]:
    yield "dialogues", "row", "rows", "fill", "planned in, s", *(["trl: fill", "s"] if flags.peers else [])
    config = config_of(flags.data, tokenizers[0], folder / "lengths", flags.template, row=1 << 16)
    own = np.array(open_dataset(config, 0, progress=False).train.lengths_N)
    for count in (len(own), 100_000, 1_000_000, 10_000_000):
        lengths_N = own if count == len(own) else np.random.default_rng(0).choice(own, count)
        for row in (1024, 2048, 4096, 8192):
            fitting_N = lengths_N[lengths_N <= row]
            began = time.process_time()
            layout = lay_out(fitting_N, row)
            plan = deal(layout, fitting_N, seed=0, epoch=0)
            seconds = time.process_time() - began
            peer = _trl(fitting_N, row) if flags.peers and count == 100_000 else ()
            yield f"{len(fitting_N):,}", row, f"{plan.num_rows:,}", f"{layout.fill:.4f}", f"{seconds:.3f}", *peer


def _trl(lengths_N: np.ndarray, row: int) -> tuple:
    """(fill, seconds) of trl's best fit decreasing."""
    import pyarrow
    from trl.data_utils import _pack_bfd  # what pack_dataset maps over batches of 1,000

    offsets = pyarrow.array(np.concatenate([[0], np.cumsum(lengths_N)]), pyarrow.int32())
    tokens = pyarrow.array(np.zeros(int(lengths_N.sum()), np.int32))
    table = pyarrow.table({"input_ids": pyarrow.ListArray.from_arrays(offsets, tokens)})
    began = time.process_time()
    rows = sum(len(_pack_bfd(table.slice(i, 1000), row)) for i in range(0, len(lengths_N), 1000))
    return f"{lengths_N.sum() / rows / row:.4f}", f"{time.process_time() - began:.2f}"


def memory(flags: argparse.Namespace, folder: Path, tokenizers: list[Path]) -> Iterator[tuple]:
    yield "lines", "file, MB", "store, MB", "without a file, MB", "peak, MB", "s"
    write_dialogues(folder / "many.jsonl", flags.data, flags.lines, flags.messages)
    write_dialogues(folder / "one.jsonl", flags.data, 1, flags.messages)
    peaks = {}
    for name in ("one", "many"):
        command = [sys.executable, __file__, f"--data={folder / name}.jsonl", f"--tokenizer={tokenizers[0]}"]
        done = subprocess.run([*command, f"--measure={folder / name}"], stdout=subprocess.PIPE, text=True, check=True)
        peaks[name] = json.loads(done.stdout)
    size = sum(path.stat().st_size for path in (folder / "many").rglob("*") if path.is_file())
    one, many = peaks["one"], peaks["many"]
    file = (folder / "many.jsonl").stat().st_size
    yield f"{flags.lines:,}", *(f"{n / 1e6:,.0f}" for n in (file, size, one[0], many[0])), f"{many[1]:.1f}"


def _measure(flags: argparse.Namespace, cache: Path) -> None:
    """Run in a process of its own: prints [peak bytes that belong to no file, CPU seconds] of preparing a file."""
    open_dataset(config_of(flags.data, Path(flags.tokenizer), cache, flags.template), 0, progress=False).summary()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
    print(json.dumps([peak, time.process_time()]))


def start(flags: argparse.Namespace, folder: Path, tokenizers: list[Path]) -> Iterator[tuple]:
    yield "start", "CPU s", "wall s"
    command = [sys.executable, "-m", "mtsft.train", "--config=quickstart", "--config.data.corpus="]
    values = {"data.train": flags.data, "data.tokenizer": tokenizers[0], "data.template": flags.template}
    values |= {
        "data.sequence_length": 2048,
        "train.batch_size": 2,
        "train.steps": 2,
        "data.cache_dir": folder / "start",
    }
    command += [f"--config.{key}={value}" for key, value in values.items()]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    for name in ("first", "second"):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        workdir = folder / f"start {name}"
        subprocess.run([*command, f"--workdir={workdir}"], check=True, capture_output=True, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        yield name, f"{cpu:.1f}", f"{time.perf_counter() - began:.1f}"


def main() -> None:
    parts = {part.__name__: part for part in (speed, long, packing, memory, start)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", default=",".join(parts))
    parser.add_argument("--tokenizer", default="")
    parser.add_argument("--template", default="")
    parser.add_argument("--dialogues", type=int, default=60_000)
    parser.add_argument("--messages", type=int, default=4)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.measure:
        _measure(flags, flags.measure)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizers = [Path(path) for path in flags.tokenizer.split(",") if path]
        tokenizers = tokenizers or [write_tokenizer(folder / "ChatML", flags.data, TEMPLATE)]
        for part in flags.only.split(","):
            print(f"\n{part}")
            for cells in parts[part](flags, folder, tokenizers):
                print("".join(f"{cell!s:>22}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
