"""Does a model use what was said earlier: python -m mtsft.context --workdir=DIR [--format=json] [--limit=N] [--seed=N].

The held-out responses of a run are scored once more after other histories: none, the last 1, 2, 3, 4, 8, 16 ... rounds
(a user's message and what follows), the turns of another dialogue of the same file, the true history perturbed, and the
user's words at once in one message or cut into messages elsewhere. Said is what the history brings by turn and by
distance, and a verdict: that the model uses its history, that it ignores it (what it brings is less than --least_gain),
or that so few dialogues cannot tell. All of it is written to context.json in the workdir as well.

A response costs as many passes as it has histories, about twenty; --limit says of how many dialogues, --noperturbed and
--reshardings=0 leave tables out. Without --workdir the model is that of model.init_from, and nothing is written. Turns
in JSON are indices, counted from 0; the tables count them from 1.
"""

import json
import sys

from absl import flags

from mtsft import cli
from mtsft.evaluation.context.options import ContextOptions

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir(required=False)
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "Tables to read, or one JSON object.")
_STEP = cli.define_step()
_BASE = cli.define_base()
_USUAL = ContextOptions()
_LIMIT = flags.DEFINE_integer("limit", _USUAL.limit, "Held-out dialogues, the first ones; 0 for all.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", _USUAL.seed, "Of all that is drawn.", lower_bound=0, upper_bound=2**32 - 1)
_LEAST = flags.DEFINE_float("least_gain", _USUAL.least_gain, "The smallest gain that matters, in nats per token.")
_PERTURBED = flags.DEFINE_bool("perturbed", _USUAL.perturbed, "Whether histories are perturbed, too.")
_WAYS = "Other ways to cut the user's words; 0 for none."
_RESHARDINGS = flags.DEFINE_integer("reshardings", _USUAL.reshardings, _WAYS, lower_bound=0)


def main() -> None:
    """Diagnoses as the flags say, and prints."""
    # Imported here: processes that tokenise import this file too, and have no use for JAX.
    import jax

    from mtsft.runs.context_loss import diagnose_context
    from mtsft.training import distributed, metrics

    options = ContextOptions(_LIMIT.value, _SEED.value, _LEAST.value, _PERTURBED.value, _RESHARDINGS.value)
    distributed.initialize()
    told, places = cli.told_keys(), _BASE.value
    report = diagnose_context(_CONFIG.value, _WORKDIR.value, options, _STEP.value, told, places)
    if jax.process_index() == 0:
        if _FORMAT.value == "json":
            said = [f"of {report['checkpoint']}"] if report["checkpoint"] else []
            for line in [*said, *report["notes"]]:
                print(f"context: {line}", file=sys.stderr, flush=True)
        print(json.dumps(metrics.finite(report)) if _FORMAT.value == "json" else report, flush=True)


if __name__ == "__main__":
    cli.run(main)
