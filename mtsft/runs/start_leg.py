"""The start of a leg: whether it may go on in this workdir, and what is written there before its first step."""

from pathlib import Path
from typing import Any

from mtsft.errors import InputError
from mtsft.runs import legs
from mtsft.runs import workdir as workdirs
from mtsft.runs.first_process import is_first, say
from mtsft.runs.identity import check_started_from, identity
from mtsft.runs.schedule import schedule_of
from mtsft.runs.setup import TrainingSetup
from mtsft.runs.trained_dialogues import keep_trained_dialogues
from mtsft.training.checkpoint import check_same_run, read_identity


def take_workdir(workdir: Path, setup: TrainingSetup, changed: dict[str, tuple[Any, Any]]) -> None:
    """Makes the workdir this run's, or checks that it is; writes the tokenizer there."""
    told = setup.config.eval.new_series
    way_on = "" if told else "say eval.new_series=True, after which losses of the others count no longer"
    other_data = f"train on from it in a new workdir: {legs.continued(workdir, setup.config, changed)}"
    other_rows = "go on with the version of mtsft that the run was begun with, or begin another --workdir"
    ways_on = {workdirs.HELD_OUT: way_on, workdirs.TRAINED_ON: other_data, workdirs.ROWS: other_rows}
    path = workdir / workdirs.FINGERPRINT
    earlier = read_identity(path) if path.exists() else {}
    check_started_from(setup, earlier)
    check_same_run(path, identity(setup, earlier), ways_on, legs.describe_keys(changed))
    if earlier and workdirs.ROWS not in earlier:
        say("begun with an earlier version, whose rows may be others: of this epoch some dialogues may come twice")
    if is_first():
        workdirs.write_run_files(workdir, setup.dataset.spec.chat, setup.base and setup.base.published)
        keep_trained_dialogues(workdir, setup.dataset.train, setup.config.model.init_from)


def begin_leg(
    setup: TrainingSetup, workdir: Path, start: int, leg: dict[str, Any], changed: dict[str, tuple[Any, Any]]
) -> None:
    """Writes down the config that training goes on with, and says what of it is new since the last leg."""
    if leg and start:
        was = schedule_of(legs.config_of(leg), leg["steps"])
        say(*legs.describe(changed, start, leg["steps"], setup.schedule, setup.steps, was))
    if is_first():
        workdirs.write_config(workdir, setup.config)
        legs.add_leg(workdir, start, setup.steps, setup.config)


def check_leaves_nothing_out(setup: TrainingSetup, start: int, earlier: dict[str, Any], workdir: Path) -> None:
    """Raises InputError where going on after the end of an epoch would never train some rows.

    A run that counts epochs may end with a batch that is not full, and further steps begin with whole batches.

    Args:
        setup: of the run.
        start: the step to go on from.
        earlier: the result.json of the run that ended there.
        workdir: for the error.
    """
    size = setup.config.train.batch_size
    missing = start * size - earlier.get("rows", 0)
    if earlier.get("steps") == start and 0 < missing < size and setup.num_rows > earlier["rows"]:
        raise InputError(
            f"{workdir}: ended with its last epoch, in a batch of {size - missing} rows; going on from there would "
            f"leave out {missing} of the next; start another run from it: model.init_from={workdir}"
        )
