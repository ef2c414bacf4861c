"""The pre-flight of a run: data, loss and gradients looked at before the first step counts, and what cannot be right
refused.

Nothing is compiled for it, as the first step itself is what is looked at: it is taken, and belongs to the run only once
its numbers were found possible.
"""

import json
from pathlib import Path

import jax

from mtsft.diagnose.store_counts import problems_of_store
from mtsft.diagnose.token_view import as_text, visible
from mtsft.errors import InputError, one_line
from mtsft.files import atomic_write
from mtsft.runs import first_step_checks as checks
from mtsft.runs.batch_losses import trees_of
from mtsft.runs.first_step_checks import NOTE, OK, REFUSED, Check
from mtsft.runs.setup import TrainingSetup
from mtsft.runs.stepper import Stepper
from mtsft.runs.workdir import PREFLIGHT
from mtsft.training.metrics import finite

_SHOWN, _SHOWN_ON_TERMINAL = 4000, 160  # characters of the first row
_COUNTED = (
    "dialogues",
    "kept",
    "responses",
    "tokens",
    "supervised_tokens",
    "without_response",
    "empty_replies",
    "other_authors",
    "duplicates",
    "refused",
    "altered",
    "unreadable",
)


def preflight(setup: TrainingSetup, steps: Stepper, workdir: Path) -> None:
    """Looks at a run that begins, prints a line a check and writes WORKDIR/preflight.json.

    All processes take part, and come to the same end; the first one prints and writes.

    Args:
        setup: of the run; its config.train.preflight is "refuse" or "note".
        steps: at the state before the first step, which is taken ahead of its time.
        workdir: of the run.

    Raises:
        InputError: something cannot be right, and config.train.preflight is "refuse".
    """
    train = setup.config.train
    found = [_data(setup), _batch(setup), checks.tokenizer(setup)]
    is_paired = found[-1].status == OK
    if train.preflight == "note" or all(check.status != REFUSED for check in found):
        if train.overfit_one_batch:
            found.append(checks.overfit(setup, steps, train.overfit_one_batch))
        metrics = steps.look_ahead()
        found += [checks.loss(setup, metrics, is_paired), checks.gradients(setup, metrics)]
    if jax.process_index() == 0:
        record = {"checks": [finite(check.as_record()) for check in found]}
        atomic_write(workdir / PREFLIGHT, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
        for check in found:
            print(f"pre-flight: {check.name:<10} {check.status:<8} {one_line(check.said, 400)}", flush=True)
    if train.preflight == "refuse" and (refused := [check for check in found if check.status == REFUSED]):
        raise InputError(
            f"the pre-flight refuses this run, nothing is trained: {refused[0].said}; all of it is in "
            f"{workdir / PREFLIGHT}; train.preflight='note' goes on all the same"
        )


def _data(setup: TrainingSetup) -> Check:
    counts, problems = problems_of_store(setup.dataset.train, setup.dataset.spec)
    numbers = {name: counts[name] for name in _COUNTED}
    share = counts["supervised_tokens"] / max(counts["tokens"], 1)
    said = (
        f"{counts['supervised_tokens']:,} of {counts['tokens']:,} tokens are supervised ({share:.1%}), "
        f"in {counts['responses']:,} responses of {counts['kept']:,} dialogues"
    )
    grave = [problem for problem in problems if problem["severity"] == "error"]
    told = grave or [problem for problem in problems if problem["severity"] == "warning"]
    words = [f"{problem['count']:,} {problem['what']}" for problem in told]
    if grave:
        example = f", as {grave[0]['examples'][0]}" if grave[0]["examples"] else ""
        words[0] += f"{example} ({grave[0]['remedy']})"
        said = "; ".join(words)
    elif words:
        said += "; " + "; ".join(words)
    status = REFUSED if grave else NOTE if words else OK
    return Check("data", status, said, numbers | {"problems": problems})


def _batch(setup: TrainingSetup) -> Check:
    """The first row, as `view` shows it."""
    trees = [tree for tree in trees_of(setup, 1) if tree.row == 0]
    shown = ""
    for tree in trees:
        shown += as_text(setup.dataset.train[tree.index], setup.dataset.tokenizer, color=False, turns=True) + "\n"
        if len(shown) > _SHOWN:
            break
    head = visible(shown[:_SHOWN_ON_TERMINAL]).replace("\n", " ")
    more = " ..." if len(shown) > _SHOWN_ON_TERMINAL else ""
    supervised = sum(tree.record(setup)["supervised_tokens"] for tree in trees)
    numbers = {"dialogues": len(trees), "supervised_tokens": supervised, "text": shown[:_SHOWN]}
    return Check("batch", OK if supervised else NOTE, f"the first row begins: {head}{more}", numbers)
