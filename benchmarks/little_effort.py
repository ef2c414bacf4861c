"""Options by which the TPU compiler takes half a minute for a step, and not eight: for what is counted, not run."""

import jax

LITTLE_EFFORT = {"optimization_level": 9}
if jax.__version_info__ < (0, 12):  # from there on it is no option any more
    LITTLE_EFFORT["exec_time_optimization_effort"] = -1.0
