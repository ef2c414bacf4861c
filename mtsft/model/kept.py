"""Names of what a layer computes, by which the backward pass may keep it in place of computing it again."""

from jax.ad_checkpoint import checkpoint_name

INPUT, PRODUCT = "layer_input", "product"
OUTPUT, LOGSUMEXP = "attention_output", "attention_logsumexp"


def named_input(x_BxLxD):
    """What enters a layer, under its name."""
    return checkpoint_name(x_BxLxD, INPUT)


def named_product(y_BxLxO):
    """What a matrix, its bias and its adapter make of activations, under its name."""
    return checkpoint_name(y_BxLxO, PRODUCT)


def named_output(x):
    """What attention gives, under its name."""
    return checkpoint_name(x, OUTPUT)


def named_logsumexp(x):
    """The logarithm of each query's sum of exponentials, under its name."""
    return checkpoint_name(x, LOGSUMEXP)
