"""Qwen2.5-1.5B on dialogues of your own: all of its parameters, or low-rank adapters on a frozen base in bfloat16.

    hf download Qwen/Qwen2.5-1.5B --local-dir models/Qwen2.5-1.5B
    python -m mtsft.train --config=configs/qwen2_5_1_5b.py:lora,gpu80 --workdir=runs/qwen2_5_1_5b \\
        --config.data.train=dialogues.jsonl

The base model has a chat template, and so has Qwen2.5-1.5B-Instruct, of the same sizes: name either folder. After the
colon stand full or lora, and the machine: gpu80 (a GPU of 80 GB), h200, v5e-8, v5e-16 (8 and 16 chips of 16 GB) or
v5p-8 (4 chips of 95 GB). v5e-16 is several hosts: start it as configs/pod.py, with the model, too, where every host
reads it.

A batch is 32 rows of 4,096 slots, 131,072 tokens, on every machine; a chip computes two rows at a time. Full training
is by AdamW in float32. One dialogue in fifty is held out, by its content; of a dialogue that is too long the last turns
are kept.

Expected memory, GiB of each chip:

    machine    full: state / all    lora: state / all
    gpu80      17.2 / 32.3          3.1 / 5.7
    h200       17.2 / 32.3          3.1 / 5.7
    v5e-8      2.2 / 5.3            0.5 / 2.6
    v5e-16     1.1 / 3.8            0.3 / 2.2
    v5p-8      4.3 / 9.0            0.9 / 3.0

State is parameters and moments, by their shapes. All is what the compiler allots to the whole step (memory_analysis by
benchmarks/memory.py, at the compiler's least effort: allow a tenth more). Those of gpu80 and h200 are compiled for one
TPU v5p chip, whose compiler allots memory otherwise than a GPU's. Not yet run on any of these machines. On a GPU JAX
takes three quarters of the memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise, such as 0.95.
"""

from mtsft.presets import fine_tune, machines

# What a machine needs to itself, by mode.
VARIANTS = {
    "full": machines(rows=2),
    "lora": machines(rows=2),
}


def get_config(variant="lora,gpu80"):
    """The config; what it shares with its like is in mtsft/presets.py."""
    return fine_tune("models/Qwen2.5-1.5B", variant, VARIANTS, learning_rate=2e-5, lora_learning_rate=2e-4)
