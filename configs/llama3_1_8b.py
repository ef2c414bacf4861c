"""Llama-3.1-8B on dialogues of your own: all of its parameters, or low-rank adapters on a frozen base in bfloat16.

    mtsft train --config=llama3_1_8b:lora,gpu80 --workdir=runs/llama3_1_8b --config.data.train=dialogues.jsonl

The instruct model, as the base has no chat template. Its licence is to be accepted on its page first, then `hf auth
login`. Full training on v5e-8 and h200 is by Adafactor, as AdamW's moments do not fit; on smaller GPUs it is refused.
lora,gpu24 keeps the base in int8: pip install 'mtsft[quantized]'.

Expected memory, GiB of each chip; mtsft/presets.py says what the variants, the machines and the figures are:

    machine    full: state / all    lora: state / all
    gpu24      refused              8.9 / 12.0
    gpu40      refused              15.4 / 19.3
    gpu48      refused              15.4 / 19.3
    gpu80      refused              15.4 / 28.3
    h200       29.9 / 92.0          15.4 / 28.3
    v5e-8      3.8 / 13.0           2.2 / 4.6
    v5e-16     5.6 / 13.4           1.2 / 3.7
    v5p-8      22.4 / 39.5          4.1 / 6.6
"""

from mtsft.presets import fine_tune


def get_config(variant="lora,gpu80"):
    """The config of a variant, MODE,MACHINE."""
    return fine_tune(
        "llama3_1_8b", variant, "meta-llama/Llama-3.1-8B-Instruct", learning_rate=1e-5, lora_learning_rate=1e-4
    )
