"""Quickstart."""

from mtsft.config import default


def get_config():
    """The config."""
    config = default()
    config.data.corpus = "recall"
    config.data.corpus_dialogues = 20000
    config.data.vocab_size = 1024
    config.data.sequence_length = 512
    config.model.hidden_size = 128
    config.model.intermediate_size = 384
    config.model.num_hidden_layers = 2
    config.model.num_attention_heads = 4
    config.model.num_key_value_heads = 4
    config.model.head_dim = 32
    config.model.scan_layers = False
    config.train.batch_size = 16
    config.train.steps = 30
    config.eval.every = 10
    config.checkpoint.every = 10
    return config
