"""A trained model as it lies in a workdir, with its tokenizer and its template: to talk to, and to evaluate."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from etils import epath
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from mtsft.config import default
from mtsft.dialogue import readers
from mtsft.dialogue import template as templates
from mtsft.dialogue import tokenizer as tokenizers
from mtsft.dialogue.encode import Encoder
from mtsft.dialogue.schema import Message
from mtsft.dialogue.tree import paths
from mtsft.errors import InputError, one_line
from mtsft.model.sampling import generate
from mtsft.model.transformer import Architecture, Model, Params
from mtsft.training.checkpoint import Checkpoints
from mtsft.training.run import Run
from mtsft.training.sharding import param_shardings


@dataclass(frozen=True)
class Trained:
    """A model as it was after `step` steps, on one device. Build it with `load`."""

    config: ConfigDict
    model: Model
    params: Params
    tokenizer: tokenizers.Tokenizer
    template: templates.ChatML
    step: int

    def reply(self, messages: Sequence[Message | tuple[str, str]], max_new: int = 256) -> str:
        """What the model says next: the most probable tokens, up to its stop and without it.

        messages: the conversation so far, as Messages or (role, content) pairs; rendered as in training.
        max_new: tokens at most. Raises InputError for a role or a content that no dialogue can have.
        """
        said = [(m.role, m.content) if isinstance(m, Message) else m for m in messages]
        # The context of one more response, whatever it will be.
        records = [{"role": role, "content": content} for role, content in [*said, ("assistant", "")]]
        dialogue = readers.parse_record({"messages": records}, "the conversation")
        encoder = Encoder(self.template, self.tokenizer, max_length=sys.maxsize)
        _, context_N, _ = paths(encoder(dialogue))[-1]
        stop = self.tokenizer.marker_ids[self.template.stop]
        # Few lengths, so that a conversation that grows does not compile at every turn.
        (tokens,) = generate(self.model, self.params, [context_N.tolist()], stop, max_new, length_multiple=256)
        return self.tokenizer.decode([token for token in tokens if token != stop])


def load(workdir: str | Path, step: int | None = None) -> Trained:
    """The model that was trained in `workdir`, which needs nothing but what lies there.

    step: of the checkpoint; None for the best by held-out loss, or the newest where nothing was held out.
    Raises InputError where there is no such model.
    """
    workdir = epath.Path(workdir).expanduser()
    config = _read_config(workdir)
    template = templates.load(config.data.template)
    tokenizer = tokenizers.load(_tokenizer_file(workdir), template.markers)
    model = Model(Architecture(**config.model, vocab_size=tokenizer.vocab_size))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    device = SingleDeviceSharding(jax.local_devices()[0])
    with Checkpoints(workdir / "checkpoints", model, keep=0) as checkpoints:
        step = _choose(checkpoints, step, workdir)
        params = checkpoints.restore_params(step, shapes, partial(jax.tree.map, lambda _: device))
    return Trained(config, model, params, tokenizer, template, step)


def evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """The loss of the best model of `workdir` on what `config` holds out, on the devices that it says.

    Dialogues are read with the tokenizer of the workdir. Returns what `mtsft.diagnose.evaluation.evaluate` does.
    Raises InputError where there is no model, another one than the config's, or nothing held out.
    """
    workdir = epath.Path(workdir).expanduser()
    trained = _read_config(workdir)  # refuses before any data is read
    config = config.copy_and_resolve_references()
    config.data.tokenizer = str(_tokenizer_file(workdir))
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


def _tokenizer_file(workdir: Path) -> Path:
    return workdir / "tokenizer" / "tokenizer.model"


def _nothing_in(workdir: Path, lack: str) -> InputError:
    return InputError(
        f"{workdir} holds no trained model ({lack}); "
        f"train one first with python -m mtsft.train --config=... --workdir={workdir}"
    )


def _read_config(workdir: Path) -> ConfigDict:
    """The config that a run left in its workdir."""
    path, config = workdir / "config.json", default()
    for needed in (path, _tokenizer_file(workdir), workdir / "checkpoints"):
        if not needed.exists():
            raise _nothing_in(workdir, f"no {needed.relative_to(workdir)}")
    try:
        with config.ignore_type():  # tuples come back as lists
            config.update(json.loads(path.read_text()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: not the config of a run of this version: {one_line(error, 100)}") from error
    return config


def _choose(checkpoints: Checkpoints, step: int | None, workdir: Path) -> int:
    steps = checkpoints.steps
    if not steps:
        raise _nothing_in(workdir, "no checkpoint is whole yet")
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
