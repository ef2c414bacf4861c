"""A report says what the files say, to its last digit, and is safe and easy to read."""

import json
import re
import sys
from itertools import pairwise

import pytest
from workdirs import ReadPage, number, records_of, write_lines, write_workdir

from mtsft.diagnose.report.measured import evaluation
from mtsft.diagnose.report.overview import verdict
from mtsft.diagnose.report.run_files import read_runs
from mtsft.diagnose.report.write import report_page, write_report
from mtsft.errors import InputError

EVIL = "\x1b[2J\u202e<script>alert('x')</script>&amp;\n$x_{1}$"
SHOWN = "␛[2J<U+202E><script>alert('x')</script>&amp;\n$x_{1}$"


@pytest.fixture
def workdir(tmp_path):
    return write_workdir(tmp_path / "run")


def page_of(*workdirs):
    return report_page(read_runs(workdirs))


def read(*workdirs):
    return ReadPage(page_of(*workdirs))


def same(text, value):
    """Whether a cell shows a number to six digits, or whole from 100,000 on."""
    return abs(number(text) - value) <= (0.5 if abs(value) >= 1e5 else 5.01e-6 * abs(value))


def flat(record):
    nested = {f"{k}.{n}": v for k, each in record.items() if isinstance(each, dict) for n, v in each.items()}
    return {**{k: v for k, v in record.items() if not isinstance(v, dict | list | str)}, **nested}


def test_every_number_of_the_tables_is_that_of_the_files(workdir):
    page = read(workdir)
    for file in ("metrics.jsonl", "eval.jsonl"):
        (head, *rows), records = page.tables[file], records_of(workdir / file)
        assert len(rows) == len(records)
        assert {*head} == {*flat(records[0])} - {"skipped_steps"}
        for row, record in zip(rows, records, strict=True):
            for name, cell in zip(head, row, strict=True):
                assert same(cell, flat(record)[name]), (name, cell)
    head, *rows = page.tables["Held-out loss by turn"]
    assert head == ["step", "turn 1", "turn 2", "turn 3"]
    for row, record in zip(rows, records_of(workdir / "eval.jsonl"), strict=True):
        assert number(row[0]) == record["step"]
        assert all(same(cell, each["loss"]) for cell, each in zip(row[1:], record["by_turn"], strict=True))
    assert dict(page.tables["Result"][1:]) == {
        "finished": "yes", "steps": "60", "seconds": "61.25", "training_seconds": "50.5"
    }  # fmt: skip
    accounts = dict(page.tables["What became of every dialogue, response and token"][1:])
    assert accounts == {"dialogues": "1,200", "kept": "1,198", "refused": "2", "by_turn: 1": "900", "by_turn: 2": "300"}
    assert "Nowhere any: unreadable." in page.text
    assert page.tables["Checkpoints"][1:] == [
        ["55", "1.01818", ""], ["60", "1.01667", "the best by held-out loss"]
    ]  # fmt: skip


def test_the_rows_of_a_long_run_are_those_of_its_file_and_no_spike_is_missing(tmp_path):
    workdir = write_workdir(tmp_path / "long", steps=6000, every=500)
    records = records_of(workdir / "metrics.jsonl")
    records[4320] |= {"loss": 50.0, "step_loss": 77.0}
    write_lines(workdir / "metrics.jsonl", records)
    page = page_of(workdir)
    head, *rows = ReadPage(page).tables["metrics.jsonl"]
    steps = [int(number(row[0])) for row in rows]
    assert {1, 4321, 6000} <= {*steps}
    assert len(steps) < 200
    for row, step in zip(rows, steps, strict=True):
        assert all(same(cell, flat(records[step - 1])[name]) for name, cell in zip(head, row, strict=True))
    # In the plot, too: the highest point of the curve stands alone, at its step.
    panel = re.search(r"<figure><figcaption><b>Training loss</b>.*?</svg>\n?</figure>", page, re.DOTALL)[0]
    (curve,) = [d for d in re.findall(r'<path d="([^"]*)"[^>]*class="s-0"', panel) if d.count("L") > 1000]
    points = [tuple(map(float, point.split())) for point in re.split("[ML]", curve) if point.strip()]
    (left, _), (right, _) = points[0], points[-1]
    by_height = sorted(points, key=lambda point: point[1])
    assert by_height[0][1] < by_height[1][1] - 20
    assert by_height[0][0] == pytest.approx(left + (right - left) * 4320 / 5999, abs=0.02)


