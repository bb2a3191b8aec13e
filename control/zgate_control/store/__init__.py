"""State that survives a restart: one schema on SQLite and PostgreSQL.

:class:`Store` is the door; :class:`StoreError` names cause and cure. The gateway holds what it
needs in memory and writes through, so that a packet never waits for a database.
"""

from .errors import LeaseConflict, ServiceConflict, StoreError, StoreLost
from .kept import KeptStore
from .records import ClientRecord, IPAddress, Lease, Memory, PolicyRevision, ServiceAddress
from .store import Store

__all__ = [
    "ClientRecord",
    "IPAddress",
    "KeptStore",
    "Lease",
    "LeaseConflict",
    "Memory",
    "PolicyRevision",
    "ServiceAddress",
    "ServiceConflict",
    "Store",
    "StoreError",
    "StoreLost",
]
