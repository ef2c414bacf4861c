"""A short run of TRL's SFTTrainer, as a process of its own: python trl_run.py settings.json

settings: {folder, data, steps, config}: a Hugging Face folder with its tokenizer and a chat template with
{% generation %} marks, a file of dialogues, the dialogues of every step by their ids, and arguments of SFTConfig.
Writes results.json beside it: {losses, grad_norms, learning_rates, supervised}, each by step.

The trainer, its preparation of the dataset, its collator, its loss and its optimizer are TRL's own; which dialogues
stand in which batch is all that is told.
"""

import json
import os
import sys
from pathlib import Path

# torch's threads give way while they wait: on cores that others use too, spinning costs more than it saves.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1", GOMP_SPINCOUNT="0")

import torch
import trl
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer


class Trainer(trl.SFTTrainer):
    """Batches as they are told; what every step saw is kept."""

    def __init__(self, steps, **arguments):
        super().__init__(**arguments)
        self.steps, self.losses, self.supervised = steps, [], []

    def get_train_dataloader(self):
        usual = super().get_train_dataloader()
        loader = DataLoader(usual.dataset, batch_sampler=self.steps, collate_fn=usual.collate_fn)
        return self.accelerator.prepare(loader)

    def training_step(self, model, inputs, *arguments, **named):
        self.supervised.append(int((inputs["labels"] != -100).sum()))
        loss = super().training_step(model, inputs, *arguments, **named)
        self.losses.append(loss.item())
        return loss


def main(path):
    settings = json.loads(path.read_text())
    tokenizer = AutoTokenizer.from_pretrained(settings["folder"])
    model = AutoModelForCausalLM.from_pretrained(settings["folder"], dtype=torch.float32)
    records = [json.loads(line) for line in Path(settings["data"]).read_text().split("\n") if line]
    place = {record["id"]: i for i, record in enumerate(records)}
    arguments = trl.SFTConfig(
        output_dir=str(path.parent / "trl"),
        assistant_only_loss=True,
        packing=False,
        max_length=None,
        max_steps=len(settings["steps"]),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        optim="adamw_torch",
        **settings["config"],
    )
    trainer = Trainer(
        [[place[name] for name in step] for step in settings["steps"]],
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([{"messages": record["messages"]} for record in records]),
        processing_class=tokenizer,
    )
    trainer.train()
    logged = [record for record in trainer.state.log_history if "grad_norm" in record]
    found = {
        "losses": trainer.losses,
        "grad_norms": [record["grad_norm"] for record in logged],
        "learning_rates": [record["learning_rate"] for record in logged],
        "supervised": trainer.supervised,
    }
    (path.parent / "results.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
