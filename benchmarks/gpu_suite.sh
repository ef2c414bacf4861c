#!/usr/bin/env bash
# What one GPU makes of mtsft: is it right, does it repeat itself, how fast, what takes the time.
#
#     benchmarks/gpu_suite.sh FOLDER [--seconds=460] [--only=REGEX] [--skip=REGEX] [--list]
#
# Needs mtsft installed with a JAX that has a GPU, and nothing else: weights and dialogues are made up. Results stand in
# FOLDER/results.jsonl, a line each as soon as it is known, and in a table that is printed last and kept in
# FOLDER/table.txt. PYTHON names the interpreter. TINY=1 runs all of it with toy sizes, on a CPU too, to try the scripts.
set -euo pipefail
case "${1:-}" in "" | -*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;; esac
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
exec env PYTHONUNBUFFERED=1 "${PYTHON:-python3}" -m benchmarks.gpu.suite "$folder" "$@"
