"""Against transformers and PEFT: what they save is read here, and what is written here is the same model there."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from safetensors.numpy import load_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

import models  # noqa: E402 (which needs them)
from models import CASES  # noqa: E402

from mtsft.interop.export import export  # noqa: E402
from mtsft.interop.hf_folder import HubFolder  # noqa: E402
from mtsft.interop.peft import export_adapter, read_adapter  # noqa: E402
from mtsft.model.architecture import RUNTIME, Architecture  # noqa: E402
from mtsft.model.lora import LoRA  # noqa: E402
from mtsft.model.merge import merge  # noqa: E402
from mtsft.model.parameters import join, split  # noqa: E402
from mtsft.model.transformer import Model  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT asks for it
]

VISION = dict(
    model_type="siglip_vision_model", hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
    image_size=28, patch_size=14, vision_use_head=False,
)  # fmt: skip
MULTIMODAL = dict(
    model_type="gemma3", text_config=CASES["gemma3"] | dict(final_logit_softcapping=None), vision_config=VISION,
    mm_tokens_per_image=4, boi_token_index=125, eoi_token_index=126, image_token_index=127,
)  # fmt: skip
CHOSEN = ("llama", "llama, biases", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")


def read(folder, lora=None):
    """(the folder, the model with layers stacked, its parameters)."""
    opened = HubFolder.open(folder)
    arch = Architecture(**opened.fields, **RUNTIME | dict(scan_layers=True))
    shapes = jax.eval_shape(Model(arch).init, jax.random.key(0))
    params = opened.read(shapes, jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), shapes))
    if lora is None:
        return opened, Model(arch), params
    model = Model(arch, lora)
    rng = np.random.default_rng(5)
    shapes = split(jax.eval_shape(model.init, jax.random.key(0)), lambda name: "lora_" in name)[0]
    adapters = jax.tree.map(lambda leaf: jnp.array(rng.normal(size=leaf.shape) / 5, leaf.dtype), shapes)
    return opened, model, join(params, adapters)


def tokens_of():
    return models.random_batch(120)[0]


def theirs(module):
    with torch.no_grad():
        return module.eval()(input_ids=torch.tensor(np.array(tokens_of()), dtype=torch.long)).logits.numpy()


def ours(model, params):
    return models.our_logits(model, params, tokens_of())


def close(one, two, atol=1e-4):
    np.testing.assert_allclose(one, two, rtol=0, atol=atol)


def load(folder):
    """transformers' model of a folder; asserts that every tensor has its place."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager", local_files_only=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model


@pytest.fixture(scope="module", params=CHOSEN)
def saved(request, tmp_path_factory):
    """(a folder that transformers wrote, in some shards; its logits)."""
    folder = tmp_path_factory.mktemp("saved")
    pair = models.make(CASES[request.param])
    pair.theirs.save_pretrained(folder, max_shard_size="100KB")
    assert len([*folder.glob("*.safetensors")]) > 1
    return folder, theirs(pair.theirs)


@pytest.mark.parametrize("own_config", [False, True])
def test_there_and_back(saved, tmp_path, own_config):
    folder, logits = saved
    opened, model, params = read(folder)
    close(ours(model, params), logits)
    config = None if own_config else opened.config
    if own_config and opened.family.model_type == "phi3":
        assert model.arch.sliding_window  # which makes it a Mistral
    export(tmp_path / "out", params, model.arch, config=config, stop_ids=[5, 6], bos_id=2, pad_id=0)
    loaded = load(tmp_path / "out")
    close(theirs(loaded), logits)
    assert loaded.dtype == torch.float32
    assert loaded.config.vocab_size == 128
    assert loaded.generation_config.eos_token_id == [5, 6]
    assert (loaded.generation_config.bos_token_id, loaded.generation_config.pad_token_id) == (2, 0)
    if not own_config:
        assert type(loaded).__name__ == opened.family.architecture


