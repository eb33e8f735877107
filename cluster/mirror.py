"""The cluster's keys as etcd's watch has told them, and the View of them that everything is decided on.

    Snapshot: all that exists; what was known before is forgotten
    Changes:  what happened since, oldest first, without a gap

Pure. Invariant: `raw` and `view` are of one and the same etcd revision, `view.revision`. That revisions never fall from
item to item is the watch's promise. Read next: `keys.py` (what a value says), `keeper.py` (who drives this).
"""

from __future__ import annotations

from collections.abc import Mapping

from . import keys as k
from .core.lease import View
from .etcd.model import Changes, Snapshot


class Mirror:
    def __init__(self, keys: k.Keys, own_ttl: int) -> None:
        """own_ttl (ns): what is assumed of a holder whose value cannot be read."""
        self._keys = keys
        self._own_ttl = own_ttl
        self._raw: dict[str, k.RawKey] = {}
        self.view = View(0)

    @property
    def raw(self) -> Mapping[str, k.RawKey]:
        return self._raw

    def apply(self, seen: Snapshot | Changes, cluster_id: int) -> Mapping[str, k.RawKey]:
        """What was written and still stands, by name; of a Snapshot: everything."""
        if isinstance(seen, Snapshot):
            self._raw = {kv.key: k.RawKey.of(kv) for kv in seen.kvs}
            self.view = k.view_of(*self._now(seen.revision, cluster_id))
            return dict(self._raw)
        for deleted, kv, _ in seen.events:
            if deleted:
                self._raw.pop(kv.key, None)
            else:
                self._raw[kv.key] = k.RawKey.of(kv)
        changed = dict.fromkeys(e.kv.key for e in seen.events)
        self.view = k.view_after(self.view, changed, *self._now(seen.revision, cluster_id))
        return {name: raw for name in changed if (raw := self._raw.get(name)) is not None}

    def _now(self, revision: int, cluster_id: int) -> tuple[k.Keys, Mapping[str, k.RawKey], int, int, int]:
        return self._keys, self._raw, revision, cluster_id, self._own_ttl
