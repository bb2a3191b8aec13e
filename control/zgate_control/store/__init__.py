"""State that survives a restart: one schema on SQLite and PostgreSQL.

:class:`Store` is the door; :class:`StoreError` names cause and cure. The gateway holds what it
needs in memory and writes through, so that a packet never waits for a database.
"""

from .errors import LeaseConflict, ServiceConflict, StoreError
from .records import ClientRecord, IPAddress, Lease, PolicyRevision, ServiceAddress
from .store import Store

__all__ = [
    "ClientRecord",
    "IPAddress",
    "Lease",
    "LeaseConflict",
    "PolicyRevision",
    "ServiceAddress",
    "ServiceConflict",
    "Store",
    "StoreError",
]
