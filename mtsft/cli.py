"""What every door shares: flags, one-line errors and the exit status."""

from mtsft.console import any_text_any_reader, leave_quietly_at_ctrl_c, raise_at_ctrl_c, write_out

leave_quietly_at_ctrl_c()  # before the modules that take long to load

import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from absl import flags, logging

from mtsft import __version__, stopping
from mtsft.buckets import is_failure
from mtsft.config_flag import define_config, told_keys, with_config
from mtsft.config_keys import near_keys
from mtsft.errors import InputError, did_you_mean, one_line
from mtsft.files import FULL, atomic_file, atomic_write, check_folder_writable, check_writable, path_of, reason
from mtsft.help_text import Entry, flag_entry, found_text, help_text, key_entries

__all__ = ["define_config", "told_keys", "write_out"]


def define_workdir(required: bool = True) -> flags.FlagHolder:
    """The flag --workdir=DIR."""
    description = "Where the run keeps its checkpoints, metrics and tokenizer."
    return define_folder("workdir", description, "runs/mine", required)


def define_folder(
    name: str, description: str, example: str, required: bool = True, several: bool = False
) -> flags.FlagHolder:
    """A flag that names a folder, or several folders.

    It is never empty: --workdir=$DIR is, where the shell knows no DIR.

    Args:
        name: of the flag.
        description: what --help says of it.
        example: a value, for the error where there is none.
        required: whether it may not be left out.
        several: whether it may be given again; its value is then a list.
    """
    holder = (flags.DEFINE_multi_string if several else flags.DEFINE_string)(name, None, description)

    def check(value: str | list[str] | None) -> bool:
        if all(map(str.strip, [value] if isinstance(value, str) else value)) if value is not None else not required:
            return True
        # absl would put what it makes of the flag before the words of an error of its own.
        wrong = "missing" if value is None else "empty"
        raise InputError(f"--{name} is {wrong}; name a folder, such as --{name}={example}")

    flags.register_validator(name, check)
    return holder


def define_optional_value(name: str, description: str) -> flags.FlagHolder:
    """A flag that may stand alone, as --name, whose value is then "", or have a value; None where it is not given."""

    class _Parser(flags.ArgumentParser):
        def parse(self, argument: str) -> str:
            return "" if argument == "true" else argument  # as absl has it where there is no value

    flag = flags.Flag(_Parser(), None, name, None, description, boolean=True)
    return flags.DEFINE_flag(flag)


def define_step() -> flags.FlagHolder:
    """The flag --step=NUMBER."""
    return flags.DEFINE_integer("step", None, "The checkpoint of this step, in place of the best.")


def define_base() -> flags.FlagHolder:
    """The flag --base=FOLDER, whose value is a list of folders."""
    meaning = "Where what the run started from is by now, if it moved."
    return flags.DEFINE_multi_string("base", [], meaning)


def define_sampling(of_model: bool = False) -> Callable[[], dict[str, Any]]:
    """Defines the flags of decoding. Returns a function that reads them, once parsed, as the fields of Sampling.

    of_model: whether what no flag says is left to the model; what that function returns then lacks it.
    """
    shared = " (where not given, as the model's generation_config.json says)" if of_model else ""

    def default(value: float) -> float | None:
        return None if of_model else value

    temperature = f"Of what is drawn; 0 for the most probable tokens{shared}."
    most_probable = f"Draw of the fewest that make up this probability{shared}."
    penalty = f"Divides the logits of tokens that were said before; 1 for none{shared}."
    holders = {
        "temperature": flags.DEFINE_float("temperature", default(0.0), temperature),
        "top_k": flags.DEFINE_integer("top_k", default(0), f"Draw of so many most probable tokens; 0 for all{shared}."),
        "top_p": flags.DEFINE_float("top_p", default(1.0), most_probable),
        "repetition_penalty": flags.DEFINE_float("repetition_penalty", default(1.0), penalty),
        "seed": flags.DEFINE_integer("seed", 0, "Of what is drawn.", lower_bound=0, upper_bound=2**32 - 1),
    }
    most = f"Tokens of a reply at most{shared}."
    flags.DEFINE_integer("max_new", default(512), most, lower_bound=1)
    return lambda: {name: holder.value for name, holder in holders.items() if holder.value is not None}


