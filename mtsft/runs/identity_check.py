"""The numeric check of an audit: a config's model on a sample of its dialogues."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mtsft.config import data_config, validate
from mtsft.config_files import as_config
from mtsft.data.data_files import DataFiles
from mtsft.data.open_store import open_store
from mtsft.diagnose.notebook_views import ShownRecord
from mtsft.errors import InputError
from mtsft.evaluation import identities
from mtsft.model.transformer import Model
from mtsft.runs.build_model import architecture_of
from mtsft.runs.resolve import resolve
from mtsft.training.losses.forward import response_nll

_SAMPLE = 8  # dialogues
_LAYERS = 4  # that are enough to check, with all kinds of them among them


def check_identities(config: ConfigDict | str) -> ShownRecord:
    """Compares one pass with K passes, and packed with alone, on a few dialogues of a config and with its model.

    Where a dialogue branches, one pass goes over its tree and K passes over the paths of its replies.

    Args:
        config: a config, or the name or the path of one, as `mtsft.load_config` takes it.

    Returns:
        The record of `mtsft.evaluation.identities.compare`: {dialogues, responses, passes: {loss, gradient}, packed:
        {loss, gradient}}, largest relative differences in float32.

    Raises:
        InputError: something is wrong with the config or the files, or no dialogue fits into a row.
    """
    config = as_config(config)
    validate(config)
    return ShownRecord(check(config, DataFiles.find(data_config(config))))


def check(config: ConfigDict, files: DataFiles) -> dict[str, Any]:
    """Compares ways to compute the same loss on a few dialogues, in float32, with parameters drawn at random.

    Args:
        config: whose model is checked.
        files: whose dialogues it is checked on.

    Returns:
        The record of `mtsft.evaluation.identities.compare`.

    Raises:
        InputError: no dialogue fits into a row.
    """
    spec = files.train_spec.without_errors().of_any_length()
    store = open_store(files.train_files, spec, files.cache / "stores", files.workers)
    longest = files.train_spec.config.sequence_length
    fitting = np.flatnonzero(store.lengths_N <= longest)
    if not len(fitting):
        raise InputError("no dialogue fits into a row, so there is nothing to check; raise data.sequence_length")
    picked = fitting[np.linspace(0, len(fitting) - 1, min(_SAMPLE, len(fitting))).astype(int)]
    trees = [store[i] for i in picked.tolist()]
    row_length = min(longest, 2 * max(map(len, trees)))
    vocab_size = files.train_spec.chat.open()[1].vocab_size
    arch = architecture_of(resolve(config)[0], vocab_size)
    layers = min(arch.num_hidden_layers, max(_LAYERS, len(arch.layer_types.split(","))))
    model = Model(replace(arch, dtype="float32", param_dtype="float32", num_hidden_layers=layers))
    params = model.init(jax.random.key(config.train.seed))
    return identities.compare(partial(response_nll, model, chunk=config.objective.chunk), params, trees, row_length)
