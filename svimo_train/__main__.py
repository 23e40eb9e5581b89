"""`python -m svimo_train --config FILE`: train one stage of a model, or go on with it; `plan` says what it needs."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from . import plan
from .settings import TrainConfig
from .trainer import TrainingStopped, train


def main(arguments: list[str] | None = None) -> int:
    """0 when the stage is complete; 1 with a message on stderr when it cannot go on."""
    parser = argparse.ArgumentParser(
        prog="python -m svimo_train",
        description="Train one stage of a model. Run the same command again to go on after a stop.",
    )
    parser.add_argument("--config", type=Path, required=True, help="JSON file; see svimo_train/configs")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=JSON", help="change a field of the file"
    )
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["plan"]:
        return plan.main(arguments[1:])
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        changes = {name: _value(text) for name, _, text in (item.partition("=") for item in args.set)}
        path = train(TrainConfig.load(args.config, **changes))
    except (OSError, ValueError, TrainingStopped, KeyboardInterrupt) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


def _value(text: str):
    """JSON, or the text itself where it is none, such as a path."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    sys.exit(main())
