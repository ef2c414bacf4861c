"""What a run started from, found again: where its config says, or at a new place that somebody names."""

from collections.abc import Sequence
from pathlib import Path

from etils import epath

from mtsft.errors import InputError
from mtsft.files import folder_of
from mtsft.interop.peft import adapter_fingerprint, earlier_adapter_fingerprint
from mtsft.interop.peft_format import ADAPTER_WEIGHTS


def adapter_difference(folder: str | Path, fingerprint: str) -> str:
    """In which way the adapters of a PEFT folder are not those of a fingerprint; "" where they are."""
    if ":" not in fingerprint:  # of an older run
        return "" if earlier_adapter_fingerprint(folder) == fingerprint else "its files are others"
    now = adapter_fingerprint(folder)
    if now == fingerprint:
        return ""
    is_alike = fingerprint.partition(":")[0] == now.partition(":")[0]
    return "its weights are others" if is_alike else "its adapter_config.json describes others"


def find_adapters(recorded: str, fingerprint: str, workdir: Path, places: Sequence[str | Path]) -> str:
    """The folder of the adapters that a run started from.

    Args:
        recorded: where they were.
        fingerprint: theirs.
        workdir: of the run, for errors.
        places: folders where they may be by now, among others.

    Raises:
        InputError: they are nowhere.
    """
    reasons = []
    for place in (recorded, *places):
        if not (folder_of(place) / ADAPTER_WEIGHTS).exists():
            continue
        reasons.append((place, adapter_difference(place, fingerprint)))
        if not reasons[-1][1]:
            return str(place)
    raise not_found(recorded, reasons, workdir, "adapters")


def not_found(
    recorded: str, reasons: Sequence[tuple[str | Path, str]], workdir: str | Path, what: str = "model"
) -> InputError:
    """The error of something that a run started from and that is at none of the places looked at.

    Args:
        recorded: where it was.
        reasons: the places where there is something, and why it is not what is looked for.
        workdir: of the run.
        what: is looked for.
    """
    way_on = "if it moved, name its new place with --base=FOLDER"
    if not reasons:
        return InputError(
            f"{recorded}: no such folder; {workdir} keeps only what it changed of the {what} that was there; {way_on}"
        )
    place, why = reasons[-1]
    no_longer = "no longer holds" if str(place) == str(recorded) else "does not hold"
    return InputError(
        f"{place}: {no_longer} the {what} that {workdir} was trained from ({why}), of which it keeps only what "
        f"it changed; put that back, or {way_on}"
    )


def is_there(folder: str | Path) -> bool:
    """Whether a config names a folder, and there is one."""
    return bool(folder) and folder_of(folder).is_dir()


def is_adapters_alone(folder: epath.Path) -> bool:
    """Whether a folder holds adapters, and not the model that they are for."""
    return (folder / "adapter_config.json").exists() and not (folder / "config.json").exists()
