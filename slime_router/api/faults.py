"""The 400s that every room of the doors raises, each with the path of the field at fault."""

from __future__ import annotations

from slime_router.errors import BadRequest


def require(holds: bool, param: str, what: str) -> None:
    """Raises BadRequest unless the field is `what` it must be."""
    if not holds:
        raise wrong_type(param, what)


def wrong_type(param: str, what: str) -> BadRequest:
    """The field is not `what` it must be."""
    return BadRequest(f"'{param}' must be {what}.", param=param, code="invalid_type")


def missing(param: str) -> BadRequest:
    """The field must be there."""
    return BadRequest(f"'{param}' is required.", param=param, code="missing_required_parameter")
