"""What is measured of a model when its training is finished, beside the held-out loss."""

from typing import Any

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from mtsft.evaluation import context_recall
from mtsft.model.parameters import Params
from mtsft.runs.loop import Measure
from mtsft.runs.setup import TrainingSetup


def final_measure(config: ConfigDict) -> Measure | None:
    """What to measure of the model of a config: on the built-in corpus, whether it uses earlier turns; else nothing."""
    return _context_recall if config.data.corpus else None


def _context_recall(setup: TrainingSetup, params: Params) -> tuple[dict[str, Any], list[str]]:
    """What the model makes of earlier turns in the built-in corpus's held-out dialogues: results, and lines on them."""
    if setup.dataset.eval is None:
        return {}, []
    if jax.process_count() > 1:
        params = multihost_utils.process_allgather(setup.partitioner.as_global(params), tiled=True)
    encoder, (corpus,) = setup.dataset.spec.encoder(), setup.dataset.eval.files
    scores = context_recall.measure(setup.model, params, encoder, corpus)
    return scores, [
        "",
        "A held-out conversation, every turn answered by the model in the true history:",
        context_recall.answered_conversation(setup.model, params, encoder, corpus),
        "",
        f"exact answers, of {scores['turns']:,} that depend on earlier turns: {scores['context_accuracy']:.1%}",
        f"the same with the history hidden: {scores['hidden_history_accuracy']:.1%}",
        "by kind: " + ", ".join(f"{kind} {share:.1%}" for kind, share in scores["by_kind"].items()),
    ]
