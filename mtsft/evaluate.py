"""Held-out loss, in all and by turn: python -m mtsft.evaluate --config=... --workdir=DIR [--format=json].

The model is the best of DIR by held-out loss, or without --workdir that of model.init_from; the dialogues are those
that the config holds out, which is that of the run in DIR where --config is left out. The losses are of what
data.responses supervises: by default every turn of the assistant. Turns in JSON are indices, counted from 0; the table
counts them from 1.

--generate=FILE also writes what the model says in each of their contexts beside what the dialogue has there, a JSON
object a turn; --limit, --max_new, --temperature, --top_k, --top_p and --seed say of how many, and how.
"""

import json

from absl import flags

from mtsft import cli

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir(required=False)
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "A table to read, or one JSON object.")
_GENERATE = flags.DEFINE_string("generate", None, "A file to write the model's replies to, as JSON lines.")
_LIMIT = flags.DEFINE_integer("limit", 0, "Held-out dialogues to reply to; 0 for all.", lower_bound=0)
_SAMPLING = cli.define_sampling()


def main() -> None:
    """Evaluates as the flags say, and prints."""
    # Imported here: processes that tokenise import this file too, and have no use for JAX.
    import jax

    from mtsft.evaluation.held_out import as_table
    from mtsft.model.generate import Sampling
    from mtsft.runs import evaluator
    from mtsft.training import distributed, metrics

    sampling = Sampling(**_SAMPLING())
    distributed.initialize()
    if _GENERATE.value is not None and jax.process_index() == 0:
        cli.check_output(_GENERATE)
    subject = evaluator.Evaluator.of(_CONFIG.value, _WORKDIR.value)
    scores = subject.evaluate()
    if jax.process_index() == 0:
        print(json.dumps(metrics.finite(scores)) if _FORMAT.value == "json" else as_table(scores), flush=True)
    if _GENERATE.value is not None:
        records = subject.replies(sampling, cli.max_new_tokens(), _LIMIT.value)
        if jax.process_index() == 0:
            lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            cli.write_output(_GENERATE, "".join(lines).encode())


if __name__ == "__main__":
    cli.run(main)
