"""What an operator of the server may set; every option is also an environment variable FEDQUORUM_<NAME>."""

from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The server's settings, read once by the composition root."""

    model_config = SettingsConfigDict(env_prefix="FEDQUORUM_", extra="ignore", frozen=True)

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    database_url: str = "sqlite:///fedquorum.db"
    blob_store: str = "database"
    operator_token: Annotated[str | None, Field(repr=False)] = None
    behind_proxy: bool = False
    max_model_bytes: Annotated[int, Field(ge=1024, le=2**40)] = 16 << 30
    failpoint: Annotated[str | None, Field(repr=False)] = None

    @field_validator("operator_token")
    @classmethod
    def _check_operator_token(cls, token: str | None) -> str | None:
        if token is not None and not (8 <= len(token) <= 512 and token.isascii() and token.isprintable()):
            raise ValueError(
                "an operator token has 8 to 512 printable ASCII characters; 43 random ones are a good choice"
            )
        return token
