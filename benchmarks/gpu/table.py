"""Results as a short table: python -m benchmarks.gpu.table FOLDER/results.jsonl prints it again."""

import json
import sys
from pathlib import Path

# Fields of a line, in the order they are shown, and how.
SHOWN = {
    "rows": "rows {}",
    "kernel": "attention {}",
    "step_ms": "{:,.2f} ms",
    "token_ms": "{} ms a token",
    "tokens_s": "{:,} tokens/s",
    "share": "{:.1%} of peak",
    "forward_ms": "forward {:,.2f} ms",
    "forward_backward_ms": "with backward {:,.2f}",
    "attention_of_all_layers_ms": "attention of all layers {:,.2f}",
    "head_ms": "head {:,.2f}",
    "gib": "{:.1f} GiB",
    "compile_s": "compiled in {:.0f} s",
    "loss_error": "loss off by {:.1e}",
    "gradient_error": "gradient {:.1e}",
    "error": "off by {:.1e}",
    "allowed": "(allowed {:.1e})",
    "again": "again: {}",
    "resumed": "resumed: {}",
    "failed": "FAILED {:.90}",
}


def table(lines: list[dict]) -> str:
    """A line each, and what takes the time of those that were profiled."""
    text, profiles = [], []
    for line in lines:
        name = f"{line['case']}: {line['what']}" if "what" in line else line["case"]
        if line["case"] == "machine":
            text.append(" | ".join(map(str, line.values())))
            continue
        cells = [how.format(line[field]) for field, how in SHOWN.items() if line.get(field) is not None]
        if line.get("right") is False and "failed" not in line:
            cells.append("NOT RIGHT")
        text.append(f"{name:<52} {', '.join(cells) or line}")
        if "profile" in line:
            profiles.append((name, line["profile"]))
    for name, profile in profiles:
        text += ["", f"{name}, where the device's {profile.get('device_ms', '?')} ms go:"]
        text += [f"  {share:6.1%}  {where}" for where, share in profile.get("lines", [])[:14]]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    print(table([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]))
