"""Llama-3.2-1B on dialogues of your own: all of its parameters, or low-rank adapters on a frozen base in bfloat16.

    mtsft train --config=llama3_2_1b:lora,gpu80 --workdir=runs/llama3_2_1b --config.data.train=dialogues.jsonl

The instruct model, as the base has no chat template. Its licence is to be accepted on its page first, then `hf auth
login`. Full training on gpu24 is by Adafactor, as AdamW's moments do not fit.

Expected memory, GiB of each chip; mtsft/presets.py says what the variants, the machines and the figures are:

    machine    full: state / all    lora: state / all
    gpu24      4.6 / 14.6           2.4 / 4.3
    gpu40      13.8 / 24.8          2.4 / 4.3
    gpu48      13.8 / 24.8          2.4 / 4.3
    gpu80      13.8 / 30.3          2.4 / 10.0
    h200       13.8 / 30.3          2.4 / 10.0
    v5e-8      1.7 / 5.3            0.4 / 2.1
    v5e-16     0.9 / 3.9            0.2 / 2.0
    v5p-8      3.5 / 8.3            0.7 / 2.4
"""

from mtsft.presets import fine_tune


def get_config(variant="lora,gpu80"):
    """The config of a variant, MODE,MACHINE."""
    return fine_tune(
        "llama3_2_1b", variant, "meta-llama/Llama-3.2-1B-Instruct", learning_rate=2e-5, lora_learning_rate=2e-4
    )
