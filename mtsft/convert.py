"""Hugging Face folders in and out: python -m mtsft.convert --to=hf --input=WORKDIR --output=DIR, or --from=hf.

--to=hf writes what a run trained (its best checkpoint by held-out loss) as a folder that transformers and vLLM load;
adapters are merged, or with --adapter written alone, for PEFT. A README.md says base, data, config and losses. A folder
of PEFT adapters can be the input, and is merged into its base. --from=hf writes a Hugging Face folder as a workdir,
though there is seldom a need: model.init_from and the other doors take the folder itself.
"""

import sys

from absl import flags

from mtsft import cli
from mtsft.errors import InputError

_FROM = flags.DEFINE_enum("from", None, ["hf"], "Read a Hugging Face folder.")
_TO = flags.DEFINE_enum("to", None, ["hf"], "Write a Hugging Face folder.")
_INPUT = cli.define_folder("input", "The folder to read.", "runs/mine")
_OUTPUT = cli.define_folder("output", "The folder to write, which is not there yet.", "exported")
_DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of the parameters written.")
_ADAPTER = flags.DEFINE_bool("adapter", False, "Write the adapters alone, as a PEFT folder.")
_BASE = flags.DEFINE_string("base_name", "", "Of the base model, in an adapter folder: its name on the Hub.")
_STEP = flags.DEFINE_integer("step", None, "The checkpoint of this step, in place of the best.")


def main() -> None:
    """Converts as the flags say."""
    from mtsft.runs import convert

    if (_FROM.value is None) == (_TO.value is None):
        raise InputError("say what to convert: --to=hf (from a workdir), or --from=hf (to a workdir)")
    if _TO.value:
        options = _DTYPE.value or "", _ADAPTER.value, _STEP.value, _BASE.value
        for remark in convert.to_hugging_face(_INPUT.value, _OUTPUT.value, *options):
            print(f"convert: {remark}", file=sys.stderr)
    elif _ADAPTER.value or _STEP.value is not None or _BASE.value:
        raise InputError("--adapter, --base_name and --step are of --to=hf")
    else:
        convert.from_hugging_face(_INPUT.value, _OUTPUT.value, _DTYPE.value or "float32")
    print(_OUTPUT.value)


if __name__ == "__main__":
    cli.run(main)