def test_bfloat16(tmp_path):
    pair = models.make(CASES["llama"])
    export(tmp_path / "out", pair.params, pair.model.arch, dtype="bfloat16", max_shard_bytes=50_000)
    loaded = load(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    held = loaded.state_dict()
    for source in pair.tensor_slices.values():
        assert torch.equal(held[source.name], pair.values[source.name].to(torch.bfloat16))


def test_the_text_of_a_multimodal_gemma(tmp_path):
    """Its decoder is read, and comes out as a model of text alone; its adapters go onto the whole."""
    config = models.their_config(MULTIMODAL)
    whole = transformers.AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    models.randomise(whole, 0)
    whole.save_pretrained(tmp_path / "saved")
    lora = LoRA(rank=3, alpha=6.0, targets="attention/(query|value)|mlp/up")
    opened, model, params = read(tmp_path / "saved", lora)
    plain = Model(model.arch)
    base = split(params, lambda name: "lora_" in name)[1]
    close(ours(plain, base), theirs(whole))
    export(tmp_path / "out", base, model.arch, config=opened.config)
    loaded = load(tmp_path / "out")
    assert type(loaded).__name__ == "Gemma3ForCausalLM"
    close(theirs(loaded), ours(plain, base))
    export_adapter(tmp_path / "adapter", params, model.arch, lora, "base", config=opened.config)
    name = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
    assert name in load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    adapted = with_adapter(whole, tmp_path / "adapter", opened, lora, params)
    assert not any("vision" in name for name, _ in adapted.named_parameters() if "lora_" in name)
    close(theirs(adapted), ours(model, params))


def with_adapter(base, folder, opened, lora, params):
    """PEFT's model of a base and a folder; asserts that it has loaded exactly the adapters of these parameters."""
    adapted = peft.PeftModel.from_pretrained(base, folder)
    held = {name: value for name, value in adapted.named_parameters() if "lora_" in name}
    count = sum(leaf.size for leaf in jax.tree.leaves(split(params, lambda name: "lora_" in name)[0]))
    if not opened.family.fused:
        assert sum(value.numel() for value in held.values()) == count
    return adapted


@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3"])
@pytest.mark.parametrize("targets", ["attention/(query|value)", "attention|mlp"])
def test_adapters(tmp_path, name, targets):
    pair = models.make(CASES[name])
    pair.theirs.save_pretrained(tmp_path / "saved")
    lora = LoRA(rank=3, alpha=7.5, targets=targets)
    opened, model, params = read(tmp_path / "saved", lora)
    base = split(params, lambda name: "lora_" in name)[1]
    export(tmp_path / "base", base, model.arch, config=opened.config)
    export_adapter(tmp_path / "adapter", params, model.arch, lora, str(tmp_path / "base"), config=opened.config)
    expected = ours(model, params)
    assert np.abs(expected - ours(Model(model.arch), base)).max() > 0.1
    loaded = with_adapter(load(tmp_path / "base"), tmp_path / "adapter", opened, lora, params)
    close(theirs(loaded), expected)
    loaded.save_pretrained(tmp_path / "again")
    for folder in ("adapter", "again"):  # PEFT leaves out which parts of a fused matrix are adapted, where not all are
        if (name, targets, folder) == ("phi3", "attention/(query|value)", "again"):
            continue
        again, adapters = read_adapter(tmp_path / folder, opened.family, opened.fields)
        assert (again.rank, again.alpha) == (3, 7.5)
        jax.tree.map(np.testing.assert_array_equal, adapters, split(params, lambda name: "lora_" in name)[0])
    merged = merge(params, lora)
    close(ours(Model(model.arch), merged), expected, 1e-5 * np.abs(expected).max())
    export(tmp_path / "merged", merged, model.arch, config=opened.config)
    close(theirs(load(tmp_path / "merged")), expected)
    close(theirs(loaded.merge_and_unload()), expected)


@pytest.mark.parametrize("name", ["qwen3", "phi3"])
def test_adapters_of_theirs(tmp_path, name):
    """What PEFT saves, read and applied here."""
    pair = models.make(CASES[name])
    pair.theirs.save_pretrained(tmp_path / "saved")
    modules = ["qkv_proj", "down_proj"] if name == "phi3" else ["q_proj", "o_proj", "up_proj"]
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=modules, task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = peft.get_peft_model(pair.theirs, config)
    adapted.save_pretrained(tmp_path / "adapter")
    opened, model, params = read(tmp_path / "saved")
    lora, adapters = read_adapter(tmp_path / "adapter", opened.family, opened.fields)
    model = replace(model, lora=lora)
    params = join(params, jax.tree.map(jnp.asarray, adapters))
    close(ours(model, params), theirs(adapted))


def test_a_sentence_piece_tokenizer(tmp_path, chat, small_tokenizer):
    stop = small_tokenizer.controls["<|im_end|>"].id
    pair = models.make(CASES["llama"] | dict(vocab_size=small_tokenizer.vocab_size))
    template = chat.templates["default"]
    export(
        tmp_path / "out",
        pair.params,
        pair.model.arch,
        tokenizer_files={**chat.tokenizer, "chat_template.jinja": template.encode()},
        stop_ids=[stop],
    )
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert loaded.eos_token_id == stop
    assert "\n" not in loaded.all_special_tokens  # vLLM leaves out what is special
    texts = ["Hello there, how are you?", " two  spaces", "a\nb\n\n c", "caf\u00e9 \u65e5\u672c 123", ""]
    ids, place = loaded(texts)["input_ids"], 0
    assert ids == small_tokenizer.encode_batch(texts, place)
    assert loaded.batch_decode(ids, skip_special_tokens=True) == texts
    messages = [{"role": "user", "content": texts[0]}, {"role": "assistant", "content": texts[2]}]
    text = loaded.apply_chat_template(messages, tokenize=False)
    assert "<|im_end|>" in text
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == [stop]
    encoded = loaded.apply_chat_template(messages, return_dict=False)
    control = small_tokenizer.controls["<|im_start|>"].id
    assert (encoded.count(control), encoded.count(stop)) == (2, 2)
    assert loaded.decode(encoded) == text
