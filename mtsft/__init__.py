"""Multi-turn supervised fine-tuning of language models in JAX and Flax.

The usual day in Python or a notebook:

    config = mtsft.load_config("quickstart", {"train.steps": 360})
    data = mtsft.Dataset.open(config)
    data.train[0]  # a dialogue, shown as it is trained on
    run = mtsft.Run(config, WORKDIR)
    run.train(watch=mtsft.LiveCurve())
    run.evaluate()
    chat = mtsft.ChatModel.load(WORKDIR).chat()
    chat.say("Hello! My name is Ada.")

Each name is imported when it is first used; until then neither JAX nor Flax is loaded.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtsft.config_files import load_config
    from mtsft.diagnose.live_curve import LiveCurve
    from mtsft.runs.chat_model import ChatModel
    from mtsft.runs.dataset_face import Dataset
    from mtsft.runs.identity_check import check_identities
    from mtsft.runs.run import Run
    from mtsft.runs.strategy_face import compare_strategies
    from mtsft.runs.token_costs import token_losses

__version__ = "0.1.0"
__all__ = [
    "ChatModel",
    "Dataset",
    "LiveCurve",
    "Run",
    "check_identities",
    "compare_strategies",
    "load_config",
    "token_losses",
]

_MODULES = {
    "load_config": "mtsft.config_files",
    "Dataset": "mtsft.runs.dataset_face",
    "Run": "mtsft.runs.run",
    "ChatModel": "mtsft.runs.chat_model",
    "check_identities": "mtsft.runs.identity_check",
    "token_losses": "mtsft.runs.token_costs",
    "LiveCurve": "mtsft.diagnose.live_curve",
    "compare_strategies": "mtsft.runs.strategy_face",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
