"""What programs did in their turns, as text."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.llama import SIZES
from benchmarks.step.program import Program
from mtsft.training.flops import needed


def rate(turn: dict[str, Any], of: str = "seconds") -> float:
    """Supervised tokens a second."""
    return turn["supervised"] / turn[of]


def times(program: Program, others: Sequence[Program], of: str = "seconds") -> list[float]:
    """How many times as fast it was as the fastest of others, round by round."""
    rounds = zip(program.turns, *(other.turns for other in others))
    return [rate(mine, of) / max(rate(turn, of) for turn in theirs) for mine, *theirs in rounds]


def share_of_peak(turn: dict[str, Any], sizes: dict[str, int], lora: bool) -> float:
    """FLOP/s that were needed, over those of the products timed beside the turn."""
    flops = needed(sizes, turn["tokens"], turn["supervised"], turn["pairs"], lora)
    return flops / turn["seconds"] / max(turn["probes"])


def table(programs: Sequence[Program], lora: bool) -> str:
    """What each did so far; ratios are to the first."""
    sizes = next((program.ready["sizes"] for program in programs if "sizes" in program.ready), SIZES)
    lines = [
        f"{'':34} {'tokens/s':>9} {'supervised/s':>12} {'ratio':>6} {'(least-most)':>13} {'by CPU':>7} "
        f"{'of peak':>8} {'probe, GF/s':>12} {'first, s':>8} {'GiB':>5} {'loss, first':>11} {'last':>6}"
    ]
    for program in programs:
        ratio = times(program, programs[:1])
        probes = [probe / 1e9 for turn in program.turns for probe in turn["probes"]]
        lines.append(
            f"{program.name:34} {median(t['tokens'] / t['seconds'] for t in program.turns):>9,.0f} "
            f"{median(map(rate, program.turns)):>12,.0f} {median(ratio):>6.2f} "
            f"{f'({min(ratio):.2f}-{max(ratio):.2f})':>13} {median(times(program, programs[:1], 'cpu_seconds')):>7.2f} "
            f"{median(share_of_peak(turn, sizes, lora) for turn in program.turns):>8.1%} "
            f"{f'{min(probes):.0f}-{max(probes):.0f}':>12} {program.ready['first_step_s']:>8.1f} "
            f"{program.turns[-1]['peak_gib']:>5.1f} {program.ready['first_loss']:>11.4f} "
            f"{program.turns[-1]['loss']:>6.3f}"
        )
    return "\n".join(lines)


def ratios(programs: Sequence[Program]) -> str:
    """Of ours to each peer and to the fastest of ours; "" where there is one program."""
    peers, ours = ([p for p in programs if p.peer is peer] for peer in (True, False))
    columns = [(peer.name, [peer]) for peer in peers] + [("fastest of ours", ours)] * (len(ours) > 1)
    if not columns:
        return ""
    lines = [f"{'times as fast as (least-most)':34} " + " ".join(f"{name:>22}" for name, _ in columns)]
    for program in ours:
        found = [times(program, others) for _, others in columns]
        cells = [f"{median(ratio):.2f} ({min(ratio):.2f}-{max(ratio):.2f})" for ratio in found]
        lines.append(f"{program.name:34} " + " ".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)
