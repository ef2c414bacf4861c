"""One page on a run, or on several side by side: python -m mtsft.report --workdir=DIR [--workdir=DIR2 ...].

What was trained, on what, and how it went: the config where it is not the default, what became of every dialogue,
curves of losses, rates and norms with the numbers behind them, evaluations, samples (where eval.samples had some made),
checkpoints. Written to DIR/report.html, or to --output=FILE, as HTML that needs nothing else: no network, no script. A
run that is still going on can be reported, too. The curves are drawn by matplotlib: pip install 'mtsft[report]'.
"""

from absl import flags

from mtsft import cli
from mtsft.diagnose.report.write import write_report

_WORKDIRS = cli.define_folder("workdir", "Of a run, or of runs to see side by side.", "runs/mine", several=True)
_OUTPUT = flags.DEFINE_string("output", None, "The file to write, in place of DIR/report.html.")


def main() -> None:
    """Writes the report that the flags name, and says where it is."""
    cli.write_out(f"{write_report(_WORKDIRS.value, _OUTPUT.value)}\n")


if __name__ == "__main__":
    cli.run(main)
