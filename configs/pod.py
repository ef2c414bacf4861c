"""A model of 1.1 billion parameters from scratch, on a TPU v5e-256 slice.

    launch/tpu_pod.sh --name=mtsft --zone=us-west4-a --type=v5litepod-256 -- \\
        --config=pod --workdir=gs://BUCKET/runs/pod --config.data.train=/mnt/dialogues/*.jsonl

Parameters, gradients and moments lie cut over 16 chips each (fsdp), the batch over all 256 (data and fsdp). Compute in
bfloat16, parameters in float32; of each layer only its input is kept for the backward pass. A batch is 512 rows of
4,096 slots, two million tokens.

Expected memory, of 16 GiB a chip: 0.8 for the state and 1.8 for the rest (memory_analysis of this step, compiled ahead
of time for v5e:16x16 at the compiler's least effort: allow a tenth more; in two micro-batches 1.2 for the rest). Not
yet run on such a slice. Any slice with a multiple of 16 chips will do, as the data axis takes what is left: with fewer
chips a chip holds more rows, some 0.6 GiB each; raise --config.train.microbatches if that is too much, which changes no
number.
"""

from mtsft.config import default


def get_config():
    """The config; every other key is the default of mtsft/config.py."""
    config = default()

    config.data.train = "dialogues/*.jsonl"
    config.data.eval_fraction = 0.002
    config.data.vocab_size = 32_768
    config.data.sequence_length = 4096
    config.data.over_length = "keep_first"

    config.model.hidden_size = 2048
    config.model.intermediate_size = 8192
    config.model.num_hidden_layers = 16
    config.model.num_attention_heads = 32
    config.model.num_key_value_heads = 8
    config.model.head_dim = 64
    config.model.rope_theta = 500_000.0
    config.model.dtype = "bfloat16"
    config.model.remat = "full"

    config.parallel.mesh = "data=-1,fsdp=16"

    config.train.epochs = 2.0
    config.train.batch_size = 512
    config.train.learning_rate = 4e-4
    config.train.warmup_steps = 500
    config.train.log_every = 20

    config.eval.every = 1000
    config.checkpoint.every = 1000
    config.checkpoint.keep = 3
    return config
