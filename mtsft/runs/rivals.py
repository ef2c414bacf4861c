"""Other models that a model is compared with, on the dialogues that it is evaluated on."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mtsft.config import default
from mtsft.errors import InputError
from mtsft.files import path_of
from mtsft.hub import located
from mtsft.interop.hub_files import MODEL_FILES
from mtsft.runs.evaluator import Evaluation, Evaluator
from mtsft.runs.hub_model import is_hub_folder
from mtsft.runs.setup import TrainingSetup
from mtsft.runs.trained_model import open_trained

_OWN = ("tokenizer", "template", "cache_dir", "workers")  # keys of data that each model has its own of


def check_rivals(names: Sequence[str], workdir: str | Path | None, places: Sequence[str | Path] = ()) -> None:
    """Raises InputError for a model that there is not, before any is evaluated; arguments as of `compare_with`."""
    for name in names:
        place, step = _place(name, workdir)
        open_trained(place, step, places)


def compare_with(
    setup: TrainingSetup,
    mine: Evaluation,
    names: Sequence[str],
    workdir: str | Path | None,
    places: Sequence[str | Path] = (),
) -> Iterator[dict[str, Any]]:
    """What each of some other models makes of the same dialogues, one model in memory after the other.

    Args:
        setup: of the model that they are compared with.
        mine: what was measured of it.
        names: of the others: a workdir, a Hugging Face folder or ORG/NAME; WORKDIR@STEP, or @STEP of `workdir`.
        workdir: of that model; None where it has none.
        places: folders where what runs started from may be by now.

    Yields:
        For each what `Evaluation.record` returns, and {model: its name}.

    Raises:
        InputError: there is no such model, or it reads these dialogues as other tokens.
    """
    for name in names:
        rival = open_rival(setup, name, workdir, places)
        yield {"model": name} | rival.score(mine.fields).record(mine)


def open_rival(
    setup: TrainingSetup, name: str, workdir: str | Path | None, places: Sequence[str | Path] = ()
) -> Evaluator:
    """A model that is to be compared, on the dialogues of `setup`; arguments as those of `compare_with`."""
    place, step = _place(name, workdir)
    config = default()
    shared = {key: value for key, value in setup.config.data.items() if key not in _OWN}
    with config.ignore_type():  # several files come as a tuple
        config.data.update(shared | {key: setup.config.data[key] for key in ("cache_dir", "workers")})
    config.eval.update(setup.config.eval)
    config.parallel.compilation_cache = setup.config.parallel.compilation_cache
    told = [f"data.{key}" for key in shared] + ["eval.batch_size", "eval.turns"]
    if is_hub_folder(path_of(located(place, MODEL_FILES))):
        config.model.init_from = place
        config.parallel.mesh = setup.config.parallel.mesh
        config.model.update({key: setup.config.model[key] for key in ("dtype", "param_dtype")})
        rival = Evaluator.of(config, None, step)
    else:
        rival = Evaluator.of(config, place, step, told, places)
    mine, its = setup.dataset, rival.setup.dataset
    if its.eval.content != mine.eval.content:
        raise InputError(
            f"--against={name}: reads these dialogues as other tokens, by another tokenizer or template, and losses "
            "a token are then not to be compared; evaluate it by itself"
        )
    return rival


def _place(name: str, workdir: str | Path | None) -> tuple[str, int | None]:
    """The folder and the step that a name says."""
    match = re.fullmatch(r"(.*)@(\d+)", name)
    if match is None or (match[1] and not path_of(match[1]).is_dir()):  # ORG/NAME@7 is a revision of the Hub
        return name, None
    if not match[1] and workdir is None:
        raise InputError(f"--against={name}: is a step of --workdir, which is left out")
    return match[1] or str(workdir), int(match[2])
