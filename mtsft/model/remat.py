"""What of a layer's activations is kept for the backward pass; the rest is computed again (rematerialisation).

    none            all of it
    full            the layer's input alone
    offload         the layer's input alone, in the memory of the host until the backward pass comes to it
    attention       also what attention gives, with the sums of its softmax where the kernel names them, so that it is
                    not computed again
    dots_no_batch   also what the layer's matrices give, with their biases and adapters
    dots            also products of two activations, where attention is not a kernel's

benchmarks/RESULTS.md has time and memory of each.
"""

import jax
import jaxlib

from mtsft.model import kept

_names = jax.checkpoint_policies.save_only_these_names
_ATTENTION = _names(kept.OUTPUT, kept.LOGSUMEXP)
# By name: matmul.py's products have gradients of their own, and are no products to a policy of JAX's.
_PRODUCTS = _names(kept.OUTPUT, kept.LOGSUMEXP, kept.PRODUCT)
# Gradients of what a scan moves to the host come out wrong there.
_WRONG_ON_GPU = {"0.11.0"}


def _products_of_activations(primitive, *arguments, **parameters) -> bool:
    kinds = jax.checkpoint_policies.dots_saveable, jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    dots, plain_dots = (kind(primitive, *arguments, **parameters) for kind in kinds)
    return dots and not plain_dots


REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[kept.INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "attention": _ATTENTION,
    "dots_no_batch": _PRODUCTS,
    "dots": jax.checkpoint_policies.save_from_both_policies(_PRODUCTS, _products_of_activations),
}


def rematerialised(name: str, layer):
    """A function of a layer that keeps what the policy of this name says."""
    policy = REMAT_POLICIES[name]
    return jax.checkpoint(layer, policy=policy) if policy else layer


def remat_fault(name: str, platform: str, jaxlib_version: str = jaxlib.__version__) -> str:
    """Why a policy cannot be had on a platform of JAX, as a clause about it; "" where it can."""
    if name == "offload" and platform == "gpu" and jaxlib_version in _WRONG_ON_GPU:
        return f"gives wrong gradients on GPUs with jaxlib {jaxlib_version}: use another jaxlib, or model.remat='full'"
    return ""
