"""Both mechanisms as a PEFT adapter: the model is frozen, and the mechanisms' parameters are trained and saved.

Importing this module registers the method with PEFT::

    import exsel.peft
    from peft import get_peft_model

    model = get_peft_model(model, exsel.peft.SelectiveAdapterConfig(task_type="CAUSAL_LM"))

A program that loads such an adapter must import it too. Otherwise PEFT does not know the adapter's type, and raises.
"""

from exsel.errors import MissingPackageError, require

if not hasattr(require("peft", "peft").tuners.tuners_utils.BaseTuner, "_remove_adapter_name_from_key"):
    raise MissingPackageError(
        "exsel.peft needs peft 0.21 or later, whose methods name their own weights: pip install -U peft"
    )

from peft.utils import register_peft_method

from exsel.peft.adapter_config import ExclusiveAdapterConfig, SelectiveAdapterConfig
from exsel.peft.layer import AdapterLayer
from exsel.peft.model import MechanismsModel

for _name, _config in (("exsel_selective", SelectiveAdapterConfig), ("exsel_exclusive", ExclusiveAdapterConfig)):
    register_peft_method(name=_name, config_cls=_config, model_cls=MechanismsModel, prefix=MechanismsModel.prefix)

__all__ = ["AdapterLayer", "ExclusiveAdapterConfig", "MechanismsModel", "SelectiveAdapterConfig"]


def __dir__() -> list[str]:
    return __all__
