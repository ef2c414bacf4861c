"""Configs: by path, by the name of one that is installed with the package, or as a run recorded its own."""

import importlib.util
import json
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtsft.buckets import is_bucket
from mtsft.config import default
from mtsft.config_keys import check_key, config_keys
from mtsft.errors import InputError, did_you_mean, one_line
from mtsft.files import path_of

_PACKAGE = Path(__file__).parent
# Where the configs lie: inside the installed package, or beside it in a checkout of the repository.
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
_RECORDED, _OF_RUNS = "config.json", "fingerprint.json"  # in a workdir, and what tells it from other people's folders
_UNKNOWN_KEY = re.compile(r'[Kk]ey "([\w.]+)"')  # as ConfigDict words its errors
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_SEVERAL = ("data.train", "data.eval")  # keys that may also hold several texts


def find_config(name: str) -> Path:
    """The file of a config.

    Args:
        name: a path to a Python file, to the config.json of a run, or to its workdir; or the name of an installed
            config such as "quickstart". What follows a colon (the variant, as in "qwen3_0_6b:lora,gpu80") is ignored.

    Raises:
        InputError: there is no such file, and no such config.
    """
    given = _split(name)[0]
    path = path_of(given)
    if path.is_file():
        if is_bucket(path) and path.suffix == ".py":
            raise InputError(
                f"--config={given}: is Python, which is run from local files alone; copy it, and name the copy"
            )
        return path
    if given in (names := config_names()):
        return names[given]
    if given and path.is_dir():
        if (path / _RECORDED).is_file():
            return path / _RECORDED
        raise InputError(f"{one_line(given, 100)}: is a folder without a {_RECORDED}, no workdir of a run")
    wrong = one_line(name, 100)
    # A name has neither a folder nor a suffix.
    if path.name != given or path.suffix:
        if path.stem in names and path.suffix == ".py":
            raise InputError(f"{wrong}: no such file; the config that is installed with mtsft is named {path.stem}")
        raise InputError(f"{wrong}: no such file; name a config such as configs/quickstart.py")
    raise InputError(
        f"{wrong}: no such config; name a Python file, or one of {', '.join(names)} (installed with mtsft)"
        f"{did_you_mean(given, names)}"
    )


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
        InputError: there is no such config, variant or key, or a value is of another type than the key's; what a config
            file itself raises comes as one, too, with the line of the file.
    """
    path = find_config(name)
    _, colon, variant = _split(name)
    if path.suffix == ".json":
        if colon:
            raise _no_variants(name)
        config = _read_recorded(path)
    else:
        config = _call(path, name, [variant] if colon else [])
    if not isinstance(overrides or {}, Mapping) or not all(isinstance(key, str) for key in overrides or {}):
        raise InputError('overrides are values by dotted key, such as {"train.steps": 360}')
    for key, value in (overrides or {}).items():
        _override(config, key, value)
    return config


def with_texts(config: ConfigDict, texts: Mapping[str, str]) -> ConfigDict:
    """A copy of a config with some keys changed, whose values are written as on a command line.

    Args:
        config: the config.
        texts: values by dotted key, such as {"train.steps": "360"}.

    Raises:
        InputError: there is no such key, or a text is no value of its type.
    """
    config = config.copy_and_resolve_references()
    for key, text in texts.items():
        check_key(key)
        kind = config_keys()[key].kind
        try:
            value = _TRUTH[text.strip().lower()] if kind is bool else kind(text)
        except (ValueError, KeyError) as error:
            raise InputError(f"{key}={one_line(repr(text), 60)}: must be {kind.__name__}") from error
        _override(config, key, value)
    return config.lock()


def holds_run(workdir: str) -> bool:
    """Whether a folder is the workdir of a run, whose config can be loaded by the folder's name."""
    return all((path_of(workdir) / name).is_file() for name in (_RECORDED, _OF_RUNS))


def as_config(config: ConfigDict | str) -> ConfigDict:
    """A config, loaded if it is given by name. Raises InputError as `load_config` does."""
    return load_config(config) if isinstance(config, str) else config


