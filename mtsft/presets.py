"""What the ready configs of published models share (configs/llama3_1_8b.py and its like).

A variant is MODE,MACHINE, as in --config=llama3_1_8b:lora,gpu80. "full" trains all parameters, by AdamW in float32
unless the table below says otherwise; "lora" trains low-rank adapters on a frozen base in bfloat16. Machines are gpu80
(a GPU of 80 GB), h200, v5e-8, v5e-16 (8 and 16 chips of 16 GB) and v5p-8 (4 chips of 95 GB). v5e-16 is several hosts:
start it as configs/pod.py, with the model, too, where every host reads it.

A batch is 32 rows of 4,096 slots, 131,072 tokens, on every machine; a machine chooses how it is cut, which changes
nothing that is learned. One dialogue in fifty is held out, by its content; of a dialogue that is too long the last
turns are kept.

The docstring of each config has the memory to expect, GiB of each chip. State is parameters and moments, by their
shapes. All is what the compiler allots to the whole step (memory_analysis by benchmarks/memory.py, at the compiler's
least effort: allow a tenth more). Those of gpu80 and h200 are compiled for one TPU v5p chip, whose compiler allots
memory otherwise than a GPU's. Not yet run on any of these machines. On a GPU JAX takes three quarters of the memory
unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise, such as 0.95.
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
Machines = Mapping[str, Keys | str]  # the keys of each; in place of keys, why there are none
Variants = Mapping[str, Machines]  # by mode


def machines(*, rows: int) -> dict[str, Keys | str]:
    """The keys of every machine where a chip computes so many rows of a batch at a time."""
    cut = {name: {"train.microbatches": BATCH_SIZE // (rows * chips)} for name, chips in CHIPS.items()}
    return {name: ({"parallel.mesh": f"fsdp={CHIPS[name]}"} if CHIPS[name] > 1 else {}) | cut[name] for name in CHIPS}


def _both(*, rows: int, full: Machines | None = None) -> Variants:
    """The variants of a model: rows of a batch that a chip computes at a time; other keys in full, by machine."""
    return {"full": machines(rows=rows) | dict(full or {}), "lora": machines(rows=rows)}


def _too_large(gib: int) -> str:
    return f"parameters and gradients in float32 alone take {gib} GiB; use full,h200, full,v5p-8 or lora,gpu80"


_ADAFACTOR = {"train.optimizer": "adafactor"}  # where AdamW's moments do not fit
_GPU_ADAFACTOR = {"train.microbatches": 32} | _ADAFACTOR
_VOCABULARY_CUT = {"parallel.mesh": "fsdp=4,tensor=2", "train.microbatches": 8}
_7B = {"h200": _GPU_ADAFACTOR, "v5e-8": _VOCABULARY_CUT | _ADAFACTOR}
VARIANTS: Mapping[str, Variants] = {
    "qwen3_0_6b": _both(rows=2),
    "gemma3_1b": _both(rows=2),
    "llama3_2_1b": _both(rows=2),
    "qwen2_5_1_5b": _both(rows=2),
    "llama3_2_3b": _both(rows=1),
    "gemma3_4b": _both(rows=1, full={"gpu80": _GPU_ADAFACTOR, "h200": _GPU_ADAFACTOR, "v5e-8": _VOCABULARY_CUT}),
    "mistral_7b": _both(rows=1, full=_7B | {"gpu80": _too_large(54)}),
    "llama3_1_8b": _both(rows=1, full=_7B | {"gpu80": _too_large(60)}),
}


def choose(variant: str, variants: Variants) -> tuple[str, dict[str, Any]]:
    """The mode of a variant, and the keys that this mode takes on this machine.

    Args:
        variant: MODE,MACHINE, such as "lora,gpu80".
        variants: of the model.

    Raises:
        InputError: it is not one of the variants, or has no keys.
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
    name: str, variant: str, init_from: str, *, learning_rate: float, lora_learning_rate: float
) -> ConfigDict:
    """The config that trains a published model on dialogues.jsonl, two epochs in rows of 4,096 slots.

    Every key that is not set here is the default of mtsft/config.py.

    Args:
        name: of the model in VARIANTS, which is the name of its config.
        variant: MODE,MACHINE, such as "lora,gpu80".
        init_from: the model's folder.
        learning_rate: of full training, at its peak.
        lora_learning_rate: of adapters, at its peak.

    Raises:
        InputError: there is no such variant.
    """
    mode, keys = choose(variant, VARIANTS[name])
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
    config.train.weight_decay = 0.0

    if mode == "lora":
        config.model.param_dtype = "bfloat16"
        config.lora.rank = 16
        config.lora.alpha = 32.0
        config.train.learning_rate = lora_learning_rate

    config.update_from_flattened_dict(keys)
    return config
