"""Workdirs as a run leaves them, with made-up numbers; and pages, read as a program can."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from mtsft.config import default

GROUPS = ("embed", "attention")


def write_lines(path: Path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_workdir(path: Path, steps=60, every=5, seed=0, finished=True, **changes) -> Path:
    """A workdir of a run of so many steps, all logged, evaluated every so many. changes: of its config, by key."""
    path.mkdir(parents=True)
    config = default()
    config.data.train = "d.jsonl"
    config.update_from_flattened_dict({"train.steps": steps, "train.log_every": 1, **changes})
    (path / "config.json").write_text(config.to_json())
    flat = {
        f"{group}.{name}": value for group, keys in json.loads(config.to_json()).items() for name, value in keys.items()
    }
    write_lines(path / "legs.jsonl", [{"step": 0, "began": "2026-01-01T00:00:00+0000", "steps": steps, "config": flat}])
    rng = np.random.default_rng(seed)
    write_lines(path / "metrics.jsonl", [metrics(step, rng) for step in range(1, steps + 1)])
    evaluated = range(every, steps + 1, every)
    write_lines(path / "eval.jsonl", [evaluation(step, rng) for step in evaluated])
    for step in evaluated[-2:]:
        (path / "checkpoints" / str(step)).mkdir(parents=True)
    if finished:
        accounts = {"dialogues": 1200, "kept": 1198, "refused": 2, "unreadable": 0, "by_turn": {"0": 900, "1": 300}}
        accounts |= {"examples": {"refused": ["d.jsonl:7"]}}
        result = {
            "finished": True,
            "steps": steps,
            "seconds": 61.25,
            "training_seconds": 50.5,
            "data": {"train": accounts},
        }
        (path / "result.json").write_text(json.dumps(result))
    return path


def metrics(step, rng):
    loss = float(3 * np.exp(-step / 20) + rng.uniform(0.1, 0.2))
    return {
        "step": step,
        "loss": loss,
        "step_loss": loss + float(rng.normal(0, 0.01)),
        "supervised_tokens": int(rng.integers(400, 600)),
        "tokens": int(rng.integers(900, 1000)),
        "fill": float(rng.uniform(0.9, 1)),
        "grad_norm": float(rng.uniform(0.5, 1)),
        "learning_rate": 1e-3 / step,
        "grad_norms": {group: float(rng.uniform(0.1, 0.5)) for group in GROUPS},
        "skipped_steps": 0,
        "tokens_per_second": float(rng.uniform(1e5, 2e5)),
        "supervised_tokens_per_second": float(rng.uniform(5e4, 6e4)),
        "seconds": step * 1.0,
        "training_seconds": step * 0.9,
    }


def evaluation(step, rng):
    by_turn = [{"turn": turn, "loss": float(rng.uniform(0, 2)), "supervised_tokens": 50 - turn} for turn in range(3)]
    return {
        "step": step,
        "held_out": "a",
        "loss": 1 + 1 / step,
        "supervised_tokens": 150,
        "dialogues": 9,
        "by_turn": by_turn,
    }


def records_of(path: Path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class ReadPage(HTMLParser):
    """A page: its tags with their attributes, its text, its headings, and the rows of its tables by caption."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.headings, self.tables, self.text = [], [], {}, ""
        self._open, self._cell = [], None
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("meta", "path", "use"):
            return
        self._open.append(tag)
        if tag == "tr":
            self._rows.append([])
        if tag in ("th", "td"):
            self._rows[-1].append("")
        if tag == "table":
            self._rows, self._caption = [], ""

    def handle_endtag(self, tag):
        if tag == "table":
            self.tables[self._caption] = self._rows
        if tag in self._open:
            del self._open[len(self._open) - 1 - self._open[::-1].index(tag) :]

    def handle_data(self, data):
        if "style" in self._open:
            return
        self.text += data
        if "caption" in self._open:
            self._caption += data
        elif self._open and self._open[-1] in ("th", "td"):
            self._rows[-1][-1] += data
        elif self._open and self._open[-1] in ("h1", "h2", "h3"):
            self.headings.append((self._open[-1], data))


def number(text):
    """The number that a cell shows."""
    return float(text.replace(",", ""))
