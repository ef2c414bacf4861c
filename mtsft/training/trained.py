"""A trained model as it lies in a workdir, with its tokenizer and its template: to talk to, and to evaluate."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from etils import epath
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from mtsft.dialogue.encode import Encoder
from mtsft.dialogue.formats import parse_record
from mtsft.dialogue.recipe import Recipe
from mtsft.dialogue.schema import Message
from mtsft.errors import InputError
from mtsft.model.sampling import generate
from mtsft.model.transformer import Architecture, Model, Params
from mtsft.training.checkpoint import Checkpoints
from mtsft.training.run import Run
from mtsft.training.sharding import param_shardings
from mtsft.training.workdir import nothing_in, read_chat, read_config, with_its_date


@dataclass(frozen=True)
class Trained:
    """A model as it was after `step` steps, on one device. Build it with `load`."""

    config: ConfigDict
    model: Model
    params: Params
    encoder: Encoder
    step: int

    def reply(self, messages: Sequence[Message | tuple[str, str]], max_new: int = 256) -> str:
        """What the model says next: the most probable tokens, up to its stop and without it.

        messages: the conversation so far, as Messages or (role, content) pairs; rendered as in training.
        max_new: tokens at most. Raises InputError for a role or a content that no dialogue can have.
        """
        said = [(m.role, m.content) if isinstance(m, Message) else m for m in messages]
        records = [{"role": role, "content": content} for role, content in said]
        dialogue = parse_record({"messages": records}, "the conversation")
        encoder, stops = self.encoder, self.encoder.stop_ids
        # Few lengths, so that a conversation that grows does not compile at every turn.
        (tokens,) = generate(self.model, self.params, [encoder.prompt(dialogue)], stops, max_new, length_multiple=256)
        return encoder.tokenizer.decode([token for token in tokens if token not in stops])


def load(workdir: str | Path, step: int | None = None) -> Trained:
    """The model that was trained in `workdir`, which needs nothing but what lies there.

    step: of the checkpoint; None for the best by held-out loss, or the newest where nothing was held out.
    Raises InputError where there is no such model.
    """
    workdir = epath.Path(workdir).expanduser()
    config = read_config(workdir)
    stops = tuple(stop.strip() for stop in config.data.stops.split(",") if stop.strip())
    encoder = Recipe(read_chat(workdir), config.data.sequence_length, stops=stops).encoder()
    model = Model(Architecture(**config.model, vocab_size=encoder.tokenizer.vocab_size))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    device = SingleDeviceSharding(jax.local_devices()[0])
    with Checkpoints(workdir / "checkpoints", model, keep=0) as checkpoints:
        step = _choose(checkpoints, step, workdir)
        params = checkpoints.restore_params(step, shapes, partial(jax.tree.map, lambda _: device))
    return Trained(config, model, params, encoder, step)


def evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """The loss of the best model of `workdir` on what `config` holds out, on the devices that it says.

    Dialogues are read with the tokenizer of the workdir. Returns what `mtsft.diagnose.evaluation.evaluate` does.
    Raises InputError where there is no model, another one than the config's, or nothing held out.
    """
    workdir = epath.Path(workdir).expanduser()
    trained = read_config(workdir)  # refuses before any data is read
    config = with_its_date(config.copy_and_resolve_references(), workdir)
    config.data.tokenizer = str(workdir / "tokenizer")
    run = Run.of(config)
    if run.dataset.eval is None:
        raise InputError("nothing is held out to evaluate on; set data.eval or data.eval_fraction")
    _check_same_model(run, trained, workdir)
    with Checkpoints(workdir / "checkpoints", run.model, keep=0) as checkpoints:
        step = _choose(checkpoints, None, workdir)
        params = checkpoints.restore_params(step, run.shapes.params, partial(param_shardings, mesh=run.door.mesh))
    return run.evaluate(params)


def as_table(scores: dict[str, Any]) -> str:
    """What `evaluate` returned as aligned lines: the whole, then every turn."""
    return "\n".join(
        [
            f"held-out loss {scores['loss']:.4f} (nats per supervised token)",
            f"over {scores['supervised_tokens']:,} supervised tokens of {scores['dialogues']:,} dialogues",
            "",
            f"{'assistant turn':>14} {'loss':>9} {'supervised tokens':>18}",
            *(f"{t['turn'] + 1:>14} {t['loss']:>9.4f} {t['supervised_tokens']:>18,}" for t in scores["by_turn"]),
        ]
    )


def _choose(checkpoints: Checkpoints, step: int | None, workdir: Path) -> int:
    steps = checkpoints.steps
    if not steps:
        raise nothing_in(workdir, "no checkpoint is whole yet")
    if step is not None and step not in steps:
        raise InputError(f"{workdir} holds no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
    return checkpoints.best if step is None else step


def _check_same_model(run: Run, trained: ConfigDict, workdir: Path) -> None:
    for name in run.identity():
        group, _, key = name.partition(".")
        if group == "model" and key in trained.model and trained.model[key] != run.config.model[key]:
            raise InputError(
                f"{workdir} holds a model with {name}={trained.model[key]}, and the config says "
                f"{run.config.model[key]}; evaluate it with the config that it was trained with"
            )
