"""What each token of viewed dialogues costs a trained model."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from mtsft.data.batches import empty_batch, pack_row
from mtsft.diagnose.viewed import ViewedDialogue
from mtsft.errors import InputError
from mtsft.files import path_of
from mtsft.model.attention.kernels import AUTO, PLAIN
from mtsft.runs.checkpoint_choice import CheckpointChoice
from mtsft.runs.local_devices import local_shardings
from mtsft.runs.trained_model import WorkdirModel, open_trained
from mtsft.training.losses.forward import response_nll

_SHORTEST = 64  # slots of a row


class TokenLosses:
    """A run's model, and the losses of dialogues under it.

    Attributes:
        checkpoint: which one it is, and why.

    Args:
        workdir: of the run.
        step: of the checkpoint; None for the best.
        all_tokens: whether context is scored, too, and not what is supervised alone.

    Raises:
        InputError: there is no such model.
    """

    checkpoint: CheckpointChoice

    def __init__(self, workdir: str | Path, step: int | None = None, all_tokens: bool = False):
        trained = open_trained(path_of(workdir), step)
        if not isinstance(trained, WorkdirModel):
            raise InputError(f"--workdir={workdir}: is a Hugging Face folder, and holds no run")
        self.checkpoint, self._all_tokens = trained.checkpoint, all_tokens
        # A kernel that wants a device's own rows and heads has them on one device alone.
        kernel = AUTO if len(jax.local_devices()) == 1 else PLAIN
        model = trained.model(scan_layers=None, attention_kernel=kernel).on(jax.local_devices()[0].platform)
        self._vocab_size = model.arch.vocab_size
        self._params = trained.restore(model, local_shardings(model.arch.hidden_size))
        self._nll = jax.jit(partial(response_nll, model, chunk=trained.config.objective.chunk))

    def of(self, shown: Iterable[ViewedDialogue]) -> Iterator[ViewedDialogue]:
        """The same dialogues, with the losses of their tokens.

        Raises InputError for a token that the model does not have.
        """
        for one in shown:
            tree = one.tree
            if (highest := int(tree.tokens_N.max(initial=0))) >= self._vocab_size:
                raise InputError(
                    f"{one.dialogue.source}: has the token {highest}, and the model has {self._vocab_size:,}; leave "
                    "data.tokenizer to the run"
                )
            if self._all_tokens:
                tree = replace(tree, response_mask_N=(tree.parents_N >= 0).astype(np.float32))
            batch = empty_batch(1, max(_SHORTEST, 1 << (len(tree) - 1).bit_length()))  # few shapes are compiled
            pack_row(batch, 0, [tree])
            losses_L = jax.device_get(self._nll(self._params, rows=batch))[0]
            places = np.flatnonzero(tree.response_mask_N).tolist()
            yield one._replace(losses={place: float(losses_L[place]) for place in places})
