"""The page of a list that a query asks for, as in OpenAI's API: `limit`, `after` and `order`."""

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from aiohttp import web

from llmserve import InvalidRequest

# OpenAI's default and maximum.
DEFAULT_PAGE, MAX_PAGE = 20, 100

Listed = TypeVar("Listed")


def page(newest_first: Sequence[Listed], request: web.Request, name: Callable[[Listed], str]) -> tuple[list[Listed], bool]:
    """Return the objects of the page, and whether there are more. Raises InvalidRequest.

    `name` returns an object's id.
    """
    query = request.query
    limit, after, order = query.get("limit", str(DEFAULT_PAGE)), query.get("after"), query.get("order", "desc")
    if not re.fullmatch(r"\d{1,5}", limit, re.ASCII) or not 1 <= int(limit) <= MAX_PAGE:
        raise InvalidRequest(f"limit must be a number from 1 to {MAX_PAGE}", "limit")
    if order not in ("asc", "desc"):
        raise InvalidRequest("order must be asc or desc", "order")
    found = list(newest_first) if order == "desc" else list(newest_first)[::-1]
    if after:
        places = [place for place, one in enumerate(found) if name(one) == after]
        if not places:
            raise InvalidRequest("after must be the id of an object in the list", "after")
        found = found[places[0] + 1 :]
    return found[: int(limit)], len(found) > int(limit)
