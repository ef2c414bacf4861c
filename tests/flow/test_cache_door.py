"""The command `mtsft cache`, as a person runs it."""

import json
import os
import subprocess
import sys
import time

import pytest
from flow_support import environment

HASH = "0123456789abcdef" * 4


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / "cache"
    files = {
        f"tokenizers/{HASH[:32]}.model": 1500,
        f"corpora/recall-train-20-0-{HASH[:16]}.jsonl": 2_340_000,
        f"compiled/jit_step-{HASH}-cache": 30,
        f"compiled/jit_evaluate-{HASH}-cache": 70,
        "compiled/notes": 5,
    }
    for days, (name, size) in enumerate(files.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)
        at = time.time() - 86400 * (9.5 - days)
        os.utime(folder / name, (at, at))
    return folder


def call(cache, *flags):
    command = [sys.executable, "-m", "mtsft", "cache", f"--cache_dir={cache}", *flags]
    done = subprocess.run(command, env=environment(TZ="UTC"), capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def left(cache):
    return sorted(path.name.split("-")[0][:12] for path in cache.rglob("*") if path.is_file())


def test_it_lists(cache):
    def day(days):
        return time.strftime("%Y-%m-%d %H:%M", time.gmtime((cache / "compiled/notes").stat().st_mtime - days * 86400))

    status, out, error = call(cache)
    assert (status, error) == (0, "")
    assert out.splitlines() == [
        "id                    kind             size  last use          of",
        f"0123456789abcdef0123  tokenizers     1.5 kB  {day(4)}  a tokenizer trained on dialogues",
        f"recall-train-20-0-01  corpora        2.3 MB  {day(3)}  dialogues of the built-in corpus",
        f"compiled              compiled        100 B  {day(1)}  2 programs that JAX compiled",
        f"2.3 MB in {cache}, which data.cache_bytes bounds (by default to 21.5 GB)",
    ]
    status, out, _ = call(cache, "--format=json", "--older_than=8")
    record = json.loads(out)
    assert (status, record["cache_dir"], record["bytes"]) == (0, str(cache), 2_341_500)
    assert [(entry["kind"], entry["bytes"]) for entry in record["entries"]] == [
        ("tokenizers", 1500),
        ("corpora", 2340000),
    ]


@pytest.mark.parametrize(
    ("flags", "count", "size", "stays"),
    [
        (["--clear"], 4, "2.3 MB", ["notes"]),
        (["--clear=compiled"], 2, "100 B", ["0123456789ab", "notes", "recall"]),
        (["--clear=0123,recall-train-20"], 2, "2.3 MB", ["jit_evaluate", "jit_step", "notes"]),
        (["--clear", "--older_than=9"], 1, "1.5 kB", ["jit_evaluate", "jit_step", "notes", "recall"]),
        (["--clear=stores"], 0, "0 B", ["0123456789ab", "jit_evaluate", "jit_step", "notes", "recall"]),
    ],
)
def test_it_clears_what_is_named_and_nothing_else(cache, flags, count, size, stays):
    assert call(cache, *flags) == (0, f"removed {count} ({size}) from {cache}\n", "")
    assert left(cache) == stays


def test_what_it_does_not_know_is_refused(cache):
    assert call(cache, "--clear=nix") == (
        2,
        "",
        "cache: --clear=nix: nothing in the cache has that id; name one that `mtsft cache` lists, or a kind (stores, "
        "tokenizers, corpora, compiled, buckets)\n",
    )
    assert len(left(cache)) == 5
