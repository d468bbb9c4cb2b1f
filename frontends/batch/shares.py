"""The bounds of the folder, which tenants share.

The last tenth of a bound is for tenants that hold at most a hundredth of it. So a tenant that holds
all it can leaves room for others. Without a file of API keys there is one tenant, None, which may
hold all.
"""

RESERVED, LITTLE = 10, 100


def excess(most: int, total: int, mine: int, tenant: str | None, what: str) -> str | None:
    """Return the words of the bound that would be exceeded; None if none is.

    Args:
        most: the bound of all tenants together.
        total: what all tenants would hold.
        mine: what this tenant would hold.
        tenant: the tenant.
        what: what is counted, such as `files`.
    """
    if total > most:
        return f"at most {most} {what}"
    shared, little = most - most // RESERVED, most // LITTLE
    if tenant is None or total <= shared or mine <= little:
        return None
    return f"at most {shared} {what}, and some more of tenants with at most {little}"
