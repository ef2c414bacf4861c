"""What of a layer's activations is kept for the backward pass; the rest is computed again (rematerialisation).

    none            all of it
    full            the layer's input alone
    offload         the layer's input alone, in the memory of the host until the backward pass comes to it
    attention       also what attention gives, with the sums of its softmax where the kernel names them, so that it is
                    not computed again
    dots            also what products of matrices give, attention's with them, for a kernel's are none by themselves
    dots_no_batch   the same without products of two activations

benchmarks/RESULTS.md has time and memory of each.
"""

import jax
import jaxlib
from jax.ad_checkpoint import checkpoint_name

from mtsft.model.attention.kept import NAMES

_INPUT = "layer_input"
_ATTENTION = jax.checkpoint_policies.save_only_these_names(*NAMES)
# Gradients of what a scan moves to the host come out wrong there.
_WRONG_ON_GPU = {"0.11.0"}


def _and_attention(policy):
    return jax.checkpoint_policies.save_from_both_policies(policy, _ATTENTION)


REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "attention": _ATTENTION,
    "dots": _and_attention(jax.checkpoint_policies.dots_saveable),
    "dots_no_batch": _and_attention(jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
}


def named_input(x_BxLxD: jax.Array) -> jax.Array:
    """What enters a layer, under the name by which a policy moves it."""
    return checkpoint_name(x_BxLxD, _INPUT)


def rematerialised(name: str, layer):
    """A function of a layer that keeps what the policy of this name says."""
    policy = REMAT_POLICIES[name]
    return jax.checkpoint(layer, policy=policy) if policy else layer


def remat_fault(name: str, platform: str, jaxlib_version: str = jaxlib.__version__) -> str:
    """Why a policy cannot be had on a platform of JAX, as a clause about it; "" where it can."""
    if name == "offload" and platform == "gpu" and jaxlib_version in _WRONG_ON_GPU:
        return f"gives wrong gradients on GPUs with jaxlib {jaxlib_version}: use another jaxlib, or model.remat='full'"
    return ""
