"""Config files, by path or by the name of a config that is installed with the package."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtsft.errors import InputError, one_line
from mtsft.files import expanded

_PACKAGE = Path(__file__).parent
# Where the configs lie: inside the installed package, or beside it in a checkout of the repository.
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def find_config(name: str) -> Path:
    """The file of a config.

    Args:
        name: a path to a Python file, or the name of an installed config such as "quickstart"; what follows a colon
            (the variant, as in "qwen3_0_6b:lora,gpu80") is ignored.

    Raises:
        InputError: there is no such file, and no such config.
    """
    given = name.partition(":")[0]
    path = expanded(given)
    if path.is_file():
        return path
    if given in (names := config_names()):
        return names[given]
    wrong = one_line(name, 100)
    # A name has neither a folder nor a suffix.
    if path.name != given or path.suffix:
        raise InputError(f"{wrong}: no such file; name a config such as configs/quickstart.py")
    raise InputError(f"{wrong}: no such config; name a Python file, or one of {', '.join(names)}")


def config_names() -> dict[str, Path]:
    """The installed configs: their files by name, in alphabetical order."""
    folder = next((folder for folder in _FOLDERS if (folder / "quickstart.py").is_file()), None)
    files = sorted(folder.glob("*.py")) if folder else ()
    return {path.stem: path for path in files if path.stem != "__init__"}


def load_config(name: str, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """The config of a file, with some keys changed.

    Args:
        name: as for `find_config`; "NAME:VARIANT" is given to a config that has variants.
        overrides: values by dotted key, such as {"train.steps": 360}.

    Raises:
        InputError: there is no such config, variant or key, or a value is of another type than the key's.
    """
    path = find_config(name)
    _, colon, variant = name.partition(":")
    get_config = _get_config(path)
    try:
        config = get_config(variant) if colon else get_config()
    except TypeError as error:
        if colon and "get_config() takes 0 positional arguments" in str(error):
            raise InputError(f"{name}: this config has no variants; leave out what follows its colon") from error
        raise
    if not isinstance(config, ConfigDict):
        raise InputError(f"{path}: get_config() returns {type(config).__name__}; it must return the config")
    for key, value in (overrides or {}).items():
        _override(config, key, value)
    return config


def as_config(config: ConfigDict | str) -> ConfigDict:
    """A config, loaded if it is given by name. Raises InputError as `load_config` does."""
    return load_config(config) if isinstance(config, str) else config


def _get_config(path: Path) -> Any:
    """The get_config of a file. Raises InputError where the file is no config."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None:  # not named as Python
        raise _no_config(path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"{error.filename}:{error.lineno}: {error.msg}; a config is a Python file") from error
    if not hasattr(module, "get_config"):
        raise _no_config(path)
    return module.get_config


def _no_config(path: Path) -> InputError:
    return InputError(f"{path}: is no config, a Python file with a get_config(); see configs/quickstart.py")


def _override(config: ConfigDict, key: str, value: Any) -> None:
    *groups, name = key.split(".")
    try:
        keys = config
        for group in groups:
            keys = keys[group]
        if not isinstance(keys, ConfigDict) or isinstance(keys[name], ConfigDict):
            raise KeyError(key)
    except (KeyError, TypeError) as error:
        raise InputError(f"unknown config key: {one_line(key, 100)}; mtsft/config.py lists every key") from error
    try:
        keys[name] = value
    except TypeError as error:
        was, kind = type(keys[name]).__name__, type(value).__name__
        raise InputError(f"{key}={one_line(repr(value), 60)}: is of type {kind}; it must be {was}") from error