def test_what_is_there_beside_the_curves_is_shown(workdir):
    scores = {"loss": 0.5, "interval": [0.25, 0.75], "notes": ["a note"], "stops": None}
    scores["by_turn"] = [{"turn": t, "loss": 0.5 + t, "interval": [0.25, 0.75 + t], "dialogues": 3} for t in range(2)]
    scores["by_mood"] = [{"mood": mood, "loss": 0.125} for mood in ("$glad^{$", "sad")]
    scores["by_field"] = {"topic": [{"value": "sums", "loss": 0.75}, {"value": "art", "loss": 0.5}]}
    (workdir / "evaluation.json").write_text(json.dumps(scores))
    context = {"said": "It uses it.", "p_value": 0.25, "rows": [{"turn": 0, "gain": 2}]}
    gains = [(1, 0.5, [0.25, 0.75]), (2, 1.5, [1.25, 2.5])]
    context["by_turn"] = [
        {"turn": 0, "gain": None},  # the first turn has no history
        *({"turn": turn, "gain": gain, "gain_interval": interval} for turn, gain, interval in gains),
    ]
    context["perturbations"] = [{"perturbation": name, "rise": rise} for name, rise in (("none", 0), ("shuffled", 3))]
    (workdir / "context.json").write_text(json.dumps(context))
    checks = [{"name": "loss", "status": "note", "said": "is high", "loss": 9.0}]
    (workdir / "preflight.json").write_text(json.dumps({"checks": checks}))
    (workdir / "bad_steps" / "7").mkdir(parents=True)
    rows = [
        {
            "row": 0,
            "dialogues": [{"id": "a", "source": "f:1", "loss": 1.0}, {"id": "b", "source": "/a/f:2", "loss": 8.0}],
        }
    ]
    record = {"step": 7, "reason": "a spike", "loss": 8.5, "grad_norm": None, "rows": rows}
    (workdir / "bad_steps" / "7" / "record.json").write_text(json.dumps(record))
    (workdir / "bad_steps" / "9").mkdir()  # whose record is being written
    page = read(workdir)
    assert page.tables["evaluation.json: single values"][1:] == [
        ["loss", "0.5"], ["interval", "0.25 to 0.75"], ["notes", '["a note"]'], ["stops", "-"]
    ]  # fmt: skip
    assert page.tables["evaluation.json: by_turn"] == [
        ["turn", "loss", "interval", "dialogues"], ["1", "0.5", "0.25 to 0.75", "3"], ["2", "1.5", "0.25 to 1.75", "3"]
    ]  # fmt: skip
    assert page.tables["evaluation.json: by_mood"][1:] == [["$glad^{$", "0.125"], ["sad", "0.125"]]
    assert page.tables["evaluation.json: by_topic"] == [["topic", "loss"], ["sums", "0.75"], ["art", "0.5"]]
    titles = ("Held-out loss by turn", "Held-out loss by mood", "Held-out loss by topic", "It uses it.")
    assert all(title in page.text for title in titles)
    assert page.tables["context.json: rows"] == [["turn", "gain"], ["1", "2"]]
    assert page.tables["context.json: by_turn"][1:] == [
        ["1", "-", "-"], ["2", "0.5", "0.25 to 0.75"], ["3", "1.5", "1.25 to 2.5"]
    ]  # fmt: skip
    assert "What the history brings, by turn" in page.text
    assert "gain: first 0.5 at turn 2, last 1.5 at turn 3, least 0.5 at turn 2, greatest 1.5 at turn 3." in page.text
    assert "gain: first 0 at none, last 3 at shuffled, least 0 at none, greatest 3 at shuffled." in page.text
    assert page.tables["Checked before the first step"][1:] == [["loss", "note", "is high"]]
    assert "What went wrong was written down at 2 steps, first at 7 (a spike)." in page.text
    bad = page.tables["Steps that went wrong"]
    assert bad[1:] == [["7", "a spike", "8.5", "-", "-", "-", "b (f:2); a (f:1)"], ["9", *["-"] * 5, ""]]
    assert ("h2", "Use of the history") in page.headings


