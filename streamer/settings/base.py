"""What every section of settings is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

TLS_FILES = ("ssl_cafile", "ssl_certfile", "ssl_keyfile")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
