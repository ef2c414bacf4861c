"""Learning rates: by step, a schedule; by parameter, factors of it."""

import json
import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from mtsft.errors import InputError, one_line
from mtsft.model.parameters import name_of

SCHEDULES = ("constant", "linear", "cosine", "wsd")


def learning_rate_schedule(
    name: str, peak: float, steps: int, warmup_steps: int, end_factor: float, decay_steps: int
) -> Callable:
    """Linear warm-up from 0 to `peak`, then what `name` says until `steps`; step -> float32 scalar.

    Step 0 takes the first warm-up value above 0. "constant" stays at the peak; "linear" and "cosine" (SGDR: Loshchilov
    and Hutter 2017, arXiv:1608.03983) fall to `end_factor * peak` at `steps`; "wsd" (warm-up, stable, decay: Hu et al.
    2024, arXiv:2404.06395, section 4; its linear form: Hägele et al. 2024, arXiv:2405.18392) stays at the peak and
    falls as far over the last `decay_steps`.

    Args:
        name: one of SCHEDULES.
        peak: the highest learning rate.
        steps: of the run.
        warmup_steps: of them.
        end_factor: the learning rate at the end, as a share of the peak.
        decay_steps: of "wsd"; the others ignore it.

    Raises:
        InputError: for another name.
    """
    warmup_steps = min(warmup_steps, steps)
    length, end = max(steps - warmup_steps, 1), end_factor * peak
    if name == "constant":
        schedule = optax.constant_schedule(peak)
    elif name == "linear":
        schedule = optax.linear_schedule(peak, end, length)
    elif name == "cosine":
        schedule = optax.cosine_decay_schedule(peak, length, alpha=end_factor)
    elif name == "wsd":
        decay_steps = min(decay_steps, length)
        schedule = optax.linear_schedule(peak, end, decay_steps, transition_begin=length - decay_steps)
    else:
        raise InputError(f"train.schedule={name!r}: use one of {', '.join(SCHEDULES)}")
    if warmup_steps:
        warm = optax.linear_schedule(peak / warmup_steps, peak, warmup_steps - 1)
        schedule = optax.join_schedules([warm, schedule], [warmup_steps])
    return lambda step: jnp.asarray(schedule(step), jnp.float32)


def learning_rate_factors(groups: str, params):
    """What the learning rate of each parameter is multiplied by: a tree like `params` of Python floats.

    Args:
        groups: a JSON object of regular expressions and factors, such as '{"embed": 0.1, "attention/(query|key)":
            0.5}'. The first that is found in a parameter's name counts; 1 where none is. "" for all 1.
        params: a tree of arrays or shapes.

    Raises:
        InputError: groups is anything else, or has an expression that decides over no parameter.
    """
    key = f"train.learning_rate_groups={one_line(groups, 100)!r}"
    try:
        pairs = json.loads(groups, object_pairs_hook=tuple, parse_int=float) if groups else ()
    except (json.JSONDecodeError, RecursionError):
        pairs = None
    if not isinstance(pairs, tuple) or not all(type(factor) is float for _, factor in pairs):
        raise InputError(f'{key}: write one JSON object of regular expressions and numbers, such as {{"embed": 0.1}}')
    rules = []
    for pattern, factor in pairs:
        if not (factor >= 0 and math.isfinite(factor)):
            raise InputError(f"{key}: {pattern!r} has the factor {factor}; use a number of at least 0")
        try:
            rules.append((re.compile(pattern), factor))
        except (re.error, OverflowError) as error:
            raise InputError(f"{key}: {pattern!r} is no regular expression ({error}); correct it") from None
    names, used = set(), set()

    def factor_of(path, _):
        name = name_of(path)
        names.add(name)
        for i, (rule, factor) in enumerate(rules):
            if rule.search(name):
                used.add(i)
                return factor
        return 1.0

    factors = jax.tree_util.tree_map_with_path(factor_of, params)
    for i, (rule, _) in enumerate(rules):
        if i not in used:
            raise InputError(
                f"{key}: {one_line(rule.pattern, 50)!r} fits no parameter, or none that is left by those before it; "
                f"change it or leave it out; the parameters are {one_line(', '.join(sorted(names)), 1000)}"
            )
    return factors
