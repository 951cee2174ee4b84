"""The configurations by which ``AutoConfig`` finds what exsel saves, without importing what only a model needs."""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from exsel.registration import MODEL_TYPE


class OwnConfig(PreTrainedConfig):  # type: ignore[misc]
    """Stands for :class:`exsel.ExselConfig` until one is asked for; it has no instances."""

    model_type = "exsel"

    def __new__(cls, **values: Any) -> Any:
        """An :class:`exsel.ExselConfig`."""
        from exsel.models import ExselConfig

        return ExselConfig(**values)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """An :class:`exsel.ExselConfig`."""
        from exsel.models import ExselConfig

        return ExselConfig.from_dict(config_dict, **kwargs)


class UpgradedConfig(PreTrainedConfig):  # type: ignore[misc]
    """Reads the wrapping configuration of an upgraded model; what it gives is the wrapped one, with its mechanisms.

    ``AutoConfig.from_pretrained`` finds it by its model type. It has no instances: :meth:`from_dict` returns one of
    the base model's own configuration class, upgraded (see :mod:`exsel.upgrading.wrapping`).
    """

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The base model's configuration, upgraded.

        Raises:
            LoadError: from a newer exsel, damaged, or of a base model that transformers does not know.
        """
        from exsel.upgrading.wrapping import read_config

        return read_config(config_dict, **kwargs)
