"""Records whose shape is written down as a pydantic model."""

from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from migr.errors import InputError

Count = Annotated[int, Field(ge=0, le=10**12)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


def check_shape(model: type[BaseModel], values: Any, where: str) -> None:
    """Check JSON values against a model; nothing is converted.

    Raises:
        InputError: They are of another shape; begins with `where` and names the place.
    """
    try:
        model.model_validate(values, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:100]
        raise InputError(f"{where}: {place}{': ' if place else ''}{first['msg']}") from None
