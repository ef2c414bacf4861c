"""What a run starts from: fresh parameters, a Hugging Face folder, or what another run trained."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial, reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from mtsft.config import default
from mtsft.data.chat_format import open_chat
from mtsft.encoding.encoder import Encoder
from mtsft.encoding.spec import ChatFormat, EncodingSpec
from mtsft.errors import InputError
from mtsft.files import expanded
from mtsft.interop.config_json import architecture_fields, config_for
from mtsft.interop.export_configs import check_exportable
from mtsft.interop.hf_folder import HubFolder
from mtsft.interop.peft import adapter_fingerprint, merge, read_adapter
from mtsft.model.architecture import NO_LORA, RUNTIME, Architecture, LoRA
from mtsft.model.block import MATRICES
from mtsft.model.layers import ADAPTERS
from mtsft.model.parameters import Params, are_stacked, join, names, select, split, unstack_layers
from mtsft.model.quantization import is_quantized, quantize_kernel
from mtsft.model.transformer import Model
from mtsft.runs.workdir import FINGERPRINT, nothing_in, read_chat, read_published, read_run_config
from mtsft.training.checkpoint import Checkpoints, read_identity
from mtsft.training.freeze import trained_names

# Those of a model that exists which a config may change: they stretch its positions.
_CHANGEABLE = ("rope_theta", "rope_scaling", "max_position_embeddings")

# The names of the fingerprints of what a run starts from, among what makes a run this run.
BASE, ADAPTERS_BEFORE = "model.init_from (parameters)", "lora.init_from (parameters)"

_UNBOUNDED = 2**31 - 1

Place = Callable[[Any], Any]  # from shapes to the shardings of their arrays


class HubModel:
    """A model as a folder of transformers holds it.

    fields: of its Architecture, all but RUNTIME. published: its config.json.
    """

    lora = NO_LORA
    step = 0

    def __init__(self, path: Path):
        self.path, self.folder = path, HubFolder.open(path)
        self.fields: dict[str, Any] = dict(self.folder.fields)
        self.published: dict[str, Any] | None = self.folder.config

    @property
    def fingerprint(self) -> str:
        """Changes whenever the parameters do."""
        return self.folder.fingerprint

    def adapters(self, path: str | Path) -> tuple[LoRA, Params]:
        """The adapters for it in a PEFT folder, layers stacked, on the host."""
        return read_adapter(path, self.folder.family, self.fields)

    @cached_property
    def chat(self) -> ChatFormat:
        """Its tokenizer and its chat template."""
        return open_chat(str(self.path))

    def encoder(self) -> Encoder:
        """Conversations as its tokens, of any length."""
        return EncodingSpec(self.chat, _UNBOUNDED).encoder()

    def model(self, **runtime) -> Model:
        """The model, computed as RUNTIME fields say; by default unrolled, in float32."""
        return Model(Architecture(**self.fields, **RUNTIME | {"scan_layers": False} | runtime))

    def restore(self, model: Model, place: Place, progress: bool = False) -> Params:
        """All its parameters as `model`, one of `model()`, has them."""
        return self.read(jax.eval_shape(model.init, jax.random.key(0)), place, progress)

    def read(self, shapes: Params, place: Place, progress: bool = False) -> Params:
        """Its parameters that `shapes` has, in these dtypes, stacked or apart."""
        return self.folder.read(shapes, place(shapes), progress)

    def read_each(self, shapes: Sequence[Params], place: Place) -> Iterator[Params]:
        """Its parameters that each of `shapes` has, layers apart; no more than those of one are held at a time."""
        for each in shapes:
            yield self.read(each, place)


class WorkdirModel:
    """A model as a run left it in its workdir.

    lora: its adapters, of rank 0 where it has none. published: of the folder that it comes from, None for none. Else
    as above.

    step: of the checkpoint; None for the best by held-out loss, or the newest where nothing was held out. Raises
    InputError where there is no such model.
    """

    def __init__(self, path: Path, step: int | None = None):
        self.path, self.config, self.published = path, read_run_config(path), read_published(path)
        self.lora = lora_of(self.config)
        with Checkpoints(path / "checkpoints", None, keep=0) as checkpoints:
            steps = checkpoints.steps
            if not steps:
                raise nothing_in(path, "no checkpoint is whole yet")
            if step is not None and step not in steps:
                raise InputError(f"{path} holds no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
            self.step = checkpoints.best if step is None else step
        arch = model_of(self.config, self.chat.open()[1].vocab_size).arch
        self.fields = {name: value for name, value in asdict(arch).items() if name not in RUNTIME}

    @property
    def fingerprint(self) -> str:
        """Changes whenever the parameters do."""
        return json.dumps([self._identity, self.step])

    @property
    def _identity(self) -> dict[str, Any]:
        return read_identity(self.path / FINGERPRINT)

    def adapters(self, path: str | Path) -> tuple[LoRA, Params]:
        """The adapters for it in a PEFT folder, layers stacked, on the host."""
        fields = self.fields | {"max_position_embeddings": self.fields["max_position_embeddings"] or 1}
        family = architecture_fields(self.published or config_for(fields), str(self.path))[0]
        return read_adapter(path, family, self.fields)

    @cached_property
    def chat(self) -> ChatFormat:
        """Its tokenizer and its chat template."""
        return read_chat(self.path)

    def encoder(self) -> Encoder:
        """Conversations as its tokens, of any length."""
        stops = tuple(stop.strip() for stop in self.config.data.stops.split(",") if stop.strip())
        return EncodingSpec(self.chat, _UNBOUNDED, stops=stops).encoder()

    def model(self, **runtime) -> Model:
        """The model with its adapters, computed as RUNTIME fields say; by default unrolled, else as it was trained."""
        as_trained = {name: self.config.model[name] for name in RUNTIME} | {"scan_layers": False}
        return Model(Architecture(**self.fields, **as_trained | runtime), self.lora)

    def restore(self, model: Model, place: Place, progress: bool = False) -> Params:
        """All its parameters, its adapters and what was frozen, as `model`, one of `model()`, has them."""
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        trains = trained_names(self.lora, self.config.train.freeze, names(shapes))
        trained, frozen = split(shapes, trains)
        field = "ema_params" if self.config.train.average_decay else "params"
        with Checkpoints(self.path / "checkpoints", model, keep=0) as checkpoints:
            params = checkpoints.restore_params(self.step, trained, place, field)
        if not frozen:
            return params
        adapters = self._adapters_before() if any(name.endswith(ADAPTERS) for name in names(frozen)) else ""
        return join(params, initial(frozen, model, self._base(), self.config.train.seed, place, progress, adapters))

    def _base(self) -> "HubModel | WorkdirModel | None":
        """What the run started from. Raises InputError where that is another model by now."""
        path = self.config.model.init_from
        base = open_base(path)
        if base and base.fingerprint != self._identity.get(BASE):
            raise InputError(
                f"{path}: is no longer the model that {self.path} was trained from, of which it keeps only what it "
                "changed; put that model back"
            )
        return base

    def _adapters_before(self) -> str:
        """The folder of the adapters that the run started from. Raises InputError where those are others by now."""
        path = self.config.lora.init_from
        if path and adapter_fingerprint(path) != self._identity.get(ADAPTERS_BEFORE):
            raise InputError(
                f"{path}: no longer holds the adapters that {self.path} was trained from, some of which it froze; "
                "put them back"
            )
        return path

    def read(self, shapes: Params, place: Place, progress: bool = False) -> Params:
        """Its parameters that `shapes` has, adapters merged, in these dtypes, stacked or apart."""
        model = self.model(scan_layers=are_stacked(shapes))
        params = select(merge(self.restore(model, place, progress), self.lora), shapes)
        return jax.tree.map(lambda leaf, shape: leaf.astype(shape.dtype), params, shapes)

    def read_each(self, shapes: Sequence[Params], place: Place) -> Iterator[Params]:
        """Its parameters that each of `shapes` has, layers apart; all are held from the beginning."""
        whole = self.read(reduce(join, shapes), place)
        for each in shapes:
            yield select(whole, each)


def open_base(path: str | Path) -> HubModel | WorkdirModel | None:
    """The model that model.init_from names; None for "". Raises InputError if there is none."""
    if not path:
        return None
    folder = epath.Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(
            f"{path}: no such folder; model.init_from is a Hugging Face folder or the workdir of a run "
            "(hf download NAME --local-dir FOLDER fetches one from the Hub)"
        )
    return open_trained(folder)


def open_trained(path: str | Path, step: int | None = None) -> HubModel | WorkdirModel:
    """The model of a workdir or a Hugging Face folder. step: see WorkdirModel. Raises InputError if there is none."""
    folder = epath.Path(path).expanduser()
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise InputError(
            f"{path}: holds adapters alone; merge them into their base in PEFT, or train on from them with "
            "model.init_from (the base) and lora.init_from"
        )
    if not is_hub_folder(folder):
        return WorkdirModel(folder, step)
    if step is not None:
        raise InputError(f"{path}: is a Hugging Face folder, which holds no steps; leave --step out")
    return HubModel(folder)


def is_hub_folder(folder: epath.Path) -> bool:
    """Whether a folder holds a model as transformers keeps it, not a run."""
    if any(folder.glob("*.safetensors*")):
        return True
    try:
        return "model_type" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        return False


def resolve(config: ConfigDict) -> tuple[ConfigDict, HubModel | WorkdirModel | None]:
    """A config whose model is that of model.init_from, and where its parameters come from.

    Raises InputError for a key of `model` that says otherwise than the model does, or what no export could say.
    """
    base = open_base(config.model.init_from)
    if base is None:
        if config.lora.init_from:
            raise InputError("lora.init_from needs the model that its adapters are for: set model.init_from")
        return config, None
    config, unsaid = config.copy_and_resolve_references(), default().model
    for keys in (config.model, config.lora):
        if keys.init_from and "://" not in keys.init_from:  # for whoever reads the run's config from elsewhere
            keys.init_from = str(expanded(keys.init_from).absolute())
    for name, value in base.fields.items():
        value = type(unsaid[name])(value)
        given = config.model[name]
        if given in (unsaid[name], value):
            config.model[name] = value
        elif name not in _CHANGEABLE:
            raise InputError(
                f"model.{name}={given!r}, and the model of model.init_from has {value!r}: leave model.{name} to it"
            )
    if base.published is not None:
        name = "config.json" if isinstance(base, HubModel) else "published.json"
        check_exportable(model_of(config, 0).arch, base.published, str(base.path / name))
    return (_with_adapters(config, base) if config.lora.init_from else config), base


def _with_adapters(config: ConfigDict, base: HubModel | WorkdirModel) -> ConfigDict:
    """A config whose adapters are those of lora.init_from; their dropout is the config's own."""
    lora, unsaid = base.adapters(config.lora.init_from)[0], default().lora
    found = {"rank": lora.rank, "alpha": float(lora.alpha), "targets": lora.targets}
    for name, value in found.items():
        if config.lora[name] not in (unsaid[name], value):
            raise InputError(
                f"lora.{name}={config.lora[name]!r}, and the adapters of lora.init_from have {value!r}: "
                f"leave lora.{name} to them"
            )
    config.lora.update(found)
    return config


