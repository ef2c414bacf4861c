"""The flag --config, and --config.key=value for every key."""

import re
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from mtsft.config import default
from mtsft.config_files import holds_run, load_config
from mtsft.config_keys import check_key
from mtsft.errors import InputError, one_line

_DEFAULT = "(default)"  # the value of --config where it is left out
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)")


class _ConfigParser(flags.ArgumentParser):
    """Reads a config as `load_config` does."""

    def parse(self, argument: str) -> ConfigDict:
        """The config that a flag's value names. Raises InputError where there is none."""
        if argument == _DEFAULT:
            return default()
        try:
            return load_config(argument)
        except InputError as error:
            given = argument.partition(":")[0]
            raise InputError(f"--config={error}" if str(error).startswith(f"{given}:") else str(error)) from error


def define_config() -> flags.FlagHolder:
    """The flag --config=NAME or FILE, with an override --config.key=value for every key."""
    meaning = "A config: a name, such as quickstart; a Python file; or a run's workdir, or its config.json."
    holder = config_flags.DEFINE_config_file("config", None, meaning)
    flags.FLAGS["config"].parser = _ConfigParser()
    return holder


def with_config(argv: Sequence[str]) -> tuple[list[str], str]:
    """A command line whose --config is there, and stands before the keys that it overrides.

    Where it is left out, it is that of the run in --workdir, if there is one, or else the default of every key.

    Args:
        argv: the command line, the program first.

    Returns:
        The command line, and a remark on the config that was taken; "" for none.

    Raises:
        InputError: an override names no key, or nothing says what the config is.
    """
    argv = flags.FLAGS.read_flags_from_files(list(argv), force_gnu=False)
    overrides = [argument for argument in argv[1:] if _OVERRIDE.match(argument)]
    for override in overrides:
        _check_override(override)
    config, rest = _taken(argv[1:], "config")
    if config is not None:
        return [argv[0], f"--config={config}", *rest], ""
    workdir, _ = _taken(rest, "workdir")
    if workdir and holds_run(workdir):
        return [argv[0], f"--config={workdir}", *rest], f"no --config; taking that of the run in {one_line(workdir)}"
    if overrides:
        return [argv[0], f"--config={_DEFAULT}", *rest], ""
    lack = f"no --config, and no run in {one_line(workdir, 100)} that has one" if workdir else "no --config"
    raise InputError(
        f"{lack}; name one, such as --config=quickstart, or set keys, such as --config.data.train=dialogues.jsonl"
    )


def told_keys() -> set[str]:
    """The keys that the command line sets one by one, once it is parsed."""
    return {*config_flags.get_override_values(flags.FLAGS["config"])}


def _check_override(override: str) -> None:
    check_key(_OVERRIDE.match(override)[1])
    flag, _, value = override.partition("=")
    if any("\udc80" <= c <= "\udcff" for c in value):  # bytes, as Python has them where they are no text
        raise InputError(f"{flag}: holds bytes that are no text in this locale; write UTF-8, under LC_ALL=C.UTF-8")


def _taken(arguments: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """The last value of a flag, None where it is not given, and the arguments without it."""
    value, rest, waiting = None, [], iter(arguments)
    for argument in waiting:
        if argument == "--":
            rest += [argument, *waiting]
        elif argument in (f"--{flag}", f"-{flag}"):
            value = next(waiting, "")
        elif argument.startswith((f"--{flag}=", f"-{flag}=")):
            value = argument.partition("=")[2]
        else:
            rest.append(argument)
    return value, rest
