"""What can go wrong in the scheduler.

BackboneError
└── Superseded      another instance leads: this one's decisions change nothing, and it steps down
"""

from services.backbone.errors import BackboneError


class Superseded(BackboneError):
    """The epoch row names a later leader."""
