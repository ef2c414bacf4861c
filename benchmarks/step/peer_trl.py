"""Steps of TRL's SFTTrainer on the CPU, grouped by length; see worker.py and step_time.py.

    python benchmarks/step/peer_trl.py '{"data": FILE, "tokenizer": FILE OR FOLDER, "batch_size": 4, ...}'

Loss on the model's words and the token that ends its turn, as mtsft has it under the same template. The sampler puts
the longest dialogues first, so each group of steps takes its batches at even strides through the epoch. The time of a
step is the trainer's own, from the batch's arrival to the optimizer's end; reading the data is left out. With "compile"
it is what `torch_compile=True` makes of it, whose second length is compiled for any.
"""

import json
import os
import sys
import tempfile
import time
from queue import Queue

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="true", CUDA_VISIBLE_DEVICES="")

import torch
from batches import at_strides, groups_of
from datasets import Dataset
from dialogues import dialogues_of, tokenizer_of
from probe import SIZE, rate
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer
from worker import beside, cpu_seconds, serve


def trainer_of(settings: dict) -> SFTTrainer:
    """The trainer, model, tokenizer and data of some settings."""
    if settings.get("model"):
        model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32, attn_implementation="sdpa")
    else:
        model = LlamaForCausalLM(LlamaConfig(**settings["sizes"], attn_implementation="sdpa"))
    adapters = None
    if rank := settings.get("lora_rank"):
        from peft import LoraConfig  # which TRL does without

        adapters = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        max_length=settings["length"],
        per_device_train_batch_size=settings["batch_size"],
        max_steps=100_000,
        learning_rate=1e-3,
        assistant_only_loss=True,
        train_sampling_strategy="group_by_length",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        dataloader_drop_last=True,
        disable_tqdm=True,
        torch_compile=settings.get("compile", False),
    )
    data, tokenizer = Dataset.from_list(dialogues_of(settings["data"])), tokenizer_of(settings)
    return _Strided(model, arguments, train_dataset=data, processing_class=tokenizer, peft_config=adapters)


class _Strided(SFTTrainer):
    """Batches of the sampler's own, a stride apart, another group of them each time."""

    steps = 6

    def _get_train_sampler(self, *arguments, **named):
        order = list(super()._get_train_sampler(*arguments, **named))
        groups, steps = groups_of(order, self.args.per_device_train_batch_size), self.steps

        class Endless:
            def __len__(self):
                return 10**9

            def __iter__(self):
                for group in at_strides(groups, steps):
                    yield from group

        return Endless()


def main() -> None:
    torch.set_num_threads(os.cpu_count())
    settings = json.loads(sys.argv[1])
    _Strided.steps = settings["steps"]
    trainer = trainer_of(settings)
    counted: dict[str, float] = {}
    given = trainer.training_step

    def training_step(model, inputs, *arguments, **named):
        labels, mask = inputs["labels"], inputs["attention_mask"]
        lengths = mask.sum(1)
        loss = given(model, inputs, *arguments, **named)
        for name, value in {
            "tokens": mask.sum(),
            "supervised": (labels[:, 1:] != -100).sum(),
            "pairs": (lengths * (lengths + 1) // 2).sum(),
        }.items():
            counted[name] = counted.get(name, 0) + int(value)
        counted["loss"] = float(loss)
        return loss

    trainer.training_step = training_step
    asked, answered = Queue(), Queue()

    class Paced(TrainerCallback):
        left, seconds, cpu = 0, 0.0, 0.0

        def on_step_begin(self, *_, **__):
            while not self.left:
                self.left = asked.get()
                self.seconds = self.cpu = 0.0
                counted.clear()
            self.began, self.spent = time.perf_counter(), cpu_seconds()

        def on_step_end(self, *_, **__):
            self.seconds += time.perf_counter() - self.began
            self.cpu += cpu_seconds() - self.spent
            self.left -= 1
            if not self.left:
                answered.put({**counted, "seconds": self.seconds, "cpu_seconds": self.cpu})

    trainer.add_callback(Paced())

    def train():
        torch.set_num_threads(os.cpu_count())  # which is of each thread
        trainer.train()

    beside(train)

    def take(count: int) -> dict[str, float]:
        asked.put(count)
        return answered.get()

    began = time.perf_counter()
    first = take(1)
    ready = {"first_step_s": time.perf_counter() - began, "first_loss": first["loss"]}
    take(1)
    x = torch.randn(SIZE, SIZE)
    serve(ready, take, lambda: rate(lambda: x @ x))
    os._exit(0)  # the trainer waits for more


if __name__ == "__main__":
    main()
