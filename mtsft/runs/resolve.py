"""A config completed by the model that it starts from."""

from ml_collections import ConfigDict

from mtsft.config import default
from mtsft.errors import InputError
from mtsft.files import expanded
from mtsft.hub import hub_name
from mtsft.interop.export_configs import check_exportable
from mtsft.runs.build_model import architecture_of
from mtsft.runs.grow_vocab import check_method
from mtsft.runs.hub_model import HubModel
from mtsft.runs.trainable_tokens import as_key
from mtsft.runs.trained_model import TrainedModel, open_base

# Keys of `model` that may differ from the model of model.init_from: they stretch its positions.
_CHANGEABLE = ("rope_theta", "rope_scaling", "max_position_embeddings")


def resolve(config: ConfigDict) -> tuple[ConfigDict, TrainedModel | None]:
    """A config whose model is that of model.init_from, and that model.

    Returns:
        (the config with every size of the model and its adapters filled in, the model of model.init_from or None).

    Raises:
        InputError: a key of `model` or `lora` has another value than the model, or one that no export could have.
    """
    check_method(config.model.grow_vocab)
    base = open_base(config.model.init_from)
    if base is None and config.model.grow_vocab:
        raise InputError("model.grow_vocab is set, and there is no model to grow: set model.init_from, or leave it out")
    if base is None:
        if config.lora.init_from:
            raise InputError("lora.init_from needs the model that its adapters are for: set model.init_from")
        return config, None
    config, defaults = config.copy_and_resolve_references(), default().model
    for keys in (config.model, config.lora):
        is_path = keys.init_from and "://" not in keys.init_from and hub_name(keys.init_from) is None
        if is_path:  # the run's config may be read from another folder
            keys.init_from = str(expanded(keys.init_from).absolute())
    for name, value in base.fields.items():
        value = type(defaults[name])(value)
        given = config.model[name]
        if name == "vocab_size" and config.model.grow_vocab and given >= value:
            continue
        if given in (defaults[name], value):
            config.model[name] = value
        elif name not in _CHANGEABLE:
            raise InputError(
                f"model.{name}={given!r}, and the model of model.init_from has {value!r}: leave model.{name} to it"
                + (", or set model.grow_vocab='mean' for more rows" if name == "vocab_size" and given > value else "")
            )
    if base.published is not None:
        name = "config.json" if isinstance(base, HubModel) else "published.json"
        check_exportable(architecture_of(config, 0), base.published, str(base.path / name))
    return (_with_adapters(config, base) if config.lora.init_from else config), base


def _with_adapters(config: ConfigDict, base: TrainedModel) -> ConfigDict:
    """A config whose adapters are those of lora.init_from, but for their dropout, which is the config's own."""
    lora, defaults = base.adapters(config.lora.init_from)[0], default().lora
    tokens = {"embed": lora.embed_tokens, "head": lora.head_tokens}
    values = {
        "rank": lora.rank,
        "alpha": float(lora.alpha),
        "targets": lora.targets,
        "modules_to_save": lora.modules_to_save,
        "trainable_tokens": as_key({name: ids for name, ids in tokens.items() if ids}),
    }
    for name, value in values.items():
        if config.lora[name] not in (defaults[name], value):
            raise InputError(
                f"lora.{name}={config.lora[name]!r}, and the adapters of lora.init_from have {value!r}: "
                f"leave lora.{name} to them"
            )
    config.lora.update(values)
    return config
