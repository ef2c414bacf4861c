"""Which losses a model may have before its first step: what a fresh one cannot miss, and what no trained one has.

A model that knows nothing gives each of V tokens about the same probability, which costs log V nats a token. A model
that was trained costs much less on the text it is for. Where it was given ids of another tokenizer, it is sure of
itself and wrong, and costs as much as guessing, or more.
"""

import math
from typing import NamedTuple

import numpy as np

CLOSE_TO_GUESSING = 0.9  # of log V; from here on a base knows no more of the text than nothing
AT_GUESSING = 0.25  # nats above log V that a model which says evenly that it knows nothing may cost
_SLACK = 1.0  # nats
_ENOUGH = 512  # supervised tokens from which on their own frequencies say something


class Band(NamedTuple):
    """The losses that a fresh model may have, in nats a token.

    Attributes:
        low: the least.
        high: the most.
    """

    low: float
    high: float

    def holds(self, loss: float) -> bool:
        """Whether a loss is one of them."""
        return self.low <= loss <= self.high


def fresh_band(vocab_size: int, hidden_size: int, deviation: float, tied: bool) -> Band:
    """The losses of a model of random parameters.

    Its logits are sums of D products of hidden states of mean square 1 and weights of the standard deviation s, so that
    they have the variance D s^2, and the loss is log V + D s^2 / 2 on average. A head that is the embedding as well
    prefers the token that it has just read by up to D s. What a batch can be off by is one standard deviation, and a
    nat.

    Args:
        vocab_size: V.
        hidden_size: D.
        deviation: s, of the head.
        tied: whether the head is the embedding.
    """
    uniform, variance = math.log(vocab_size), hidden_size * deviation**2
    own = hidden_size * deviation if tied else 0.0
    either_way = _SLACK + math.sqrt(variance) + own
    return Band(uniform - either_way, uniform + variance / 2 + either_way)


def unigram_entropy(tokens_N: np.ndarray) -> float | None:
    """The entropy of the frequencies of some tokens in nats, which a model that sees no context could reach.

    With the correction for few samples of Miller (1955), half a token's kind for each token; None for fewer than 512
    tokens, whose frequencies say too little.
    """
    if len(tokens_N) < _ENOUGH:
        return None
    counts = np.unique(tokens_N, return_counts=True)[1]
    p = counts / counts.sum()
    return float(-(p * np.log(p)).sum() + (len(counts) - 1) / (2 * len(tokens_N)))
