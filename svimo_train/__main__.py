"""`python -m svimo_train --config FILE`: train the stages of a model, or go on with them.

`plan` says what they need, and `encode` makes their clips ready to be read.
"""

from __future__ import annotations

import argparse
import logging
import sys

from . import encode, plan
from .recipe import add_config_arguments, named_stages
from .trainer import TrainingStopped, train_stages


def main(arguments: list[str] | None = None) -> int:
    """0 when the stage is complete; 1 with a message on stderr when it cannot go on."""
    parser = argparse.ArgumentParser(
        prog="python -m svimo_train",
        description="Train the stages of a model that a file names. Run the same command again to go on after a stop.",
    )
    add_config_arguments(parser)
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["plan"]:
        return plan.main(arguments[1:])
    if arguments[:1] == ["encode"]:
        return encode.main(arguments[1:])
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        path = train_stages(named_stages(args))
    except (OSError, ValueError, TrainingStopped, KeyboardInterrupt) as error:
        sys.stderr.write(f"{error or 'stopped'}\n")
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