def model_of(config: ConfigDict, vocab_size: int) -> Model:
    """The model of a resolved config. vocab_size: of the tokenizer, where the config gives none."""
    keys = dict(config.model)
    del keys["init_from"]
    keys["vocab_size"] = keys["vocab_size"] or vocab_size
    return Model(Architecture(**keys), lora_of(config))


def _put(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def lora_of(config: ConfigDict) -> LoRA:
    """The adapters of a config."""
    keys = dict(config.lora)
    del keys["init_from"]
    return LoRA(**keys)


def initial(
    shapes: Params,
    model: Model,
    base: HubModel | WorkdirModel | None,
    seed: int,
    place: Place,
    progress: bool = False,
    adapters: str = "",
) -> Params:
    """What the parameters of `shapes`, which are some of the model's, are before the first step.

    Read from `base`, or drawn where there is none; adapters are drawn, or read from the PEFT folder `adapters` if one
    is given. Each is made on the devices that hold it, and the same on any devices.
    """
    quantized, plain = split(shapes, is_quantized)
    drawn, read = (plain, {}) if base is None else split(plain, lambda name: name.endswith(ADAPTERS))
    parts = []
    if drawn and adapters:
        found = base.adapters(adapters)[1]
        found = select(found if are_stacked(drawn) else unstack_layers(found), drawn)
        parts.append(jax.tree.map(_put, found, place(drawn)))
    elif drawn:
        parts.append(_draw(drawn, model, seed, place))
    if quantized:
        parts.append(_quantized(quantized, model, base, seed, place, progress))
    if read:
        parts.append(base.read(read, place, progress))
    return reduce(join, parts)


def _draw(shapes: Params, model: Model, seed: int, place: Place) -> Params:
    return jax.jit(lambda key: select(model.init(key), shapes), out_shardings=place(shapes))(jax.random.key(seed))


def _quantized(
    shapes: Params,
    model: Model,
    base: HubModel | WorkdirModel | None,
    seed: int,
    place: Place,
    progress: bool = False,
) -> Params:
    """The layers' matrices, quantised on the devices one by one; of a folder, only one of them is there whole.

    shapes: the quantised matrices of all layers, stacked or apart. Each is quantised by a program of its own, which
    the programs around it cannot round otherwise: the same on any devices, and at every start.
    """
    stacked, layers, lora = are_stacked(shapes), range(model.arch.num_hidden_layers), model.lora
    whole = Model(model.unrolled.arch, replace(lora, quantize=""))
    apart, plain = (jax.eval_shape(each.init, jax.random.key(0))["layers"] for each in (model.unrolled, whole))
    matrices = [name.split("/")[1:] for name in MATRICES]
    kernels = [
        _nest({"kernel": plain[i][part][matrix]["kernel"]}, "layers", i, part, matrix)
        for part, matrix in matrices
        for i in layers
    ]

    def where(shapes, *path):
        wanted = {name: shape for name, shape in shapes.items() if is_quantized(name)}
        return reduce(dict.get, path, place(_nest(wanted, *path)))

    if base is None:
        drawn = _draw(reduce(join, kernels), whole, seed, place)
        one_by_one = (select(drawn, each) for each in kernels)
    else:
        one_by_one = base.read_each(kernels, place)
    found: Params = {}
    with tqdm(desc="quantizing weights", total=len(kernels), unit="matrix", disable=not progress) as bar:
        for part, matrix in matrices:
            shardings = where(apart[0][part][matrix], "layers", 0, part, matrix)
            quantize = jax.jit(partial(quantize_kernel, kind=lora.quantize), out_shardings=shardings)
            made = []
            for _ in layers:
                made.append(jax.block_until_ready(quantize(*jax.tree.leaves(next(one_by_one)))))
                bar.update()
            if stacked:
                path = ("layers", part, matrix)
                stack = jax.jit(_stack, out_shardings=where(shapes["layers"][part][matrix], *path))
                found = join(found, _nest(stack(made), *path))
            else:
                found = reduce(join, [_nest(each, "layers", i, part, matrix) for i, each in enumerate(made)], found)
    return found


def _nest(leaves: Params, *path: Any) -> Params:
    """Those leaves alone as parameters, at this path."""
    return reduce(lambda tree, key: {key: tree}, reversed(path), leaves)


def _stack(layers: Sequence[Params]) -> Params:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
