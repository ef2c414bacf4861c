"""The peers that a step is timed beside: what each needs, and how it is run."""

import json
import shutil
import subprocess
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.llama import SIZES, VOCAB
from benchmarks.step.program import Program

HERE = Path(__file__).parent
# glibc keeps freed memory; for JAX in one heap as well, for its threads ask by turns and large blocks go past theirs.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "67108864"}
ALLOCATOR_OF_JAX = ALLOCATOR | {"MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True)
class Peer:
    """Somebody else's training on the CPU.

    Args:
        title: what tables call it.
        worker: the file that runs it.
        package: whose interpreter and batch the flags --PACKAGE-python and --PACKAGE-batch are.
        modules: which that interpreter must have.
        install: what gives it these.
        environment: variables to set.
        settings: of the worker, beside those of all.
    """

    title: str
    worker: str
    package: str
    modules: tuple[str, ...]
    install: str
    environment: dict[str, str]
    settings: dict[str, Any]

    def obstacle(self, arguments: Namespace) -> str:
        """Why it cannot be timed here, for people; "" where it can."""
        python = getattr(arguments, f"{self.package}_python")
        if self.package == "tunix" and arguments.lora:
            return f"{self.title} is timed with all weights trained, not with --lora"
        if self.package == "tunix" and arguments.model and _kind(arguments.model) != "llama":
            return f"{self.title} is timed as a Llama, which --model={arguments.model} is not"
        if absent := _absent(python, (*self.modules, *["peft"] * bool(arguments.lora))):
            return (
                f"{self.title} needs {' and '.join(absent)}, which {python} does not have: "
                f"PYTHON -m pip install {self.install}, then --{self.package}-python=PYTHON"
            )
        if self.settings.get("compile") and not any(map(shutil.which, ("g++", "clang++"))):
            return f"{self.title} needs a compiler of C++: apt-get install g++"
        return ""

    def start(self, arguments: Namespace) -> Program:
        """The program, once it has taken its first steps; turns hold about --slots tokens."""
        batch = getattr(arguments, f"{self.package}_batch")
        steps = max(1, round(arguments.slots / batch / arguments.typical))
        settings = {
            "data": arguments.data,
            "length": 1024,
            "batch_size": batch,
            "steps": steps,
            "model": arguments.model,
            "lora_rank": arguments.lora,
            "tokenizer": arguments.tokenizer,
            "sizes": SIZES | {"vocab_size": VOCAB},
        }
        environment = dict(self.environment)
        if self.package == "tunix":
            settings["multiple"] = arguments.tunix_multiple
            environment |= ALLOCATOR_OF_JAX if arguments.tunix_allocator == "tuned" else {}
        python = getattr(arguments, f"{self.package}_python")
        command = [python, str(HERE / self.worker), json.dumps(settings | self.settings)]
        return Program(self.title, command, steps, environment, peer=True)


_TRL = {
    "worker": "peer_trl.py",
    "package": "trl",
    "modules": ("torch", "transformers", "trl", "datasets"),
    "install": "torch transformers trl datasets",
    "environment": ALLOCATOR,
}
PEERS = {
    "trl": Peer("TRL", settings={}, **_TRL),
    "trl_compiled": Peer("TRL with torch.compile", settings={"compile": True}, **_TRL),
    "tunix": Peer(
        "Tunix by length",
        worker="peer_tunix.py",
        package="tunix",
        modules=("tunix", "jax", "flax", "transformers"),
        install="google-tunix",
        environment={},
        settings={},
    ),
}


def chosen(names: str, arguments: Namespace) -> list[Peer]:
    """Peers by their names, or "all" that can be timed here, with a line printed for each that cannot.

    Raises:
        SystemExit: a name that is none, or of one that cannot be timed here.
    """
    wanted = list(PEERS) if names == "all" else [name for name in names.split(",") if name]
    if unknown := [name for name in wanted if name not in PEERS]:
        raise SystemExit(f"--peers={names}: {unknown[0]!r} is none of {', '.join(PEERS)}")
    found = []
    for name in wanted:
        if not (obstacle := PEERS[name].obstacle(arguments)):
            found.append(PEERS[name])
        elif names == "all":
            print(f"left out: {obstacle}", flush=True)
        else:
            raise SystemExit(obstacle)
    return found


def _absent(python: str, modules: tuple[str, ...]) -> list[str]:
    """Of some modules those that an interpreter lacks, all where there is no such interpreter."""
    look = "import importlib.util, sys; print(*[m for m in sys.argv[1:] if not importlib.util.find_spec(m)])"
    try:
        ran = subprocess.run([python, "-c", look, *modules], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return list(modules)
    return ran.stdout.split()


def _kind(folder: str) -> str:
    return json.loads((Path(folder) / "config.json").read_text()).get("model_type", "")
