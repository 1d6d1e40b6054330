"""Results of work, as callers report them in lists."""

from __future__ import annotations

import msgspec

from knhk_workflow.runtime.inputs import JsonObject


class CompleteRequest(msgspec.Struct, frozen=True):
    """One work item to complete, as in `complete_work_item`. `request_id`: its own, on a worker's connection."""

    item_id: str
    output: JsonObject = None
    user: str = ""
    request_id: str = ""


class FailRequest(msgspec.Struct, frozen=True):
    """One work item that failed, as in `fail_work_item`. `request_id`: its own, on a worker's connection."""

    item_id: str
    code: str
    message: str = ""
    user: str = ""
    data: JsonObject = None
    permanent: bool = False
    retry_after: int | None = None
    request_id: str = ""
