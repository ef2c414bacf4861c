"""Whether the tokens of the dialogues mean to a base what they meant when it was trained."""

from typing import NamedTuple

import numpy as np

from mtsft.data.store import Store
from mtsft.errors import InputError
from mtsft.runs.hub_model import HubModel
from mtsft.runs.trained_model import TrainedModel
from mtsft.tokenizer.base import Tokenizer
from mtsft.tokenizer.load import from_files, read_files

_SAMPLED = 1 << 18  # supervised tokens that are looked at
MOST = 0.5  # share of tokens that mean something else from which on the pair is wrong
_FEW = 0.01  # share that is nothing to speak of, as a control token under a new name


class Pairing(NamedTuple):
    """The tokens of a run beside the tokenizer of its base.

    Attributes:
        share: of the supervised tokens, how many mean another text there.
        example: one of them, in words; "" where there is none.
    """

    share: float
    example: str

    @property
    def is_wrong(self) -> bool:
        """Whether the tokenizer is not that of the base."""
        return self.share > MOST

    @property
    def is_told(self) -> bool:
        """Whether so many tokens differ that somebody should know."""
        return self.share > _FEW


def pairing(base: TrainedModel, tokenizer: Tokenizer, tokens_N: np.ndarray) -> Pairing | None:
    """Compares what tokens spell.

    Args:
        base: what the run starts from.
        tokenizer: of the run.
        tokens_N: some supervised tokens. Those that the base's tokenizer does not have are new, and not wrong.

    Returns:
        None where the base comes without a tokenizer.
    """
    if isinstance(base, HubModel):
        try:
            files = read_files(base.path)
            own = tokenizer if files == dict(tokenizer.files) else from_files(files, (), str(base.path))
        except InputError:  # a folder of weights alone
            return None
    else:
        own = base.chat.open()[1]
    if own is tokenizer or dict(own.files) == dict(tokenizer.files):
        return Pairing(0.0, "")
    ids_K, counts_K = np.unique(tokens_N, return_counts=True)
    different = [
        (count, token)
        for token, count in zip(ids_K.tolist(), counts_K.tolist(), strict=True)
        if token < own.vocab_size and own.decode([token]) != tokenizer.decode([token])
    ]
    if not different:
        return Pairing(0.0, "")
    _, token = max(different)
    example = (
        f"token {token} is {tokenizer.decode([token])!r} to the dialogues and {own.decode([token])!r} to the model"
    )
    return Pairing(sum(count for count, _ in different) / len(tokens_N), example)


def supervised_tokens(store: Store) -> np.ndarray:
    """The supervised tokens of the first dialogues of a store, some 260,000 at most; int32."""
    found, count = [], 0
    for index in range(len(store)):
        tree = store[index]
        found.append(tree.tokens_N[tree.response_mask_N != 0])
        count += len(found[-1])
        if count >= _SAMPLED:
            break
    return np.concatenate(found) if found else np.zeros(0, np.int32)
