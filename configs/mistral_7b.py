"""Mistral-7B (v0.3) on dialogues of your own: all of its parameters, or low-rank adapters on a frozen base in bfloat16.

    hf download mistralai/Mistral-7B-Instruct-v0.3 --local-dir models/Mistral-7B-Instruct-v0.3 --exclude "consolidated*"
    python -m mtsft.train --config=configs/mistral_7b.py:lora,gpu80 --workdir=runs/mistral_7b \\
        --config.data.train=dialogues.jsonl

The instruct model, as the base has no chat template. After the colon stand full or lora, and the machine: gpu80 (a GPU
of 80 GB), h200, v5e-8, v5e-16 (8 and 16 chips of 16 GB) or v5p-8 (4 chips of 95 GB). v5e-16 is several hosts: start it
as configs/pod.py, with the model, too, where every host reads it.

A batch is 32 rows of 4,096 slots, 131,072 tokens, on every machine; a chip computes one row at a time. Full training is
by AdamW in float32, and by Adafactor on v5e-8 and h200, where AdamW's moments do not fit; on gpu80 it is refused. One
dialogue in fifty is held out, by its content; of a dialogue that is too long the last turns are kept.

Expected memory, GiB of each chip:

    machine    full: state / all    lora: state / all
    gpu80      refused              14.0 / 17.9
    h200       27.0 / 85.8          14.0 / 17.9
    v5e-8      3.4 / 12.3           2.0 / 4.6
    v5e-16     5.1 / 10.9           1.2 / 3.7
    v5p-8      20.2 / 36.6          3.7 / 6.1

State is parameters and moments, by their shapes. All is what the compiler allots to the whole step (memory_analysis by
benchmarks/memory.py, at the compiler's least effort: allow a tenth more). Those of gpu80 and h200 are compiled for one
TPU v5p chip, whose compiler allots memory otherwise than a GPU's. Not yet run on any of these machines. On a GPU JAX
takes three quarters of the memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise, such as 0.95.
"""

from mtsft.presets import fine_tune, machines

# What a machine needs to itself, by mode.
VARIANTS = {
    "full": machines(rows=1)
    | {
        "gpu80": "parameters and gradients in float32 alone take 54 GiB; use full,h200, full,v5p-8 or lora,gpu80",
        "h200": {"train.microbatches": 32, "train.optimizer": "adafactor"},
        "v5e-8": {"parallel.mesh": "fsdp=4,tensor=2", "train.microbatches": 8, "train.optimizer": "adafactor"},
    },
    "lora": machines(rows=1),
}


def get_config(variant="lora,gpu80"):
    """The config; what it shares with its like is in mtsft/presets.py."""
    return fine_tune("models/Mistral-7B-Instruct-v0.3", variant, VARIANTS, learning_rate=1e-5, lora_learning_rate=1e-4)
