"""How far a mean over dialogues may be off, by the bootstrap (Efron 1979, The Annals of Statistics 7, 1 to 26).

As many dialogues as there are are drawn with replacement, and the middle 95% of what results are an interval. Of
dialogues, not of tokens, as tokens of one dialogue are alike.
"""

import numpy as np

_RESAMPLES, _AT_A_TIME = 1000, 50
_MIDDLE = (2.5, 97.5)  # per cent


class Draws:
    """Draws of dialogues, the same for all that is summed over them, so that sums stay paired.

    Args:
        dialogues: how many there are, and how many a draw has.
        seed: of the draws.
    """

    def __init__(self, dialogues: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        # How often each draw has each dialogue: of a draw of D, one is there once on average, and never 256 times.
        self._times_WxD = np.empty((_RESAMPLES, dialogues), np.uint8)
        for start in range(0, _RESAMPLES, _AT_A_TIME):
            drawn = rng.integers(dialogues, size=(_AT_A_TIME, dialogues))
            drawn += dialogues * np.arange(_AT_A_TIME)[:, None]
            times = np.bincount(drawn.reshape(-1), minlength=drawn.size)
            self._times_WxD[start : start + _AT_A_TIME] = times.reshape(drawn.shape)

    def sums(self, values_DxG: np.ndarray) -> np.ndarray:
        """The sums of each of G columns over the dialogues of each draw, float64 (draws, G)."""
        times = np.split(self._times_WxD, _RESAMPLES // _AT_A_TIME)
        return np.concatenate([each.astype(np.float64) @ values_DxG for each in times])

    def mean_intervals(self, sums_DxG: np.ndarray, weights_DxG: np.ndarray) -> np.ndarray:
        """The lowest and the highest mean of each group, (2, G); a draw without any of a group counts for none of it.

        Args:
            sums_DxG: weighted sums of each dialogue by group.
            weights_DxG: what they are divided by.
        """
        G = sums_DxG.shape[1]
        drawn = self.sums(np.concatenate([sums_DxG, weights_DxG], 1))
        sums, weights = drawn[:, :G], drawn[:, G:]
        return middle(np.where(weights > 0, sums, np.nan) / np.where(weights > 0, weights, 1))


def middle(draws: np.ndarray) -> np.ndarray:
    """The lowest and the highest of the middle 95% over the first axis, (2, ...); NaN counts for no draw."""
    return np.nanpercentile(draws, _MIDDLE, axis=0)
