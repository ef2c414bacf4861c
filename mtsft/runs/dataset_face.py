"""The dialogues of a config as they are trained on, in Python; no model, no devices, no JAX."""

import html

from ml_collections import ConfigDict

from mtsft.config import data_config, validate
from mtsft.config_files import as_config
from mtsft.data.dataset import TokenizedDataset, open_dataset
from mtsft.diagnose.notebook_views import EncodedDialogues, ShownBatch
from mtsft.runs.audited import AuditReport, audited
from mtsft.runs.template_date import with_template_date
from mtsft.runs.train_batches import train_batches


class Dataset:
    """What a run trains on and is tested on. Build it with `open`.

    Attributes:
        train: the training dialogues, each once, shown as it is trained on.
        eval: the held-out dialogues; None where nothing is held out.
        tokenized: the token stores and the rows of their epochs, in plain values.
    """

    def __init__(self, config: ConfigDict, tokenized: TokenizedDataset):
        self._config, self.tokenized = config, tokenized
        self.train = EncodedDialogues(tokenized.train, tokenized.tokenizer)
        self.eval = EncodedDialogues(tokenized.eval, tokenized.tokenizer) if tokenized.eval is not None else None

    @classmethod
    def open(cls, config: ConfigDict | str, progress: bool = True) -> "Dataset":
        """Tokenises the dialogues that a config names, or finds them tokenised.

        Args:
            config: a config, or the name or the path of one, as `mtsft.load_config` takes it.
            progress: whether to show a progress bar.

        Raises:
            InputError: something is wrong with the config, the files or a dialogue.
        """
        config = as_config(config)
        validate(config)
        config = with_template_date(config)
        return cls(config, open_dataset(data_config(config), config.train.seed, progress))

    @staticmethod
    def audit(config: ConfigDict | str, numeric: bool = False, progress: bool = True) -> AuditReport:
        """The dialogues that a config names, checked: what a run would train on, and what is wrong with it.

        What `open` would stop at is counted here, and told with where it stands.

        Args:
            config: as that of `open`.
            numeric: whether to compare as well, with the config's model, one pass with K and packed with alone.
            progress: whether to show progress bars.

        Raises:
            InputError: something is wrong with the config, or no file is found.
        """
        return audited(as_config(config), numeric, progress)

    def batch(self, step: int) -> ShownBatch:
        """The batch that the step after `step` steps trains on: all of its rows, over all devices and hosts.

        Raises IndexError where there are not so many.
        """
        batches = train_batches(self._config, self.tokenized)
        if not 0 <= step < len(batches):
            raise IndexError(f"batch {step} of {len(batches):,}, counted from 0")
        return ShownBatch(*batches[step])

    def summary(self) -> list[str]:
        """Lines that account for every dialogue read."""
        return self.tokenized.summary()

    def __repr__(self) -> str:
        return "\n".join(self.summary())

    def _repr_html_(self) -> str:
        return "".join(f"<p>{html.escape(line)}</p>" for line in self.summary())
