"""Against PEFT: modules and rows of tokens that are trained beside adapters, of a base that may lack some of them."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

import models  # noqa: E402 (which needs them)
from models import CASES  # noqa: E402
from test_interop import close, load, ours, read, theirs  # noqa: E402

from mtsft.interop.export import export  # noqa: E402
from mtsft.interop.peft import export_adapter, read_adapter  # noqa: E402
from mtsft.model.lora import LoRA  # noqa: E402
from mtsft.model.merge import merge  # noqa: E402
from mtsft.model.parameters import join, split  # noqa: E402
from mtsft.model.transformer import Model  # noqa: E402
from mtsft.runs.grow_vocab import grown  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT asks for it
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]
TIED, APART = "llama", "llama, biases"
BESIDE = {
    "rows": dict(trainable_token_indices=[77, 3]),
    "rows of both": dict(trainable_token_indices={"embed_tokens": [3, 77], "lm_head": [3, 77]}),
    "rows of the head": dict(trainable_token_indices={"lm_head": [5]}),
    "embedding and head": dict(modules_to_save=["embed_tokens", "lm_head"]),
    "tied on purpose": dict(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "norms": dict(modules_to_save=["norm"]),
    "both": dict(trainable_token_indices=[3], modules_to_save=["post_attention_layernorm"]),
}


@pytest.mark.parametrize(
    ("name", "case"),
    [
        *((TIED, case) for case in ("rows", "rows of both", "tied on purpose", "norms", "both")),
        *((APART, case) for case in ("rows", "rows of both", "rows of the head", "embedding and head", "both")),
        ("gemma3", "rows"),
        ("phi3", "norms"),
    ],
)
def test_what_peft_saves_is_the_same_function(tmp_path, name, case):
    pair = models.make(CASES[name])
    pair.theirs.save_pretrained(tmp_path / "saved")
    before = theirs(pair.theirs)
    modules = ["o_proj", "down_proj"]
    config = peft.LoraConfig(
        r=4, target_modules=modules, task_type="CAUSAL_LM", init_lora_weights=False, **BESIDE[case]
    )
    adapted = peft.get_peft_model(load(tmp_path / "saved"), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in {id(p): p for p in adapted.parameters() if p.requires_grad}.values():
            tensor += 0.2 * torch.randn(tensor.shape, generator=generator)
    adapted.save_pretrained(tmp_path / "adapter")
    opened, model, params = read(tmp_path / "saved")
    lora, adapters = read_adapter(tmp_path / "adapter", opened.family, opened.fields)
    assert lora.embed_tokens or lora.head_tokens or lora.modules_to_save
    merged = merge(join(params, jax.tree.map(jnp.asarray, adapters)), lora)
    expected = theirs(adapted)
    assert np.abs(expected - before).max() > 0.1
    close(ours(model, merged), expected)

    # What is written of it here is the same model again.
    export_adapter(tmp_path / "again", adapters, model.arch, lora, "base", config=opened.config)
    close(theirs(peft.PeftModel.from_pretrained(load(tmp_path / "saved"), tmp_path / "again")), expected)


@pytest.mark.parametrize("saved", ["", "embed|head"])
@pytest.mark.parametrize("name", [TIED, APART])
def test_new_tokens_are_loaded_with_their_base(tmp_path, name, saved):
    """By AutoPeftModelForCausalLM, which gives the base as many rows as the adapters' tokenizer has tokens."""
    pair = models.make(CASES[name])
    pair.theirs.save_pretrained(tmp_path / "base")
    opened, small, params = read(tmp_path / "base")
    V = small.arch.vocab_size
    tied = small.arch.tie_word_embeddings
    tokens = () if saved else (3, V, V + 1)
    lora = LoRA(
        rank=3, targets="attention", modules_to_save=saved, embed_tokens=tokens, head_tokens=() if tied else tokens
    )
    model = Model(replace(small.arch, vocab_size=V + 2), lora)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    plain = jax.eval_shape(Model(model.arch).init, jax.random.key(0))
    on_one = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), plain)
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda leaf: jnp.array(rng.normal(size=leaf.shape) / 10, leaf.dtype), shapes)
    params = join(grown(params, plain, "mean", 0, on_one), split(drawn, lora.adds)[0])

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(i): i for i in range(V)}, unk_token="0"))
    words.add_tokens(["<note>", "</note>"])
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "words")
    files = {file.name: file.read_bytes() for file in (tmp_path / "words").iterdir()}
    export_adapter(
        tmp_path / "adapter", params, model.arch, lora, str(tmp_path / "base"), config=opened.config, files=files
    )
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    merged = merge(params, lora)
    expected = ours(Model(model.arch), merged)
    assert expected.shape[-1] == V + 2
    close(theirs(loaded), expected)
    # The whole grown model, as transformers loads it.
    export(tmp_path / "whole", merged, model.arch, config=opened.config, tokenizer_files=files)
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["vocab_size"] == V + 2
    close(theirs(load(tmp_path / "whole")), expected)
