"""A transformers language model with both mechanisms; importing it registers it with transformers' Auto classes."""

from exsel.errors import require

require("transformers", "models")

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM  # noqa: E402

from exsel.model_sizes import SIZES  # noqa: E402
from exsel.models.configuration import ExselConfig  # noqa: E402
from exsel.models.modeling import ExselForCausalLM, ExselModel  # noqa: E402

AutoConfig.register("exsel", ExselConfig)
AutoModel.register(ExselConfig, ExselModel)
AutoModelForCausalLM.register(ExselConfig, ExselForCausalLM)

__all__ = ["SIZES", "ExselConfig", "ExselForCausalLM", "ExselModel"]


def __dir__() -> list[str]:
    return __all__
