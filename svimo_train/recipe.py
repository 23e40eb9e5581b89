"""Stages that follow each other, as one JSON file and one command.

    {
      "init": "start.safetensors", "clips": "clips", "output": "output/train/mine",
      "stages": {
        "warm-up": {"stage": "interaction", "phases": [...]},
        "joint": {"stage": "joint", "phases": [...], "learning_rate": 1e-5}
      }
    }

What stands beside `stages` is every stage's that does not say otherwise (:class:`svimo_train.settings.TrainConfig` has
the fields). A stage writes to the folder of its name in `output`, and starts from the checkpoint of the one before; the
first one starts from `init`. A file without `stages` is one stage.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .settings import TrainConfig, read_json
from .state import CHECKPOINT

Stages = dict[str, TrainConfig]
"""By name, in their order."""


def load_stages(path: str | os.PathLike, changes: Iterable[str] = ()) -> Stages:
    """Read a file of one stage or several; paths in it are relative to the working directory.

    Args:
        changes: `FIELD=JSON` each, to set in place of the file's; see :func:`change`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or unknown, missing or impossible fields; the message names them.
    """
    name, values = Path(path).name, read_json(path)
    for item in changes:
        change(values, item)
    if "stages" not in values:
        config = TrainConfig.from_values(values, name)
        return {config.stage: config}

    # 1. what the file says
    common = {field: value for field, value in values.items() if field != "stages"}
    own = values["stages"]
    if not (isinstance(own, dict) and own and all(isinstance(stage, dict) for stage in own.values())):
        raise ValueError(f'{name}: stages should be {{"NAME": {{...}}, ...}}, each a stage by its name')
    if "output" not in common:
        raise ValueError(f"{name}: output is missing, a folder for all stages")
    for stage in own:
        if not re.fullmatch(r"[\w-]+", stage):
            raise ValueError(
                f"{name}: the name of a stage is that of a folder, of letters, digits, - and _, got {stage!r}"
            )
    for field in common:
        if field not in ("init", "output") and all(field in stage for stage in own.values()):
            raise ValueError(
                f"{name}: {field} beside stages acts on nothing, as every stage has its own: "
                f"change stages.NAME.{field}"
            )

    # 2. one stage after the other
    stages: Stages = {}
    for stage, fields in own.items():
        place: dict[str, Any] = {"output": str(Path(common["output"]) / stage)}
        if stages:
            before = list(stages.values())[-1]
            place["init"] = str(before.output / CHECKPOINT)
        stages[stage] = TrainConfig.from_values(common | place | fields, f"{name}, stages.{stage}")
    if len({config.precision for config in stages.values()}) > 1:
        raise ValueError(f"{name}: precision is one for all stages, as processes choose it once")
    if len({config.output for config in stages.values()}) < len(stages):
        raise ValueError(f"{name}: two stages have the same output, and would go on from each other's state")
    return stages


def change(values: dict[str, Any], item: str) -> None:
    """Set a field of a file's values, in place.

    Args:
        item: `FIELD=JSON`, or text that is none, such as a path. A field inside others is named with dots, members
            of lists by their number from 0: `stages.joint.phases.1.steps=100`.

    Raises:
        ValueError: it names a place that is not there.
    """
    path, sign, text = item.partition("=")
    *parents, last = path.split(".")
    place: Any = values
    try:
        if not sign:
            raise ValueError("it has no =")
        for depth, parent in enumerate(parents):
            if isinstance(place, list):
                place = place[int(parent)]
            elif parents[:depth] == ["stages"]:
                place = place[parent]
            else:
                place = place.setdefault(parent, {})
        place[int(last) if isinstance(place, list) else last] = _value(text)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        names = f" Stages: {', '.join(values['stages'])}." if isinstance(values.get("stages"), dict) else ""
        raise ValueError(
            f"--set {item}: it takes FIELD=JSON of a field that is there, got a problem at {error}.{names}"
        ) from error


def _value(text: str) -> Any:
    """JSON, or the text itself where it is none, such as a path."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """What names a configuration on a command line."""
    parser.add_argument("--config", type=Path, required=True, help="JSON file; see svimo_train/configs")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=JSON",
        help="change a field of the file; joint.warm_up and stages.NAME.learning_rate name fields inside others",
    )


def named_stages(args: argparse.Namespace) -> Stages:
    """The stages that these arguments name; see :func:`load_stages`."""
    return load_stages(args.config, args.set)
