"""What the GPU of this process can do."""

import jax


def too_old(capability: float) -> str:
    """Why it is not one of this compute capability or newer, as a clause about what needs one; "" where it is, or none.

    Args:
        capability: NVIDIA's number, such as 8.9 (Ada) or 9.0 (Hopper).
    """
    found = getattr(jax.local_devices()[0], "compute_capability", None)
    try:
        return f"needs compute capability {capability}, not {found}" if found and float(found) < capability else ""
    except ValueError:  # of another maker
        return f"was tried on NVIDIA's GPUs alone, not on {found}"
