"""Every key of a run, its default and its meaning, in one place.

A config file is Python with a `get_config()` that takes `default()` and changes what it wants; any key can then be
changed again on the command line, as --config.train.steps=500.

The comment beside a key is its meaning: --help shows it, and no key may be without one.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ml_collections import ConfigDict, config_dict

from mtsft.errors import InputError
from mtsft.files import path_of


@dataclass(frozen=True)
class DataConfig:
    """The keys of `data`: which dialogues are read, and how they become tokens.

    Attributes: each key, its default and its meaning. A new key is a field here and the code that uses it.
    """

    # A file of dialogues or a glob pattern; several: "a.jsonl,b/*.parquet=0.5" (=: times an epoch, on average).
    train: str | Sequence[str] = ""
    eval: str | Sequence[str] = ""  # the same, held out from training
    eval_fraction: float = 0.0  # share of data.train to hold out where data.eval is empty, chosen by content
    format: str = ""  # of the files; "" recognises each dialogue's by its content, see mtsft/dialogue/formats.py
    columns: str = ""  # JSON object of names in the files: {"messages": "dialog", "role": "who", "content": "text"}
    roles: str = ""  # JSON object of names of roles in the files: {"agent": "assistant"}
    system: str = ""  # the system prompt of dialogues that have none
    corpus: str = ""  # "recall": the corpus built into the package, in place of data.train and data.eval
    corpus_dialogues: int = 20_000  # of the built-in corpus, to train on
    corpus_eval_dialogues: int = 500  # of the built-in corpus, held out
    corpus_seed: int = 0  # of what is drawn for the built-in corpus
    tokenizer: str = ""  # a Hugging Face folder, ORG/NAME of the Hub, or a SentencePiece .model file; "" trains one
    vocab_size: int = 8192  # of a tokenizer that is trained here, at most
    template: str = ""  # "chatml-tools", "chatml", "llama3", "gemma", a Jinja file; "": the tokenizer's, else the first
    template_variables: str = ""  # JSON object of keyword arguments for the template, as {"enable_thinking": false}
    template_date: str = ""  # YYYY-MM-DD that a template is told when it asks for today's; "" is the day of the start
    stops: str = ""  # tokens that end a turn, separated by commas; "" takes them from the tokenizer and the template
    responses: str = "all"  # of the assistant's: "all", "first", "last"; or all of roles named: "assistant,tool"
    train_reasoning: bool = True  # whether the reasoning inside a response is supervised
    reasoning_marks: str = ""  # "OPENING,CLOSING" around a thought in a reply; "" finds them out, else <think>
    added_tokens_in_replies: bool = True  # a reply that writes <tool_call> emits the token, where that is not special
    train_tool_calls: bool = True  # whether responses that call tools are supervised
    # JSON object of factors: {"earlier_rounds": 0, "replies": {REGEX: 0.1}, "text": {REGEX: 2}, "thinking": 0.5,
    # "tool_calls": 2}. 0 is context; "replies" weighs the whole reply, "text" the characters that a regex matches.
    weight_rules: str = ""
    weigh_per: str = "token"  # what shares a message's weight: every "token" has it, or those of a "turn", a "dialogue"
    unfaithful: str = "error"  # turns that the template cannot render as emitted: "error", "skip", "emit" (own words)
    refused: str = "error"  # dialogues that the template will not render, or that are too large: "error" or "skip"
    max_dialogue_bytes: int = 1 << 24  # of a dialogue in its file; a larger one is refused without being read
    # A dialogue as one "tree", each shared prefix once; as "paths", a chain for each leaf of one that branches; or as
    # "responses", a chain for each response and all before it. The loss of responses is the same.
    trees: str = "tree"
    sequence_length: int = 2048  # slots of a row; dialogues are packed side by side into rows
    over_length: str = "error"  # dialogues longer than a row: "error", "drop", "keep_first", "keep_last", "windows"
    workers: int = 0  # tokenising processes; 0 for one a core
    cache_dir: str = "~/.cache/mtsft"  # tokenised data, trained tokenizers, corpora, copies of files in buckets
    cache_bytes: int = 20 << 30  # that cache_dir may hold; what was not used for longest goes first; 0 for no limit


def default() -> ConfigDict:
    """The default of every key. Unknown keys are errors from here on."""
    config = ConfigDict()
    config.data = ConfigDict(asdict(DataConfig()))

    config.model = model = ConfigDict()
    model.init_from = ""  # a Hugging Face folder, ORG/NAME[@REVISION] of the Hub, or a workdir; it then says all here
    model.vocab_size = 0  # rows of the embedding; 0 for as many as the tokenizer has ids
    model.grow_vocab = ""  # rows for tokens that model.init_from lacks: the "mean" of its own, or of their "covariance"
    model.hidden_size = 512  # width of the model
    model.intermediate_size = 1376  # width inside the gated MLP
    model.num_hidden_layers = 8  # layers, one after the other
    model.num_attention_heads = 8  # heads of queries
    model.num_key_value_heads = 4  # heads of keys and values, each shared by as many heads of queries
    model.head_dim = 64  # width of a head
    model.max_position_embeddings = 0  # positions that the model is made for, as an export says; 0: sequence_length
    model.hidden_act = "silu"  # of the gated MLP; or "gelu", "gelu_pytorch_tanh"
    model.rms_norm_eps = 1e-6  # added to the mean square that a norm divides by
    model.zero_centered_norms = False  # norms scale by 1 + weight (Gemma)
    model.post_norms = False  # norms after attention and MLP as well (Gemma)
    model.qk_norm = False  # norms of every head's queries and keys (Qwen3, Gemma 3)
    model.attention_bias = False  # of queries, keys and values (Qwen2)
    model.attention_output_bias = False  # of the projection out of attention
    model.mlp_bias = False  # of the matrices of the MLP
    model.query_pre_attn_scalar = 0.0  # scores are divided by its root; 0 for head_dim
    model.attn_logit_softcapping = 0.0  # scores stay within +- this (Gemma 2); 0 for no cap
    model.final_logit_softcapping = 0.0  # the same of logits
    model.scale_embeddings = False  # by the root of hidden_size (Gemma)
    model.sliding_window = 0  # tokens that a sliding layer looks back, its own with them
    model.layer_types = "full"  # attention, "full" or "sliding", that the layers repeat: "sliding,full"
    model.rope_theta = 10_000.0  # base of the wavelengths of rotary positions
    model.rope_scaling = ""  # JSON object under Hugging Face's names; rope_type "linear", "llama3" or "yarn"
    model.rope_local_theta = 0.0  # of sliding layers, which are not scaled then (Gemma 3); 0: they turn as all do
    model.tie_word_embeddings = False  # whether the embedding is the head as well
    model.initializer_range = (
        0.02  # standard deviation of a fresh embedding and head; layers' matrices go by their size
    )
    model.dtype = "float32"  # of the computation: "float32" or "bfloat16"
    model.param_dtype = "float32"  # that parameters are kept in; what is frozen may well be "bfloat16"
    # Compile one layer and scan it, or else each by itself; None: each on CPUs if they are 12 at most, else one.
    model.scan_layers = config_dict.placeholder(bool)
    # Of a layer's activations, what is kept for the backward pass: "none" keeps all, "full" only what goes in,
    # "offload" that in the host's memory, "attention" also what attention gives, "dots_no_batch" also what the layer's
    # matrices give: about as fast as "none", and faster where that keeps much (benchmarks/RESULTS.md).
    model.remat = "dots_no_batch"
    # Products of activations and the layers' matrices: "plain", in model.dtype; or "fp8", in 8 bits where the GPU can.
    model.matmul = "plain"
    model.attention_kernel = "auto"  # of model/attention/kernels.py; "auto" takes the first that fits the devices

    config.lora = lora = ConfigDict()
    lora.init_from = (
        ""  # a PEFT folder, or ORG/NAME of the Hub, or a run of adapters, to start from; it says what follows
    )
    lora.rank = 0  # of low-rank adapters, which are then all that is trained; 0 for none
    lora.alpha = 16.0  # adapters are scaled by alpha / rank
    lora.targets = r"layers/(attention|mlp)/"  # regex found in the names of matrices, as layers/attention/query
    lora.dropout = 0.0  # of what enters an adapter, in training
    lora.modules_to_save = ""  # regex of modules that are trained whole beside the adapters, as "embed|head"
    lora.trainable_tokens = ""  # JSON list of tokens, as ["<tool_call>", 9], whose rows are trained beside the adapters
    lora.quantize = ""  # "int8" or "nf4": what the frozen matrices of the layers are kept in

    config.objective = objective = ConfigDict()
    objective.loss = "response"  # what is trained: the "response"s; or "all_roles", the context beside them
    objective.context_weight = 1.0  # of a context token under "all_roles"; held-out losses are of responses always
    # Times the weight of a response's token under "all_roles". Only the ratio to context_weight matters: "dataset" and
    # "batch" alike divide by the sum of these weights, so that one factor of both changes no gradient and no loss.
    objective.response_weight = 1.0
    # Of a token: "cross_entropy"; "dft", that times the token's probability; "eaft", times the entropy, see eaft_alpha.
    objective.token_loss = "cross_entropy"
    objective.eaft_alpha = 1.0  # the power of (entropy of the 20 most probable tokens / 3) under "eaft"
    objective.label_smoothing = 0.0  # share of a target's probability that goes to all tokens alike
    objective.z_loss = 0.0  # weight of the square of the logarithm of the sum of exponentials, such as 1e-4
    objective.normalize = "dataset"  # divide gradient sums by the dataset's mean weight per batch, or the "batch"'s own
    objective.chunk = 0  # supervised slots of a device that meet the vocabulary at a time; 0: an eighth, 256 to 2,048

    config.train = train = ConfigDict()
    train.steps = 0  # optimizer steps; 0 leaves it to train.epochs
    train.epochs = 1.0  # passes over the data, where train.steps is 0
    train.batch_size = 8  # rows of a batch, over all devices and hosts
    train.rows_per_device = 0  # rows that a device computes at a time, at most, to save memory; 0 for all of its rows
    train.microbatches = 0  # parts that a batch is computed in, in place of train.rows_per_device; changes no number
    train.seed = 0  # of fresh parameters, the order of dialogues, and noise
    train.optimizer = "adamw"  # or "adafactor", "lion", or "muon": Muon for the layers' matrices, AdamW for the rest
    train.learning_rate = 3e-4  # at its peak; "lion" wants a third of AdamW's or less, and as much more weight decay
    train.learning_rate_groups = ""  # JSON object of factors by regex of parameter names, as {"embed|head": 0.1}
    train.schedule = "cosine"  # after the warm-up: "constant", "linear", "cosine", or "wsd": the peak, then a decay
    train.warmup_steps = 0  # over which the learning rate rises to its peak; 0 leaves it to train.warmup_fraction
    train.warmup_fraction = 0.03  # share of the steps that are warm-up, where train.warmup_steps is 0
    train.decay_fraction = 0.2  # share of the steps over which "wsd" decays
    train.end_learning_rate = 0.1  # at the end of a schedule that falls, as a share of the peak
    train.weight_decay = 0.1  # of matrices
    train.b1 = 0.9  # decay of the optimizer's first moments; "adafactor" has none
    train.b2 = 0.95  # decay of second moments ("lion": of its momentum); "adafactor" has its own
    train.eps = 1e-8  # that "adamw" adds to the root of second moments, by which it divides
    train.clip_norm = 1.0  # global norm that gradients are clipped to; 0 for no clipping
    train.freeze = ""  # regex of the names of parameters that are not trained, as "embed|layers/mlp"
    train.neftune_alpha = 0.0  # NEFTune's noise on embeddings, such as 5.0; 0 for none
    train.average_decay = 0.0  # of a moving average of parameters, which is then evaluated and exported; 0 for none
    train.may_change = ""  # keys, by comma, that a resumed run may have otherwise, as "objective.normalize"
    # Stop after so many steps in a row whose loss or gradient is not finite; or where the loss of most of so many is
    # above that of guessing, and half above that of the first step.
    train.max_bad_steps = 10
    # Before the first step counts, look at data, loss and gradients, written to WORKDIR/preflight.json: "refuse" what
    # cannot be right; "note" it and go on; or "off".
    train.preflight = "refuse"
    train.overfit_one_batch = 0  # steps of the pre-flight on a copy, on one batch, whose loss must fall; 0 for none
    train.bad_steps_kept = 5  # steps that went wrong, at most, written to WORKDIR/bad_steps; 0 for none
    train.log_every = 10  # steps between lines of metrics.jsonl
    train.tensorboard = False  # draw them as TensorBoard's events, too (pip install 'mtsft[tensorboard]'), in WORKDIR
    train.wandb = ""  # and in this project of Weights & Biases (pip install 'mtsft[wandb]'); "" for none

    config.eval = evaluation = ConfigDict()
    evaluation.every = 500  # steps between evaluations on held-out dialogues, and once at the end; 0 for never
    evaluation.batch_size = 0  # rows; 0 for those of a micro-batch
    evaluation.turns = 32  # turns told apart in the loss by turn; later ones are counted with the last
    evaluation.samples = 0  # held-out contexts that are replied to at each evaluation, in WORKDIR/samples.jsonl
    evaluation.sample_tokens = 128  # tokens of such a reply at most
    evaluation.patience = 0  # stop after so many evaluations in a row without a better loss; 0 for never
    evaluation.new_series = False  # let a resumed run hold out other dialogues; earlier losses then count no longer
    evaluation.min_improvement = 0.0  # nats per supervised token by which a loss must be better

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every = 500  # steps between checkpoints; also at the end, and where held-out loss is the best so far
    checkpoint.keep = 2  # latest checkpoints to keep, beside the best by held-out loss

    config.parallel = parallel = ConfigDict()
    parallel.mode = "jit"  # "jit" over a mesh, or "pmap" with replicated parameters
    parallel.mesh = ""  # such as "data=2,fsdp=4,tensor=1"; -1 for what is left; "" puts all devices on data
    parallel.compilation_cache = "~/.cache/mtsft/compiled"  # compiled programs, kept between runs; "" for none
    return config.lock()


def flat_values(config: ConfigDict) -> dict[str, Any]:
    """A config as plain values by key, such as "train.steps"; tuples as lists."""
    record = json.loads(config.to_json_best_effort())
    return {f"{group}.{name}": value for group, keys in record.items() for name, value in keys.items()}


def data_config(config: ConfigDict) -> DataConfig:
    """The values of config.data; where they name no tokenizer or template, those of model.init_from."""
    data, base = DataConfig(**config.data), config.model.init_from
    if not base or data.tokenizer:
        return data
    workdir = path_of(base)
    if (workdir / "template.json").exists():  # a run's, in place of a Hugging Face folder
        template = data.template or str(workdir / "template.json")
        return replace(data, tokenizer=str(workdir / "tokenizer"), template=template)
    return replace(data, tokenizer=base)


def validate(config: ConfigDict) -> None:
    """Raises InputError for a value that no code below would name by its key."""
    for group, keys in config.items():
        for name, value in keys.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{group}.{name}={value}: must be a finite number")
    minima = {
        "train.seed": 0,
        "data.corpus_seed": 0,
        "data.sequence_length": 2,
        "data.vocab_size": 1,
        "data.workers": 0,
        "data.max_dialogue_bytes": 1,
        "data.cache_bytes": 0,
        "objective.chunk": 0,
        "train.steps": 0,
        "train.epochs": 0,
        "train.warmup_steps": 0,
        "train.rows_per_device": 0,
        "train.microbatches": 0,
        "train.log_every": 1,
        "train.max_bad_steps": 1,
        "train.overfit_one_batch": 0,
        "train.bad_steps_kept": 0,
        "train.clip_norm": 0,
        "train.weight_decay": 0,
        "train.learning_rate": 0,
        "train.neftune_alpha": 0,
        "train.average_decay": 0,
        "eval.patience": 0,
        "eval.min_improvement": 0,
        "eval.every": 0,
        "eval.batch_size": 0,
        "eval.turns": 1,
        "eval.samples": 0,
        "eval.sample_tokens": 1,
        "checkpoint.every": 1,
        "checkpoint.keep": 1,
    }
    for key, least in minima.items():
        group, name = key.split(".")
        if not config[group][name] >= least:
            raise InputError(f"{key}={config[group][name]}: must be at least {least}")
    if not 0 <= config.data.eval_fraction < 1:
        raise InputError(f"data.eval_fraction={config.data.eval_fraction}: must be in [0, 1)")
    for key, value in (
        ("train.warmup_fraction", config.train.warmup_fraction),
        ("train.decay_fraction", config.train.decay_fraction),
        ("train.end_learning_rate", config.train.end_learning_rate),
    ):
        if not 0 <= value <= 1:
            raise InputError(f"{key}={value}: must be in [0, 1]")
    for key, value in (("train.b1", config.train.b1), ("train.b2", config.train.b2)):
        if not 0 <= value < 1:
            raise InputError(f"{key}={value}: must be in [0, 1)")
    if not config.lora.alpha > 0:
        raise InputError(f"lora.alpha={config.lora.alpha}: must be above 0; adapters are scaled by alpha / rank")
    if config.train.epochs >= 2**31:
        raise InputError(f"train.epochs={config.train.epochs}: must be below 2**31")
    if not config.train.eps > 0:
        raise InputError(f"train.eps={config.train.eps}: must be above 0, as it is divided by")
    for key in ("train.seed", "data.corpus_seed"):
        group, name = key.split(".")
        if config[group][name] >= 2**32:
            raise InputError(f"{key}={config[group][name]}: must be below 2**32")
    if not config.train.average_decay < 1:
        raise InputError(f"train.average_decay={config.train.average_decay}: must be below 1, such as 0.999")
    if config.eval.patience and not config.eval.every:
        raise InputError("eval.patience is set and eval.every is 0: without evaluations there is nothing to wait for")
    if config.objective.normalize not in ("dataset", "batch"):
        raise InputError(f"objective.normalize={config.objective.normalize!r}: use 'dataset' or 'batch'")
    if config.train.preflight not in ("refuse", "note", "off"):
        raise InputError(f"train.preflight={config.train.preflight!r}: use 'refuse', 'note' or 'off'")
    if not config.train.steps and not config.train.epochs:
        raise InputError("train.steps and train.epochs are both 0: nothing to do; set one of them")
    if config.data.corpus and config.data.train:
        raise InputError("data.corpus and data.train are both set; set data.corpus='' to train on your own files")
