"""What secures a client: TLS and SASL arguments from the settings, and one sentence for every file that cannot be used."""

from __future__ import annotations

import ssl
from typing import Any

from streamer.errors import ConfigurationError
from streamer.settings import KafkaSection, RegistrySection


def security(section: KafkaSection) -> dict[str, Any]:
    """Keyword arguments that secure a client. Raises ConfigurationError for files that cannot be used."""
    protocol = section.security_protocol
    options: dict[str, Any] = {"security_protocol": protocol}
    if "SSL" in protocol:
        options["ssl_context"] = tls_context(section, "kafka")
    if protocol.startswith("SASL"):
        password = secret(section, "sasl_password", "kafka")
        if not section.sasl_username or password is None:
            raise ConfigurationError(f"{protocol} needs kafka.sasl_username and kafka.sasl_password (or _file)")
        options["sasl_mechanism"] = section.sasl_mechanism
        options["sasl_plain_username"] = section.sasl_username
        options["sasl_plain_password"] = password
    return options


def tls_context(section: KafkaSection | RegistrySection, name: str) -> ssl.SSLContext:
    """``name``: of the section, for people. ConfigurationError for files that cannot be used."""
    try:
        context = ssl.create_default_context(cafile=section.ssl_cafile)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{name}.ssl_cafile = {section.ssl_cafile}: cannot be used: {_reason(error)}"
        ) from error
    if section.ssl_certfile is not None:
        password = secret(section, "ssl_key_password", name)
        try:
            # an empty password instead of none: OpenSSL would ask for it at the terminal
            context.load_cert_chain(section.ssl_certfile, section.ssl_keyfile, password or "")
        except (OSError, ValueError) as error:
            hint = "" if isinstance(error, FileNotFoundError) else f", or {name}.ssl_key_password does not open the key"
            files = f"{name}.ssl_certfile = {section.ssl_certfile}"
            files += f", {name}.ssl_keyfile = {section.ssl_keyfile}" if section.ssl_keyfile else ""
            raise ConfigurationError(f"{files}: cannot be used: {_reason(error)}{hint}") from error
    return context


def _reason(error: OSError | ValueError) -> str:
    """What OpenSSL or the system says, without the place in its source."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not a PEM file with what is needed").replace("_", " ").lower()
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def secret(section: KafkaSection | RegistrySection, key: str, name: str) -> str | None:
    """The secret itself, or what its file holds. ``name``: of the section, for people."""
    value, file = getattr(section, key), getattr(section, f"{key}_file")
    if file is None:
        return None if value is None else str(value.get_secret_value())
    try:
        found: str = file.read_text(encoding="utf-8-sig").rstrip("\r\n")
    except OSError as error:
        raise ConfigurationError(f"{name}.{key}_file = {file}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigurationError(f"{name}.{key}_file = {file}: not UTF-8 text") from None
    if not found:
        raise ConfigurationError(f"{name}.{key}_file = {file}: is empty")
    return found
