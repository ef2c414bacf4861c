"""The command `mtsft`: lists the doors, or runs one: mtsft VERB ... is python -m mtsft.VERB ..."""

import ast
import contextlib
import runpy
import sys
from pathlib import Path

from mtsft import __version__
from mtsft.errors import one_line


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
    return "\n".join([head, "", *lines, "", "`mtsft VERB --help` says more; `python -m mtsft.VERB` is the same."])


def main() -> int:
    """Runs what the command line names; returns the exit status of what is said here."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb == "--version":
        print(f"mtsft {__version__}")
    elif verb in ("--help", "-h"):
        with contextlib.suppress(BrokenPipeError):  # as by `| head`
            print(listing(), flush=True)
    elif verb not in doors():
        print(f"mtsft: {one_line(verb, 80)!r} is not one of {', '.join(doors())}", file=sys.stderr)
        return 2
    else:
        del sys.argv[1]
        # As `python -m` does: the door is __main__, by a name under which the workers that it spawns import it again.
        runpy.run_module(f"mtsft.{verb}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
