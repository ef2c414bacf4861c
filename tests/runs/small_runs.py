"""Small runs that tests of training share: the model that they train, and what of it is looked at."""

import jax
import numpy as np

from mtsft.runs.chat_model import ChatModel

SIZES = dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8
)


def parameters(path, **runtime):
    return jax.device_get(ChatModel.load(path, **runtime).params)


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((np.asarray(x) == np.asarray(y)).all()), a, b))
