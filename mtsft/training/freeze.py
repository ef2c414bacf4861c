"""Which parameters a run trains; the others are frozen: read, never changed, never saved."""

import re
from collections.abc import Callable, Collection

from mtsft.errors import InputError
from mtsft.model.architecture import LoRA
from mtsft.model.layers import ADAPTERS


def trained_names(lora: LoRA, freeze: str, names: Collection[str]) -> Callable[[str], bool]:
    """Whether a parameter is trained, by its name: adapters alone where there are some, and nothing that `freeze` fits.

    Args:
        lora: the adapters of the model.
        freeze: a regex that is looked for in names; "" for none.
        names: of all parameters.

    Raises:
        InputError: for an invalid regex, or one that fits nothing or leaves nothing to train.
    """
    try:
        frozen = re.compile(freeze) if freeze else None
    except re.error as error:
        raise InputError(f"train.freeze={freeze!r} is not a regular expression: {error}") from error
    shown = f"parameters are named {', '.join(sorted(names))}"
    if frozen and not any(map(frozen.search, names)):
        raise InputError(f"train.freeze={freeze!r} fits no parameter; {shown}")

    def is_trained(name: str) -> bool:
        is_adapter = name.endswith(ADAPTERS)
        return is_adapter >= bool(lora.rank) and not (frozen and frozen.search(name))

    if not any(map(is_trained, names)):
        raise InputError(f"train.freeze={freeze!r} leaves nothing to train; {shown}")
    return is_trained
