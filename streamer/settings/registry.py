"""Settings of the schema registry."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, model_validator

from streamer.settings.base import TLS_FILES, Section


class RegistrySection(Section):
    url: str = Field(default="", description="Schema registry with Confluent's API: where schema ids are looked up")
    username: str | None = Field(default=None, description="User (basic authentication)")
    password: SecretStr | None = Field(default=None, description="Password")
    password_file: Path | None = Field(default=None, description="File that holds the password")
    ssl_cafile: Path | None = Field(
        default=None, description="CA certificates (PEM) that sign the registry's certificate"
    )
    ssl_certfile: Path | None = Field(default=None, description="Client certificate (PEM) for mutual TLS")
    ssl_keyfile: Path | None = Field(default=None, description="Key (PEM) of the client certificate")
    ssl_key_password: SecretStr | None = Field(default=None, description="Password of the key")
    ssl_key_password_file: Path | None = Field(default=None, description="File that holds the password of the key")
    timeout_ms: int = Field(default=5_000, ge=100, le=60_000, description="Bound on one request")

    @model_validator(mode="after")
    def _fits_together(self) -> RegistrySection:
        wrong = []
        scheme, _, rest = self.url.partition("://")
        if self.url and (scheme not in ("http", "https") or not rest):
            wrong.append("url must begin with http:// or https://")
        if "@" in rest.partition("/")[0]:
            wrong.append("url holds a user or password: set username and password_file instead")
        given = [name for name in TLS_FILES if getattr(self, name) is not None]
        if given and scheme != "https":
            wrong.append(f"{', '.join(given)}: not used without https in url")
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            wrong.append("ssl_keyfile needs ssl_certfile")
        password = self.password is not None or self.password_file is not None
        if password != bool(self.username):
            wrong.append("username and password (or password_file) are set together")
        for name in ("password", "ssl_key_password"):
            if getattr(self, name) is not None and getattr(self, f"{name}_file") is not None:
                wrong.append(f"{name} and {name}_file are both set: keep one")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self
