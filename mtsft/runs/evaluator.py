"""A trained model on held-out dialogues: its loss, and its replies."""

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from mtsft.errors import InputError
from mtsft.evaluation.breakdown import Breakdown
from mtsft.evaluation.replies import count_replies, replies
from mtsft.evaluation.response_labels import check_fields, label_responses
from mtsft.evaluation.score_table import as_scores
from mtsft.evaluation.token_groups import TokenGroups
from mtsft.evaluation.token_scores import TokenPlaces
from mtsft.files import path_of
from mtsft.model.generate import Sampling
from mtsft.model.parameters import Params, join, split
from mtsft.progress import Progress
from mtsft.runs.checkpoint_choice import CheckpointChoice
from mtsft.runs.compiled import compile_token_scores
from mtsft.runs.evaluation_config import evaluation_config, with_own_chat
from mtsft.runs.identity import held_out_name
from mtsft.runs.samples import replier
from mtsft.runs.setup import TrainingSetup
from mtsft.runs.template_date import with_template_date
from mtsft.runs.trained_dialogues import count_trained
from mtsft.runs.trained_model import TrainedModel, WorkdirModel, open_trained
from mtsft.training.sharding import make_mesh, param_shardings


def evaluate_workdir(config: ConfigDict, workdir: str | Path | None) -> dict[str, Any]:
    """The loss of a model on what `config` holds out; arguments as those of `Evaluator.of`."""
    return Evaluator.of(config, workdir).evaluate()


class Evaluation(NamedTuple):
    """What was measured of a model, without the model.

    Attributes:
        breakdown: the tables of its scores.
        known: of model and dialogues: {dialogues, step, checkpoint (in words), trained_on, notes}.
        fields: the tables that are by a field of the dialogues.
        is_own: whether the dialogues are those that the run held out.
    """

    breakdown: Breakdown
    known: dict[str, Any]
    fields: tuple[str, ...]
    is_own: bool

    def record(self, base: "Evaluation | None" = None) -> dict[str, Any]:
        """What `mtsft.evaluation.score_table.as_scores` returns, and what is known. base: what it is compared with."""
        return as_scores(self.breakdown, self.fields, base and base.breakdown) | self.known


