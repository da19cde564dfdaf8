"""What the tasks work with; `create_app` makes one and hands it to every task's file."""

from dataclasses import dataclass, field

from bookserve.serving.gateway.config import Limits
from bookserve.serving.gateway.model_backend import ModelBackend
from bookserve.serving.gateway.molecule_pool import MoleculePool
from bookserve.serving.gateway.prepared_pictures import PreparedPictures
from bookserve.serving.gateway.rate_limit import RateLimit
from bookserve.serving.gateway.store import Store


@dataclass(frozen=True)
class Dependencies:
    """The model server, the limits, the model store where the gateway reads one, and RDKit in its own processes."""

    models: ModelBackend
    limits: Limits
    store: Store | None
    molecule_pool: MoleculePool
    prepared: PreparedPictures = field(default_factory=PreparedPictures)
    rate_limit: RateLimit | None = None
