"""streamer: durable, exactly-once recurrent inference on Kafka streams.

Library use needs no Kafka: ``Model`` loads an exported file, a codec turns record values into event batches and
``Processor`` runs the model over them with one state per stream.
"""

__version__ = "0.1.0"
