"""``python -m export COMMAND``: each command is a module of this package with ``main(argv) -> exit code``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": ("export.train", "train, verify and export a model from a TOML file"),
    "export": ("export.userexport", "export a trained module of your own"),
    "verify": ("export.verify", "compare an exported model with PyTorch and with itself"),
    "compare": ("export.compare", "compare cells and sizes on the same tasks"),
    "gradients": ("export.gradients", "show how gradients travel back through time"),
    "recipe": ("export.recipes", "worked examples for every form of sequence learning"),
    "card": ("export.card", "write a model card"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 2 for an unknown one, or where the extra ``export`` is not installed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m export COMMAND [options]\n")
        for name, (_, text) in COMMANDS.items():
            print(f"  {name:<10} {text}")
        return 0 if arguments else 2
    command, *rest = arguments
    if command not in COMMANDS:
        print(f"error: there is no command {command!r}; one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        module = importlib.import_module(COMMANDS[command][0])
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name in ("export", "streamer"):
            raise
        print(f"error: {name} is not installed: pip install 'streamer[export]'", file=sys.stderr)
        return 2
    code: int = module.main(rest)
    return code


if __name__ == "__main__":
    sys.exit(main())
