"""Qwen2.5-1.5B on dialogues of your own: all of its parameters, or low-rank adapters on a frozen base in bfloat16.

    mtsft train --config=qwen2_5_1_5b:lora,gpu80 --workdir=runs/qwen2_5_1_5b --config.data.train=dialogues.jsonl

The base model has a chat template, and so has Qwen2.5-1.5B-Instruct, of the same sizes: name either. Full training
on gpu24 is by Adafactor, as AdamW's moments do not fit.

Expected memory, GiB of each chip; mtsft/presets.py says what the variants, the machines and the figures are:

    machine    full: state / all    lora: state / all
    gpu24      5.8 / 18.0           3.1 / 5.0
    gpu40      17.2 / 30.5          3.1 / 5.0
    gpu48      17.2 / 30.5          3.1 / 5.0
    gpu80      17.2 / 41.1          3.1 / 14.8
    h200       17.2 / 41.1          3.1 / 14.8
    v5e-8      2.2 / 6.2            0.5 / 2.5
    v5e-16     1.1 / 4.1            0.3 / 2.1
    v5p-8      4.3 / 8.9            0.9 / 2.8
"""

from mtsft.presets import fine_tune


def get_config(variant="lora,gpu80"):
    """The config of a variant, MODE,MACHINE."""
    return fine_tune("qwen2_5_1_5b", variant, "Qwen/Qwen2.5-1.5B", learning_rate=2e-5, lora_learning_rate=2e-4)
