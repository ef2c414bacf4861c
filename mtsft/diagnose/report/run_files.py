"""What a run left in its workdir, read for a report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtsft.errors import InputError, one_line
from mtsft.files import path_of, read_json_file, read_json_lines

Record = dict[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """The files of a workdir, as they are; {} or [] for one that is not there.

    Attributes:
        name: of the run, another than those of the runs beside it.
        path: of the workdir.
        config: every key's value, as config.json has it, by "group.key".
        legs: legs.jsonl.
        metrics: metrics.jsonl, by step.
        evaluations: eval.jsonl, by step.
        samples: samples.jsonl.
        result: result.json.
        evaluation: evaluation.json, of `mtsft evaluate`.
        context: context.json, of `mtsft context`.
        preflight: preflight.json.
        bad_steps: the record.json of every folder of bad_steps, by step.
        checkpoints: their steps, ascending.
    """

    name: str
    path: Path
    config: Record
    legs: list[Record]
    metrics: list[Record]
    evaluations: list[Record]
    samples: list[Record]
    result: Record
    evaluation: Record
    context: Record
    preflight: Record
    bad_steps: list[Record]
    checkpoints: list[int]

    @property
    def last_step(self) -> int:
        """The last step that is known of."""
        logged = [records[-1]["step"] for records in (self.metrics, self.evaluations) if records]
        return max([*logged, self.ended.get("steps", 0), *self.checkpoints[-1:]], default=0)

    @property
    def ended(self) -> Record:
        """The result, unless the run was started again after it: then it is of an earlier end."""
        logged = max((records[-1]["step"] for records in (self.metrics, self.evaluations) if records), default=0)
        begun = self.legs[-1]["step"] if self.legs else -1
        steps = _count(self.result.get("steps"))
        return self.result if steps >= logged and steps > begun else {}

    @property
    def steps(self) -> int:
        """Of the run in all, as it was last planned; 0 where nothing says."""
        planned = self.legs[-1].get("steps") if self.legs else self.config.get("train.steps")
        return _count(planned)

    @property
    def best(self) -> int | None:
        """The step of the checkpoint with the least held-out loss; of those held out last. None where none has one."""
        losses = {record["step"]: record.get("loss") for record in self.last_series}
        kept = {step: losses[step] for step in self.checkpoints if isinstance(losses.get(step), float)}
        return min(kept, key=kept.get, default=None)

    @property
    def last_series(self) -> list[Record]:
        """The evaluations on the dialogues that are held out now: the losses of others are not to be compared."""
        last = self.evaluations[-1].get("held_out") if self.evaluations else None
        return [record for record in self.evaluations if record.get("held_out") == last]


def objects(value: Any) -> list[Record]:
    """The objects of a list; [] for what is none: files that others write may hold anything."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def turns_of(evaluation: Record) -> dict[int, Record]:
    """What an evaluation found of each turn, by its index."""
    return {each["turn"]: each for each in objects(evaluation.get("by_turn")) if type(each.get("turn")) is int}


def read_runs(workdirs: Sequence[str | Path]) -> list[RunFiles]:
    """The runs of some workdirs. Raises InputError where there is none, or a file of it is damaged."""
    paths = [path_of(workdir) for workdir in workdirs]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise InputError(f"--workdir={twice[0]}: is named twice; name each run once")
    names = [path.name or str(path) for path in paths]
    named = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths)]
    return [_read_run(name, path) for name, path in zip(named, paths)]


def _read_run(name: str, path: Path) -> RunFiles:
    if not (path / "config.json").exists():
        what = "no config.json there" if path.exists() else "there is no such folder"
        raise InputError(f"--workdir={path}: holds no run ({what}); name a folder that mtsft train has written to")
    lines = ("legs.jsonl", "metrics.jsonl", "eval.jsonl", "samples.jsonl")
    legs, metrics, evaluations, samples = (_by_step(read_json_lines(path / file)) for file in lines)
    objects = ("result.json", "evaluation.json", "context.json", "preflight.json")
    result, evaluation, context, preflight = (_read_object(path / file) for file in objects)
    evaluation = _with_fields(evaluation)
    config = _flat(_read_object(path / "config.json"), path / "config.json")
    bad_steps = _by_step([_with_step(folder) for folder in _folders(path / "bad_steps")])
    checkpoints = sorted(int(folder.name) for folder in _folders(path / "checkpoints"))
    return RunFiles(
        name,
        path,
        config,
        legs,
        metrics,
        evaluations,
        samples,
        result,
        evaluation,
        context,
        preflight,
        bad_steps,
        checkpoints,
    )


def _with_fields(evaluation: Record) -> Record:
    """An evaluation whose tables by a field of the dialogues are tables like the others."""
    of_fields = evaluation.get("by_field")
    if not isinstance(of_fields, dict):
        return evaluation
    tables = {
        f"by_{name}": [{name: row.get("value"), **{key: row[key] for key in row if key != "value"}} for row in rows]
        for name, rows in of_fields.items()
        if isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    }
    return {key: value for key, value in evaluation.items() if key != "by_field"} | {
        name: table for name, table in tables.items() if name not in evaluation
    }


def _by_step(records: list[Record]) -> list[Record]:
    return sorted(records, key=lambda record: record["step"])


def _read_object(path: Path) -> Record:
    remedy = "restore it from a copy, or move it away"
    return read_json_file(path, remedy)[1] if path.exists() else {}


def _with_step(folder: Path) -> Record:
    """The record of a bad step, in whose folder it may still be missing."""
    return {**_read_object(folder / "record.json"), "step": int(folder.name)}


def _folders(path: Path) -> list[Path]:
    """The folders that are named by a step. Raises InputError where they cannot be read."""
    try:
        return [folder for folder in path.iterdir() if folder.name.isdecimal()] if path.is_dir() else []
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({one_line(error, 100)})") from error


def _flat(config: Record, path: Path) -> Record:
    if not all(isinstance(keys, dict) for keys in config.values()):
        raise InputError(f"{path}: not the config of a run; restore it from a copy")
    return {f"{group}.{name}": value for group, keys in config.items() for name, value in keys.items()}


def _count(value: Any) -> int:
    return value if type(value) is int else 0
