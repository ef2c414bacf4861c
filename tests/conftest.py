"""Strict settings for every test: eight virtual CPU devices, warnings are errors, ranks never promote silently."""

import os
import shutil
import signal
import tempfile

from flow_support import QUICKLY_COMPILED

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiled quickly: tests compile much and compute little.
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICKLY_COMPILED}"
# What one test compiled is there for the others: workers, and processes that tests start, inherit the folder's name.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{tempfile.gettempdir()}/mtsft-tests-compiled-{os.getpid()}")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a wrong name in a test is nothing to ask a hub for

import json
from pathlib import Path

import jax
import pytest

from mtsft.config import DataConfig
from mtsft.encoding.spec import ChatFormat, EncodingSpec, markers_of
from mtsft.template import chat_template as template
from mtsft.tokenizer import sentencepiece

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests that run in the background or under nohup would hand down ignored signals, which bash could not trap.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)


def pytest_unconfigure():
    """Removes the folder of compiled programs, in the process that made it."""
    folder = os.environ["JAX_COMPILATION_CACHE_DIR"]
    if folder.endswith(f"mtsft-tests-compiled-{os.getpid()}"):
        shutil.rmtree(folder, ignore_errors=True)


TEXTS = [
    "Hello there, how are you today?",
    "I am well, thank you. And you?",
    "What is the capital of France? The capital of France is Paris.",
    "The quick brown fox jumps over the lazy dog 0123456789.",
    "def f(x):\n    return x + 1\n",
]


@pytest.fixture(scope="session")
def chat():
    """The built-in template and a small trained tokenizer, in plain values."""
    templates, name = template.find("chatml", {})
    return ChatFormat(
        sentencepiece.train_sentencepiece(TEXTS * 20, 400, markers_of(templates.values())), templates, name
    )


@pytest.fixture(scope="session")
def chatml(chat):
    return chat.open()[0]


@pytest.fixture(scope="session")
def small_tokenizer(chat):
    return chat.open()[1]


@pytest.fixture
def encoder(chat):
    return EncodingSpec(chat, DataConfig(sequence_length=512)).encoder()


@pytest.fixture
def write_jsonl(tmp_path):
    """Writes dialogues, given as lists of (role, content), to a file and returns its path."""

    def write(dialogues, name="dialogues.jsonl"):
        path = tmp_path / name
        records = [{"messages": [{"role": role, "content": text} for role, text in turns]} for turns in dialogues]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write


@pytest.fixture(scope="session")
def real_data_folder():
    """Where real dialogues are, if anywhere."""
    return Path(os.environ.get("MTSFT_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture
def real_data(real_data_folder):
    """Finds a file of real dialogues, or skips the test, saying why."""

    def find(name):
        path = real_data_folder / name
        if not path.exists():
            pytest.skip(f"needs the real dialogues {name}; set MTSFT_TEST_DATA to the folder that holds them")
        return path

    return find
