"""The whole dataset checked before any compute: python -m mtsft.audit --config=... [--format=json] [--numeric].

It counts what a run would train on, the rows that this fills and the steps of the run; what is dropped, cut or left out
is told by reason. Exit status 2 where training with the same config would be wrong; the report says where and what to
do. It counts turns from 1; in JSON they are indices, counted from 0. The keys of the JSON: mtsft/diagnose/audit.py.
"""

import json

from absl import flags

from mtsft import cli
from mtsft.diagnose.row_shapes import RowShape
from mtsft.errors import InputError
from mtsft.runs.audited import audited

_CONFIG = cli.define_config()
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "Lines to read, or one JSON object.")
_NUMERIC = flags.DEFINE_bool("numeric", False, "Also check with the model that one pass equals K, packed equals alone.")
_MEASURE = flags.DEFINE_bool("measure", False, "Also time training steps on rows of several lengths, on this machine.")


def main() -> None:
    """Audits what the flags name, and prints."""
    report = audited(_CONFIG.value, _NUMERIC.value)
    wrong = [problem for problem in report["problems"] if problem["severity"] == "error"]
    if _MEASURE.value and not wrong:
        # Imported here: processes that tokenise import this file too, and have no use for JAX.
        from mtsft.runs.row_times import row_times

        shapes = [RowShape(**shape) for shape in report["train"]["fill"]]
        report["row_times"] = [each.as_record() for each in row_times(_CONFIG.value, shapes)]
    cli.write_out((json.dumps(report) if _FORMAT.value == "json" else str(report)) + "\n")
    if wrong:
        named = "; ".join(f"{problem['count']:,} {problem['what']}" for problem in wrong)
        raise InputError(f"training would be wrong: {named}")


if __name__ == "__main__":
    cli.run(main)