@pytest.mark.parametrize("step", [55, 60])
def test_an_evaluation_of_an_earlier_step_is_told_as_such(workdir, step):
    (workdir / "evaluation.json").write_text(json.dumps({"loss": 0.5, "step": step}))
    said = "evaluation.json is of step 55, and the run has come to step 60."
    assert (said in evaluation(read_runs([workdir]))) == (step == 55)


def test_samples_are_by_context_and_beside_those_of_other_runs(tmp_path):
    def sample(step, id, reply, same=False):
        told = {"source": "f:1", "turn": 1, "prompt": f"to {id}", "reference": "ref", "stopped": True}
        return {"step": step, "id": id, **told, "reply": reply, "same": same}

    one, two = (write_workdir(tmp_path / name) for name in ("one", "two"))
    write_lines(one / "samples.jsonl", [sample(5, "a", "x"), sample(5, "b", "y"), sample(10, "a", "ref", True)])
    write_lines(two / "samples.jsonl", [sample(10, "a", "z")])
    assert read(one).tables["What the model says: a, turn 2"] == [
        ["step", "reply", "the dialogue's own", "came to an end"], ["5", "x", "no", "yes"], ["10", "ref", "yes", "yes"]
    ]  # fmt: skip
    both = read(one, two)
    assert both.tables["What the model says: a, turn 2"] == [
        ["step", "one", "two"], ["5", "x", "-"], ["10", "ref (the dialogue's own)", "z"]
    ]  # fmt: skip
    assert "a, turn 2: 1 of 3 replies are the dialogue's own" in both.text


@pytest.mark.parametrize("count", [1, 2])
def test_a_page_is_one_to_go_through_without_a_mouse_and_needs_nothing_else(tmp_path, count):
    page = page_of(*[write_workdir(tmp_path / f"run{i}", seed=i) for i in range(count)])
    parsed = ReadPage(page)
    tags = [tag for tag, _ in parsed.tags]
    assert "script" not in tags
    assert not {"src", "style", "onclick", "onload", "srcset", "action"} & {n for _, each in parsed.tags for n in each}
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", page)
    assert "://" not in page
    (policy,) = [each["content"] for tag, each in parsed.tags if "http-equiv" in each]
    assert re.fullmatch(r"default-src 'none'; style-src 'sha256-[\w+/=]+'; form-action 'none'", policy)
    ids = [each["id"] for _, each in parsed.tags if "id" in each]
    assert len(ids) == len({*ids})
    links = {each["href"] for _, each in parsed.tags if "href" in each}
    assert links <= {f"#{each['id']}" for _, each in parsed.tags if "id" in each}
    named = [each.get("aria-labelledby", "").split() for tag, each in parsed.tags if tag in ("section", "svg")]
    assert all({*names} <= {*ids} for names in named)
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert tags.count("table") == tags.count("caption") > 3
    pictures = [each for tag, each in parsed.tags if tag == "svg" and each.get("role") == "img"]
    assert len(pictures) == tags.count("figure") == tags.count("desc") >= 8
    assert {"main", "nav", "header", "footer"} <= {*tags}
    assert parsed.tags[[tag for tag, _ in parsed.tags].index("a")][1] == {"class": "skip", "href": "#what"}


def test_what_people_wrote_is_shown_and_not_obeyed(tmp_path):
    workdir = write_workdir(tmp_path / "<b>$a_$", **{"data.system": EVIL})
    record = {"step": 5, "id": EVIL, "turn": 0, "prompt": EVIL, "reference": EVIL, "reply": EVIL, "stopped": True}
    write_lines(workdir / "samples.jsonl", [record])
    (workdir / "evaluation.json").write_text(
        json.dumps({EVIL: EVIL, "by_file": [{"file": EVIL, "loss": 1.0}, {"file": "b", "loss": 2.0}]})
    )
    page = page_of(workdir)
    assert not {"\x1b", "\u202e"} & {*page}
    parsed = ReadPage(page)
    assert "script" not in [tag for tag, _ in parsed.tags]
    assert parsed.text.count(SHOWN) >= 5
    assert ("h1", "Report of <b>$a_$") in parsed.headings


