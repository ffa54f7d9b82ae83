"""``python -m export COMMAND``: each command is a module of this package with ``main(argv) -> exit code``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from streamer.errors import install_hint

COMMANDS = {
    "train": (".train", "train, verify and export a model from a TOML file"),
    "export": (".userexport", "export a trained module of your own"),
    "verify": (".verify", "compare an exported model with PyTorch and with itself"),
    "compare": (".compare", "compare cells and sizes on the same tasks"),
    "gradients": (".gradients", "show how gradients travel back through time"),
    "recipe": (".recipes", "worked examples for every form of sequence learning"),
    "card": (".card", "write a model card"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 2 for an unknown one, or where the extra ``export`` is not installed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: python -m {__package__} COMMAND [options]\n")
        for name, (_, text) in COMMANDS.items():
            print(f"  {name:<10} {text}")
        return 0 if arguments else 2
    command, *rest = arguments
    if command not in COMMANDS:
        meant = get_close_matches(command, COMMANDS, 1)
        hint = f"did you mean {meant[0]}?" if meant else f"one of {', '.join(COMMANDS)}"
        print(f"error: there is no command {command!r}: {hint}", file=sys.stderr)
        return 2
    try:
        module = importlib.import_module(COMMANDS[command][0], __package__)
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name in (__package__, "streamer"):
            raise
        print(f"error: {name} is not installed: {install_hint('export')}", file=sys.stderr)
        return 2
    code: int = module.main(rest)
    return code


if __name__ == "__main__":
    sys.exit(main())
