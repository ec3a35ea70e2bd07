"""What is wrong with a request, as application/problem+json (RFC 9457), with the members `field`,
`value` and `allowed` where one field is to be mended."""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import ValidationError

from projections.reader import Unavailable
from streams.errors import BadConfiguration, BadEvent, RosterError, Unreachable

LONGEST = 200  # of a value that is shown


class Problem(Exception):
    """An answer that is not 2xx."""

    def __init__(self, status: int, title: str, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.body = {
            "type": "about:blank",
            "title": title,
            "status": status,
            "detail": detail,
            **members,
        }

    def response(self) -> JSONResponse:
        """As it is sent."""
        return JSONResponse(self.body, self.status, media_type="application/problem+json")


def invalid(field: str, value: object, allowed: str) -> Problem:
    """One field that is to be mended."""
    shown = value if isinstance(value, (bool, int, type(None))) else str(value)[:LONGEST]
    return Problem(
        422,
        "Invalid field",
        f"{field} is {shown!r}; allowed: {allowed}",
        field=field,
        value=shown,
        allowed=allowed,
    )


def of_validation(error: ValidationError, given: Mapping[str, object], known: str) -> Problem:
    """The first of what a model says of given fields. known: the names that it has."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "body"
    if first["type"] == "missing":
        return invalid(field, None, "a value: it is required")
    if first["type"] == "extra_forbidden":
        return invalid(field, first["input"], f"no such field, but {known}")
    said = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    named = said.partition(" ")[0]
    if field == "body" and named in given:  # a rule between fields begins with the one it is about
        return invalid(named, given[named], said)
    return invalid(field, None if field == "body" else first["input"], said)


class ProblemRoute(APIRoute):
    """A route that answers with problem details whatever goes wrong."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except Problem as problem:
                return problem.response()
            except RequestValidationError as error:
                first = error.errors()[0]
                field = ".".join(str(part) for part in first["loc"][1:]) or "body"
                return invalid(field, first.get("input"), first["msg"]).response()
            except (BadEvent, BadConfiguration) as error:
                return Problem(422, "Invalid request", str(error)).response()
            except (Unreachable, Unavailable) as error:
                return Problem(503, "Unreachable", str(error)).response()
            except RosterError as error:
                return Problem(500, "Damaged", str(error)).response()

        return handled
