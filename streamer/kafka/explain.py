"""How the client's errors become ours: one sentence that names the cause and the remedy, typed by who can act."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator, Mapping

from aiokafka import errors as kafka_errors

from streamer.errors import (
    ConfigurationError,
    KafkaRefusedError,
    KafkaSilentError,
    KafkaUnavailableError,
    StreamerError,
)
from streamer.kafka.internals import TransactionRefused

_REFUSED = (
    kafka_errors.SaslAuthenticationFailed,
    kafka_errors.AuthenticationFailedError,
    kafka_errors.UnsupportedSaslMechanismError,
    kafka_errors.IllegalSaslStateError,
    ssl.SSLError,
)
"""Trying again does not help against these, but for the connection that just broke off (SSLEOFError)."""
_DENIED: Mapping[type[BaseException], str] = {
    kafka_errors.TopicAuthorizationFailedError: "no right to {right} topic {what}. Grant {right}",
    kafka_errors.GroupAuthorizationFailedError: "no right to READ group {what}. Grant READ on the group (kafka.group)",
    kafka_errors.ClusterAuthorizationFailedError: (
        "no right to the cluster ({what}). Grant IDEMPOTENT_WRITE on the cluster, and CREATE or topics that exist"
    ),
    kafka_errors.TransactionalIdAuthorizationFailed: (
        "no right to transactional id {what}. Grant WRITE and DESCRIBE on transactional ids that begin with kafka.group"
    ),
}
"""What an administrator has to grant."""
_UNACCEPTABLE: Mapping[type[BaseException], str] = {
    kafka_errors.InvalidTimestampError: (
        "a topic refuses a record's timestamp. Predictions and dead letters carry that of their event: let output.topic and "
        "dead_letter.topic take all that the input takes (message.timestamp.after.max.ms, message.timestamp.before.max.ms), or "
        "set their message.timestamp.type to LogAppendTime."
    ),
    **dict.fromkeys(
        (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError),
        "a topic refuses a batch of this size. Raise its max.message.bytes, or lower output.max_batch_bytes.",
    ),
}
"""What a broker says of records that it will never take: trying again would go on for ever."""
_UNANSWERED = (kafka_errors.NodeNotReadyError, kafka_errors.RequestTimedOutError, kafka_errors.KafkaTimeoutError)
"""What the client says where nobody answered."""
_RETRIABLE_AT_START = (
    kafka_errors.KafkaConnectionError,
    kafka_errors.CoordinatorNotAvailableError,
    kafka_errors.CoordinatorLoadInProgressError,
    kafka_errors.NotCoordinatorError,
    kafka_errors.LeaderNotAvailableError,
    kafka_errors.NotLeaderForPartitionError,
    kafka_errors.RequestTimedOutError,
    kafka_errors.KafkaTimeoutError,
    kafka_errors.NodeNotReadyError,
    kafka_errors.UnknownTopicOrPartitionError,
    asyncio.TimeoutError,
    OSError,
)


_FOREIGN_MEMBERS = (
    "the group has members of another kind: they let another assignor (of librdkafka or Java) or the broker (KIP-848, "
    "group.protocol = consumer) share out the partitions, so states and partitions would not stay together. Give the service "
    "a kafka.group of its own, or stop those members."
)
_CODECS = {1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}


def retriable(error: BaseException) -> bool:
    """Whether another try, perhaps at another broker, may succeed."""
    return isinstance(error, _RETRIABLE_AT_START)


def explain(error: BaseException, where: str, right: str, sasl_mechanism: str | None) -> StreamerError:
    """``where``: cluster and what was being done. ``right``: what is needed of a topic that denies it.

    KafkaRefusedError and ConfigurationError: trying again does not help; KafkaUnavailableError: it may."""
    error = _told(error)
    if isinstance(error, StreamerError):
        return error
    text = "" if isinstance(error, kafka_errors.KafkaConnectionError) else str(error)
    text = text or type(error).__name__
    for denied, sentence in _DENIED.items():
        if isinstance(error, denied):
            what = ", ".join(sorted(error.args[0])) if error.args and isinstance(error.args[0], set) else None
            what = repr(what or (error.args[0] if error.args else type(error).__name__))
            return KafkaRefusedError(
                f"{where}: permission denied: {sentence.format(right=right, what=what)} to this client's principal."
            )
    if isinstance(error, kafka_errors.InconsistentGroupProtocolError):
        return ConfigurationError(f"{where}: {_FOREIGN_MEMBERS}")
    if isinstance(error, kafka_errors.UnsupportedCodecError):
        return ConfigurationError(
            f"{where}: records are compressed in a way that cannot be read ({text}). Install the codec library (pip install "
            "cramjam), or have the producer and the topic (compression.type) use gzip, snappy, lz4 or zstd."
        )
    if type(error) in _UNACCEPTABLE:
        return ConfigurationError(f"{where}: {_UNACCEPTABLE[type(error)]}")
    refusal = refused(error)
    if isinstance(refusal, ssl.SSLError):
        return KafkaUnavailableError(f"{where}: {_tls_sentence(refusal)}")
    if refusal is not None:
        return KafkaUnavailableError(f"{where}: {_sasl_sentence(refusal, sasl_mechanism)}")
    if isinstance(error, asyncio.TimeoutError | kafka_errors.KafkaConnectionError | OSError):
        return KafkaSilentError(
            f"{where}: no broker answers ({text}). Check kafka.bootstrap, kafka.security_protocol and its certificates, and the network."
        )
    if isinstance(error, _UNANSWERED):
        return KafkaSilentError(f"{where}: {type(error).__name__}: {text}")
    return KafkaUnavailableError(f"{where}: {type(error).__name__}: {text}")


def _told(error: BaseException) -> BaseException:
    """What the broker said, where the client only says that something unexpected ended a task of its."""
    if isinstance(error, TransactionRefused):
        why: BaseException = error.why
        return why
    if type(error) is kafka_errors.KafkaError and isinstance(error.__cause__, kafka_errors.KafkaError):
        cause: BaseException = error.__cause__
        return cause
    return error


def _sasl_sentence(error: BaseException, mechanism: str | None) -> str:
    if isinstance(error, kafka_errors.UnsupportedSaslMechanismError):
        return f"the broker does not offer kafka.sasl_mechanism = {mechanism}. Use one that it offers."
    if isinstance(error, kafka_errors.IllegalSaslStateError):
        return "this listener does not take SASL. Check kafka.security_protocol and the port in kafka.bootstrap."
    why = error.args[0] if error.args else type(error).__name__
    return f"authentication failed ({why}). Check kafka.sasl_mechanism, kafka.sasl_username and the password."


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def refused(error: BaseException) -> BaseException | None:
    for cause in _chain(error):
        if isinstance(cause, _REFUSED) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return cause
    return None


# X509_V_ERR_*: not yet valid, expired, wrong host name, wrong address
_NOT_YET, _EXPIRED, _HOSTS = 9, 10, (62, 64)


def _tls_sentence(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message.rstrip(".")
        if error.verify_code == _EXPIRED:
            return f"the broker's certificate is not valid any more ({why}). Renew it on the broker."
        if error.verify_code == _NOT_YET:
            return (
                f"the broker's certificate is not valid yet ({why}). Check the clocks of this machine and the broker."
            )
        if error.verify_code in _HOSTS:
            return (
                f"the broker's certificate is for another host name ({why}). Use a name that it holds in kafka.bootstrap "
                "and in the broker's advertised.listeners, or issue it for this name."
            )
        return f"the broker's certificate is not trusted ({why}). Name the CA that signed it in kafka.ssl_cafile."
    reason = (error.reason or type(error).__name__).replace("_", " ").lower()
    if "alert" in reason:
        return (
            f"the broker refuses the TLS connection ({reason}). Check that kafka.ssl_certfile and kafka.ssl_keyfile are "
            "there, valid, and signed by a CA that the broker trusts."
        )
    return f"the TLS handshake failed ({reason}). Check kafka.security_protocol and the port in kafka.bootstrap."
