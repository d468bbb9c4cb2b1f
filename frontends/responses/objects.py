"""What the routes of stored responses answer, besides responses."""

from typing import Any, Literal

import msgspec


class ResponseDeleted(msgspec.Struct, kw_only=True):
    """The answer to DELETE /v1/responses/{response_id}."""

    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class ItemList(msgspec.Struct, kw_only=True):
    """The answer to GET /v1/responses/{response_id}/input_items, the newest item first."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
