"""Llama-3.2-3B on dialogues of your own: all of its parameters, or low-rank adapters on a frozen base in bfloat16.

    mtsft train --config=llama3_2_3b:lora,gpu80 --workdir=runs/llama3_2_3b --config.data.train=dialogues.jsonl

The instruct model, as the base has no chat template. Its licence is to be accepted on its page first, then `hf auth
login`. Full training on gpu48 is by Adafactor, as AdamW's moments do not fit.

Expected memory, GiB of each chip; mtsft/presets.py says what the variants, the machines and the figures are:

    machine    full: state / all    lora: state / all
    gpu24      refused              6.3 / 8.6
    gpu40      refused              6.3 / 8.6
    gpu48      12.0 / 38.2          6.3 / 8.6
    gpu80      35.9 / 62.1          6.3 / 13.6
    h200       35.9 / 66.4          6.3 / 13.6
    v5e-8      4.5 / 9.5            0.9 / 2.7
    v5e-16     2.2 / 7.7            0.6 / 2.5
    v5p-8      9.0 / 16.5           1.7 / 3.5
"""

from mtsft.presets import fine_tune


def get_config(variant="lora,gpu80"):
    """The config of a variant, MODE,MACHINE."""
    return fine_tune(
        "llama3_2_3b", variant, "meta-llama/Llama-3.2-3B-Instruct", learning_rate=1e-5, lora_learning_rate=2e-4
    )
