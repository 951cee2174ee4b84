"""Both mechanisms in vLLM: ``vllm serve FOLDER`` serves models of exsel's own and upgraded ones.

:func:`add_to_vllm` is vLLM's plugin, which an installed exsel brings along (entry point ``vllm.general_plugins``). vLLM
calls it in each of its processes. Importing exsel has made transformers read its folders; what is left is to name the
architectures in them.
"""

from __future__ import annotations

from exsel.engines.serving import served_architectures

_SERVED = "exsel.engines.vllm.vllm_model:VllmForCausalLM"


def add_to_vllm() -> None:
    """Tell vLLM which architectures are exsel's; nothing heavy is imported before one of them is asked for."""
    from vllm import ModelRegistry

    for name in served_architectures() - set(ModelRegistry.get_supported_archs()):
        ModelRegistry.register_model(name, _SERVED)
