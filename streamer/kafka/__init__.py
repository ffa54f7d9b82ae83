"""Everything that speaks Kafka, and the only place that imports aiokafka.

``client`` makes every connection; ``topics`` checks and creates; ``group`` is membership; ``input`` fetches; ``commit``
writes epochs in transactions fenced by the group; ``restore`` reads the changelog.
"""
