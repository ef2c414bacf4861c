"""What a workdir says of its training, for the card of an export."""

from pathlib import Path
from typing import Any

from mtsft.config import flat_values
from mtsft.config_keys import NOT_SAID, changed_keys
from mtsft.files import read_json_lines
from mtsft.interop.model_card import TrainingRecord
from mtsft.runs.trained_model import WorkdirModel
from mtsft.runs.workdir import FINGERPRINT, HELD_OUT
from mtsft.training.checkpoint import read_identity

# Keys whose values are paths, which are nobody's business beside their last part.
_PATHS = ("data.train", "data.eval", "data.tokenizer", "data.template", "model.init_from", "lora.init_from")


def training_record(trained: WorkdirModel) -> TrainingRecord:
    """How a model was trained, up to its checkpoint. Paths are told by their last part alone.

    Raises InputError where metrics.jsonl or eval.jsonl are damaged.
    """
    config = trained.config
    values = {key.name: value for key, value in changed_keys(flat_values(config)) if key.name not in NOT_SAID}
    if config.model.init_from:  # which says the sizes
        values = {key: value for key, value in values.items() if key.removeprefix("model.") not in trained.fields}
    values = {key: _last_parts(value) if key in _PATHS else value for key, value in values.items()}
    data = config.data
    if data.corpus:
        trained_on, held_out = [f"the built-in corpus {data.corpus}"], f"{data.corpus_eval_dialogues:,} dialogues of it"
    else:
        trained_on = _last_parts(list(data.train) if not isinstance(data.train, str) else data.train.split(","))
        held_out = f"{data.eval_fraction:.1%} of the dialogues" if data.eval_fraction else ""
        held_out = str(_last_parts(data.eval)) if data.eval else held_out
    fingerprint = trained.path / FINGERPRINT
    series = read_identity(fingerprint).get(HELD_OUT, "") if fingerprint.exists() else ""
    return TrainingRecord(
        step=trained.step,
        base=str(_last_parts(config.model.init_from)),
        data=trained_on,
        held_out=held_out,
        config=values,
        losses=_losses(trained.path / "metrics.jsonl", trained.step, None),
        held_out_losses=_losses(trained.path / "eval.jsonl", trained.step, series),
    )


def _losses(path: Path, until: int, held_out: str | None) -> list[tuple[int, float]]:
    """(step, loss) up to a step, of finite losses alone; held_out: the series of held-out dialogues, None for any."""
    return [
        (record["step"], record["loss"])
        for record in sorted(read_json_lines(path), key=lambda record: record["step"])
        if record["step"] <= until
        and isinstance(record.get("loss"), float)
        and (held_out is None or record.get("held_out", held_out) == held_out)
    ]


def _last_parts(value: Any) -> Any:
    """Paths, one, several by comma, or a list of them, each by its last part."""
    if isinstance(value, list):
        return [_last_parts(each) for each in value]
    return ",".join(each.strip().rstrip("/").rpartition("/")[2] for each in value.split(","))