def test_runs_side_by_side_begin_with_how_their_configs_differ(tmp_path):
    one = write_workdir(tmp_path / "a" / "run", **{"train.learning_rate": 0.5, "data.workers": 3})
    two = write_workdir(tmp_path / "b" / "run", seed=1, finished=False)
    (two / "legs.jsonl").unlink()
    page = page_of(one, two)
    parsed = ReadPage(page)
    assert next(iter(parsed.tables)) == "Keys that differ"
    head, *rows = parsed.tables["Keys that differ"]
    assert head == ["key", str(one), str(two), "default", "meaning"]
    assert [row[:4] for row in rows] == [["train.learning_rate", "0.5", "0.0003", "0.0003"]]
    assert parsed.tables["Result"][0] == ["name", str(one), str(two)]
    assert parsed.tables["Result"][1:3] == [["finished", "yes", "-"], ["steps", "60", "-"]]
    assert parsed.tables["Held-out loss by turn"][0] == ["turn", str(one), str(two)]
    # Each run by its colour, its dashes and its marker.
    panel = re.search(r"<b>Gradient norm</b>.*?</svg>\n?</figure>", page, re.DOTALL)[0].rpartition("</ul>")[2]
    lines = {
        c: d
        for d, c in re.findall(
            r'<path d="[^"]*"(?: [\w-]+="[^"]*")*?( stroke-dasharray="[^"]*")?[^>]*class="s-([01])"', panel
        )
    }
    assert {*lines} == {"0", "1"}
    markers = {c: re.search(rf'<path id="[^"]*" d="([^"]*)"[^>]*class="[^"]*s-{c}"', panel)[1] for c in "01"}
    assert markers["0"] != markers["1"]
    assert panel.count("stroke-dasharray") >= 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda run: None,
            "Finished: 60 steps. The best held-out loss was 1.0167 nats per supervised token, after step 60.",
        ),
        (lambda run: (run / "result.json").unlink(), "Not finished: at step 60 when this page was made"),
        (lambda run: write_legs(run, (60, 90)), "Not finished: at step 60 of 90 when"),
        (lambda run: write_legs(run, (20, 90)), "Finished: 60 steps, stopped early of 90, as the held-out loss"),
        (lambda run: write_lines(run / "eval.jsonl", []), "Nothing was evaluated on held-out dialogues."),
        (lambda run: cut(run, "metrics.jsonl", 58), "Finished: 60 steps."),
    ],
)
def test_it_is_said_how_a_run_went(workdir, change, says):
    change(workdir)
    assert says in verdict(*read_runs([workdir]))


def write_legs(run, *more):
    (first,) = records_of(run / "legs.jsonl")
    later = [
        {**first, "step": step, "steps": steps, "config": {**first["config"], "train.steps": steps}}
        for step, steps in more
    ]
    write_lines(run / "legs.jsonl", [first, *later])


def cut(run, name, count):
    text = "".join(json.dumps(record) + "\n" for record in records_of(run / name)[:count])
    (run / name).write_text(text + '{"step": 99, "lo')


def test_starts_are_told_with_what_changed(workdir):
    write_legs(workdir, (20, 90))
    assert read(workdir).tables["Starts of the run"][1:] == [
        ["1", "2026-01-01T00:00:00+0000", "0", "60", "the first start"],
        ["2", "2026-01-01T00:00:00+0000", "20", "90", "train.steps: 60 → 90"],
    ]


def test_a_run_that_has_only_begun_has_gaps_and_says_so(workdir):
    for name in ("result.json", "metrics.jsonl", "eval.jsonl", "legs.jsonl"):
        (workdir / name).unlink()
    for step in (55, 60):
        (workdir / "checkpoints" / str(step)).rmdir()
    said = read(workdir).text
    for words in (
        "No step is logged yet.",
        "What became of every dialogue is written down when a run ends.",
        "Nothing was evaluated on held-out dialogues.",
        "There is no checkpoint yet.",
        "A run writes its result when it is finished.",
    ):
        assert words in said


def test_losses_that_are_not_finite_are_counted_and_named(workdir):
    records = records_of(workdir / "metrics.jsonl")
    for record in records[30:33]:
        record |= {"loss": None, "step_loss": None, "grad_norm": None, "skipped_steps": record["step"] - 30}
    for record in records[33:]:
        record["skipped_steps"] = 3
    write_lines(workdir / "metrics.jsonl", records)
    page = read(workdir)
    assert "Of its steps 3 were skipped" in page.text
    assert page.tables["metrics.jsonl"][31][1:3] == ["not finite", "not finite"]
    assert page.tables["Steps whose loss or gradient was not finite"][1:] == [["31", "1"], ["32", "1"], ["33", "1"]]
    assert "Missing or not finite: 3." in page.text


