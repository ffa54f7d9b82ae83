"""The process of the command ``streamer`` and of ``python -m streamer``: it listens to signals, then loads everything else."""

from __future__ import annotations

import sys

from streamer.service.signals import leave_when_told


def main() -> None:
    if sys.argv[1:2] == ["run"]:
        leave_when_told()
    try:
        from streamer.cli import main as command  # noqa: PLC0415 - takes a second, and signals come when they want

        command()
    except KeyboardInterrupt:
        print(file=sys.stderr)  # after the terminal's ^C
        sys.exit(130)


if __name__ == "__main__":
    main()
