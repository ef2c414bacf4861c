"""Restores damaged copies of a checkpoint and prints what comes of each: a program, since a failed read of Orbax leaves
coroutines behind that would end in the middle of another test.

    python damage.py FOLDER COUNT      FOLDER: empty
"""

import shutil
import sys
from pathlib import Path

import jax
import numpy as np
from test_checkpoint import Setup, assert_same_bits

from mtsft.errors import InputError


def damage(content, kind, rng):
    """The bytes of a file with some of them zeroed, one bit flipped, or the end cut off."""
    content, start, length = bytearray(content), int(rng.integers(len(content))), int(rng.integers(1, 400))
    if kind == "zeroed":
        content[start : start + length] = bytes(len(content[start : start + length]))
    elif kind == "flipped":
        content[start] ^= 1 << int(rng.integers(8))
    else:
        del content[start:]
    return bytes(content)


def main(folder, count):
    setup, rng = Setup(devices=jax.devices()[:1], mesh=""), np.random.default_rng(0)
    state = setup.state()
    setup.save(folder / "whole", 4, state)
    files = sorted(path.relative_to(folder / "whole") for path in (folder / "whole").rglob("*") if path.is_file())
    for number in range(count):
        damaged, kind = folder / f"damaged {number}", ("zeroed", "flipped", "cut", "deleted")[number % 4]
        shutil.copytree(folder / "whole", damaged)
        file = damaged / files[number // 4 % len(files)]
        if kind == "deleted":
            file.unlink()
        else:
            file.write_bytes(damage(file.read_bytes(), kind, rng))
        try:
            restored = setup.restore(damaged, 4)
        except InputError as error:
            said = str(error)
            print(
                "refused" if said.startswith(f"{damaged}") and "\n" not in said else f"badly said: {said}", flush=True
            )
        except Exception as error:
            print(f"{kind} {file.relative_to(damaged)}: {error!r}", flush=True)
        else:
            try:
                assert_same_bits(restored, state)
                print("same", flush=True)
            except AssertionError:
                print(f"{kind} {file.relative_to(damaged)}: restored other values", flush=True)
        shutil.rmtree(damaged)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
