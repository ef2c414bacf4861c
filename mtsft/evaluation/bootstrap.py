"""How far a mean over dialogues may be off, by the bootstrap (Efron 1979, The Annals of Statistics 7, 1 to 26).

As many dialogues as there are are drawn with replacement, and the middle 95% of what results are an interval. Of
dialogues, not of tokens, as tokens of one dialogue are alike.
"""

import numpy as np

_RESAMPLES, _AT_A_TIME = 1000, 50
_MIDDLE = (2.5, 97.5)  # per cent


def resampled_sums(values_DxG: np.ndarray, seed: int) -> np.ndarray:
    """The sums of each column over the dialogues of each draw, float64 (draws, G).

    Args:
        values_DxG: of each dialogue, as many columns as there are sums.
        seed: of the draws; one seed draws the same dialogues whatever the columns, so that sums stay paired.
    """
    rng, D, found = np.random.default_rng(seed), len(values_DxG), []
    for _ in range(_RESAMPLES // _AT_A_TIME):
        drawn = rng.integers(D, size=(_AT_A_TIME, D))
        counts = np.stack([np.bincount(each, minlength=D) for each in drawn]).astype(np.float64)
        found.append(counts @ values_DxG)
    return np.concatenate(found)


def middle(draws: np.ndarray) -> np.ndarray:
    """The lowest and the highest of the middle 95% over the first axis, (2, ...); NaN counts for no draw."""
    return np.nanpercentile(draws, _MIDDLE, axis=0)


def mean_intervals(sums_DxG: np.ndarray, weights_DxG: np.ndarray, seed: int) -> np.ndarray:
    """The lowest and the highest mean of each group, (2, G); a draw without any of a group counts for none of it.

    Args:
        sums_DxG: weighted sums of each dialogue by group.
        weights_DxG: what they are divided by.
        seed: of the draws.
    """
    G = sums_DxG.shape[1]
    drawn = resampled_sums(np.concatenate([sums_DxG, weights_DxG], 1), seed)
    sums, weights = drawn[:, :G], drawn[:, G:]
    return middle(np.where(weights > 0, sums, np.nan) / np.where(weights > 0, weights, 1))
