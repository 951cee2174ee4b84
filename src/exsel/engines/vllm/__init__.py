"""Both mechanisms in vLLM: ``vllm serve FOLDER`` serves models of exsel's own and upgraded ones.

:func:`add_to_vllm` is vLLM's plugin, which an installed exsel brings along (entry point ``vllm.general_plugins``). vLLM
calls it in each of its processes. Importing exsel has made transformers read its folders; what is left is to name the
architectures in them.
"""

from __future__ import annotations

_SERVED = "exsel.engines.vllm.served:ServedForCausalLM"


def add_to_vllm() -> None:
    """Tell vLLM which architectures are exsel's; nothing heavy is imported before one of them is asked for."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from vllm import ModelRegistry

    upgraded = {f"Upgraded{name}" for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() if isinstance(name, str)}
    for name in {"ExselForCausalLM", *upgraded} - set(ModelRegistry.get_supported_archs()):
        ModelRegistry.register_model(name, _SERVED)
