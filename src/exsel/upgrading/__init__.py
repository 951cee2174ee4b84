"""Both mechanisms in a model that exists: :func:`upgrade`, :func:`downgrade`, :func:`support`."""

from exsel.upgrading.apply import Upgraded, downgrade, upgrade

__all__ = ["Upgraded", "downgrade", "upgrade"]
