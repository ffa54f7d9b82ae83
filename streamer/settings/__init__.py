"""Settings: one TOML file, every key also as ``STREAMER_SECTION__KEY`` and ``--set section.key=value``.

``sections``, ``registry``, ``window`` and ``utterance`` are the tree of frozen values that travels through the service as it is, ``times`` what a
moment is, ``fields`` where a feature is, ``load`` where values come from, ``reference`` how they are told.
"""

from streamer.settings.load import load_settings
from streamer.settings.reference import describe, settings_reference
from streamer.settings.registry import RegistrySection
from streamer.settings.sections import (
    BatchSection,
    ChangelogSection,
    DeadLetterSection,
    DecodeSection,
    DeliverySection,
    GenerateSection,
    HttpSection,
    InputSection,
    KafkaSection,
    LogSection,
    ModelSection,
    OutputSection,
    Settings,
    StateSection,
    TopicsSection,
)
from streamer.settings.times import likely_unit, moment_text
from streamer.settings.utterance import UtteranceSection
from streamer.settings.window import WindowSection

__all__ = [
    "BatchSection",
    "ChangelogSection",
    "DeadLetterSection",
    "DecodeSection",
    "DeliverySection",
    "GenerateSection",
    "HttpSection",
    "InputSection",
    "KafkaSection",
    "LogSection",
    "ModelSection",
    "OutputSection",
    "RegistrySection",
    "Settings",
    "StateSection",
    "TopicsSection",
    "UtteranceSection",
    "WindowSection",
    "describe",
    "likely_unit",
    "load_settings",
    "moment_text",
    "settings_reference",
]
