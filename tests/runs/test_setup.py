"""What a config becomes: every key that changes numbers reaches the code that uses it."""

import json
import re
from dataclasses import asdict
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from mtsft.config import default
from mtsft.errors import InputError
from mtsft.model.attention.kernels import KERNELS, Kernel
from mtsft.model.attention.rows import Rows
from mtsft.runs import compiled as functions
from mtsft.runs.compiled import compile_step
from mtsft.runs.identity import identity
from mtsft.runs.run_length import schedule_notes
from mtsft.runs.setup import TrainingSetup
from mtsft.training.losses.all_roles import AllRolesLoss
from mtsft.training.partitioner import Partitioner
from mtsft.training.step_rng import step_rng_of
from mtsft.training.token_losses import USUAL

ROWS = 16


@pytest.fixture(scope="module")
def make_run(tmp_path_factory):
    """A run of a small config, with changes by key."""
    folder = tmp_path_factory.mktemp("run")
    with (folder / "d.jsonl").open("w") as file:
        for n in range(150):
            reply = {"role": "assistant", "content": f"{n} it is" * (1 + n % 5), "weight": 1 + n % 2}
            file.write(json.dumps({"messages": [{"role": "user", "content": f"{n}?"}, reply]}) + "\n")

    def make(**changes):
        config = default()
        config.data.train = str(folder / "d.jsonl")
        config.data.cache_dir = str(folder / "cache")
        config.data.vocab_size = 300
        config.data.eval_fraction = 0.3
        config.data.sequence_length = 64
        config.model.hidden_size = config.model.intermediate_size = config.model.head_dim = 16
        config.model.num_hidden_layers = config.model.num_attention_heads = config.model.num_key_value_heads = 1
        config.train.batch_size = ROWS
        config.parallel.compilation_cache = ""
        config.update_from_flattened_dict(changes)
        return TrainingSetup.of(config, progress=False)

    return make


@pytest.fixture
def compiled(monkeypatch):
    """What a step is compiled with."""
    given = {}
    monkeypatch.setattr(Partitioner, "compile_step", lambda self, *_, **arguments: given.update(arguments))
    return given


def seen(source, steps):
    """(dialogue, times) over the batches of some steps, a dialogue by its tokens."""
    rows = [source[step] for step in range(steps)]
    segments = [
        batch.tokens[row][batch.segment_ids[row] == segment].tobytes()
        for batch in rows
        for row in range(len(batch.tokens))
        for segment in range(1, batch.segment_ids[row].max() + 1)
    ]
    return {segment: segments.count(segment) for segment in segments}


def test_the_seed_decides_the_batches_and_the_fresh_parameters(make_run):
    runs = [make_run(**{"train.seed": seed}) for seed in (0, 0, 1)]
    batches = [run.train_batches()[0].tokens.tobytes() for run in runs]
    assert batches[0] == batches[1] != batches[2]
    heads = [np.asarray(run.create().params["head"]["kernel"]) for run in runs]
    np.testing.assert_array_equal(heads[0], heads[1])
    assert (heads[0] != heads[2]).all()


def test_gradients_are_divided_by_the_mean_weight_of_a_batch_or_by_the_batchs_own(make_run, compiled):
    run = make_run()
    compile_step(run)
    store, num_rows = run.dataset.train, run.dataset.epochs.num_rows(0)
    weights = [store[i].response_mask_N.sum() for i in range(len(store))]
    assert compiled["weight_per_batch"] == pytest.approx(sum(weights) * ROWS / num_rows)
    source = run.train_batches()
    whole = sum(source[step].response_mask.sum() for step in range(run.steps))
    assert whole == sum(weights)  # the last batch may be short, and no row comes twice
    compile_step(make_run(**{"objective.normalize": "batch"}))
    assert compiled["weight_per_batch"] == 0.0


