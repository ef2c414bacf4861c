"""Mistral-7B (v0.3) on dialogues of your own: all of its parameters, or low-rank adapters on a frozen base in bfloat16.

    mtsft train --config=mistral_7b:lora,gpu80 --workdir=runs/mistral_7b --config.data.train=dialogues.jsonl

The instruct model, as the base has no chat template. Full training on v5e-8 and h200 is by Adafactor, as AdamW's
moments do not fit; on smaller GPUs it is refused.

Expected memory, GiB of each chip; mtsft/presets.py says what the variants, the machines and the figures are:

    machine    full: state / all    lora: state / all
    gpu24      refused              14.0 / 17.8
    gpu40      refused              14.0 / 17.8
    gpu48      refused              14.0 / 17.8
    gpu80      refused              14.0 / 26.8
    h200       27.0 / 85.4          14.0 / 26.8
    v5e-8      3.4 / 12.2           2.0 / 4.5
    v5e-16     5.1 / 10.7           1.2 / 3.6
    v5p-8      20.2 / 36.4          3.7 / 6.0
"""

from mtsft.presets import fine_tune


def get_config(variant="lora,gpu80"):
    """The config of a variant, MODE,MACHINE."""
    return fine_tune(
        "mistral_7b", variant, "mistralai/Mistral-7B-Instruct-v0.3", learning_rate=1e-5, lora_learning_rate=1e-4
    )
