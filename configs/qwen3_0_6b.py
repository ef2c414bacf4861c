"""Qwen3-0.6B on dialogues of your own: all of its parameters, or low-rank adapters on a frozen base in bfloat16.

    mtsft train --config=qwen3_0_6b:lora,gpu80 --workdir=runs/qwen3_0_6b --config.data.train=dialogues.jsonl

It has a chat template.

Expected memory, GiB of each chip; mtsft/presets.py says what the variants, the machines and the figures are:

    machine    full: state / all    lora: state / all
    gpu24      6.7 / 12.8           1.2 / 2.7
    gpu40      6.7 / 12.8           1.2 / 2.7
    gpu48      6.7 / 12.8           1.2 / 2.7
    gpu80      6.7 / 19.1           1.2 / 8.5
    h200       6.7 / 19.1           1.2 / 8.5
    v5e-8      0.8 / 3.2            0.2 / 1.6
    v5e-16     0.4 / 2.5            0.1 / 1.6
    v5p-8      1.7 / 4.7            0.4 / 1.9
"""

from mtsft.presets import fine_tune


def get_config(variant="lora,gpu80"):
    """The config of a variant, MODE,MACHINE."""
    return fine_tune("qwen3_0_6b", variant, "Qwen/Qwen3-0.6B", learning_rate=2e-5, lora_learning_rate=2e-4)
