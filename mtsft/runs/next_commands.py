"""What to do with a run that is finished, as commands to paste into a shell."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from mtsft.files import expanded


def next_commands(workdir: str | Path, held_out: bool) -> list[str]:
    """The commands that evaluate, talk to and export what a run trained.

    Args:
        workdir: of the run, as the user named it.
        held_out: whether anything is held out to evaluate on.
    """
    folder = str(workdir)
    if "://" not in folder:
        folder = os.path.normpath(expanded(folder))
    commands = [f"{_door('evaluate')} --workdir={shlex.quote(folder)}"] if held_out else []
    commands.append(f"{_door('chat')} --workdir={shlex.quote(folder)}")
    output = shlex.quote(_free(Path(folder).name if "://" in folder else folder))
    return [*commands, f"{_door('convert')} --to=hf --input={shlex.quote(folder)} --output={output}"]


def _free(folder: str) -> str:
    """A folder beside a run's that is not there yet."""
    number, output = 1, f"{folder}-hf"
    while os.path.lexists(output):
        number += 1
        output = f"{folder}-hf-{number}"
    return output


def _door(verb: str) -> str:
    """How a door is started as this process was: by `mtsft` of this environment, or by a name that finds its Python."""
    ours = Path(sys.executable).parent
    command = shutil.which("mtsft")
    if command and Path(command).parent == ours:
        return f"mtsft {verb}"
    python = shutil.which("python")
    is_found = python and Path(python).parent == ours
    return f"{'python' if is_found else shlex.quote(sys.executable)} -m mtsft.{verb}"