def test_the_loss_is_the_configs_and_divided_by_its_own_weight(make_run, compiled):
    weights = dict(context_weight=0.25, response_weight=0.5)
    run = make_run(**{"objective.loss": "all_roles"} | {f"objective.{key}": value for key, value in weights.items()})
    compile_step(run)
    assert run.loss == AllRolesLoss(
        model=run.model, shards=run.partitioner.shards, chunk=run.config.objective.chunk, **weights
    )
    source = run.train_batches()
    whole = sum(float(run.loss.weights(source[step]).sum()) for step in range(run.steps))
    responses = sum(source[step].response_mask.sum() for step in range(run.steps))
    context = sum(((b := source[step]).parents >= 0).sum() - (b.response_mask > 0).sum() for step in range(run.steps))
    assert whole == pytest.approx(0.5 * responses + 0.25 * context)
    assert compiled["weight_per_batch"] == pytest.approx(whole * ROWS / run.dataset.epochs.num_rows(0))
    with pytest.raises(InputError, match=r"^objective.loss='dpo': use one of response, all_roles$"):
        make_run(**{"objective.loss": "dpo"})
    with pytest.raises(InputError, match=r"^objective.context_weight=-1.0: must be at least 0$"):
        make_run(**{"objective.loss": "all_roles", "objective.context_weight": -1.0})
    with pytest.raises(InputError, match=r"^objective.context_weight and objective.response_weight are both 0"):
        make_run(**{"objective.loss": "all_roles", "objective.context_weight": 0.0, "objective.response_weight": 0.0})


def test_the_kernel_of_attention_is_the_one_chosen_for_the_devices(make_run):
    assert make_run().model.arch.attention_kernel == "blocked"
    assert "model.attention_kernel" not in identity(make_run())
    with pytest.raises(InputError, match=r"^model.attention_kernel='flash': use one of auto, "):
        make_run(**{"model.attention_kernel": "flash"})


def test_what_the_rows_hold_is_known_from_the_data(make_run, tmp_path):
    run = make_run()
    data = run.dataset
    most = max(np.diff(epochs.plan(0).offsets).max() for epochs in (data.epochs, data.eval_epochs))
    assert run.model.rows == Rows(branch=False, most_trees=most)
    said = [("user", "1?", None), ("assistant", "one", 0), ("assistant", "1", 0)]
    messages = [
        {"id": i, "role": role, "content": text, "parent": parent} for i, (role, text, parent) in enumerate(said)
    ]
    (tmp_path / "b.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    assert make_run(**{"data.eval": str(tmp_path / "b.jsonl"), "data.eval_fraction": 0.0}).model.rows == Rows()


def test_a_kernel_that_is_for_chains_is_named_where_no_dialogue_branches(make_run, monkeypatch):
    monkeypatch.setitem(KERNELS, "quick", Kernel(KERNELS["plain"].function, None, ("chains",), ("float32",)))
    assert make_run(**{"model.attention_kernel": "quick"}).model.arch.attention_kernel == "quick"


def test_the_schedule_the_microbatches_and_the_steps_are_the_configs(make_run, compiled):
    changes = {"train.steps": 20, "train.learning_rate": 0.5, "train.warmup_steps": 4, "train.end_learning_rate": 0.2}
    run = make_run(**changes, **{"train.microbatches": 2})
    compile_step(run)
    assert run.steps == 20
    assert compiled["microbatches"] == 2
    run = make_run(**changes, **{"train.rows_per_device": 1, "train.batch_size": 2 * run.config.train.batch_size})
    compile_step(run)
    assert run.partitioner.num_shards * compiled["microbatches"] == run.config.train.batch_size
    assert run.eval_batch_size == run.partitioner.num_shards
    assert [float(compiled["schedule"](step)) for step in (0, 3, 20)] == pytest.approx([0.125, 0.5, 0.1])


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"train.warmup_steps": 5}, ["100 steps, the first 5 of them warm-up"]),
        ({"train.warmup_steps": 0}, ["100 steps, the first 3 of them warm-up"]),
        ({"train.warmup_steps": 0, "train.warmup_fraction": 0.0}, ["100 steps, the first 0 of them warm-up"]),
        (
            {"train.warmup_steps": 400},
            [
                "100 steps, the first 100 of them warm-up",
                "note: the warm-up of 400 steps leaves none of the 100 after it, so that the learning rate reaches 25% "
                "of train.learning_rate; lower train.warmup_steps or train.warmup_fraction, or train.batch_size for "
                "more steps",
            ],
        ),
        (
            {"train.warmup_steps": 34},
            [
                "100 steps, the first 34 of them warm-up",
                "note: the warm-up is 34% of the run, where a few percent are usual; lower train.warmup_steps or "
                "train.warmup_fraction, or train.batch_size for more steps",
            ],
        ),
        ({"train.warmup_steps": 33}, ["100 steps, the first 33 of them warm-up"]),
        (
            {"train.steps": 100, "train.epochs": 3.0},
            ["100 steps, the first 3 of them warm-up", "note: train.steps=100 decides; train.epochs=3 does not"],
        ),
    ],
)
def test_what_is_said_of_the_schedule(changes, lines):
    config = default()
    config.update_from_flattened_dict(changes)
    assert schedule_notes(config, 100) == lines


