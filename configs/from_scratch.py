"""A small model from scratch on dialogues of your own.

    python -m mtsft.train --config=configs/from_scratch.py --workdir=runs/mine --config.data.train=dialogues.jsonl

The file holds one dialogue a line, {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}]}.
One dialogue in twenty is held out, by its content; a SentencePiece tokenizer is trained on the rest. Four passes over
the data; with a GPU add --config.model.dtype=bfloat16 --config.model.scan_layers=True.

Expected: a model of 13 M parameters that speaks like its data and knows nothing else. On 1,664 task-oriented dialogues
(600,000 tokens) four passes take EXPECTED on two CPU cores.
"""

from mtsft.config import default


def get_config():
    """The config; every other key is the default of mtsft/config.py."""
    config = default()

    config.data.train = "dialogues.jsonl"
    config.data.eval_fraction = 0.05
    config.data.over_length = "keep_first"

    config.model.hidden_size = 384
    config.model.intermediate_size = 1024
    config.model.num_hidden_layers = 6
    config.model.num_attention_heads = 6
    config.model.num_key_value_heads = 2
    config.model.scan_layers = False  # unrolled layers run faster on CPU

    config.train.epochs = 4.0
    config.train.batch_size = 4
    config.train.learning_rate = 2e-3
    config.train.warmup_steps = 20

    config.eval.every = 100
    config.checkpoint.every = 100
    return config
