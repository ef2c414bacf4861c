"""What the model of a run says on the run's devices: in held-out contexts, at every evaluation."""

from collections.abc import Callable
from typing import Any

from mtsft.evaluation.replies import replies_to_some
from mtsft.model.generate import GREEDY, Sampling, generate
from mtsft.model.parameters import Params, join
from mtsft.runs.setup import TrainingSetup

_BATCH = 32  # contexts that are replied to at a time, or some more to fill all devices
_TAIL = 600  # characters of a context that are kept beside a reply


def replier(
    setup: TrainingSetup,
    params: Params,
    sampling: Sampling,
    max_new: int,
    watch: Callable[[int], None] = lambda count: None,
) -> Callable[[list[list[int]], int], list[list[int]]]:
    """(prompts, the number of those before them) -> the tokens of a reply to each; every process takes part.

    Args:
        setup: of the run: its model, its devices.
        params: all parameters, on these devices.
        sampling: how tokens are chosen.
        max_new: tokens of a reply at most; fewer where the model's positions end.
        watch: called with the number of replies, some at a time.
    """
    stops, shards = setup.dataset.spec.encoder().stop_ids, setup.partitioner.num_shards

    def say(prompts: list[list[int]], first: int) -> list[list[int]]:
        most = [setup.model.arch.positions_after(len(prompt), max_new) for prompt in prompts]
        tokens = generate(
            setup.model,
            params,
            prompts,
            stops,
            max(most, default=0),
            sampling,
            batch_size=-(-min(_BATCH, len(prompts)) // shards) * shards,
            rows=setup.partitioner.batch_sharding,
            watch=watch,
            vocab_size=setup.dataset.tokenizer.vocab_size,
            first_index=first,
        )
        return [reply[:count] for reply, count in zip(tokens, most, strict=True)]

    return say


def held_out_samples(setup: TrainingSetup, params: Params, frozen: Params) -> list[dict[str, Any]]:
    """Greedy replies in eval.samples held-out contexts, the same ones every time; every process takes part.

    Args:
        setup: of the run.
        params: those that are trained, or their average, on the run's devices.
        frozen: the others.

    Returns:
        {id, source, turn (from 0), prompt, reference, reply, stopped, same} of each, as `evaluation.replies.replies`
        has them; of a prompt its end alone.
    """
    config, data = setup.config.eval, setup.dataset
    say = replier(setup, setup.partitioner.as_global(join(params, frozen)), GREEDY, config.sample_tokens)
    found = replies_to_some(say, data.eval, data.tokenizer, data.spec.encoder().stop_ids, config.samples)
    return [{**record, "prompt": record["prompt"][-_TAIL:]} for record in found]