def test_a_run_of_a_few_steps_is_told_to_be_short_where_epochs_make_it_so():
    config = default()
    config.train.batch_size = 32
    assert schedule_notes(config, 2) == [
        "2 steps, the first 1 of them warm-up",
        "note: so short a run (2 times 32 rows) hardly trains; lower train.batch_size, or raise train.epochs",
    ]
    assert len(schedule_notes(config, 10)) == 1
    config.train.steps = 2
    assert len(schedule_notes(config, 2)) == 1


@pytest.mark.parametrize("epochs", [1.0, 2.0])
def test_so_many_epochs_train_every_dialogue_so_many_times(make_run, epochs):
    run = make_run(**{"train.epochs": epochs})
    times = seen(run.train_batches(), run.steps)
    assert len(times) == len(run.dataset.train) > 50
    assert set(times.values()) == {epochs}


def test_evaluation_sees_every_dialogue_that_is_held_out_once(make_run, monkeypatch):
    given = SimpleNamespace()
    monkeypatch.setattr(functions, "evaluate", lambda step, params, source, put: setattr(given, "source", source))
    run = make_run(**{"eval.batch_size": 8})
    functions.compile_evaluation(run)(None, None)
    assert run.dataset.eval_epochs.num_rows(0) % 8
    times = seen(given.source, len(given.source))
    assert len(times) == len(run.dataset.eval) > 20
    assert set(times.values()) == {1}


@pytest.mark.parametrize(("key", "value"), [("model.rope_theta", 500.0), ("model.dtype", "bfloat16")])
def test_the_sizes_of_the_model_are_the_configs(make_run, key, value):
    assert getattr(make_run(**{key: value}).model.arch, key.split(".")[1]) == value


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("train.learning_rate", float("inf"), "must be a finite number"),
        ("train.neftune_alpha", float("inf"), "must be a finite number"),
        ("lora.alpha", float("nan"), "must be a finite number"),
        ("lora.alpha", 0.0, "must be above 0; adapters are scaled by alpha / rank"),
        ("train.weight_decay", -1.0, "must be at least 0"),
        ("train.eps", 0.0, "must be above 0, as it is divided by"),
        ("train.epochs", 1e300, r"must be below 2\*\*31"),
        ("train.seed", 2**32, r"must be below 2\*\*32"),
        ("data.corpus_seed", 2**32, r"must be below 2\*\*32"),
        ("model.rope_theta", -1.0, "must be above 0"),
        ("model.rms_norm_eps", 0.0, "must be above 0"),
        ("model.attn_logit_softcapping", -1.0, "must be at least 0"),
        ("train.b1", 1.0, r"must be in \[0, 1\)"),
        ("train.b2", -0.1, r"must be in \[0, 1\)"),
    ],
)
def test_a_number_that_no_training_can_have_is_named(make_run, key, value, says):
    with pytest.raises(InputError, match=f"^{re.escape(f'{key}={value}')}: {says}$"):
        make_run(**{key: value})


def test_steps_are_those_that_a_state_can_count(make_run):
    make_run(**{"train.steps": 2**31 - 1})
    with pytest.raises(InputError, match=r"^2.15e\+09 steps are more than 2,147,483,647: lower train.epochs or"):
        make_run(**{"train.steps": 2**31})


def test_patience_needs_something_to_wait_for(make_run):
    make_run(**{"eval.patience": 2})
    with pytest.raises(InputError, match=r"^eval.patience is set and nothing is held out"):
        make_run(**{"eval.patience": 2, "data.eval_fraction": 0.0})


@pytest.mark.parametrize(("scan", "leaves"), [(True, 12), (False, 21), (None, 21)])
def test_layers_are_compiled_as_the_config_says_or_apart_on_a_cpu(make_run, scan, leaves):
    run = make_run(**{"model.num_hidden_layers": 2, "model.scan_layers": scan})
    assert len(jax.tree.leaves(run.shapes.params)) == leaves


