"""Both mechanisms in a model that exists: :func:`upgrade`, :func:`downgrade`, :func:`support`."""

from exsel.upgrading.apply import Upgraded, downgrade, upgrade
from exsel.upgrading.loading import from_pretrained

__all__ = ["Upgraded", "downgrade", "from_pretrained", "upgrade"]
