"""The model and the optimizer that a config describes."""

import optax
from ml_collections import ConfigDict

from mtsft.model.architecture import Architecture
from mtsft.model.lora import LoRA
from mtsft.model.transformer import Model
from mtsft.runs.trainable_tokens import token_ids
from mtsft.training.optimizer import build_optimizer


def model_of(config: ConfigDict, vocab_size: int) -> Model:
    """The model of a resolved config; arguments as those of `architecture_of`."""
    return Model(architecture_of(config, vocab_size), lora_of(config))


def architecture_of(config: ConfigDict, vocab_size: int) -> Architecture:
    """The sizes of a resolved config. vocab_size: of the tokenizer, where the config gives none, or grows to it."""
    keys = dict(config.model)
    del keys["init_from"]
    grows = bool(keys.pop("grow_vocab"))
    keys["vocab_size"] = max(keys["vocab_size"], vocab_size) if grows else keys["vocab_size"] or vocab_size
    return Architecture(**keys)


def lora_of(config: ConfigDict) -> LoRA:
    """The adapters of a config whose tokens are ids."""
    keys = dict(config.lora)
    del keys["init_from"]
    return LoRA(**token_ids(keys.pop("trainable_tokens")), **keys)


def optimizer_of(config: ConfigDict, padding: int = 0) -> optax.GradientTransformation:
    """The optimizer of a config, at learning rate 1; arguments and errors as those of `build_optimizer`."""
    train = config.train
    return build_optimizer(
        train.optimizer,
        clip_norm=train.clip_norm,
        weight_decay=train.weight_decay,
        b1=train.b1,
        b2=train.b2,
        eps=train.eps,
        padding=padding,
    )