def test_noise_averages_and_rates_are_the_configs(make_run, compiled):
    changes = {"train.neftune_alpha": 4.0, "train.seed": 3, "train.average_decay": 0.5}
    groups = {"train.learning_rate_groups": '{"embed": 0.25}'}
    run = make_run(**changes, **groups)
    compile_step(run)
    batch = run.train_batches()[0]
    step_rng, expected = (draw(7, batch) for draw in (compiled["draw_rng"], step_rng_of(run.model, 3, 4.0)))
    np.testing.assert_array_equal(*(jax.random.key_data(each.keys_B) for each in (step_rng, expected)))
    np.testing.assert_array_equal(step_rng.embedding_bounds_BxL, expected.embedding_bounds_BxL)
    assert compiled["ema_decay"] == 0.5
    assert compiled["rate_factors"]["embed"]["embedding"] == 0.25
    assert run.shapes.ema_params is not None


def test_what_is_trained_may_not_change_within_a_run(make_run):
    first, *others = (
        identity(make_run(**{"lora.rank": 2, **changes}))
        for changes in (
            {},
            {"lora.rank": 3},
            {"lora.alpha": 1.0},
            {"lora.targets": "mlp"},
            {"train.freeze": "mlp"},
            {"train.average_decay": 0.5},
            {"objective.loss": "all_roles"},
            {"objective.loss": "all_roles", "objective.response_weight": 0.5},
            {"objective.token_loss": "dft", "objective.z_loss": 1e-4},
        )
    )
    assert [[name for name in first if first[name] != other[name]] for other in others] == [
        ["lora.rank"],
        ["lora.alpha"],
        ["lora.targets"],
        ["train.freeze"],
        ["train.average_decay"],
        ["objective.loss", "objective.context_weight"],
        ["objective.loss", "objective.context_weight", "objective.response_weight"],
        ["objective.token_loss", "objective.z_loss"],
    ]
    assert {first[f"objective.{name}"] for name in asdict(USUAL)} == {None}
    names = ("loss", "context_weight", "response_weight")
    assert {first[f"objective.{name}"] for name in names} == {None}  # as before there were others


def test_muon_is_refused_where_adapters_leave_it_nothing(make_run):
    with pytest.raises(InputError, match=r"^train.optimizer='muon' moves the layers' matrices, which lora.rank freeze"):
        make_run(**{"lora.rank": 2, "train.optimizer": "muon"})


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("model.dtype", "float16", "model.dtype='float16': use one of float32, bfloat16"),
        ("model.param_dtype", "bf16", "model.param_dtype='bf16': use one of float32, bfloat16"),
        ("model.attention_kernel", "flash", "model.attention_kernel='flash': use one of auto, "),
        ("model.remat", "some", "model.remat='some': use one of none, full, offload, attention, dots"),
        ("model.hidden_act", "relu", "model.hidden_act='relu': use one of silu, gelu, gelu_pytorch_tanh"),
        ("model.layer_types", "wide", "model.layer_types='wide': write the kinds"),
        ("model.rope_scaling", "[]", "model.rope_scaling='[]': write one JSON object"),
        ("model.grow_vocab", "zeros", "model.grow_vocab='zeros': use one of mean, covariance"),
        ("lora.quantize", "int3", "lora.quantize='int3': use 'int8' or 'nf4'"),
        ("train.optimizer", "sgd", "train.optimizer='sgd': use one of adamw, adafactor, lion, muon"),
        ("train.schedule", "stairs", "train.schedule='stairs': use one of constant, linear, cosine, wsd"),
        ("train.learning_rate_groups", '{"heads": 2}', "train.learning_rate_groups"),
        ("train.freeze", "nothing_of_it", "train.freeze='nothing_of_it'"),
        ("objective.loss", "dpo", "objective.loss='dpo': use one of response, all_roles"),
        ("objective.normalize", "mean", "objective.normalize='mean': use 'dataset' or 'batch'"),
        ("parallel.mode", "xmap", "parallel.mode='xmap': use one of jit, pmap"),
        ("parallel.mesh", "tensor=8", "parallel.mesh: layers/mlp/"),
    ],
)
def test_a_word_that_names_nothing_is_found_before_the_data_is_opened(make_run, monkeypatch, key, value, says):
    def opened(*_, **__):
        raise AssertionError("the data is opened")

    monkeypatch.setattr("mtsft.runs.setup.open_dataset", opened)
    odd = {"model.intermediate_size": 20} if key == "parallel.mesh" else {}
    with pytest.raises(InputError) as refusal:
        make_run(**{key: value, **odd})
    assert str(refusal.value).startswith(says)
    with pytest.raises(AssertionError, match="the data is opened"):
        make_run()
