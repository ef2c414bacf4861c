"""The command `mtsft`: lists the doors, or runs one: mtsft VERB ... is python -m mtsft.VERB ..."""

import ast
import runpy
import sys
from pathlib import Path

from mtsft import __version__
from mtsft.console import any_text_any_reader
from mtsft.errors import InputError, did_you_mean, one_line


def doors() -> dict[str, str]:
    """What each door is for, by verb, as the first line of its docstring says: "WHAT: python -m mtsft.VERB ..."."""
    summaries = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_bytes())) or ""
        summary, is_door, _ = docstring.partition(f": python -m mtsft.{path.stem} ")
        if is_door:
            summaries[path.stem] = summary
    return summaries


def listing() -> str:
    """What there is to run, a line each."""
    head = f"mtsft {__version__}: multi-turn supervised fine-tuning of language models in JAX and Flax"
    lines = (f"  mtsft {verb:<10} {summary}" for verb, summary in doors().items())
    more = "`mtsft VERB --help` shows all flags and config keys, and `--help=WORD` those about a word."
    return "\n".join([head, "", *lines, "", more, "`python -m mtsft.VERB` is the same as `mtsft VERB`."])


def found(word: str) -> str:
    """The verbs and the config keys that have a word. Raises InputError where there are none."""
    # Imported here: the listing is there at once.
    from mtsft.help_text import Entry, found_text, key_entries

    verbs = [Entry(f"mtsft {verb}", summary) for verb, summary in doors().items()]
    return found_text(word, [*verbs, *key_entries()])


def main() -> int:
    """Runs what the command line names; returns the exit status of what is said here."""
    try:
        verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
        if verb in doors():
            del sys.argv[1]
            # As `python -m`: the door is __main__, by a name under which the workers that it spawns import it again.
            runpy.run_module(f"mtsft.{verb}", run_name="__main__", alter_sys=True)
            return 0
        with any_text_any_reader():
            try:
                return _answer(verb)
            except OSError as error:  # a full disk
                print(f"mtsft: {error.strerror}", file=sys.stderr)
                return 2
    except KeyboardInterrupt:  # while a module loads: a door sees to its own
        return 130


def _answer(verb: str) -> int:
    """Prints what is asked for in place of a verb; returns the exit status."""
    name, _, word = verb.partition("=")
    try:
        if verb in ("--version", "-version"):
            print(f"mtsft {__version__}")
        elif name in ("-h", "-help", "--help", "help"):
            print(found(word) if word else listing())
        else:
            known = doors()
            flag = "; the verb comes first" if verb.startswith("-") else did_you_mean(verb.lower(), known)
            raise InputError(f"{one_line(verb, 80)!r} is not one of {', '.join(known)}{flag}")
        if sys.stdout is not None:
            sys.stdout.flush()
    except InputError as error:
        print(f"mtsft: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
