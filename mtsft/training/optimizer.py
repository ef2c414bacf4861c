"""Optimizers by name; built at learning rate 1, so that the step owns the schedule.

A step that is skipped leaves the optimizer's own counters as they were; the learning rate follows the step. Nothing
here depends on whether layers are stacked on a leading axis or unrolled, {"layers": {0: ...}}, nor on which part of
the model's parameters is trained; each matrix of stacked layers and of experts is treated alone.
"""

import jax
import jax.numpy as jnp
import optax

from mtsft.errors import InputError
from mtsft.model.parameters import VOCABULARY_AXES, leading_axes

OPTIMIZERS = ("adamw", "adafactor", "lion", "muon")
_DECAYED = ("kernel", "embedding", "lora_a", "lora_b")  # matrices; norms' scales and biases are left alone


def build_optimizer(
    name: str, *, clip_norm: float, weight_decay: float, b1: float, b2: float, eps: float, padding: int = 0
) -> optax.GradientTransformation:
    """A gradient transformation whose updates are to be scaled by the learning rate.

    Args:
        name: one of OPTIMIZERS, below.
        clip_norm: global norm to which gradients are clipped first; 0 for no clipping.
        weight_decay: decoupled, and scaled by the learning rate too.
        b1: decay of first moments.
        b2: decay of second moments.
        eps: added to their roots.
        padding: rows of the vocabulary that are 0 and no token's; no mean is taken over them.

    Raises:
        InputError: for another name.

    "adamw": Loshchilov and Hutter 2019, arXiv:1711.05101; its weight decay applies to matrices alone, see decay_mask.
    "adafactor": Shazeer and Stern 2018, arXiv:1804.04235: second moments of large matrices by row and column, none of
    the first, so that `b1` is not read, nor `b2` and `eps`, for which the paper has its own. Steps are absolute, as
    AdamW's are, and not relative to the parameter (section 8), which would hold back what starts at 0, such as lora_b.
    "lion": Chen et al. 2023, arXiv:2302.06675; its updates are signs, so that it wants a learning rate 3 to 10 times
    smaller than AdamW's and a weight decay as much larger (section 5).
    "muon": Jordan et al. 2024, https://kellerjordan.github.io/posts/muon, for the kernels of the layers, Adam for the
    rest; scaled to the size of AdamW's updates, so that one learning rate serves both (Liu et al. 2025,
    arXiv:2502.16982, section 2.2); its weight decay applies to the matrices it moves.
    """
    if name == "adamw":
        rule = optax.adamw(1.0, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decay_mask)
    elif name == "adafactor":
        # As optax.adafactor, but for padding: that of the factors cancels out, that of the clipping does not.
        rule = optax.chain(
            optax.scale_by_factored_rms(),
            _clip_by_rms(1.0, padding),
            optax.scale_by_learning_rate(1.0, flip_sign=False),
            optax.add_decayed_weights(weight_decay, mask=decay_mask),
            optax.scale(-1),
        )
        rule = _each_alone(_each_alone(rule, "experts"), "layers")  # the axis that stands first is mapped first
    elif name == "lion":
        rule = optax.lion(1.0, b1=b1, b2=b2, weight_decay=weight_decay, mask=decay_mask)
    elif name == "muon":
        rule = optax.contrib.muon(
            1.0,
            weight_decay=weight_decay,
            consistent_rms=0.2,
            adam_b1=b1,
            adam_b2=b2,
            muon_weight_dimension_numbers=_muon_dimensions,
        )
    else:
        raise InputError(f"train.optimizer={name!r}: use one of {', '.join(OPTIMIZERS)}")
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    return optax.chain(clip, rule)  # in any case, so that a run may change its mind: both keep nothing


def decay_mask(params):
    """True for what weight decay applies to: by name, since stacked norms have two axes as well."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _name(path[-1]) in _DECAYED, params)


def state_specs(optimizer: optax.GradientTransformation, opt_state, params, specs, replicated):
    """How each array of an optimizer's state is cut: a moment of a parameter's shape as the parameter, others not.

    Args:
        optimizer: whose state it is.
        opt_state: a tree of arrays or shapes.
        params: likewise.
        specs: as params, a PartitionSpec or a NamedSharding each.
        replicated: that of an array that is whole on every device, Adafactor's rows and columns among them.
    """

    def beside_parameter(leaf, param, spec):
        if isinstance(leaf, optax.MaskedNode):  # stands for a parameter that a rule does not touch
            return leaf
        return spec if leaf.shape == param.shape else replicated

    # optax says which leaves of its state belong to parameters.
    return optax.tree.map_params(
        optimizer,
        beside_parameter,
        opt_state,
        params,
        specs,
        transform_non_params=lambda _: replicated,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )


def _each_alone(rule: optax.GradientTransformation, axis: str) -> optax.GradientTransformation:
    """A rule that takes every array for one matrix, mapped over a leading axis of those that have it; in float32.

    Args:
        rule: of matrices and vectors without that axis.
        axis: of `leading_axes`, the first that parameters still have where this is called.
    """

    def axes_of(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: 0 if axis in leading_axes(path) else None, params)

    def axes_of_state(state, axes):
        return optax.tree.map_params(rule, lambda _, axis: axis, state, axes, transform_non_params=lambda _: None)

    def is_anywhere(params) -> bool:
        if not isinstance(params, dict):  # optax also asks with a placeholder
            return False
        return any(axis in leading_axes(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))

    def init(params):
        params = optax.tree.cast(params, jnp.float32)  # moments take the dtype of what they are told is the parameter
        if not is_anywhere(params):
            return rule.init(params)
        axes = axes_of(params)
        state_axes = axes_of_state(jax.eval_shape(rule.init, params), axes)
        return jax.vmap(rule.init, in_axes=(axes,), out_axes=state_axes)(params)

    def update(updates, state, params=None):
        params = optax.tree.cast(params, jnp.float32)
        if not is_anywhere(params):
            return rule.update(updates, state, params)
        axes = axes_of(params)
        state_axes = axes_of_state(state, axes)
        mapped = jax.vmap(rule.update, in_axes=(axes, state_axes, axes), out_axes=(axes, state_axes))
        return mapped(updates, state, params)

    return optax.GradientTransformation(init, update)


def _clip_by_rms(threshold: float, padding: int) -> optax.GradientTransformation:
    """Updates whose root mean square is at most `threshold` (Shazeer and Stern 2018, algorithm 4)."""

    def clip(path, update):
        axis = VOCABULARY_AXES.get(tuple(map(_name, path[-2:])))
        padded = 0 if axis is None else update.size // update.shape[axis] * padding
        rms = jnp.sqrt(jnp.sum(jnp.square(update)) / (update.size - padded))
        return update / jnp.maximum(1.0, rms / threshold)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(clip, updates))


def _muon_dimensions(params):
    """Which parameters Muon takes: the layers' kernels, whose last two axes are a matrix.

    Not lora_a and lora_b: what acts is their product, and to orthogonalise the factors does not orthogonalise it.
    """

    def dimensions(path, leaf):
        is_layer_kernel = _name(path[0]) == "layers" and _name(path[-1]) == "kernel"
        return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1) if is_layer_kernel else None

    return jax.tree_util.tree_map_with_path(dimensions, params)


def _name(entry) -> str:
    return str(getattr(entry, "key", entry))