def max_new_tokens() -> int | None:
    """Tokens of a reply at most, as --max_new says; None where it is left to the model."""
    return flags.FLAGS.max_new


def check_output(flag: flags.FlagHolder) -> None:
    """Raises InputError where the file that a flag names could not be written; asked before the work for it."""
    with _errors_naming(flag, "a file"):
        check_writable(path_of(flag.value))


def check_output_folder(flag: flags.FlagHolder) -> None:
    """Raises InputError where nothing could be written into the folder that a flag names."""
    with _errors_naming(flag, "a folder"):
        check_folder_writable(path_of(flag.value))


def write_into(flag: flags.FlagHolder, name: str, data: bytes) -> Path:
    """Writes a file of that name into the folder that a flag names. Raises InputError where that fails."""
    with _errors_naming(flag, "a folder"):
        folder = path_of(flag.value)
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / name, data)
        return folder / name


def write_output(flag: flags.FlagHolder, data: bytes) -> None:
    """Writes the file that a flag names, by an atomic write. Raises InputError where that fails."""
    with output(flag) as file:
        file.write(data)


def show_pieces(pieces: Iterable[str], flag: flags.FlagHolder, is_page: bool) -> None:
    """Writes what a door shows to the file that its flag names, or else to the terminal.

    Args:
        pieces: of text.
        flag: of the file, whose value may be None.
        is_page: whether it is HTML, which says of itself that it is UTF-8.
    """
    if flag.value is not None:
        write_output(flag, "".join(pieces).encode())
        return
    if is_page:
        sys.stdout.reconfigure(encoding="utf-8")
    for piece in pieces:
        if not write_out(piece):
            return


@contextmanager
def output(flag: flags.FlagHolder) -> Iterator[BinaryIO]:
    """The file that a flag names, to write to; it is there when it is whole. Raises InputError where that fails."""
    with _errors_naming(flag, "a file"), atomic_file(path_of(flag.value)) as file:
        yield file


