"""Names of what attention computes, by which the backward pass may keep it in place of computing it again."""

from jax.ad_checkpoint import checkpoint_name

OUTPUT, LOGSUMEXP = "attention_output", "attention_logsumexp"
NAMES = (OUTPUT, LOGSUMEXP)


def named_output(x):
    """What attention gives, under its name."""
    return checkpoint_name(x, OUTPUT)


def named_logsumexp(x):
    """The logarithm of each query's sum of exponentials, under its name."""
    return checkpoint_name(x, LOGSUMEXP)
