"""A trained model on dialogues that are held out: its loss, and what it says there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from mtsft.errors import InputError
from mtsft.evaluation.replies import replies
from mtsft.model.generate import Sampling, generate
from mtsft.model.parameters import Params, join, split
from mtsft.runs.pretrained import WorkdirModel, open_trained
from mtsft.runs.setup import TrainingSetup
from mtsft.runs.template_date import with_template_date

_BATCH = 32  # contexts that are replied to at a time, or some more to fill all devices


def evaluate(config: ConfigDict, workdir: str | Path | None) -> dict[str, Any]:
    """The loss of a model on what `config` holds out; see Subject."""
    return Evaluator.of(config, workdir).evaluate()


@dataclass(frozen=True)
class Evaluator:
    """A model and the held-out dialogues it is tried on, on the devices that a config says. Build it with `of`."""

    run: TrainingSetup
    params: Params

    @classmethod
    def of(cls, config: ConfigDict, workdir: str | Path | None) -> "Evaluator":
        """The best model of `workdir`, with its tokenizer; or, where that is None, the model of model.init_from.

        Raises InputError where there is no model, another one than the config's, or nothing held out.
        """
        if workdir is None:
            if not config.model.init_from:
                raise InputError("nothing to evaluate: give a --workdir, or set model.init_from")
            run = TrainingSetup.of(with_template_date(config))
            _check_held_out(run)
            return cls(run, join(run.create().params, run.frozen()))
        workdir = epath.Path(workdir).expanduser()
        base = open_trained(workdir)  # refuses before any data is read
        if not isinstance(base, WorkdirModel):
            raise InputError(
                f"{workdir}: is a Hugging Face folder, not a workdir; set model.init_from to it and leave out --workdir"
            )
        config = with_template_date(config.copy_and_resolve_references(), workdir)
        # Those of model.init_from may be others.
        config.data.tokenizer = str(workdir / "tokenizer")
        config.data.template = config.data.template or str(workdir / "template.json")
        run = TrainingSetup.of(config)
        _check_held_out(run)
        _check_same_model(run, base.config, workdir)
        return cls(run, base.restore(run.model, run.place))

    def evaluate(self) -> dict[str, Any]:
        """Held-out loss; see `mtsft.evaluation.held_out.evaluate`."""
        return self.run.evaluate(*split(self.params, self.run.trains))

    def replies(self, sampling: Sampling, max_new: int, limit: int = 0) -> list[dict[str, Any]]:
        """What the model says in held-out contexts; see `mtsft.evaluation.replies.replies`.

        max_new: tokens at most; fewer where the model's positions end.
        """
        run, stops = self.run, self.run.dataset.spec.encoder().stop_ids
        batch_size = -(-_BATCH // run.partitioner.num_shards) * run.partitioner.num_shards

        def say(prompts: list[list[int]]) -> list[list[int]]:
            rooms = [run.model.arch.positions_after(len(prompt), max_new) for prompt in prompts]
            with tqdm(total=len(prompts), desc="replies", disable=jax.process_index() > 0) as bar:
                said = generate(
                    run.model,
                    self.params,
                    prompts,
                    stops,
                    max(rooms, default=0),
                    sampling,
                    batch_size=batch_size,
                    rows=run.partitioner.batch_sharding,
                    watch=bar.update,
                    vocab_size=run.dataset.tokenizer.vocab_size,
                )
            return [reply[:room] for reply, room in zip(said, rooms, strict=True)]

        return replies(say, run.dataset.eval, run.dataset.tokenizer, stops, limit)


def _check_held_out(run: TrainingSetup) -> None:
    if run.dataset.eval is None:
        raise InputError("nothing is held out to evaluate on; set data.eval or data.eval_fraction")


def _check_same_model(run: TrainingSetup, trained: ConfigDict, workdir: Path) -> None:
    for name in run.identity():
        group, _, key = name.partition(".")
        if group not in ("model", "lora") or key not in trained[group]:
            continue
        was, now = trained[group][key], run.config[group][key]
        if was != now:
            raise InputError(
                f"{workdir} holds a model with {name}={was}, and the config says {now}; "
                "evaluate it with the config that it was trained with"
            )
