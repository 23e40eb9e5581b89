"""The command line: `python -m svimo_train.data.taco prepare | look | split`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from .layout import ALLOCENTRIC, EGOCENTRIC, MARKERS, read_sequences
from .look import write_sheets
from .prepare import prepare, report_summary
from .settings import Settings
from .split import split_sequences

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> None:
    """Turn TACO into training clips, look at them, or split a list of its sequences."""
    args = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        args.run(args)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")


def _prepare(args: argparse.Namespace) -> None:
    report = prepare(
        args.source,
        args.out,
        args.mano,
        _settings(args),
        views=args.views,
        sequences=args.sequences and read_sequences(args.sequences),
        leave_out=args.leave_out.read_text().split() if args.leave_out else (),
        workers=args.workers,
    )
    log.info("%s", "\n".join(report_summary(report)))
    log.info("The whole report is in %s", args.out / "report.txt")


def _look(args: argparse.Namespace) -> None:
    for path in write_sheets(args.out, args.count):
        log.info("%s", path)


def _split(args: argparse.Namespace) -> None:
    settings = _settings(args)
    split = split_sequences(
        read_sequences(args.sequences),
        test_share=settings.test_share,
        held_out=settings.held_out,
        seed=settings.seed,
    )
    split.write(args.out)
    log.info(
        "%d to train on, %d to test with, of which %d have held-out words",
        len(split.train),
        len(split.test),
        len(split.held_out),
    )


def _settings(args: argparse.Namespace) -> Settings:
    given = {name: value for name, value in vars(args).items() if name in Settings.__dataclass_fields__}
    held_out = {part: tuple(getattr(args, f"held_out_{part}s")) for part in Settings().held_out}
    return Settings(**given, held_out=held_out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m svimo_train.data.taco", description=main.__doc__)
    commands = parser.add_subparsers(required=True)
    default = Settings()

    one = commands.add_parser("prepare", help="make clips; those already there are kept")
    one.set_defaults(run=_prepare)
    one.add_argument("source", type=Path, help="TACO's folder, with Object_Poses and the others in it")
    one.add_argument("out", type=Path, help="folder for the clips, made if missing")
    one.add_argument("--mano", type=Path, required=True, help="folder with MANO_LEFT and MANO_RIGHT")
    one.add_argument(
        "--views",
        nargs="+",
        default=[EGOCENTRIC],
        help=f'"{EGOCENTRIC}", "{ALLOCENTRIC}" for all cameras around the table, or serial numbers of some',
    )
    one.add_argument(
        "--sequences", type=Path, help="a list in TACO's form; without it, those that are in the source"
    )
    one.add_argument("--leave-out", type=Path, help="names of bad sequences, such as 20230919_036")
    one.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    one.add_argument("--frames", type=int, default=default.frames)
    one.add_argument(
        "--stride", type=float, default=default.stride, help="TACO's frames to one: 3.75 is 8 fps"
    )
    one.add_argument(
        "--hop", type=int, default=default.hop, help="frames from one clip's start to the next's"
    )
    one.add_argument("--width", type=int, default=default.width)
    one.add_argument("--height", type=int, default=default.height)
    one.add_argument("--margin", type=float, default=default.margin, help="share of the extent, on each side")
    one.add_argument("--points", type=int, default=default.points, help="on each object")
    one.add_argument(
        "--markers", choices=tuple(MARKERS), default=default.markers, help="in allocentric videos"
    )
    one.add_argument(
        "--hands-in-view", type=float, default=default.hands_in_view, help="least share of each hand's joints"
    )
    one.add_argument(
        "--lost-frames",
        type=int,
        default=default.lost_frames,
        help="most frames by which video and poses may differ in number",
    )

    two = commands.add_parser("look", help="draw motion over frames, to see that they fit")
    two.set_defaults(run=_look)
    two.add_argument("out", type=Path, help="the folder of clips")
    two.add_argument("--count", type=int, default=8, help="of sheets for each part")

    three = commands.add_parser("split", help="write the lists for training and testing, and nothing else")
    three.set_defaults(run=_split)
    three.add_argument("sequences", type=Path, help="a list in TACO's form")
    three.add_argument("out", type=Path, help="folder for train.txt, test.txt and held_out.txt")

    for command in (one, three):
        command.add_argument("--test-share", type=float, default=default.test_share)
        command.add_argument("--seed", type=int, default=default.seed, help="of the split and of points")
        for part, words in default.held_out.items():
            command.add_argument(f"--held-out-{part}s", nargs="*", default=list(words), metavar="WORD")
    return parser


if __name__ == "__main__":
    main()
