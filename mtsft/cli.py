"""What every door shares: flags, one-line errors and the exit status."""

import errno
import sys
from collections.abc import Callable

from absl import flags
from ml_collections import config_flags

from mtsft.errors import InputError, one_line

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def define_config() -> flags.FlagHolder:
    """The flag --config=FILE, with an override --config.key=value for every key."""
    return config_flags.DEFINE_config_file("config", None, "A config file, such as configs/quickstart.py.")


def define_workdir(required: bool = True) -> flags.FlagHolder:
    """The flag --workdir=DIR."""
    holder = flags.DEFINE_string("workdir", None, "Where the run keeps its checkpoints, metrics and tokenizer.")
    if required:
        flags.mark_flag_as_required("workdir")
    return holder


def run(main: Callable[[], None]) -> None:
    """Parses the flags, calls `main` and exits: 0 done, 2 the user's input is wrong, said in one line."""
    try:
        rest = flags.FLAGS(sys.argv)[1:]
        if rest:
            raise InputError(f"{one_line(rest[0], 80)!r} is not a flag; write --name=value (see --help)")
        main()
    except InputError as error:
        _fail(error)
    except flags.Error as error:
        _fail(error)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # What ml_collections raises for an override or a config file; anything else is a bug and keeps its trace.
        if not _from_config(error):
            raise
        _fail(error.args[0] if error.args else error)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _fail(f"{error.filename or 'the disk'}: {error.strerror}; free some space and run the same command again")


def _from_config(error: Exception) -> bool:
    """Whether the traceback ends in reading the config, not in our own code."""
    trace = error.__traceback__
    modules = set()
    while trace:
        modules.add(trace.tb_frame.f_globals.get("__name__", "").split(".")[0])
        trace = trace.tb_next
    return "ml_collections" in modules


def _fail(error: object) -> None:
    print(f"{sys.argv[0].rsplit('/', 1)[-1]}: {one_line(error, 1000)}", file=sys.stderr)
    sys.exit(2)
