"""Gemma-3-4B on dialogues of your own: all of its parameters, or low-rank adapters on a frozen base in bfloat16.

    mtsft train --config=gemma3_4b:lora,gpu80 --workdir=runs/gemma3_4b --config.data.train=dialogues.jsonl

The instruct model, as the base has no chat template. Its licence is to be accepted on its page first, then `hf auth
login`. The vision tower is left out. Full training on GPUs is by Adafactor, as AdamW's moments do not fit 80 GB.

Expected memory, GiB of each chip; mtsft/presets.py says what the variants, the machines and the figures are:

    machine    full: state / all    lora: state / all
    gpu24      refused              7.6 / 9.9
    gpu40      refused              7.6 / 9.9
    gpu48      refused              7.6 / 9.9
    gpu80      14.5 / 45.0          7.6 / 17.4
    h200       14.5 / 45.0          7.6 / 17.4
    v5e-8      5.4 / 10.4           1.1 / 4.1
    v5e-16     2.7 / 11.1           0.7 / 3.5
    v5p-8      10.8 / 20.1          2.1 / 4.7
"""

from mtsft.presets import fine_tune


def get_config(variant="lora,gpu80"):
    """The config of a variant, MODE,MACHINE."""
    return fine_tune("gemma3_4b", variant, "google/gemma-3-4b-it", learning_rate=1e-5, lora_learning_rate=2e-4)
