"""The audit of a config, with how long its run is and, if asked, what its model says of the identities."""

from functools import partial

from ml_collections import ConfigDict

from mtsft.config import data_config, validate
from mtsft.data.data_files import DataFiles
from mtsft.diagnose.audit import audit
from mtsft.diagnose.audit_text import report_as_text
from mtsft.diagnose.notebook_views import ShownRecord, ShownText
from mtsft.runs.run_length import run_length


class AuditReport(ShownRecord):
    """What an audit found, in plain values; shown as the text that `mtsft audit` prints."""

    def __str__(self) -> str:
        return report_as_text(self)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return ShownText(self)._repr_html_()


def audited(config: ConfigDict, numeric: bool = False, progress: bool = True) -> AuditReport:
    """All dialogues of a run, tokenized and checked.

    Args:
        config: of the run.
        numeric: whether to compare as well, with its model, one pass with K and packed with alone.
        progress: whether to show bars, where there is a terminal.

    Returns:
        What `mtsft.diagnose.audit.audit` says; with `numeric` also "numeric", the record of
        `mtsft.evaluation.identities.compare`.

    Raises:
        InputError: something is wrong with the config, or no file is found; what is wrong in a file is counted.
    """
    validate(config)
    files = DataFiles.find(data_config(config))
    train = config.train
    report = audit(files, train.seed, progress, partial(run_length, config), train.batch_size)
    if numeric:
        # Imported here: what tokenises in processes of its own imports this file too, and has no use for JAX.
        from mtsft.runs import identity_check

        report["numeric"] = identity_check.check(config, files)
    return AuditReport(report)
