"""streamer: durable, exactly-once recurrent inference on Kafka streams.

Library use needs no Kafka: ``streamer.library.Runner`` runs a model file over batches of events with one state per stream.
"""

import os

# ONNX Runtime's wheels for Linux report usage to their maker unless this is set before they are loaded. A service in
# somebody's network sends nothing that it was not asked to send.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