def _split(name: str) -> tuple[str, str, str]:
    """A name, its colon and its variant; the colon of gs:// is none."""
    scheme, is_remote, rest = name.partition("://")
    given, colon, variant = (rest if is_remote else name).partition(":")
    return f"{scheme}://{given}" if is_remote else given, colon, variant


def _call(path: Path, name: str, variant: list[str]) -> ConfigDict:
    """What the get_config of a file returns. Raises InputError where that is no config, or the file raises."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None:  # not named as Python
        raise _no_config(path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise _no_config(path)
        config = module.get_config(*variant)
    except InputError:
        raise
    except SyntaxError as error:
        file = path if error.filename == str(path.absolute()) else error.filename  # as it was written
        raise InputError(f"{file}:{error.lineno}: {error.msg}; a config is a Python file") from error
    except Exception as error:
        if variant and "get_config() takes 0 positional arguments" in str(error):
            raise _no_variants(name) from error
        raise InputError(_raised(path, error)) from error
    _check_whole(config, path)
    return config.lock()


def _raised(path: Path, error: Exception) -> str:
    """What a config file raised, and in which of its lines."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path.absolute()]
    where = f"{path}:{lines[-1]}" if lines else f"{path}"
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    unknown = _UNKNOWN_KEY.search(str(text)) if isinstance(error, KeyError | AttributeError) else None
    if unknown:
        try:
            check_key(unknown[1])
        except InputError as wrong:
            return f"{where}: {wrong}"
    return f"{where}: {type(error).__name__}: {one_line(text)}"


def _check_whole(config: Any, path: Path) -> None:
    """Raises InputError where a get_config() returned something else than default() with changed values."""
    advice = "it must return the ConfigDict of mtsft.config.default()"
    if not isinstance(config, ConfigDict):
        raise InputError(f"{path}: get_config() returns {type(config).__name__}; {advice}")
    found = set()
    for group, keys in config.items():
        found |= {f"{group}.{key}" for key in keys} if isinstance(keys, ConfigDict) else {group}
    if missing := [key for key in config_keys() if key not in found]:
        raise InputError(f"{path}: get_config() returns a ConfigDict without {missing[0]}; {advice}")
    for key in sorted(found):
        with _errors_naming(path):
            check_key(key)


def _read_recorded(path: Path) -> ConfigDict:
    """The config that a run recorded: the values of a JSON file in place of the defaults. Raises InputError."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no config, nor one that a run recorded ({one_line(error, 100)})") from error
    config = default()
    if not isinstance(record, dict) or not {*record} & {*config}:
        raise InputError(
            f"{path}: is not the config of a run of mtsft; a Hugging Face folder is named by model.init_from"
        )
    with _errors_naming(path):
        for group, values in record.items():
            if not isinstance(values, dict):
                check_key(group)
            for key, value in values.items():
                _override(config, f"{group}.{key}", value)
    return config


@contextmanager
def _errors_naming(path: Path) -> Iterator[None]:
    """Puts the name of a file before the words of an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _no_config(path: Path) -> InputError:
    return InputError(f"{path}: is no config, a Python file with a get_config(); see configs/quickstart.py")


def _no_variants(name: str) -> InputError:
    return InputError(f"{name}: this config has no variants; leave out what follows its colon")


def _override(config: ConfigDict, key: str, value: Any) -> None:
    check_key(key)
    group, name = key.split(".")
    keys, known = config[group], config_keys()[key]
    try:
        if key in _SEVERAL and isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
            with keys.ignore_type():
                keys[name] = tuple(value)
            return
        # ConfigDict takes None for anything, and True for a number.
        if (value is None and known.default is not None) or (isinstance(value, bool) and known.kind is not bool):
            raise TypeError(key)
        keys[name] = value
    except TypeError as error:
        wanted, kind = known.kind.__name__, type(value).__name__
        hint = ", such as JSON text" if known.kind is str and isinstance(value, dict | list) else ""
        raise InputError(f"{key}={one_line(repr(value), 60)}: is of type {kind}; it must be {wanted}{hint}") from error
