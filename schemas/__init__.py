"""The contract: what a cache is, for those who write it and those who read it. numpy, pyarrow, deltalake, obstore.

Axes, everywhere in the project: B batch, S sequence, R rows (examples), N positions, E kept entries in all,
K kept entries of a position, V vocabulary or classes, D feature width.
"""

from schemas.cache import Cache
from schemas.errors import TeachonceError
from schemas.features import Feature
from schemas.fingerprint import Fingerprint
from schemas.spec import Header, Spec
from schemas.upkeep.repair import Repaired, repair
from schemas.upkeep.vacuum import Vacuumed, vacuum
from schemas.verify import Verified

__all__ = [
    "Cache",
    "Feature",
    "Fingerprint",
    "Header",
    "Repaired",
    "Spec",
    "TeachonceError",
    "Vacuumed",
    "Verified",
    "repair",
    "vacuum",
]
