"""The meanings of config keys, read from comments, and the key that a wrong one meant."""

import pytest

from mtsft.config import default
from mtsft.config_keys import check_key, config_keys, near_keys, read_meanings
from mtsft.errors import InputError

SOURCE = '''
class Other:
    train: str = ""  # not this


class DataConfig:
    """Keys."""

    # A file,
    # or several.
    train: str = ""
    seed: int = 0
    eval: str = "#"  # the same


def default():
    config = ConfigDict()
    config.data = ConfigDict(asdict(DataConfig()))
    config.eval = evaluation = ConfigDict()
    evaluation.every = (
        3  # steps
    )
    evaluation.turns = 2
    # by itself
    return config
'''


def test_every_key_has_a_meaning_in_the_order_of_the_file():
    keys = config_keys()
    assert [name for name, key in keys.items() if not key.meaning] == []
    assert {*keys} == {f"{group}.{name}" for group, names in default().items() for name in names}
    assert list(keys)[:2] == ["data.train", "data.eval"]
    assert [*dict.fromkeys(name.partition(".")[0] for name in keys)][-2:] == ["checkpoint", "parallel"]
    assert (keys["train.weight_decay"].default, keys["train.weight_decay"].meaning) == (0.1, "of matrices")


def test_a_meaning_is_the_comment_beside_a_key_or_above_it():
    assert read_meanings(SOURCE) == {
        "data.train": "A file, or several.",
        "data.seed": "",
        "data.eval": "the same",
        "eval.every": "steps",
        "eval.turns": "",
    }


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("train.learning_rat", ["train.learning_rate"]),
        ("learning_rate", ["train.learning_rate"]),
        ("learning-rat", ["train.learning_rate"]),
        ("init_from", ["model.init_from", "lora.init_from"]),
        ("model.learning_rate", ["train.learning_rate"]),
        ("trian.steps", ["train.steps"]),
        ("nothing.at.all", []),
    ],
)
def test_the_nearest_key(wrong, near):
    assert near_keys(wrong) == near


def test_a_key_is_no_group():
    check_key("train.steps")
    with pytest.raises(
        InputError, match=r"^lora is a group of config keys; name one of them, such as lora\.init_from$"
    ):
        check_key("lora")
