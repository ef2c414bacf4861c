"""Against TRL: step for step the same training, ours with dialogues packed side by side and TRL's with padding.

On two cores the losses are 4e-6 apart and the norms of gradients 4e-4. By hand: weight decay of norms or none of the
embedding, another beta, another clipping, a mask one slot off, or gradients divided by the dataset's mean weight are
all told from it, by 5e-4 of a loss at the least.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from mtsft.config import default
from mtsft.runs.loop import train
from mtsft.runs.setup import TrainingSetup

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
for needed in ("trl", "datasets", "accelerate"):
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"needs {needed}, which TRL trains with, from the parity extra", allow_module_level=True)

pytestmark = pytest.mark.parity

STEPS, DIALOGUES, VOCAB = 30, 100, 1024
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{- message.content + '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}{{- message.content + '<|im_end|>' -}}{%- endif -%}{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def write_tokenizer(folder, texts):
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB - len(SPECIAL), initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))


def write_model(folder):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture
def subject(tmp_path, real_data):
    """(a Hugging Face folder, a file of real dialogues): the shortest, as they are."""
    lines = [line for line in real_data("sgd_train_plain.jsonl").read_text().split("\n") if line]
    records = [json.loads(line) for line in sorted(lines, key=len)[:DIALOGUES]]
    data, folder = tmp_path / "dialogues.jsonl", tmp_path / "model"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    folder.mkdir()
    write_tokenizer(folder, [message["content"] for record in records for message in record["messages"]])
    write_model(folder)
    return folder, data


def make_config(folder, data, cache):
    config = default()
    config.data.train, config.data.cache_dir, config.data.sequence_length = str(data), str(cache), 512
    config.model.init_from = str(folder)
    config.objective.normalize = "batch"
    config.train.steps, config.train.batch_size = STEPS, 8
    config.train.learning_rate, config.train.schedule, config.train.warmup_fraction = 4e-3, "linear", 0.0
    config.train.end_learning_rate, config.train.weight_decay, config.train.log_every = 0.0, 0.5, 1
    config.parallel.compilation_cache = ""
    return config


def trl_config(train):
    """The same under the names of SFTConfig; its schedule falls to 0."""
    return {
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.schedule,
        "warmup_steps": train.warmup_steps,
        "weight_decay": train.weight_decay,
        "adam_beta1": train.b1,
        "adam_beta2": train.b2,
        "adam_epsilon": train.eps,
        "max_grad_norm": train.clip_norm,
    }


def dialogues_of_steps(source, store):
    """The ids of the dialogues that every step holds, and how many lie side by side in a row at most."""
    ids = {store[i].tokens_N.tobytes(): store.id(i) for i in range(len(store))}
    steps, most = [], 0
    for step in range(STEPS):
        batch = source[step]
        steps.append([])
        for tokens, segments in zip(batch.tokens, batch.segment_ids, strict=True):
            steps[-1] += [ids[tokens[segments == n].tobytes()] for n in range(1, segments.max() + 1)]
            most = max(most, segments.max())
    return steps, most


def test_every_step_is_trls(subject, tmp_path):
    folder, data = subject
    config = make_config(folder, data, tmp_path / "cache")
    run = TrainingSetup.of(config, progress=False)
    steps, most = dialogues_of_steps(run.train_batches(), run.dataset.train)
    assert most > 2  # ours are packed indeed

    settings = {"folder": str(folder), "data": str(data), "steps": steps, "config": trl_config(config.train)}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    command = [sys.executable, str(Path(__file__).with_name("trl_run.py")), str(tmp_path / "settings.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    theirs = json.loads((tmp_path / "results.json").read_text())

    records = []
    train(config, tmp_path / "work", watch=records.append)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    names = ("loss", "grad_norm", "learning_rate", "supervised_tokens")
    ours = {name: np.array([record[name] for record in records]) for name in names}

    apart = abs(ours["loss"] / np.array(theirs["losses"]) - 1)
    norms_apart = abs(ours["grad_norm"] / np.array(theirs["grad_norms"]) - 1)
    print(
        f"loss {ours['loss'][0]:.3f} to {ours['loss'][-1]:.3f}; apart {apart.max():.1e}, norms {norms_apart.max():.1e}"
    )
    assert ours["supervised_tokens"].tolist() == theirs["supervised"]
    np.testing.assert_allclose(ours["learning_rate"], theirs["learning_rates"], rtol=1e-5)
    assert ours["loss"][0] - ours["loss"][-1] > 1.5  # nats: a trajectory that goes somewhere
    assert ours["grad_norm"].max() > config.train.clip_norm  # gradients are clipped on the way
    assert apart.max() < 1e-4
    assert norms_apart.max() < 1e-2
