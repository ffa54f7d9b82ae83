"""The open-loop load in a process of its own, so that reading the answers cannot delay it."""

from __future__ import annotations

import json
import sys

from streamer.tools.bench.load import Plan, send_open_loop

if __name__ == "__main__":
    document = json.loads(sys.argv[1])
    send_open_loop(document["bootstrap"], document["topic"], Plan(**document["plan"]), document["rate"])
