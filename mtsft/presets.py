"""What the ready configs of published models share (configs/llama3_1_8b.py and its like).

A variant is MODE,MACHINE: "full" trains all parameters, "lora" low-rank adapters on a frozen base in bfloat16; machines
are gpu80 (a GPU of 80 GB), h200, v5e-8, v5e-16 (8 and 16 chips of 16 GB) and v5p-8 (4 chips of 95 GB). What is learned
is the same on all of them; a machine chooses how a batch is cut.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mtsft.config import default
from mtsft.errors import InputError, one_line

BATCH_SIZE = 32  # rows
# Chips of a machine, over which parameters and rows are cut (fsdp).
CHIPS = {"gpu80": 1, "h200": 1, "v5e-8": 8, "v5e-16": 16, "v5p-8": 4}

Keys = Mapping[str, Any]
Variants = Mapping[str, Mapping[str, Keys | str]]  # keys by mode and machine; in place of keys, why there are none


def machines(*, rows: int) -> dict[str, Keys | str]:
    """The keys of every machine where a chip computes so many rows of a batch at a time."""
    cut = {name: {"train.microbatches": BATCH_SIZE // (rows * chips)} for name, chips in CHIPS.items()}
    return {name: ({"parallel.mesh": f"fsdp={CHIPS[name]}"} if CHIPS[name] > 1 else {}) | cut[name] for name in CHIPS}


def choose(variant: str, variants: Variants) -> tuple[str, dict[str, Any]]:
    """The mode of a config's variant, such as "lora,gpu80", and the keys that this mode takes on this machine.

    Raises InputError for other names, and for a variant that has no keys.
    """
    mode, _, machine = (part.strip() for part in variant.partition(","))
    keys = variants.get(mode, {}).get(machine)
    if keys is None:
        names = dict.fromkeys(name for each in variants.values() for name in each)
        raise InputError(
            f"config variant {one_line(variant, 50)!r}: write MODE,MACHINE after the config's name, "
            f"with one of {', '.join(variants)} and one of {', '.join(names)}"
        )
    if isinstance(keys, str):
        raise InputError(f"config variant {mode},{machine}: {keys}")
    return mode, dict(keys)


def fine_tune(
    init_from: str, variant: str, variants: Variants, *, learning_rate: float, lora_learning_rate: float
) -> ConfigDict:
    """The config that trains the model in a folder on dialogues.jsonl, two epochs in rows of 4,096 slots.

    Every key that is not set here is the default of mtsft/config.py. Raises InputError as choose does.
    """
    mode, keys = choose(variant, variants)
    config = default()

    config.data.train = "dialogues.jsonl"
    config.data.eval_fraction = 0.02
    config.data.sequence_length = 4096
    config.data.over_length = "keep_last"

    config.model.init_from = init_from
    config.model.dtype = "bfloat16"
    config.model.remat = "full"

    config.train.epochs = 2.0
    config.train.batch_size = BATCH_SIZE
    config.train.learning_rate = learning_rate
    config.train.warmup_steps = 50
    config.train.weight_decay = 0.0

    if mode == "lora":
        config.model.param_dtype = "bfloat16"
        config.lora.rank = 16
        config.lora.alpha = 32.0
        config.train.learning_rate = lora_learning_rate

    config.update_from_flattened_dict(keys)
    return config
