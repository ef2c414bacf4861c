"""A program that takes steps when it is told to, and what it said of them; see worker.py."""

import json
import os
import subprocess
from typing import Any


class Program:
    """A process that takes steps when it is told to.

    Args:
        name: what tables call it.
        command: starts it.
        steps: of a turn.
        environment: variables to set.
        peer: whether it is somebody else's.
    """

    def __init__(self, name: str, command: list[str], steps: int, environment: dict[str, str], peer: bool = False):
        self.name, self.steps, self.peer = name, steps, peer
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if not os.environ.get("SHOW") else None,
            text=True,
            env=os.environ | environment,
        )
        self.ready = self._answer()
        self.turns: list[dict[str, Any]] = []

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with {self._process.wait()}; SHOW=1 shows why")
        return json.loads(line)

    def turn(self, counts: bool = True) -> None:
        """Takes a turn, which is kept where it counts."""
        self._process.stdin.write(f"{self.steps}\n")
        self._process.stdin.flush()
        answer = self._answer()
        if counts:
            self.turns.append(answer)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
