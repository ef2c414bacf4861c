"""Gemma-3-1B on dialogues of your own: all of its parameters, or low-rank adapters on a frozen base in bfloat16.

    mtsft train --config=gemma3_1b:lora,gpu80 --workdir=runs/gemma3_1b --config.data.train=dialogues.jsonl

The instruct model, as the base has no chat template. Its licence is to be accepted on its page first, then `hf auth
login`.

Expected memory, GiB of each chip; mtsft/presets.py says what the variants, the machines and the figures are:

    machine    full: state / all    lora: state / all
    gpu24      11.2 / 19.0          2.0 / 4.1
    gpu40      11.2 / 20.2          2.0 / 4.1
    gpu48      11.2 / 20.2          2.0 / 4.1
    gpu80      11.2 / 28.8          2.0 / 11.5
    h200       11.2 / 28.8          2.0 / 11.5
    v5e-8      1.4 / 5.7            0.3 / 2.7
    v5e-16     0.7 / 4.2            0.2 / 2.4
    v5p-8      2.8 / 7.9            0.6 / 3.1
"""

from mtsft.presets import fine_tune


def get_config(variant="lora,gpu80"):
    """The config of a variant, MODE,MACHINE."""
    return fine_tune("gemma3_1b", variant, "google/gemma-3-1b-it", learning_rate=1e-5, lora_learning_rate=2e-4)
