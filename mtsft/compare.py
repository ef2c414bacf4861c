"""Strategies of training, side by side on one budget: python -m mtsft.compare --config=... --workdir=DIR.

The same model, data, budget and seed are trained as each of --strategies, in a process and a folder of DIR each; then
all models are evaluated on every turn of the same held-out dialogues. Printed, and kept in DIR/compare.json: held-out
loss and its difference from one pass with intervals over dialogues, by turn too; what the history brings, on --context
dialogues (see mtsft context); tokens, trained tokens, FLOPs and seconds; and on --check dialogues, whether one pass and
a sequence a response have the same loss and gradient.

    one_pass      every turn, in one pass over the dialogue
    per_response  every turn, a sequence for each
    last, first   the last turn, or the first turn alone
    all_tokens    every token, the user's too
    per_turn      every turn counts the same
    per_dialogue  every dialogue counts the same
    paths         a sequence for each leaf of a tree of replies; named apart, as chains have one leaf

--budget=tokens, the default: all take the steps that the config says, in batches of the same slots. --budget=epochs:
all see the dialogues as often, at what it costs. --seeds=0,1,2 trains each so often, which tells a difference from
chance. The same command goes on where it was stopped.

Exit status: 0 all is compared; 75 it was asked to stop, and the runs saved; 2 the input is wrong, or a run failed.
"""

import json
import signal
import sys

from absl import flags

from mtsft import cli, stopping
from mtsft.errors import InputError
from mtsft.files import path_of

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir()
_STRATEGIES = flags.DEFINE_list(
    "strategies", "one_pass,per_response,last,first,all_tokens,per_turn,per_dialogue", "Which ones; one_pass is always."
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Values of train.seed, with which each is trained.")
_BUDGET = flags.DEFINE_enum("budget", "tokens", ["tokens", "epochs"], "What all have in common: see above.")
_CHECK = flags.DEFINE_integer("check", 4, "Dialogues to compare gradients on; 0 for none.", lower_bound=0)
_CONTEXT = flags.DEFINE_integer(
    "context", 50, "Held-out dialogues to find out on what the history brings; 0 for none.", lower_bound=0
)
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "Tables to read, or one JSON object.")


def main() -> None:
    """Trains and compares as the flags say, and prints."""
    with stopping.PassedOn() as requests:
        # Imported here, where a signal is noticed already.
        from mtsft.runs.strategy_comparison import StrategyComparison
        from mtsft.runs.strategy_table import comparison_text

        comparison = StrategyComparison(
            path_of(_WORKDIR.value), _CONFIG.value, _STRATEGIES.value, _seeds(), _BUDGET.value
        )
        results = comparison.sweep(_say).run(1, requests)
    if requests.interrupts > 1:
        stopping.flush_and_exit(128 + signal.SIGINT)
    if failed := [f"{result.run} ({result.error})" for result in results if result.status == "failed"]:
        raise InputError(f"{len(failed)} of {len(results)} runs failed: {', '.join(failed)}")
    if any(result.status != "finished" for result in results):
        _say(f"not all runs are finished; the same command goes on with them (exit status {stopping.UNFINISHED})")
        sys.exit(stopping.UNFINISHED)
    record = comparison.measure(_CHECK.value, _CONTEXT.value)
    cli.write_out((json.dumps(record) if _FORMAT.value == "json" else comparison_text(record)) + "\n")


def _seeds() -> list[int]:
    if not _SEEDS.value or not all(seed.strip().isdecimal() for seed in _SEEDS.value):
        raise InputError(f"--seeds={','.join(_SEEDS.value)}: write whole numbers, such as --seeds=0,1,2")
    return list(dict.fromkeys(map(int, _SEEDS.value)))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
