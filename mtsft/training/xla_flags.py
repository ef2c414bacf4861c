"""Flags of XLA that a step is compiled with, by platform, each with the measurement that put it here.

A flag that was not measured stays off, whoever recommends it, and the fraction of a GPU's memory that JAX takes is left
as it is: nothing else has been measured to help yet.
"""

import os

# A GPU adds up the gradients of rows that are looked up more than once in whatever order its threads come by, so that
# no run repeats another to the bit. With the flag runs do, and the addition takes 21 ms in place of 84 for 32,768
# tokens of a vocabulary of 151,936 (H200, jaxlib 0.11.2: benchmarks/RESULTS.md, "Does it repeat itself").
MEASURED = {"gpu": {"xla_gpu_exclude_nondeterministic_ops": True}}


def compiler_options(platform: str) -> dict[str, bool]:
    """The flags for a platform of JAX, but for those that XLA_FLAGS sets, where the user has the word."""
    set_by_user = {word.lstrip("-").partition("=")[0] for word in os.environ.get("XLA_FLAGS", "").split()}
    return {name: value for name, value in MEASURED.get(platform, {}).items() if name not in set_by_user}
