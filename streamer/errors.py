"""Errors, typed by remedy: the class says who has to act, the exit code says it to a supervisor.

A bad record is never an exception: it is a row in ``Rejects``.
"""

from __future__ import annotations

from streamer import __version__


class StreamerError(Exception):
    """Base of all errors that end a command. ``exit_code`` is the process's exit status."""

    exit_code = 1


class ConfigurationError(StreamerError):
    """Settings, files or command line are wrong: the user edits the configuration."""

    exit_code = 2


class ModelError(StreamerError):
    """A model file, its contract or its behaviour is wrong: the user exports or declares it anew."""

    exit_code = 3


class KafkaUnavailableError(StreamerError):
    """The cluster, a topic or a permission is missing: the platform engineer acts, a restart may help."""

    exit_code = 4


class KafkaSilentError(KafkaUnavailableError):
    """No broker answers: there is no cause to tell but that."""


class RegistryUnavailableError(StreamerError):
    """The schema registry cannot be asked: the platform engineer acts. Records wait for it; it never ends a service."""

    exit_code = 4


class KafkaRefusedError(StreamerError):
    """The cluster refuses what the service needs: a right, a topic, a policy. An administrator acts; trying again does not
    help, so the process ends."""

    exit_code = 4


class DataLossError(StreamerError):
    """Going on would lose or repeat data: a person decides; nothing was changed."""

    exit_code = 5


class FencedError(StreamerError):
    """This process no longer owns its partitions: abort, drop their state, rejoin, recover. Never ends the process alone."""

    exit_code = 4


class ModelRunError(StreamerError):
    """One model call failed. The processor isolates the row that caused it; state is as before the call."""

    exit_code = 3


def install_hint(extra: str) -> str:
    """Commands that install an extra of this distribution. None asks the public index for the distribution itself."""
    wheel = f"streamer_rnn-{__version__}-py3-none-any.whl"
    return f"pip install '.[{extra}]' in the checkout, or with the wheel: pip install '{wheel}[{extra}]'"
