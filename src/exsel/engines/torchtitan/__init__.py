"""Both mechanisms in torchtitan's models of the Llama kind (Llama 3, Qwen 3 without experts).

:func:`with_mechanisms` is put around a model in a recipe::

    from exsel.engines.torchtitan import with_mechanisms
    from torchtitan.models.llama3 import model_registry

    model_spec = with_mechanisms(model_registry("8B"), exclusive=True, selective=True)

torchtitan then divides the mechanisms as it divides the model: FSDP2, tensor parallelism (what has a row a head is
divided with the heads), context parallelism (a token's own value is where its output is); and it reads and writes
weights of :class:`exsel.ExselForCausalLM`. The 1.4b of the exclusive paper is a recipe:
``--module exsel.engines.torchtitan --config exclusive_selective_1_4b``.
"""

from exsel.errors import require

require("torchtitan", "torchtitan")

from exsel.engines.torchtitan.titan_attention import with_mechanisms  # noqa: E402
from exsel.engines.torchtitan.titan_folders import exsel_config, save_folder  # noqa: E402

__all__ = ["exsel_config", "save_folder", "with_mechanisms"]


def __dir__() -> list[str]:
    return __all__
