"""The date that chat templates are told when they ask for today's."""

import datetime
import json

from etils import epath
from ml_collections import ConfigDict

CONFIG = "config.json"  # of a workdir: the config of its run


def with_template_date(config: ConfigDict, workdir: epath.Path | None = None) -> ConfigDict:
    """The config with data.template_date set: to that of the run in `workdir` if there is one, or to today's.

    A run that is resumed the next day would otherwise see other prompts.
    """
    if config.data.template_date:
        return config
    config, path = config.copy_and_resolve_references(), workdir and workdir / CONFIG
    try:
        recorded = json.loads(path.read_text())["data"]["template_date"] if path and path.exists() else ""
    except (OSError, ValueError, KeyError, TypeError):
        recorded = ""  # what reads the whole file says what is wrong with it
    config.data.template_date = str(recorded or datetime.date.today())
    return config