def test_losses_on_other_dialogues_are_not_compared(workdir):
    records = records_of(workdir / "eval.jsonl")
    for record in records[:6]:
        record |= {"held_out": "of before", "loss": 0.001}
    write_lines(workdir / "eval.jsonl", records)
    page = read(workdir)
    assert "The best held-out loss was 1.0167" in page.text
    assert "Of the dialogues that are held out now; evaluations on earlier ones are in the table." in page.text
    assert [same(row[1], each["loss"]) for row, each in zip(page.tables["eval.jsonl"][1:], records)] == [True] * 12


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        (
            "metrics.jsonl",
            '{"step": 1, "loss": "low"}\n',
            "run: step 1: loss is 'low', no number; restore it from a copy",
        ),
        ("metrics.jsonl", "what\n{}\n", "metrics.jsonl:1: is no record of a step"),
        ("eval.jsonl", '{"step": 5, "loss": true}\n', "eval.jsonl: step 5: loss is True, no number"),
        ("result.json", "{", "result.json: cannot be read as JSON"),
        ("evaluation.json", "[]", "evaluation.json: holds no JSON object"),
        ("config.json", '{"train": 3}', "config.json: not the config of a run"),
    ],
)
def test_a_damaged_file_is_named(workdir, file, content, says):
    (workdir / file).write_text(content)
    with pytest.raises(InputError) as refusal:
        page_of(workdir)
    assert says.replace("run: step", "metrics.jsonl: step") in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("odd", [None, 3, "words", [], [None], [[1]], {}, {"a": [1]}, [{"turn": "x", "loss": "y"}]])
def test_files_that_others_write_may_hold_anything(workdir, odd):
    of_others = dict.fromkeys(("by_turn", "by_x", "stops", "checks", "said", "rows", "loss", "interval", "reason"), odd)
    for name in ("evaluation.json", "context.json", "preflight.json"):
        (workdir / name).write_text(json.dumps(of_others))
    (workdir / "bad_steps" / "7").mkdir(parents=True)
    (workdir / "bad_steps" / "7" / "record.json").write_text(json.dumps(of_others))
    write_lines(workdir / "samples.jsonl", [{"step": 5, **dict.fromkeys(("id", "turn", "prompt", "reply"), odd)}])
    write_lines(workdir / "eval.jsonl", [{"step": 5, "held_out": odd, "loss": None, "by_turn": odd}])
    write_lines(workdir / "legs.jsonl", [{"step": 0, "config": odd}, {"step": 2, "steps": odd, "config": odd}])
    (workdir / "result.json").write_text(json.dumps({"steps": 60, "data": odd, "seconds": 1, "by_kind": odd}))
    assert "Held-out loss" in page_of(workdir)


def test_only_runs_are_reported_each_once(workdir, tmp_path):
    for wrong in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError, match=r"^--workdir=.*: holds no run \("):
            read_runs([wrong])
    with pytest.raises(InputError, match=r"is named twice; name each run once$"):
        read_runs([workdir, workdir])


def test_the_page_is_written_whole_and_the_same_every_time(workdir, tmp_path):
    path = write_report([workdir])
    assert path == workdir / "report.html"
    whole = path.read_bytes()
    assert whole.endswith(b"</body></html>\n")
    assert write_report([workdir], tmp_path / "other.html").read_bytes() == whole
    with pytest.raises(InputError, match=r"nowhere/a.html: No such file or directory; name a file that can be written"):
        write_report([workdir], tmp_path / "nowhere" / "a.html")
    assert [each.name for each in workdir.iterdir() if each.suffix == ".tmp"] == []


def test_settings_of_matplotlib_change_nothing(workdir):
    import matplotlib

    usual = page_of(workdir)
    with matplotlib.rc_context({"svg.fonttype": "path", "xtick.labelsize": 30, "ytick.direction": "in"}):
        assert page_of(workdir) == usual


def test_without_matplotlib_it_says_what_to_install(workdir, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"not installed; run pip install 'mtsft\[report\]'$"):
        write_report([workdir])
