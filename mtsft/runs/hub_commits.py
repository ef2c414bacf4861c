"""Models of the Hugging Face Hub that a run names, at the commit that it began with."""

import json

from etils import epath
from ml_collections import ConfigDict

from mtsft.hub import hub_name, origin, with_commit
from mtsft.interop.hub_files import ADAPTER_CONFIG_FILES, CONFIG_FILES
from mtsft.runs.template_date import CONFIG
from mtsft.tokenizer.load import TOKENIZER_FILES

_KEYS = {"model.init_from": CONFIG_FILES, "lora.init_from": ADAPTER_CONFIG_FILES, "data.tokenizer": TOKENIZER_FILES}


def with_hub_commits(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """The config with a commit after each name of the Hub: that of the run in `workdir` if there is one, or today's.

    A run that is resumed after its model was published anew would otherwise start from another one.

    Raises:
        InputError: a name is neither in the cache nor can be downloaded.
    """
    config, path = config.copy_and_resolve_references(), workdir / CONFIG
    try:
        recorded = json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        recorded = {}  # what reads the whole file says what is wrong with it
    for key, wanted in _KEYS.items():
        group, name = key.split(".")
        given, before = config[group][name], _value(recorded, group, name)
        hub = hub_name(given)
        if hub is not None and not hub.revision and before.startswith(f"{given}@"):
            config[group][name] = before
        else:
            config[group][name] = with_commit(given, wanted)
    return config


def hub_notes(config: ConfigDict) -> list[str]:
    """Lines that say what the names of the Hub in a config were taken to be."""
    named = {key: origin(config[key.split(".")[0]][key.split(".")[1]]) for key in _KEYS}
    return [f"{key}: {text}" for key, text in named.items() if text]


def _value(record: object, group: str, name: str) -> str:
    keys = record.get(group) if isinstance(record, dict) else None
    value = keys.get(name) if isinstance(keys, dict) else None
    return value if isinstance(value, str) else ""
