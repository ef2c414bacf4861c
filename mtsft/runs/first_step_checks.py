"""What the numbers of a first step say: whether the loss and the gradients of a run that begins can be right."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtsft.runs.batch_losses import BatchLosses
from mtsft.runs.setup import TrainingSetup
from mtsft.runs.stepper import Stepper
from mtsft.runs.tokenizer_pairing import pairing, supervised_tokens
from mtsft.runs.trained_model import TrainedModel
from mtsft.training.grad_norms import by_layer, each_parameter
from mtsft.training.initial_loss import AT_GUESSING, CLOSE_TO_GUESSING, fresh_band, unigram_entropy
from mtsft.training.token_losses import USUAL, TokenObjective

OK, NOTE, REFUSED = "ok", "note", "refused"
FITTED = 0.5  # of its first value: what the loss of one batch must fall below
_POINTS, _NAMED = 12, 5  # of a curve that is kept; parameters that a sentence names

Metrics = Mapping[str, Any]


class Check(NamedTuple):
    """One thing that was looked at.

    Attributes:
        name: of it.
        status: OK, NOTE or REFUSED.
        said: a sentence.
        numbers: what it was told by.
    """

    name: str
    status: str
    said: str
    numbers: Mapping[str, Any]

    def as_record(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"name": self.name, "status": self.status, "said": self.said, **self.numbers}


def loss(setup: TrainingSetup, metrics: Metrics, is_paired: bool) -> Check:
    """The loss before the first step: that of a fresh model is about log V, that of a trained one far below.

    Args:
        setup: of the run.
        metrics: of the first step, fetched.
        is_paired: whether the tokenizer is known to be that of the base.
    """
    vocab_size, tokens = setup.model.arch.vocab_size, int(metrics["supervised_tokens"])
    guessing = math.log(vocab_size)
    numbers = {"loss": float(metrics["loss"]), "log_vocab_size": guessing, "supervised_tokens": tokens}
    if not tokens:
        return Check("loss", NOTE, "the first batch has no supervised token, so that it has no loss", numbers)
    if not math.isfinite(numbers["loss"]):
        return Check("loss", REFUSED, "the loss of the first batch is not finite: look at the parameters it began with",
                     numbers)  # fmt: skip
    if not _is_likelihood(setup):
        said = "is of another kind than -log Pr, as objective says, and cannot be compared with guessing"
        return Check("loss", OK, f"the loss before the first step, {numbers['loss']:.3f}, {said}", numbers)
    if setup.base is None:
        return _fresh_loss(setup, numbers, guessing)
    return _base_loss(setup, numbers, guessing, is_paired)


def _fresh_loss(setup: TrainingSetup, numbers: dict[str, Any], guessing: float) -> Check:
    arch, value = setup.model.arch, numbers["loss"]
    band = fresh_band(arch.vocab_size, arch.hidden_size, arch.initializer_range, arch.tie_word_embeddings)
    numbers |= {"low": band.low, "high": band.high}
    beside = f"log V = {guessing:.3f} for guessing one of {arch.vocab_size:,} tokens"
    said = f"{value:.3f} nats a token before the first step, beside {beside}"
    if band.holds(value):
        return Check("loss", OK, said, numbers)
    said += f"; a fresh model has between {band.low:.2f} and {band.high:.2f}, so that it is not what it should be: "
    said += "look at model.initializer_range, and at what code was changed"
    return Check("loss", REFUSED, said, numbers)


def tokenizer(setup: TrainingSetup) -> Check:
    """Whether the tokens of the dialogues are those that the model was trained with."""
    if not isinstance(setup.base, TrainedModel):
        return Check("tokenizer", OK, "the model begins fresh, and any tokenizer will do", {})
    found = pairing(setup.base, setup.dataset.tokenizer, supervised_tokens(setup.dataset.train))
    if found is None:
        return Check("tokenizer", NOTE, f"{setup.base.path} holds no tokenizer to compare that of the run with", {})
    numbers = {"different": found.share}
    if not found.is_told:
        return Check("tokenizer", OK, "its tokens mean the same to the model of model.init_from", numbers)
    said = (
        f"{found.share:.1%} of the supervised tokens mean another text to the model of model.init_from: {found.example}"
    )
    if not found.is_wrong:
        return Check("tokenizer", NOTE, said, numbers)
    said += ". It was trained with another tokenizer; use its own (leave data.tokenizer empty)"
    return Check("tokenizer", REFUSED, said, numbers)


def _base_loss(setup: TrainingSetup, numbers: dict[str, Any], guessing: float, is_paired: bool) -> Check:
    value, vocab_size = numbers["loss"], setup.model.arch.vocab_size
    unigram = unigram_entropy(supervised_tokens(setup.dataset.train))
    numbers |= {"unigram_entropy": unigram, "bound": CLOSE_TO_GUESSING * guessing}
    beside = f"log V = {guessing:.3f} for guessing one of {vocab_size:,} tokens"
    said = f"{value:.3f} nats a token before the first step, beside {beside}"
    if value < numbers["bound"]:
        if unigram is None or value < unigram:
            return Check("loss", OK, said, numbers)
        said += f"; the tokens' own frequencies cost {unigram:.3f}, less than this model: see whether tokenizer and "
        return Check("loss", NOTE, said + "template are its own", numbers)
    knows_little = "; it knows as little as a fresh model: see whether it is the one that you mean"
    if is_paired and value < guessing + AT_GUESSING:
        return Check("loss", NOTE, said + knows_little, numbers)
    # Either it knows nothing, and says so, or it is sure of itself and wrong. The step has moved the parameters.
    expected = BatchLosses(setup).entropy(setup.create().params, setup.frozen(), 1)
    numbers |= {"expected": expected}
    if expected >= numbers["bound"]:
        return Check("loss", NOTE, said + knows_little, numbers)
    said += (
        f", although it is sure of itself (it expects {expected:.3f}): the sign of a model that is given ids of "
        "another tokenizer, or of damaged parameters; use the tokenizer that it was trained with"
    )
    return Check("loss", REFUSED, said, numbers)


def _is_likelihood(setup: TrainingSetup) -> bool:
    """Whether the loss that is trained is the mean of -log Pr."""
    objective = setup.config.objective
    return TokenObjective(**{name: objective[name] for name in USUAL.__dataclass_fields__}) == USUAL


def gradients(setup: TrainingSetup, metrics: Metrics) -> Check:
    """Whether a gradient reaches everything that is trained; metrics: of the first step, fetched."""
    each, norm = each_parameter(metrics["parameter_grad_norms"]), float(metrics["grad_norm"])
    numbers = {"grad_norm": norm, "grad_norms": by_layer(metrics["parameter_grad_norms"])}
    wild = [name for name, value in each.items() if not math.isfinite(value)]
    if wild:
        said = f"the gradient of the first batch is not finite in {_some(wild)}"
        return Check("gradients", REFUSED, said, numbers | {"not_finite": wild})
    # Fresh adapters begin with lora_b at 0, through which nothing reaches lora_a in the first step.
    fresh = not setup.config.lora.init_from
    still = [name for name, value in each.items() if not value and not (fresh and name.endswith("/lora_a"))]
    if not int(metrics["supervised_tokens"]):
        said = "the first batch has no supervised token, so that it has no gradient"
        return Check("gradients", NOTE, said, numbers)
    if not norm:
        said = "the gradient of the first batch is exactly 0 everywhere: nothing would be learnt"
        return Check("gradients", REFUSED, said, numbers | {"zero": still})
    if still:
        said = f"the first batch's gradient is exactly 0 in {_some(still)}, which is to be trained"
        return Check("gradients", NOTE, said, numbers | {"zero": still})
    layers = [value for name, value in numbers["grad_norms"].items() if name.startswith("layers/")]
    said = f"reach all that is trained; norm {norm:.3g}"
    said += f", of a layer {min(layers):.3g} to {max(layers):.3g}" if layers else ""
    return Check("gradients", OK, said, numbers)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")


def overfit(setup: TrainingSetup, steps: Stepper, count: int) -> Check:
    """Trains a copy of the state on the first batch alone, at the highest learning rate of the run.

    Args:
        setup: of the run.
        steps: at the state before the first step, which stays.
        count: steps on the batch.
    """
    points = np.unique(np.linspace(0, setup.steps - 1, min(setup.steps, 512)).astype(int)).tolist()
    peak = max(points, key=lambda step: float(setup.schedule(step)))
    source = setup.train_batches()
    state, losses = jax.tree.map(jnp.copy, steps.state), []
    for _ in range(count + 1):
        state = state._replace(step=jax.tree.map(lambda step: jnp.full_like(step, peak), state.step))
        batch = setup.partitioner.put(source[0], setup.config.train.batch_size)
        state, metrics = steps.compiled(state, steps.frozen, batch)
        losses.append(float(jax.device_get(metrics["loss"])))
    kept = np.unique(np.linspace(0, count, min(count + 1, _POINTS)).astype(int)).tolist()
    curve = [{"step": step, "loss": losses[step]} for step in kept]
    least = min((value for value in losses if math.isfinite(value)), default=math.nan)
    said = f"on one batch alone the loss goes from {losses[0]:.3f} to {least:.3f} in {count:,} steps"
    numbers = {"steps": count, "first": losses[0], "least": least, "wanted": FITTED * losses[0], "curve": curve}
    if least < numbers["wanted"]:
        return Check("overfit", OK, said, numbers)
    said += f", and not below {numbers['wanted']:.3f}, half of what it was: a model that learns does, in steps enough "
    said += "at a fitting train.learning_rate"
    return Check("overfit", NOTE if least < losses[0] else REFUSED, said, numbers)
