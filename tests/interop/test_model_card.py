"""README.md of a model's folder: read by the Hub's own reader, and whatever a user wrote in it is data."""

import json
import re

import pytest

from mtsft.interop.model_card import TrainingRecord, model_card

EVIL = "a\n---\nlicense: evil `x` **b** | <script>alert(1)</script> ```\n# c \u2028\x1b[2J: [d](http://e)"


def record(**changes):
    fields = dict(
        step=300, base="smol", data=["chats.jsonl"], held_out="5.0% of the dialogues", config={"lora.rank": 8},
        losses=[(10, 2.5), (300, 1.25)], held_out_losses=[(100, 1.5), (300, 1.375)],
    )  # fmt: skip
    return TrainingRecord(**fields | changes)


def card(*arguments, **options):
    return model_card(*arguments, **options).decode()


def head(text):
    yaml = pytest.importorskip("yaml")
    hub = pytest.importorskip("huggingface_hub")
    fields = yaml.safe_load(text.split("---\n")[1])
    assert hub.ModelCard(text).data.to_dict() == fields
    return fields


def test_the_head_of_adapters_is_that_of_peft():
    assert head(card("mine", record(), "org/base", adapter=True)) == {
        "base_model": "org/base",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["base_model:adapter:org/base", "lora", "mtsft", "sft", "transformers"],
    }


def test_the_head_of_a_whole_model_says_what_it_was_tuned_from():
    assert head(card("mine", record(), "org/base")) == {
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["mtsft", "sft", "transformers"],
    }


def test_a_base_that_is_no_name_on_the_hub_stands_in_the_text_alone():
    text = card("mine", record(), adapter=True)
    assert "base_model" not in head(text)
    assert "LoRA adapters for smol, trained with mtsft" in text
    assert "The base model is the folder smol;" in text


def test_it_says_step_losses_data_and_config():
    text = card("mine", record(), "org/base", adapter=True)
    assert "# mine\n" in text
    assert (
        "These are the weights of step 300. Their held-out loss is 1.3750 nats per supervised token, the lowest of "
        "those measured up to there."
    ) in text
    assert "Data:\n\n```\nchats.jsonl\n```\n" in text
    assert r"Held out: 5\.0\% of the dialogues." in text
    assert '```json\n{\n  "lora.rank": 8\n}\n```' in text
    assert "| step | held-out loss |\n| ---: | ---: |\n| 100 | 1.5000 |\n| 300 | 1.3750 |\n" in text
    assert "| step | training loss |\n| ---: | ---: |\n| 10 | 2.5000 |\n| 300 | 1.2500 |\n" in text
    assert "AutoPeftModelForCausalLM.from_pretrained(folder)" in text
    assert "lowest" not in card("mine", record(held_out_losses=[(100, 1.0), (300, 1.375)]))


def test_its_code_is_python():
    for adapter in (True, False):
        (code,) = re.findall(r"```python\n(.*?)\n```", card("mine", record(), adapter=adapter), re.DOTALL)
        compile(code, "card", "exec")


def test_long_tables_are_thinned_and_keep_their_ends():
    losses = [(step, float(step)) for step in range(1, 1001)]
    rows = re.findall(
        r"^\| ([\d,]+) \| [\d.]+ \|$", card("mine", record(losses=losses, held_out_losses=[])), re.MULTILINE
    )
    assert (rows[0], rows[-1], len(rows)) == ("1", "1,000", 21)


def test_what_was_not_trained_says_so():
    text = card("mine", record(step=0, losses=[], held_out_losses=[]), "org/base")
    assert r"The weights of org\/base, as they were." in text
    assert "## Training" not in text
    assert "did not train" in card("mine", record(step=0, base=""))
    assert "A model trained from scratch with mtsft" in card("mine", record(base=""))


def test_what_people_wrote_is_data():
    commonmark = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    training = record(base=EVIL, data=[EVIL, "b.jsonl=0.5"], held_out=EVIL, config={"data.system": EVIL})
    text = card(EVIL, training, EVIL, adapter=True)
    assert head(text)["base_model"] == EVIL
    plain = card("x", record(base="x", data=["x"], held_out="x", config={"data.system": "x"}), "x", adapter=True)

    def shape(text):
        body = text.partition("\n---\n")[2]
        return [(token.type, token.tag) for token in commonmark.parse(body)], [
            child.type for token in commonmark.parse(body) for child in token.children or () if child.type != "text"
        ]

    assert shape(text) == shape(plain)
    blocks = [token.content for token in commonmark.parse(text) if token.type == "fence"]
    assert "<script>alert(1)</script>" in blocks[1]
    assert json.loads(blocks[2])["data.system"] == EVIL
    assert not {"\x1b", "\u2028"} & {*text}
