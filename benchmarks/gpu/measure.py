"""Compiling, timing, memory, and where the time of a compiled program goes."""

import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks.gpu.shapes import TINY

PEAK = 989e12  # dense bfloat16 products of an H100 or H200, FLOP/s
GIB = 2**30


def compiled(lowered, options: dict[str, Any] | None = None):
    """A lowered function compiled, with the seconds it took and what it takes of memory."""
    began = time.perf_counter()
    program = lowered.compile(compiler_options=options or None)
    took, memory = time.perf_counter() - began, program.memory_analysis()
    arguments = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    total = arguments + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    return program, {
        "compile_s": round(took, 1),
        "gib": round(total / GIB, 2),
        "temp_gib": round(memory.temp_size_in_bytes / GIB, 2),
    }


def seconds_each(call: Callable[[], Any], least: float = 0.4, groups: int = 3) -> tuple[float, float]:
    """Median seconds of a call, and how far apart the groups lie as a share of it; calls of a group follow closely."""
    for _ in range(2):
        began = time.perf_counter()
        jax.block_until_ready(call())
        once = time.perf_counter() - began
    count = 1 if TINY else max(1, min(50, round(least / max(once, 1e-6))))
    found = []
    for _ in range(groups):
        began = time.perf_counter()
        for _ in range(count):
            last = call()
        jax.block_until_ready(last)
        found.append((time.perf_counter() - began) / count)
    middle = statistics.median(found)
    return middle, (max(found) - min(found)) / middle


def peak_gib() -> float | None:
    """The most memory this process has held so far."""
    stats = jax.devices()[0].memory_stats() or {}
    return round(stats["peak_bytes_in_use"] / GIB, 2) if "peak_bytes_in_use" in stats else None


def top_kernels(call: Callable[[], Any], program_text: str, most: int = 40) -> dict[str, Any]:
    """Where the device's time of one call goes: by kernel, and by the line of the package that asked for it."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        file = next(Path(folder).rglob("*.xplane.pb"))
        profile = jax.profiler.ProfileData.from_file(str(file))
        kernels, by_line, sources = Counter(), Counter(), source_lines(program_text)
        for plane in profile.planes:
            if "GPU" not in plane.name:
                continue
            for line in plane.lines:
                if "stream" not in line.name.lower():
                    continue
                for event in line.events:
                    name = str(dict(event.stats).get("hlo_op", event.name))
                    kernels[name] += event.duration_ns
                    by_line[sources.get(name) or f"no line: {name.split('.')[0]}"] += event.duration_ns
    total = sum(kernels.values())
    if not total:
        return {"note": "the profiler saw no kernel"}
    return {
        "device_ms": round(total / 1e6, 2),
        "kernels": [[name, sources.get(name, ""), round(ns / total, 4)] for name, ns in kernels.most_common(most)],
        "lines": [[line, round(ns / total, 4)] for line, ns in by_line.most_common(24)],
    }


def source_lines(text: str) -> dict[str, str]:
    """For each instruction of a compiled program, the innermost line of the package on the way to it."""

    def table(name: str) -> dict[int, str]:
        body = re.search(rf"^{name}\n(.*?)\n\n", text, re.DOTALL | re.MULTILINE)
        pairs = (line.split(" ", 1) for line in body[1].splitlines()) if body else ()
        return {int(number): rest for number, rest in pairs}

    def number(entry: str, field: str) -> int:
        found = re.search(rf"\b{field}=(\d+)", entry)
        return int(found[1]) if found else 0

    files, functions = table("FileNames"), table("FunctionNames")
    locations, frames = table("FileLocations"), table("StackFrames")

    def place(frame: int) -> str:
        seen = set()
        while frame in frames and frame not in seen:
            seen.add(frame)
            location = locations.get(number(frames[frame], "file_location_id"), "")
            file = files.get(number(location, "file_name_id"), "").strip('"')
            if "/mtsft/" in file:
                function = functions.get(number(location, "function_name_id"), "").strip('"')
                return f"{Path(file).name}:{number(location, 'line')} {function.rsplit('.', 1)[-1]}"
            frame = number(frames[frame], "parent_frame_id")
        return ""

    found = {}
    for name, metadata in re.findall(r"^\s*(?:ROOT )?%?([\w.-]+) = .*?metadata=\{(.*)\}", text, re.MULTILINE):
        operation = (re.search(r'op_name="([^"]*)"', metadata) or [""] * 2)[1]
        way = "backward" if "transpose(" in operation else "forward"
        where = place(number(metadata, "stack_frame_id")) or operation[-60:]
        found[name] = f"{where} ({way})" if where else ""
    return found
