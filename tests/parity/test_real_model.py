"""A real pretrained chat model: what `evaluate` says of every token against transformers, one turn at a time."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from mtsft.config import default
from mtsft.runs.evaluator import Evaluator

pytestmark = [pytest.mark.parity, pytest.mark.slow, pytest.mark.exhaustive]


@pytest.fixture(scope="module")
def folder():
    """A folder of SmolLM2-135M-Instruct."""
    folder = Path(os.environ.get("MTSFT_TEST_MODEL", "none"))
    if not (folder / "config.json").exists():
        pytest.skip("needs SmolLM2-135M-Instruct; set MTSFT_TEST_MODEL to a Hugging Face folder of it")
    return folder


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Else a batch of one row would be one of eight."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)


@pytest.fixture(scope="module")
def dialogues(real_data_folder):
    """A file of thirty dialogues."""
    path = real_data_folder / "mt_bench_reference.jsonl"
    if not path.exists():
        pytest.skip("needs the real dialogues mt_bench_reference.jsonl; set MTSFT_TEST_DATA to their folder")
    return path


@pytest.fixture(scope="module")
def expected(folder, dialogues):
    """By dialogue -log Pr of every token of its responses by the definition, each in a forward pass of its own; by
    transformers in double precision, and in single."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    models = [
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        for dtype in (torch.float64, torch.float32)
    ]
    found = {}
    for line in dialogues.read_text().splitlines():
        record = json.loads(line)
        messages = [{key: each[key] for key in ("role", "content")} for each in record["messages"]]
        nll = [], []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            context = tokenizer.apply_chat_template(messages[:index], tokenize=False, add_generation_prompt=True)
            whole = tokenizer.apply_chat_template(messages[: index + 1], tokenize=False)
            assert whole.startswith(context)
            response = whole[len(context) :].removesuffix("\n")  # up to the token that ends the turn
            context, response = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, response))
            for model, of_model in zip(models, nll):
                with torch.no_grad():
                    logits = model(torch.tensor([context + response])).logits[0, len(context) - 1 : -1].double()
                of_model += (-logits.log_softmax(-1)[range(len(response)), response]).tolist()
        found[record["id"]] = tuple(map(np.array, nll))
    return found


def evaluated(folder, path, length, rows, tmp_path):
    config = default()
    config.data.update(eval=str(path), sequence_length=length, cache_dir=str(tmp_path / "cache"), workers=1)
    config.model.update(init_from=str(folder), dtype="float32", param_dtype="float32")
    config.eval.batch_size, config.parallel.compilation_cache, config.parallel.mesh = rows, "", "data=1"
    subject = Evaluator.of(config, None)
    return subject.setup.dataset, subject.score()


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_every_token_is_as_transformers_has_it(folder, expected, dialogues, tmp_path, rows):
    dataset, evaluation = evaluated(folder, dialogues, 2048, rows, tmp_path)
    assert dataset.eval_epochs.num_rows(0) < 15  # they are packed
    nll = np.concatenate([double for double, _ in expected.values()])
    assert evaluation.record()["supervised_tokens"] == len(nll) == 13_653
    assert evaluation.record()["loss"] == pytest.approx(nll.mean(), abs=1e-5)
    assert_tokens_as(expected, dataset.eval, evaluation)


def test_dialogues_alone_in_their_rows_give_the_same(folder, expected, dialogues, tmp_path):
    """Those of more than half of the longest one's tokens, of which no two fit in a row."""
    whole, _ = evaluated(folder, dialogues, 2048, 3, tmp_path)
    longest = int(whole.eval.lengths_N.max())
    lines = dialogues.read_text().splitlines()
    kept = [lines[line - 1] for line, long in zip(whole.eval.lines_N, 2 * whole.eval.lengths_N > longest) if long]
    (tmp_path / "long.jsonl").write_text("\n".join(kept))
    dataset, evaluation = evaluated(folder, tmp_path / "long.jsonl", longest, 3, tmp_path)
    assert dataset.eval_epochs.num_rows(0) == len(dataset.eval) == len(kept) > 5
    assert_tokens_as(expected, dataset.eval, evaluation)


def assert_tokens_as(expected, store, evaluation):
    """Each within the rounding of single precision, which is found by what transformers itself is off by."""
    groups, nll_S = evaluation.breakdown.groups, evaluation.breakdown.scores["nll"]
    tree_S, mine, theirs = groups.responses[groups.response_S, 0], [], []
    for tree in range(len(store)):
        double, single = expected[store.id(tree)]
        mine.append(nll_S[tree_S == tree] - double)
        theirs.append(single - double)
    mine, theirs = np.abs(np.concatenate(mine)), np.abs(np.concatenate(theirs))
    print("off by", mine.mean(), mine.max(), "and transformers by", theirs.mean(), theirs.max())
    assert mine.mean() < 1e-5
    assert mine.max() < 2 * theirs.max()
