"""Put both mechanisms into an existing model: :func:`upgrade`, :func:`downgrade`, :func:`support`."""

from exsel.upgrading.loading import from_pretrained
from exsel.upgrading.support_table import LayerSupport, Support, support
from exsel.upgrading.upgrade_model import downgrade, upgrade
from exsel.upgrading.upgraded_class import Upgraded

__all__ = ["LayerSupport", "Support", "Upgraded", "downgrade", "from_pretrained", "support", "upgrade"]
