"""How far a mean may be off: the bootstrap over dialogues (Efron 1979, The Annals of Statistics 7, 1 to 26).

As many dialogues as there are are drawn with replacement, and the middle 95% of the means that result are an interval.
Of dialogues, not of tokens, as tokens of one dialogue are alike.
"""

import numpy as np

_RESAMPLES, _AT_A_TIME = 1000, 50
_MIDDLE = (2.5, 97.5)  # per cent


def intervals(nll_DxG: np.ndarray, weight_DxG: np.ndarray, seed: int = 0) -> np.ndarray:
    """The lowest and the highest of the means of each group that resampled dialogues have, float64 (2, G).

    Args:
        nll_DxG: sums over the tokens of each of D dialogues that are in each of G groups.
        weight_DxG: the weight of these tokens; a draw without any of a group counts for none of it.
        seed: of what is drawn, the same dialogues for all groups.
    """
    rng, D, found = np.random.default_rng(seed), len(nll_DxG), []
    for _ in range(_RESAMPLES // _AT_A_TIME):
        drawn = rng.integers(D, size=(_AT_A_TIME, D))
        counts = np.stack([np.bincount(each, minlength=D) for each in drawn]).astype(np.float64)
        weights = counts @ weight_DxG
        found.append(np.where(weights > 0, counts @ nll_DxG, np.nan) / np.where(weights > 0, weights, 1))
    return np.nanpercentile(np.concatenate(found), _MIDDLE, axis=0)
