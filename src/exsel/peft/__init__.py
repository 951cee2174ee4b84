"""Both mechanisms as an adapter in PEFT: a frozen model, and the mechanisms' parameters trained and saved beside it.

Importing this module registers the method with PEFT::

    import exsel.peft
    from peft import get_peft_model

    model = get_peft_model(model, exsel.peft.SelectiveConfig(task_type="CAUSAL_LM"))

A program that loads such an adapter has to import it too: without it PEFT does not know the adapter's type, and stops.
"""

from exsel.errors import require

require("peft", "peft")

from peft.utils import register_peft_method  # noqa: E402

from exsel.peft.config import ExclusiveConfig, SelectiveConfig  # noqa: E402
from exsel.peft.layer import AdapterLayer  # noqa: E402
from exsel.peft.model import MechanismsModel  # noqa: E402

for _name, _config in (("exsel_selective", SelectiveConfig), ("exsel_exclusive", ExclusiveConfig)):
    register_peft_method(name=_name, config_cls=_config, model_cls=MechanismsModel, prefix=MechanismsModel.prefix)

__all__ = ["AdapterLayer", "ExclusiveConfig", "MechanismsModel", "SelectiveConfig"]
