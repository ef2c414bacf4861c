"""Quickstart: a small model that learns, in under three minutes on two CPU cores, to use what was said earlier.

    mtsft train --config=quickstart --workdir=runs/quickstart

Needs nothing but the package. It writes a corpus of short conversations in which people introduce themselves with
three facts (name, city, job, dog, food, instrument, number of books; some two dozen values each), ask for them in later
turns, correct one, ask again (now the correction is right), and ask for two at once. The model is trained on every
assistant turn of every conversation, each in its true context. Each training conversation is seen at most once, and
the held-out ones are drawn apart.

Expected, printed at the end and written to result.json: context_accuracy, the share of held-out replies that depend on
earlier turns and are exactly right under greedy decoding, above 0.98; hidden_history_accuracy, the same with only the
last user message shown, near 0 (guessing one value is right one time in 24).

What it does not demand: the conversations come from a few dozen sentence patterns, and the assistant acknowledges facts
by saying them again, so an answer can be read off either speaker's earlier turn. Sums with a number told earlier
("arithmetic" in by_kind) are in the corpus, are not learned at this size, and do not count.
"""

from mtsft.config import default


def get_config():
    """The config; every other key is the default of mtsft/config.py."""
    config = default()

    config.data.corpus = "recall"
    config.data.corpus_dialogues = 6000
    config.data.corpus_eval_dialogues = 400
    config.data.vocab_size = 1536  # enough for every word of the corpus to be one token
    config.data.sequence_length = 320  # two conversations a row

    config.model.hidden_size = 128
    config.model.intermediate_size = 256
    config.model.num_hidden_layers = 2
    config.model.num_attention_heads = 2
    config.model.num_key_value_heads = 2
    config.model.head_dim = 64
    config.model.tie_word_embeddings = True
    config.model.initializer_range = 0.1

    config.train.steps = 360
    config.train.batch_size = 8
    config.train.optimizer = "muon"  # learns to look back several times sooner than AdamW here
    config.train.learning_rate = 0.01
    config.train.warmup_steps = 50
    config.train.end_learning_rate = 0.02
    config.train.log_every = 10

    config.eval.every = 120
    config.checkpoint.every = 120
    return config
