"""Both mechanisms in SGLang: ``python -m sglang.launch_server --model-path FOLDER`` serves own and upgraded models.

:func:`add_to_sglang` is SGLang's plugin, which an installed exsel brings along (entry point ``sglang.srt.plugins``).
SGLang calls it in each of its processes. Importing exsel has made transformers read its folders; what is left is to
name the architectures in them.
"""

from __future__ import annotations

from exsel.engines.serving import served_architectures


def add_to_sglang() -> None:
    """Tell SGLang which architectures are exsel's."""
    from sglang.srt.models.registry import ModelRegistry

    from exsel.engines.sglang.sglang_model import SGLangForCausalLM

    for name in served_architectures() - set(ModelRegistry.get_supported_archs()):
        ModelRegistry.models[name] = SGLangForCausalLM
