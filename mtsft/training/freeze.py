"""Which parameters a run trains; the others are frozen: read, never changed, never saved."""

import re
from collections.abc import Callable, Collection

from mtsft.errors import InputError
from mtsft.model.block import MATRICES
from mtsft.model.lora import LoRA


def trained_names(lora: LoRA, freeze: str, names: Collection[str]) -> Callable[[str], bool]:
    """Whether a parameter is trained, by its name; nothing is that `freeze` fits.

    Where there are adapters, only they are trained, and what `lora` names to be trained beside them.

    Args:
        lora: the adapters of the model.
        freeze: a regex that is looked for in names; "" for none.
        names: of all parameters.

    Raises:
        InputError: for an invalid regex, or one that fits nothing or leaves nothing to train; for modules_to_save that
            fits a matrix of the layers.
    """
    try:
        frozen = re.compile(freeze) if freeze else None
    except re.error as error:
        raise InputError(f"train.freeze={freeze!r} is not a regular expression: {error}") from error
    shown = f"parameters are named {', '.join(sorted(names))}"
    if frozen and not any(map(frozen.search, names)):
        raise InputError(f"train.freeze={freeze!r} fits no parameter; {shown}")

    if lora.modules_to_save:
        _check_modules(lora, {name.rpartition("/")[0] for name in names})

    def is_trained(name: str) -> bool:
        if frozen and frozen.search(name):
            return False
        return not lora.rank or lora.adds(name)

    if not any(map(is_trained, names)):
        raise InputError(f"train.freeze={freeze!r} leaves nothing to train; {shown}")
    return is_trained


def _check_modules(lora: LoRA, modules: Collection[str]) -> None:
    """Raises InputError unless lora.modules_to_save fits some modules, and none of the layers' matrices."""
    saved = sorted(filter(lora.saves, modules))
    if matrices := [module for module in saved if module in MATRICES]:
        raise InputError(
            f"lora.modules_to_save={lora.modules_to_save!r} fits {matrices[0]}, a matrix of the layers, which "
            "adapters are for: name it in lora.targets"
        )
    if not saved:
        others = sorted(set(modules) - set(MATRICES))
        raise InputError(f"lora.modules_to_save={lora.modules_to_save!r} fits no module; there are {', '.join(others)}")
