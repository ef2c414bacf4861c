"""A report as one HTML file, which needs nothing else to be read."""

from collections.abc import Sequence
from pathlib import Path

from mtsft import __version__
from mtsft.diagnose.html_parts import content_policy, escaped
from mtsft.diagnose.report.curves import curves
from mtsft.diagnose.report.measured import context, evaluation, kept
from mtsft.diagnose.report.numbers import HOW_ROUNDED
from mtsft.diagnose.report.overview import overview
from mtsft.diagnose.report.plots import check_matplotlib
from mtsft.diagnose.report.run_files import RunFiles, read_runs
from mtsft.diagnose.report.said import samples
from mtsft.diagnose.report.style import PAGE_STYLE
from mtsft.diagnose.report.trained_on import trained_on
from mtsft.errors import InputError
from mtsft.files import atomic_write, check_writable, path_of, reason

# Id and heading of each section, and what it is written by; one that is empty is left out.
_SECTIONS = (
    ("what", "What was trained", overview),
    ("data", "Data", trained_on),
    ("curves", "Curves", curves),
    ("evaluation", "Evaluation", evaluation),
    ("context", "Use of the history", context),
    ("samples", "Samples", samples),
    ("kept", "Checkpoints and result", kept),
)


def write_report(workdirs: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Writes the report of a run, or of several side by side.

    Args:
        workdirs: of the runs, which may still be going on.
        output: the file to write; None for report.html in the first workdir.

    Returns:
        The file.

    Raises:
        InputError: a workdir holds no run, a file of it is damaged, the report cannot be written, or matplotlib is not
            installed.
    """
    check_matplotlib()
    runs = read_runs(workdirs)
    path = runs[0].path / "report.html" if output is None else path_of(output)
    try:
        check_writable(path)
        atomic_write(path, report_page(runs).encode())
    except OSError as error:
        raise InputError(f"{path}: {reason(error)}; name a file that can be written: --output=FILE") from error
    return path


def report_page(runs: Sequence[RunFiles]) -> str:
    """The page. Raises InputError for what is no number where one should be."""
    names = ", ".join(run.name for run in runs)
    title = escaped(f"Report of {names}" if len(runs) == 1 else f"Side by side: {names}")
    written = [(name, heading, write(runs)) for name, heading, write in _SECTIONS]
    shown = [each for each in written if each[2]]
    links = "".join(f'<li><a href="#{name}">{escaped(heading)}</a></li>' for name, heading, _ in shown)
    sections = "".join(
        f'<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{escaped(heading)}</h2>\n{inside}</section>'
        for name, heading, inside in shown
    )
    where = "; ".join(str(run.path) for run in runs)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{content_policy(PAGE_STYLE)}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>\n'
        f'<style>{PAGE_STYLE}</style></head><body>\n<a class="skip" href="#what">To the report</a>\n'
        f'<header><h1>{title}</h1></header>\n<nav aria-label="Sections"><ul>{links}</ul></nav>\n'
        f"<main>\n{sections}</main>\n"
        f"<footer><p>Made by mtsft {__version__} of the files in {escaped(where)}. {HOW_ROUNDED}</p></footer>\n"
        "</body></html>\n"
    )
