"""A trained model on held-out dialogues: its loss, and its replies."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mtsft.errors import InputError
from mtsft.evaluation.replies import replies
from mtsft.files import folder_of
from mtsft.model.generate import Sampling, generate
from mtsft.model.parameters import Params, join, split
from mtsft.progress import Progress
from mtsft.runs.compiled import compile_evaluation
from mtsft.runs.hub_commits import with_hub_commits
from mtsft.runs.identity import identity
from mtsft.runs.setup import TrainingSetup
from mtsft.runs.template_date import with_template_date
from mtsft.runs.trained_model import WorkdirModel, open_trained

_BATCH = 32  # contexts that are replied to at a time, or some more to fill all devices


def evaluate_workdir(config: ConfigDict, workdir: str | Path | None) -> dict[str, Any]:
    """The loss of a model on what `config` holds out; arguments as those of `Evaluator.of`."""
    return Evaluator.of(config, workdir).evaluate()


@dataclass(frozen=True)
class Evaluator:
    """A model and the held-out dialogues that it is evaluated on. Build it with `of`.

    Attributes:
        setup: of the config: dialogues, model, devices.
        params: all parameters of the model.
    """

    setup: TrainingSetup
    params: Params

    @classmethod
    def of(cls, config: ConfigDict, workdir: str | Path | None) -> "Evaluator":
        """Reads a model and opens the dialogues.

        Args:
            config: which dialogues are held out, and the devices.
            workdir: of the run whose best model is evaluated, with its own tokenizer; None for model.init_from.

        Raises:
            InputError: there is no model, another one than the config's, or nothing is held out.
        """
        if workdir is None:
            if not config.model.init_from:
                raise InputError("nothing to evaluate: give a --workdir, or set model.init_from")
            setup = TrainingSetup.of(with_template_date(config))
            _check_held_out(setup)
            return cls(setup, join(setup.create().params, setup.frozen()))
        workdir = folder_of(workdir)
        base = open_trained(workdir)  # refuses before any data is read
        if not isinstance(base, WorkdirModel):
            raise InputError(
                f"{workdir}: is a Hugging Face folder, not a workdir; set model.init_from to it and leave out --workdir"
            )
        config = with_hub_commits(with_template_date(config.copy_and_resolve_references(), workdir), workdir)
        # Those of model.init_from may be others.
        config.data.tokenizer = str(workdir / "tokenizer")
        config.data.template = config.data.template or str(workdir / "template.json")
        setup = TrainingSetup.of(config)
        _check_held_out(setup)
        _check_same_model(setup, base.config, workdir)
        return cls(setup, base.restore(setup.model, setup.param_shardings))

    def evaluate(self) -> dict[str, Any]:
        """Held-out loss; see `mtsft.evaluation.held_out.evaluate`."""
        return compile_evaluation(self.setup)(*split(self.params, self.setup.trains))

    def replies(self, sampling: Sampling, max_new: int, limit: int = 0) -> list[dict[str, Any]]:
        """The model's replies in held-out contexts; see `mtsft.evaluation.replies.replies`.

        Args:
            sampling: how tokens are chosen.
            max_new: tokens of a reply at most; fewer where the model's positions end.
            limit: dialogues to reply to; 0 for all.
        """
        setup, stops = self.setup, self.setup.dataset.spec.encoder().stop_ids
        batch_size = -(-_BATCH // setup.partitioner.num_shards) * setup.partitioner.num_shards

        def say(prompts: list[list[int]]) -> list[list[int]]:
            most = [setup.model.arch.positions_after(len(prompt), max_new) for prompt in prompts]
            with Progress("replies", len(prompts), "replies", jax.process_index() == 0) as bar:
                tokens = generate(
                    setup.model,
                    self.params,
                    prompts,
                    stops,
                    max(most, default=0),
                    sampling,
                    batch_size=batch_size,
                    rows=setup.partitioner.batch_sharding,
                    watch=bar.advance,
                    vocab_size=setup.dataset.tokenizer.vocab_size,
                )
            return [reply[:count] for reply, count in zip(tokens, most, strict=True)]

        return replies(say, setup.dataset.eval, setup.dataset.tokenizer, stops, limit)


def _check_held_out(setup: TrainingSetup) -> None:
    if setup.dataset.eval is None:
        raise InputError("nothing is held out to evaluate on; set data.eval or data.eval_fraction")


def _check_same_model(setup: TrainingSetup, trained: ConfigDict, workdir: Path) -> None:
    for name in identity(setup):
        group, _, key = name.partition(".")
        if group not in ("model", "lora") or key not in trained[group]:
            continue
        was, now = trained[group][key], setup.config[group][key]
        if was != now:
            raise InputError(
                f"{workdir} holds a model with {name}={was}, and the config says {now}; "
                "evaluate it with the config that it was trained with"
            )
