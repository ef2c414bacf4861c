"""A step that was taken again, as text, as a page or as JSON."""

import json
from collections.abc import Iterator

from mtsft.config import flat_values
from mtsft.diagnose import page
from mtsft.diagnose.html_page import html_page
from mtsft.runs.bad_steps import shown_trees
from mtsft.runs.batch_losses import rows_record, without_draws
from mtsft.runs.replay import ReplayedStep
from mtsft.training.metrics import finite


def as_sentences(replayed: ReplayedStep) -> list[str]:
    """What there is to say of a step, a line each."""
    numbers, step = replayed.numbers, replayed.step
    begun = f"the checkpoint of step {replayed.restored:,}" if replayed.restored else "the parameters it began with"
    norms = ", ".join(f"{layer} {norm:.4g}" for layer, norm in numbers["grad_norms"].items())
    written = [str(comparison) for comparison in replayed.comparisons]
    outcome = " It was not finite, and changed nothing." if replayed.skipped else ""
    return [
        f"Step {step:,}: loss {numbers['loss']:.4f} nats a token over {numbers['supervised_tokens']:,} supervised "
        f"tokens, norm of the gradient {numbers['grad_norm']:.4g}, learning rate {numbers['learning_rate']:.4g}."
        f"{outcome}",
        f"Taken again from {begun}; the losses of tokens are those before its update{without_draws(replayed.setup)}.",
        f"Norms of the gradient by layer: {norms}.",
        *(
            f"{line[0].upper()}{line[1:]}."
            for line in [*replayed.notes, *(written or ["the run wrote no numbers of this step down"])]
        ),
    ]


def _text(replayed: ReplayedStep, color: bool) -> Iterator[str]:
    yield "\n".join(as_sentences(replayed)) + "\n\n"
    shown = shown_trees(replayed.setup, replayed.trees)
    yield from page.FORMATS["text"](shown, replayed.setup.dataset.tokenizer, color, {})


def _html(replayed: ReplayedStep, color: bool) -> Iterator[str]:
    setup, shown = replayed.setup, shown_trees(replayed.setup, replayed.trees)
    config, title = flat_values(setup.config), f"Step {replayed.step:,} again"
    yield from html_page(shown, setup.dataset.tokenizer, config, title, as_sentences(replayed), True)


def _json(replayed: ReplayedStep, color: bool) -> Iterator[str]:
    record = {
        "step": replayed.step,
        "restored": replayed.restored,
        **replayed.numbers,
        "skipped": replayed.skipped,
        "compared": [
            {"file": one.file, "numbers": one.numbers, "equal": not one.different, "different": dict(one.different)}
            for one in replayed.comparisons
        ],
        "notes": list(replayed.notes),
        "rows": rows_record(replayed.setup, replayed.trees),
        "dialogues": [page.as_record(one) for one in shown_trees(replayed.setup, replayed.trees)],
    }
    yield json.dumps(finite(record)) + "\n"


# (a step, whether to color text) -> pieces of what is shown.
FORMATS = {"text": _text, "html": _html, "json": _json}
