"""A cluster in memory, and the service's own code against it: virtual time, seeded order, faults, and an oracle.

``loop``: time and what runs next. ``network``: connections. ``logs``, ``transactions``, ``groups``, ``broker``: what a
Kafka cluster does, over the wire. ``product``: the only file that knows the service. ``plans``: what happens in a run, drawn from its
seed. ``schedules``: carries a plan out. ``oracle``: judges it. ``mutations``: faults put back, which must be found.

    python -m tests.simulation --seed 7 --schedules 100
"""
