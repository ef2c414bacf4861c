"""What every door shares: flags, one-line errors and the exit status."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from mtsft.config_files import find_config
from mtsft.errors import InputError, one_line
from mtsft.files import FULL, atomic_write, check_writable, expanded


class _ConfigParser(flags.ArgumentParser):
    """Reads a config by its name or its file, with or without :VARIANT.

    Args:
        files: the parser that reads FILE and FILE:VARIANT.
    """

    def __init__(self, files: flags.ArgumentParser):
        self._files = files

    def parse(self, argument: str) -> Any:
        """The config that a flag's value names. Raises InputError where there is none."""
        name, colon, variant = argument.partition(":")
        try:
            file = find_config(name)
        except InputError as error:
            raise InputError(f"--config={error}") from error
        return self._files.parse(f"{file}{colon}{variant}")


def define_config() -> flags.FlagHolder:
    """The flag --config=NAME or FILE, with an override --config.key=value for every key."""
    holder = config_flags.DEFINE_config_file("config", None, "A config: a name, such as quickstart, or a Python file.")
    flag = flags.FLAGS["config"]
    flag.parser = _ConfigParser(flag.parser)
    return holder


def define_workdir(required: bool = True) -> flags.FlagHolder:
    """The flag --workdir=DIR."""
    description = "Where the run keeps its checkpoints, metrics and tokenizer."
    return define_folder("workdir", description, "runs/mine", required)


def define_folder(name: str, description: str, example: str, required: bool = True) -> flags.FlagHolder:
    """A flag that names a folder.

    It is never empty: --workdir=$DIR is, where the shell knows no DIR.

    Args:
        name: of the flag.
        description: what --help says of it.
        example: a value, for the error where there is none.
        required: whether it may not be left out.
    """
    holder = flags.DEFINE_string(name, None, description)

    def check(value: str | None) -> bool:
        if value.strip() if value is not None else not required:
            return True
        # absl would put what it makes of the flag before the words of an error of its own.
        wrong = "missing" if value is None else "empty"
        raise InputError(f"--{name} is {wrong}; name a folder, such as --{name}={example}")

    flags.register_validator(name, check)
    return holder


def define_sampling() -> Callable[[], dict[str, Any]]:
    """Defines the flags of decoding. Returns a function that reads them, once parsed, as the fields of Sampling."""
    holders = {
        "temperature": flags.DEFINE_float("temperature", 0.0, "Of what is drawn; 0 for the most probable tokens."),
        "top_k": flags.DEFINE_integer("top_k", 0, "Draw of so many most probable tokens; 0 for all."),
        "top_p": flags.DEFINE_float("top_p", 1.0, "Draw of the fewest tokens that make up this probability."),
        "seed": flags.DEFINE_integer("seed", 0, "Of what is drawn.", lower_bound=0, upper_bound=2**32 - 1),
    }
    flags.DEFINE_integer("max_new", 512, "Tokens of a reply at most.", lower_bound=1)
    return lambda: {name: holder.value for name, holder in holders.items()}


def max_new_tokens() -> int:
    """Tokens of a reply at most, as --max_new says."""
    return flags.FLAGS.max_new


def check_output(flag: flags.FlagHolder) -> None:
    """Raises InputError where the file that a flag names could not be written; asked before the work for it."""
    with _errors_naming(flag):
        check_writable(expanded(flag.value))


def write_output(flag: flags.FlagHolder, data: bytes) -> None:
    """Writes the file that a flag names, by an atomic write. Raises InputError where that fails."""
    with _errors_naming(flag):
        atomic_write(expanded(flag.value), data)


@contextmanager
def _errors_naming(flag: flags.FlagHolder) -> Iterator[None]:
    """Raises InputError, which names the flag, in place of an OSError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"--{flag.name}={flag.value}: {error.strerror}; name a file that can be written") from error


def run(main: Callable[[], None]) -> None:
    """Parses the flags, calls `main` and exits.

    Exit status: 0 done; 2 the user's input is wrong, said in one line; 130 Ctrl-C; 1 anything else, a bug of ours.
    """
    logging.set_verbosity(logging.ERROR)  # absl's own warnings would stand beside the one line
    if "--help" in sys.argv:
        print(sys.modules["__main__"].__doc__, flags.FLAGS.main_module_help(), sep="\n")
        return
    try:
        if "config" in flags.FLAGS and _given_config() is None:
            raise InputError("no --config; name one, such as --config=quickstart")
        rest = flags.FLAGS(sys.argv)[1:]
        if rest:
            raise InputError(f"{one_line(rest[0], 80)!r} is not a flag; write --name=value (see --help)")
        if "config" in flags.FLAGS and flags.FLAGS.config is None:
            raise InputError("the config's get_config() returns nothing; it must return the config")
        main()
    except InputError as error:
        _fail(error)
    except flags.Error as error:
        _fail(_flag_error_line(error))
    except KeyboardInterrupt:
        _leave(130)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            _fail(f"{error.filename or 'the disk'}: {error.strerror}; free some space and run the same command again")
        if _from_config(error):
            _fail(_config_error_line(error))
        traceback.print_exc()
        _leave(1)


def _given_config() -> str | None:
    """What the command line says of --config, its variant with it. None where it says nothing."""
    for flag, value in zip(sys.argv, [*sys.argv[1:], ""]):
        name, equals, given = flag.lstrip("-").partition("=")
        if flag.startswith("-") and name == "config":
            return given if equals else value
    return None


def _no_config_line() -> str:
    name = _given_config().partition(":")[0]
    return f"--config={name}: is no config, a Python file with a get_config(); see configs/quickstart.py"


def _flag_error_line(error: flags.Error) -> str:
    # ml_collections repeats whole tracebacks; the last line says what is wrong.
    head, is_traceback, trace = str(error).partition("Traceback (most recent call last)")
    if not is_traceback:
        return head
    reason = trace.strip().splitlines()[-1]
    if "get_config() takes 0 positional arguments" in reason:
        return f"--config={_given_config()}: this config has no variants; leave out what follows its colon"
    return f"{head} {reason}"


def _config_error_line(error: Exception) -> str:
    if isinstance(error, AttributeError) and error.name == "get_config":
        return _no_config_line()
    if isinstance(error, NameError | SyntaxError) and find_config(_given_config()).suffix != ".py":
        return _no_config_line()  # data, read as Python
    text = str(error.args[0] if error.args else error)
    if isinstance(error, AttributeError | KeyError):
        words = re.findall(r"[\w.?\"]+", text.replace("\\n", " "))
        return f"unknown config key: {' '.join(words)}; mtsft/config.py lists every key"
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}; a config is a Python file"
    return f"the config cannot be read: {type(error).__name__}: {text}"


def _from_config(error: Exception) -> bool:
    """Whether it was raised while ml_collections read a config file or an override of it, and not by our own code."""
    modules = {frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)}
    return any(name.startswith("ml_collections") for name in modules)


def _fail(error: object) -> None:
    print(f"{Path(sys.argv[0]).stem}: {one_line(error, 1000)}", file=sys.stderr)
    _leave(2)


def _leave(status: int) -> None:
    """Exits; in a run of several processes without JAX's shutdown barrier, which would wait for the others."""
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
