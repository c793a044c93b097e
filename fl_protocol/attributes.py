"""The attributes that a client is enrolled with, and that selection and weighting tell clients apart by."""

from typing import Annotated

from pydantic import StringConstraints

AttributeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9._-]{0,63}$")]
AttributeValue = Annotated[str, StringConstraints(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]
