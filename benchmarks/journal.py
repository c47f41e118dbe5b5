"""What a long benchmark has measured, kept on disk so that it can be cut off and started again."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Entry = dict[str, Any]
"""What came out of a job, as JSON values."""


def digest(key: Mapping[str, Any]) -> str:
    """A short name for settings."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


class Journal:
    """Finished jobs, a line each, by the digest of their settings.

    Several experiments may share one; lines that a kill cut short are passed over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, Entry] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for line in lines:
            try:
                record = json.loads(line)
                self._entries[record["digest"]] = record["entry"]
            except (ValueError, KeyError, TypeError):
                continue

    def find(self, key: Mapping[str, Any]) -> Entry | None:
        """The entry of these settings; None if the job was not finished."""
        return self._entries.get(digest(key))

    def add(self, key: Mapping[str, Any], entry: Entry) -> None:
        """Keep an entry with its settings."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        record = {"digest": digest(key), "key": key, "entry": entry}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        self._entries[record["digest"]] = entry
