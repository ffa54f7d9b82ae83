"""Every name of the client that is touched beside its documented interface. A contract test fails by name when a new version
of the client has one no more, or with other parameters: then ``internals`` has to be read again."""

from __future__ import annotations

PRIVATE: tuple[tuple[str, str, str], ...] = (
    # where it is defined, name, its parameters ("" for an attribute)
    ("aiokafka.producer.producer:AIOKafkaProducer", "_txn_manager", ""),
    ("aiokafka.producer.producer:AIOKafkaProducer", "_message_accumulator", ""),
    ("aiokafka.producer.producer:AIOKafkaProducer", "_sender", ""),
    ("aiokafka.producer.message_accumulator:MessageAccumulator", "_append_batch", "(self, builder, tp)"),
    ("aiokafka.producer.message_accumulator:MessageAccumulator", "_cluster", ""),
    ("aiokafka.producer.message_accumulator:MessageAccumulator", "_batch_size", ""),
    ("aiokafka.producer.message_accumulator:MessageAccumulator", "_compression_type", ""),
    ("aiokafka.producer.message_accumulator:MessageAccumulator", "_batch_ttl", ""),
    ("aiokafka.producer.message_accumulator:MessageBatch", "_drain_waiter", ""),
    ("aiokafka.producer.message_accumulator:BatchBuilder", "_builder", ""),
    ("aiokafka.producer.message_accumulator:BatchBuilder", "_relative_offset", ""),
    ("aiokafka.producer.sender:Sender", "_txn_manager", ""),
    ("aiokafka.producer.sender:Sender", "_acks", ""),
    ("aiokafka.producer.sender:Sender", "_retry_backoff", ""),
    ("aiokafka.producer.sender:Sender", "_request_timeout_ms", ""),
    ("aiokafka.producer.sender:Sender", "_find_coordinator", "(self, coordinator_type, coordinator_key)"),
    ("aiokafka.producer.sender:Sender", "_do_add_partitions_to_txn", "(self, tps)"),
    ("aiokafka.producer.sender:Sender", "_do_txn_offset_commit", "(self, offsets, group_id)"),
    ("aiokafka.producer.sender:BaseHandler", "_sender", ""),
    ("aiokafka.producer.sender:TxnOffsetCommitHandler", "_offsets", ""),
    ("aiokafka.producer.sender:TxnOffsetCommitHandler", "_group_id", ""),
    ("aiokafka.producer.transaction_manager:TransactionManager", "_sequence_numbers", ""),
    ("aiokafka.producer.transaction_manager:TransactionManager", "_pending_txn_offsets", ""),
    ("aiokafka.consumer.consumer:AIOKafkaConsumer", "_client", ""),
    ("aiokafka.consumer.consumer:AIOKafkaConsumer", "_coordinator", ""),
    ("aiokafka.consumer.consumer:AIOKafkaConsumer", "_fetcher", ""),
    ("aiokafka.consumer.consumer:AIOKafkaConsumer", "_subscription", ""),
    ("aiokafka.consumer.fetcher:Fetcher", "_records", ""),
    ("aiokafka.consumer.fetcher:Fetcher", "_isolation_level", ""),
    ("aiokafka.consumer.fetcher:Fetcher", "_retrieve_offsets", "(self, timestamps, timeout_ms=None)"),
    ("aiokafka.consumer.fetcher:FetchResult", "_partition_records", ""),
    ("aiokafka.consumer.fetcher:PartitionRecords", "_tp", ""),
    ("aiokafka.consumer.fetcher:PartitionRecords", "_records", ""),
    ("aiokafka.consumer.fetcher:PartitionRecords", "_aborted_transactions", ""),
    ("aiokafka.consumer.fetcher:PartitionRecords", "_check_crcs", ""),
    ("aiokafka.consumer.fetcher:PartitionRecords", "_isolation_level", ""),
    ("aiokafka.consumer.fetcher:PartitionRecords", "_consumer_record", "(self, tp, record)"),
    ("aiokafka.consumer.fetcher:PartitionRecords", "_contains_abort_marker", "(self, next_batch)"),
    ("aiokafka.admin.client:AIOKafkaAdminClient", "_client", ""),
)
"""Every private name of the client that is touched."""

USED: tuple[tuple[str, str, str], ...] = (
    ("aiokafka.producer.sender:AddPartitionsToTxnHandler", "__init__", "(self, sender, topic_partitions)"),
    ("aiokafka.producer.sender:AddPartitionsToTxnHandler", "handle_response", "(self, resp)"),
    ("aiokafka.producer.sender:TxnOffsetCommitHandler", "__init__", "(self, sender, offsets, group_id)"),
    ("aiokafka.producer.sender:TxnOffsetCommitHandler", "create_request", "(self)"),
    ("aiokafka.producer.sender:TxnOffsetCommitHandler", "handle_response", "(self, resp)"),
    ("aiokafka.producer.sender:BaseHandler", "do", "(self, node_id)"),
    (
        "aiokafka.producer.sender:Sender",
        "__init__",
        "(self, client, *, acks, txn_manager, message_accumulator, retry_backoff_ms, request_timeout_ms)",
    ),
    (
        "aiokafka.producer.message_accumulator:MessageAccumulator",
        "__init__",
        "(self, cluster, batch_size, compression_type, batch_ttl, *, txn_manager=None, loop=None, linger_ms=0)",
    ),
    ("aiokafka.producer.message_accumulator:MessageAccumulator", "reenqueue", "(self, batch)"),
    (
        "aiokafka.producer.transaction_manager:TransactionManager",
        "__init__",
        "(self, transactional_id, transaction_timeout_ms)",
    ),
    ("aiokafka.producer.transaction_manager:TransactionManager", "increment_sequence_number", "(self, tp, increment)"),
    ("aiokafka.producer.transaction_manager:TransactionManager", "error_transaction", "(self, exc)"),
    ("aiokafka.producer.transaction_manager:TransactionManager", "wait_for_transaction_end", "(self)"),
    ("aiokafka.producer.transaction_manager:TransactionManager", "txn_partitions", ""),
    (
        "aiokafka.consumer.fetcher:PartitionRecords",
        "__init__",
        "(self, tp, records, aborted_transactions, fetch_offset, key_deserializer, value_deserializer, check_crcs, isolation_level)",
    ),
    ("aiokafka.consumer.group_coordinator:GroupCoordinator", "generation", ""),
    ("aiokafka.consumer.group_coordinator:GroupCoordinator", "member_id", ""),
    ("aiokafka.consumer.group_coordinator:GroupCoordinator", "check_errors", "(self)"),
    ("aiokafka.consumer.subscription_state:TopicPartitionState", "position", ""),
    ("aiokafka.consumer.subscription_state:Assignment", "state_value", "(self, tp)"),
)
"""Names that are not private and not documented either, on which the same depends."""
