"""A run that goes on without the folder that it started from, of which nothing is read again where all is trained."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mtsft.config import DataConfig
from mtsft.errors import InputError
from mtsft.hub import located
from mtsft.interop.hub_files import MODEL_FILES
from mtsft.model.architecture import RUNTIME, Architecture
from mtsft.model.lora import LoRA
from mtsft.model.parameters import Params
from mtsft.runs.hub_model import ShardingsOf
from mtsft.runs.started_from import is_there
from mtsft.runs.workdir import BASE, FINGERPRINT, read_published, read_run_config
from mtsft.training.checkpoint import Checkpoints, read_identity


class AbsentBase:
    """What a run keeps of the model that it started from, in the place of a HubModel or a WorkdirModel.

    Attributes:
        path: the workdir, which has its tokenizer, its template and its config.json.
        config: of the run, as it was recorded.
        fields: of the model's Architecture, all but those in RUNTIME.
        published: the config.json of the Hugging Face folder that it comes from; None where it comes from none.
        checkpoint: None.
    """

    checkpoint = None

    def __init__(self, workdir: Path):
        self.path, self.config, self.published = workdir, read_run_config(workdir), read_published(workdir)
        self.fields: dict[str, Any] = {
            field.name: self.config.model[field.name] for field in fields(Architecture) if field.name not in RUNTIME
        }

    @property
    def fingerprint(self) -> str | None:
        """That of the model which is absent."""
        return read_identity(self.path / FINGERPRINT).get(BASE)

    def difference(self, fingerprint: str) -> str:
        """None, as there is nothing to compare."""
        return ""

    def data(self, data: DataConfig) -> DataConfig:
        """The values of config.data, with the run's tokenizer and template in place of those of the folder."""
        template = data.template or str(self.path / "template.json")
        return replace(data, tokenizer=str(self.path / "tokenizer"), template=template)

    def adapters(self, path: str | Path) -> tuple[LoRA, Params]:
        """Raises InputError, as all that reads does."""
        raise self.missing("the adapters are fitted to it")

    def read(self, shapes: Params, shardings_of: ShardingsOf, progress: bool = False) -> Params:
        """Raises InputError."""
        raise self.missing("parameters are read from it")

    def read_each(self, shapes: Sequence[Params], shardings_of: ShardingsOf) -> Iterator[Params]:
        """Raises InputError."""
        raise self.missing("parameters are read from it")

    def missing(self, why: str) -> InputError:
        """The error of something that needs the folder. why: it is needed."""
        path = self.config.model.init_from
        try:
            located(path, MODEL_FILES)
        except InputError as error:  # a name of the Hub, of which this says more
            return InputError(f"{error}; {why}")
        return InputError(
            f"{path}: no such folder, and {why}; if it moved, name its new place with --config.model.init_from=FOLDER"
        )


def goes_on_without(path: str, workdir: Path | None) -> bool:
    """Whether a folder that a run started from is gone, and the run has come to a checkpoint that needs it no more.

    Args:
        path: of the folder; "" for none.
        workdir: of the run; None for none.
    """
    if not path or workdir is None or is_there(path):
        return False
    if not (workdir / FINGERPRINT).exists() or not (workdir / "checkpoints").is_dir():
        return False
    with Checkpoints(workdir / "checkpoints", None, keep=0) as checkpoints:
        return bool(checkpoints.latest)