@dataclass(frozen=True)
class Evaluator:
    """A model and the held-out dialogues that it is evaluated on. Build it with `of`.

    Attributes:
        setup: of the config: dialogues, model, devices; without training dialogues.
        params: all parameters of the model.
        checkpoint: which checkpoint they are of, and why; None for a Hugging Face folder.
        trained_on: how many of the dialogues the model was trained on, word for word; None where that is not known.
        notes: sentences on what else there is to know.
        is_own: whether the dialogues are those that the run held out.
    """

    setup: TrainingSetup
    params: Params
    checkpoint: CheckpointChoice | None
    trained_on: int | None
    notes: Sequence[str]
    is_own: bool

    @classmethod
    def of(
        cls,
        config: ConfigDict,
        workdir: str | Path | None,
        step: int | None = None,
        told: Collection[str] = (),
        places: Sequence[str | Path] = (),
    ) -> "Evaluator":
        """Reads a model and opens the dialogues.

        Args:
            config: which dialogues are held out, and the devices; what it leaves at the default is as in the run.
            workdir: of the run whose model is evaluated, with its own config, tokenizer and template; None for
                model.init_from.
            step: of the checkpoint of the run; None for the best.
            told: the keys of `config` that somebody set one by one, and that are not left to the run.
            places: folders where what the run started from may be by now, in place of where it was.

        Raises:
            InputError: there is no model, another one than the config's, or nothing is held out.
        """
        if config.parallel.mode == "pmap":  # which sums over rows, where scores of each token are wanted
            config = config.copy_and_resolve_references()
            config.parallel.mode = "jit"
        if workdir is None:
            return cls._of_init_from(config, step)
        workdir = path_of(workdir)
        base = open_trained(workdir, step, places)  # refuses before any data is read
        if not isinstance(base, WorkdirModel):
            raise InputError(
                f"{workdir}: is a Hugging Face folder, not a workdir; set model.init_from to it and leave out --workdir"
            )
        config, notes = evaluation_config(base.config, config, told, workdir)
        config.parallel.mode = "jit"
        config.model.update({name: type(config.model[name])(value) for name, value in base.fields.items()})
        config.model.init_from = config.model.grow_vocab = config.lora.init_from = ""  # the workdir says all of it
        config = with_own_chat(config, workdir, told)  # those of model.init_from may be others
        if not {"parallel.mesh", "parallel.mode"} & {*told}:
            _fit_devices(config, base)
        setup = TrainingSetup.of(with_template_date(config, workdir), trains=False)
        _check_held_out(setup)
        return cls._checked(setup, base.restore(setup.model, setup.param_shardings), base, notes)

    @classmethod
    def _of_init_from(cls, config: ConfigDict, step: int | None) -> "Evaluator":
        if not config.model.init_from:
            raise InputError("nothing to evaluate: give a --workdir, or set model.init_from")
        if step is not None:
            raise InputError("--step is of --workdir, which is left out")
        setup = TrainingSetup.of(with_template_date(config), trains=False)
        _check_held_out(setup)
        return cls._checked(setup, join(setup.create().params, setup.frozen()), setup.base, [])

    @classmethod
    def _checked(cls, setup: TrainingSetup, params: Params, base: TrainedModel, notes: Sequence[str]) -> "Evaluator":
        """With what is to be said of the dialogues."""
        trained_on, notes, is_own = None, [*notes], False
        if isinstance(base, WorkdirModel) and not base.is_converted:
            trained_on, unknown = count_trained(base.path, setup.dataset.eval)
            if trained_on is None:
                notes.append(f"whether the model was trained on these dialogues could not be checked: {unknown}")
            elif trained_on:
                notes.append(
                    f"{trained_on:,} of the {len(setup.dataset.eval):,} dialogues are word for word among those that "
                    "the model was trained on"
                )
            is_own = base.held_out == held_out_name(setup)
            if base.held_out and not is_own:
                notes.append("these are other dialogues than the run held out, whose losses are not to be compared")
        return cls(setup, params, base.checkpoint, trained_on, notes, is_own)

    def evaluate(self) -> dict[str, Any]:
        """Held-out loss, see `Evaluation.record`."""
        return self.score().record()

    def score(self, fields: Sequence[str] = ()) -> "Evaluation":
        """The scores of every held-out token.

        Args:
            fields: of the dialogues' own records, for each of which there is a table.

        Raises:
            InputError: no dialogue has such a field.
        """
        setup, params = self.setup, split(self.params, self.setup.trains)
        dataset, stop_ids = setup.dataset, tuple(setup.dataset.spec.encoder().stop_ids)
        check_fields(dataset.eval, dataset.spec, fields)
        with ThreadPoolExecutor(1) as beside:  # the host tells tokens apart while the device scores them
            groups = beside.submit(_groups, setup, stop_ids, fields)
            found = compile_token_scores(setup, stop_ids)(*params)
            breakdown = Breakdown(groups.result(), found.scores)
        step, said = (self.checkpoint.step, str(self.checkpoint)) if self.checkpoint else (None, None)
        known = {
            "dialogues": len(dataset.eval_epochs.members(0)),  # one with a share of 2 is there twice
            "step": step,
            "checkpoint": said,
            "trained_on": self.trained_on,
            "notes": [*self.notes],
        }
        return Evaluation(breakdown, known, tuple(fields), self.is_own)

    def replies(self, sampling: Sampling, max_new: int, limit: int = 0) -> Iterator[dict[str, Any]]:
        """The model's replies in held-out contexts, some at a time; see `mtsft.evaluation.replies.replies`.

        Args:
            sampling: how tokens are chosen.
            max_new: tokens of a reply at most; fewer where the model's positions end.
            limit: dialogues to reply to; 0 for all.
        """
        setup, stops = self.setup, self.setup.dataset.spec.encoder().stop_ids
        total = count_replies(setup.dataset.eval, limit)
        with Progress("replies", total, "replies", jax.process_index() == 0) as bar:
            say = replier(setup, self.params, sampling, max_new, bar.advance)
            yield from replies(say, setup.dataset.eval, setup.dataset.tokenizer, stops, limit)


def _groups(setup: TrainingSetup, stop_ids: Sequence[int], fields: Sequence[str]) -> TokenGroups:
    """What each held-out token is part of."""
    dataset = setup.dataset
    groups = TokenGroups(dataset.eval, TokenPlaces.of(dataset.eval_epochs), stop_ids, setup.config.eval.turns)
    label_responses(dataset.eval, dataset.spec, fields).add_to(groups)
    return groups


def _check_held_out(setup: TrainingSetup) -> None:
    if setup.dataset.eval is None:
        raise InputError("nothing is held out to evaluate on; set data.eval or data.eval_fraction")


def _fit_devices(config: ConfigDict, base: WorkdirModel) -> None:
    """Changes a mesh that was made for other devices: parameters are cut over all there are, if their sizes divide."""
    try:
        make_mesh(config.parallel.mesh)
    except InputError:
        config.parallel.mode = "jit"
        try:
            config.parallel.mesh = "fsdp=-1"
            shapes = jax.eval_shape(base.model(scan_layers=True).init, jax.random.key(0))
            param_shardings(shapes, make_mesh(config.parallel.mesh))
        except InputError:
            config.parallel.mesh = ""
