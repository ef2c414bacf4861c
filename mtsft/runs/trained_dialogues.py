"""Which dialogues a run was trained on, by the digests of their words: what is held out elsewhere can be told apart.

A run keeps them in its workdir, 8 bytes a dialogue, so that neither its training files nor its tokens are needed.
"""

import io
import zipfile
from pathlib import Path

import numpy as np

from mtsft.data.store import Store
from mtsft.errors import one_line
from mtsft.files import atomic_write, path_of

_FILE = "trained_dialogues.npz"  # whose one array, uint64, ascending, is of `Store.digests_N`
_NAME = "digests_N"


def keep_trained_dialogues(workdir: Path, store: Store, base: str | Path = "") -> None:
    """Writes down what a run is trained on.

    Args:
        workdir: of the run.
        store: its training dialogues.
        base: what it starts from; where that is a run, what that one was trained on counts as well. "" for nothing.
    """
    digests = np.unique(np.asarray(store.digests_N, np.uint64))
    for folder in (workdir, *([path_of(base)] if base else [])):  # what a run has once kept stays
        if (folder / _FILE).exists():
            digests = np.union1d(digests, _read(folder)[0])
    content = io.BytesIO()
    np.savez(content, **{_NAME: digests})  # a zip archive, which has a checksum
    atomic_write(workdir / _FILE, content.getvalue())


def count_trained(workdir: Path, store: Store) -> tuple[int | None, str]:
    """How many dialogues of a store a run was trained on, word for word.

    Args:
        workdir: of the run.
        store: dialogues, encoded under the run's template.

    Returns:
        (how many, None where that cannot be told; why it cannot).
    """
    if not (workdir / _FILE).exists():
        return None, "the run keeps no list of its training dialogues, which its train command, run again, writes"
    trained, damage = _read(workdir)
    if damage:
        return None, damage
    return int(np.isin(store.digests_N, trained).sum()), ""


def _read(workdir: Path) -> tuple[np.ndarray, str]:
    """The digests, and what is wrong with the file; "" for nothing."""
    path = workdir / _FILE
    try:
        digests = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)[_NAME]
    except (OSError, ValueError, LookupError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile) as error:
        return np.zeros(0, np.uint64), f"{path} cannot be read ({one_line(error, 100)})"
    if digests.dtype != np.uint64 or digests.ndim != 1:
        return np.zeros(0, np.uint64), f"{path} holds something else than digests of dialogues"
    return digests, ""
