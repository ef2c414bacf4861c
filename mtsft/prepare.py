"""Tokenise and plan ahead, on a machine without chips: python -m mtsft.prepare --config=... [--config.key=value ...].

A run with the same data and options then starts at once. It says which rows suit the dialogues: how full rows of
several lengths are, and how much of the attention of whole rows they need, pair by pair and in blocks of 128. Needs no
JAX.
"""

from mtsft import cli
from mtsft.config import data_config, validate
from mtsft.data.dataset import open_dataset
from mtsft.diagnose.row_shapes import shapes_as_text, shapes_of

_CONFIG = cli.define_config()


def main() -> None:
    """Prepares the data that the flags name and prints what became of it."""
    validate(_CONFIG.value)
    config = _CONFIG.value
    dataset = open_dataset(data_config(config), config.train.seed)
    print("\n".join(dataset.summary()), flush=True)
    if len(dataset.train):
        print(*shapes_as_text(shapes_of(dataset, config.train.batch_size), dataset.sequence_length), sep="\n")


if __name__ == "__main__":
    cli.run(main)
