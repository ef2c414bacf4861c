"""The model that a config describes."""

from ml_collections import ConfigDict

from mtsft.model.architecture import Architecture, LoRA
from mtsft.model.transformer import Model


def model_of(config: ConfigDict, vocab_size: int) -> Model:
    """The model of a resolved config. vocab_size: of the tokenizer, where the config gives none."""
    keys = dict(config.model)
    del keys["init_from"]
    keys["vocab_size"] = keys["vocab_size"] or vocab_size
    return Model(Architecture(**keys), lora_of(config))


def lora_of(config: ConfigDict) -> LoRA:
    """The adapters of a config."""
    keys = dict(config.lora)
    del keys["init_from"]
    return LoRA(**keys)
