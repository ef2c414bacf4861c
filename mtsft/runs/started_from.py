"""What a run started from, found again: where its config says, or at a new place that somebody names."""

from collections.abc import Sequence
from pathlib import Path

from mtsft.errors import InputError
from mtsft.files import path_of
from mtsft.hub import hub_name, located
from mtsft.interop.hf_folder import INDEX, SINGLE
from mtsft.interop.hub_files import CONFIG_FILES
from mtsft.interop.peft import earlier_adapter_fingerprint
from mtsft.interop.peft_format import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from mtsft.runs.run_adapters import fingerprint_of_adapters, is_run


def adapter_difference(folder: str | Path, fingerprint: str) -> str:
    """In which way the adapters of a PEFT folder or of a run are not those of a fingerprint; "" where they are."""
    was_run = fingerprint.startswith("[")
    if was_run != is_run(folder):
        return "they are of another kind"
    if not was_run and ":" not in fingerprint:  # kept by an older version
        return "" if earlier_adapter_fingerprint(folder) == fingerprint else "its files are others"
    now = fingerprint_of_adapters(folder)
    if now == fingerprint:
        return ""
    if was_run:
        return "its best checkpoint is another, or it is another run"
    is_alike = fingerprint.partition(":")[0] == now.partition(":")[0]
    return "its weights are others" if is_alike else "its adapter_config.json describes others"


def find_adapters(recorded: str, fingerprint: str, workdir: Path, places: Sequence[str | Path]) -> str:
    """The folder of the adapters that a run started from, or their name on the Hub.

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
        if not (is_run(place) or hub_name(place) or (path_of(place) / ADAPTER_WEIGHTS).exists()):
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
    """Whether a config names a folder, or a name of the Hub, and what it names is there or can be downloaded."""
    if hub_name(folder) is None:
        return bool(folder) and path_of(folder).is_dir()
    try:
        return bool(located(folder, CONFIG_FILES))
    except InputError:
        return False


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds PEFT adapters and no whole model."""
    whole = (folder / SINGLE, folder / INDEX)
    return (folder / ADAPTER_CONFIG).exists() and not any(file.exists() for file in whole)
