"""Both mechanisms in a model that exists: :func:`upgrade`, :func:`downgrade`, :func:`support`."""

from exsel.upgrading.apply import downgrade, upgrade
from exsel.upgrading.instances import Upgraded
from exsel.upgrading.loading import from_pretrained
from exsel.upgrading.supporting import LayerSupport, Support, support

__all__ = ["LayerSupport", "Support", "Upgraded", "downgrade", "from_pretrained", "support", "upgrade"]
