"""What a config's objective makes of logits, in Python."""

from math import log

import numpy as np
import pytest

import mtsft
from mtsft.errors import InputError

LOGITS = [[log(3.0), 0.0], [0.0, 0.0]]  # Pr 3/4 and 1/4; 1/2 and 1/2


def losses(**objective):
    config = mtsft.load_config("quickstart", {f"objective.{key}": value for key, value in objective.items()})
    return mtsft.token_losses(config, LOGITS, [1, 0])


def test_a_token_costs_what_the_config_says():
    nll = np.log([4.0, 2.0])
    np.testing.assert_allclose(losses(), nll, rtol=1e-6)
    np.testing.assert_allclose(losses(token_loss="dft"), nll * [1 / 4, 1 / 2], rtol=1e-6)
    np.testing.assert_allclose(losses(z_loss=0.5), nll + 0.5 * np.log([4.0, 2.0]) ** 2, rtol=1e-6)
    smoothed = 0.8 * nll + 0.2 * np.array([(log(4 / 3) + log(4)) / 2, log(2)])
    np.testing.assert_allclose(losses(label_smoothing=0.2), smoothed, rtol=1e-6)
    np.testing.assert_allclose(mtsft.token_losses("quickstart", LOGITS, [1, 0]), nll, rtol=1e-6)


@pytest.mark.parametrize(
    ("logits", "targets", "says"),
    [
        ([0.0, 0.0], [0], r"^logits of shape \(2,\) with targets of shape \(1,\): give \(N, V\) and \(N,\)$"),
        (LOGITS, [0], r"^logits of shape \(2, 2\) with targets of shape \(1,\)"),
        (LOGITS, [0, 2], r"^targets from 0 to 2: the logits are of tokens 0 to 1$"),
        (LOGITS, [-1, 1], r"^targets from -1 to 1: the logits are of tokens 0 to 1$"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(logits, targets, says):
    with pytest.raises(InputError, match=says):
        mtsft.token_losses("quickstart", logits, targets)
