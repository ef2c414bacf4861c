"""Draft."""

from mtsft.config import choose, default

VARIANTS = {
    "full": {
        "gpu80": {'train.microbatches': 16},
        "h200": {'train.microbatches': 16},
        "v5e-8": {'parallel.mesh': 'fsdp=8', 'train.microbatches': 2},
        "v5e-16": {'parallel.mesh': 'fsdp=16', 'train.microbatches': 1},
        "v5p-8": {'parallel.mesh': 'fsdp=4', 'train.microbatches': 4},
    },
    "lora": {
        "gpu80": {'train.microbatches': 16},
        "h200": {'train.microbatches': 16},
        "v5e-8": {'parallel.mesh': 'fsdp=8', 'train.microbatches': 2},
        "v5e-16": {'parallel.mesh': 'fsdp=16', 'train.microbatches': 1},
        "v5p-8": {'parallel.mesh': 'fsdp=4', 'train.microbatches': 4},
    },
}


def get_config(variant="lora,gpu80"):
    """The config; every other key is the default of mtsft/config.py."""
    mode, keys = choose(variant, VARIANTS)
    config = default()

    config.data.train = "dialogues.jsonl"
    config.data.eval_fraction = 0.02
    config.data.sequence_length = 4096
    config.data.over_length = "keep_last"

    config.model.init_from = "models/Llama-3.2-1B-Instruct"
    config.model.dtype = "bfloat16"
    config.model.remat = "full"

    config.train.epochs = 2.0
    config.train.batch_size = 32
    config.train.learning_rate = 2e-05
    config.train.warmup_steps = 50
    config.train.weight_decay = 0.0

    if mode == "lora":
        config.model.param_dtype = "bfloat16"
        config.lora.rank = 16
        config.lora.alpha = 32.0
        config.train.learning_rate = 0.0002

    config.update_from_flattened_dict(keys)
    return config