@contextmanager
def _errors_naming(flag: flags.FlagHolder, what: str) -> Iterator[None]:
    """Raises InputError, which names the flag, in place of an OSError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"--{flag.name}={flag.value}: {reason(error)}; name {what} that can be written") from error


def run(main: Callable[[], None]) -> None:
    """Parses the flags, calls `main` and exits.

    Exit status: 0 done, and where a reader such as `head` has left; 2 the user's input is wrong, said in one line; 130
    Ctrl-C; 1 anything else, a bug of ours.
    """
    raise_at_ctrl_c()
    logging.set_verbosity(logging.ERROR)  # absl's own warnings would stand beside the one line
    warnings.showwarning = _show_warning
    with any_text_any_reader():
        try:
            if not _answered(sys.argv[1:]):
                _parse()
                _call(main)
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a full disk is told
        except InputError as error:
            _fail(error)
        except flags.Error as error:
            _fail(_flag_error_line(error))
        except KeyboardInterrupt:
            _leave(130)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in FULL:
                where = error.filename or "what is written to"
                _fail(f"{where}: {error.strerror}; free some space and run the same command again")
            if is_failure(error):
                _fail(f"a bucket failed ({one_line(error, 300)}); see to the network, then run the same command again")
            if _from_override(error):
                _fail(f"the config cannot be changed so: {type(error).__name__}: {error}")
            if (peers := sys.modules.get("mtsft.training.peers")) and peers.blamed_on_peers(error):
                _leave(peers.LOST)
            traceback.print_exc()
            _leave(1)


_warned: set[tuple[type, str, int]] = set()  # kinds and places of warnings that were shown


def _show_warning(
    message: Warning | str,
    kind: type[Warning],
    path: str,
    line: int,
    file: TextIO | None = None,
    text: str | None = None,
) -> None:
    """Shows a warning in a line; those of one place in some library once, whatever each is about."""
    if (kind, path, line) not in _warned:
        _warned.add((kind, path, line))
        print(f"{_door()}: {one_line(message)} ({kind.__name__} of {path}:{line})", file=file or sys.stderr, flush=True)


def _call(main: Callable[[], None]) -> None:
    """Calls `main`; in a run of several processes, tells the others that this one ends, unless by an error."""
    status = 0
    try:
        main()
    except SystemExit as end:
        status = end.code
    if peers := sys.modules.get("mtsft.training.peers"):
        peers.leave_peers()
    stopping.finish(status or 0)
    if status:
        sys.exit(status)


def _answered(arguments: Sequence[str]) -> bool:
    """Prints what --help, --help=WORD, -h or --version ask for, if one is there. Raises InputError for other words."""
    for argument in arguments:
        name, _, word = argument.partition("=")
        if name in ("-version", "--version"):
            print(f"mtsft {__version__}")
            return True
        if name in ("-h", "-help", "--help", "--helpshort", "--helpfull"):
            is_terminal = sys.stdout is not None and sys.stdout.isatty()
            _help(word, shutil.get_terminal_size().columns if is_terminal else 0)
            return True
    return False


def _help(word: str, width: int) -> None:
    has_config = "config" in flags.FLAGS
    entries = list(_flag_entries())
    if word:
        print(found_text(word, entries + (key_entries() if has_config else []), width))
    else:
        print(help_text(sys.modules["__main__"].__doc__, entries, has_config, width))


def _flag_entries() -> Iterator[Entry]:
    """The flags of the door; not those that absl and other libraries have for themselves."""
    for module, found in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("mtsft") or module == sys.argv[0]:
            for flag in found:
                if "." not in flag.name:  # an override of --config
                    yield flag_entry(flag.name, flag.default, flag.help)
    yield flag_entry("help", None, "This text; or what has a word in its name or meaning: --help=WORD.")
    yield flag_entry("version", False, "The version of mtsft.")


def _parse() -> None:
    """Parses the flags. Raises InputError or flags.Error for wrong ones."""
    if "config" in flags.FLAGS:
        sys.argv, remark = with_config(sys.argv)
        if remark:
            print(f"{_door()}: {remark}", file=sys.stderr)
    rest = flags.FLAGS(sys.argv)[1:]
    if rest:
        raise InputError(f"{one_line(rest[0], 80)!r} is not a flag; write --name=value (see --help)")


def _flag_error_line(error: flags.Error) -> str:
    if isinstance(error, flags.UnrecognizedFlagError):
        name = error.flagname
        known = [entry.label.partition("=")[0].lstrip("-") for entry in _flag_entries()]
        keys = near_keys(name.removeprefix("config.")) if "config" in flags.FLAGS else []
        hint = did_you_mean(name, known, "--") or (f"; did you mean --config.{keys[0]}?" if keys else "; see --help")
        return f"--{one_line(name, 80)} is not a flag{hint}"
    # ml_collections repeats whole tracebacks; the last line says what is wrong.
    head, is_traceback, trace = str(error).partition("Traceback (most recent call last)")
    return f"{head} {trace.strip().splitlines()[-1]}" if is_traceback else head


def _from_override(error: Exception) -> bool:
    """Whether it was raised while ml_collections read an override of a config, and not by our own code."""
    modules = {frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)}
    return any(name.startswith("ml_collections") for name in modules)


def _door() -> str:
    return Path(sys.argv[0]).stem


def _fail(error: object) -> None:
    print(f"{_door()}: {one_line(error, 1000)}", file=sys.stderr)
    _leave(2)


def _leave(status: int) -> None:
    """Exits; in a run of several processes without JAX's shutdown barrier, which would wait for the others."""
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
