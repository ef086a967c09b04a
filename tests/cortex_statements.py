"""The envelope of the SQL API: handles, polls and partitions (docs/cortex.md#sql-statuses).

`Statements` keeps the answer to each statement, which cortex_sql.py makes. It gives the answer out as the SQL API does:
202 until it is ready, then one partition at a time.
"""

from __future__ import annotations

import json
import uuid

from tests.cortex_rules import JSON

STATEMENTS = "/api/v2/statements"


class Statements:
    """The statements that were sent, by handle: the polls that are still 202, the status and the result."""

    def __init__(self) -> None:
        self._sent: dict[str, tuple[int, int, JSON]] = {}

    def add(self, status: int, result: JSON, polls: int) -> str:
        """Keep an answer, which is ready at the poll of this number (0: at once); its handle."""
        handle = str(uuid.uuid4())
        self._sent[handle] = (polls, status, result)
        return handle

    def poll(self, handle: str) -> bool:
        """Count a poll; False if there is no such statement."""
        if handle not in self._sent:
            return False
        polls, status, result = self._sent[handle]
        self._sent[handle] = (polls - 1, status, result)
        return True

    def answer(self, handle: str, partition: int, page: int) -> tuple[int, JSON]:
        """Status and body, with `page` rows per partition; from status 400 on, the body is an error."""
        polls, status, result = self._sent[handle]
        known = {"statementHandle": handle, "statementStatusUrl": f"{STATEMENTS}/{handle}"}
        if polls > 0:
            waiting = "Asynchronous execution in progress. Use provided query id to perform query monitoring."
            return 202, {"code": "333334", "message": waiting, **known}
        if status != 200:
            return status, {**result, **known}
        rows = result["rows"]
        pages = [rows[at : at + page] for at in range(0, len(rows), page)] or [[]]
        if not 0 <= partition < len(pages):
            return 400, {"code": "391921", "message": "partition does not exist"}
        if partition:  # only the first partition has the metadata
            return 200, {"data": pages[partition]}
        meta = {
            "numRows": len(rows),
            "format": "jsonv2",
            "partitionInfo": [{"rowCount": len(part), "uncompressedSize": len(json.dumps(part))} for part in pages],
            "rowType": [{"name": name, "type": kind} for name, kind in result["columns"]],
        }
        done = {"code": "090001", "sqlState": "00000", "message": "Statement executed successfully."}
        return 200, {"resultSetMetaData": meta, "data": pages[0], **done, **known}
