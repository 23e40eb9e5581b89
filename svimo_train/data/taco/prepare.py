"""TACO's sequences -> folders of training clips, with a report of what was left out.

The clips are the trainer's own kind (:mod:`svimo_train.clips`): `OUT/train` and `OUT/test` are folders for `clips`
and `held_out` of its configurations. Beside them lie `split/` (lists of sequences), `report.txt` and `report.json`,
`settings.json`, and `records/`, which tells the next run what is finished.
"""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from svimo_core.files import reading, whole_file
from svimo_train.clips import Clip, write_clip

from .clips import film_clips, plan_clip
from .hands import load_hands
from .layout import EGOCENTRIC, Sequence, find_sequences, find_views
from .scene import LeftOut, read_scene
from .settings import Settings
from .split import split_sequences

PARTS = ("train", "test")


def prepare(
    source: Path,
    out: Path,
    mano: Path,
    settings: Settings,
    *,
    views: Iterable[str] = (EGOCENTRIC,),
    sequences: Iterable[Sequence] | None = None,
    leave_out: Iterable[str] = (),
    workers: int = 1,
) -> dict[str, Any]:
    """Make all clips that are not there yet, and write the report. One run at a time may fill a folder.

    Args:
        source: TACO's folder.
        out: folder for the clips, made if missing.
        mano: folder with MANO_LEFT and MANO_RIGHT.
        settings: of the clips.
        views: "egocentric", "allocentric" for all cameras around the table, or serial numbers of some.
        sequences: to split and prepare, such as TACO's list of all, so that the split does not depend on what has been
            downloaded; None for those in the source.
        leave_out: names of sequences that are known to be bad.
        workers: processes.

    Returns:
        What `report.json` has: numbers of clips and of sequences by part, every thing that was left out, and how often
        for which reason.

    Raises:
        FileNotFoundError: no sequences, or no MANO.
        ImportError: PyAV or trimesh is missing.
        ValueError: the folder was filled with other settings or another split.
        OSError: a clip cannot be written.
    """
    load_hands(mano)
    listed = list(sequences) if sequences is not None else find_sequences(source)
    split = split_sequences(
        listed, test_share=settings.test_share, held_out=settings.held_out, seed=settings.seed
    )
    for folder in (*PARTS, "records"):
        (out / folder).mkdir(parents=True, exist_ok=True)
        for leftover in (out / folder).glob("*.partial"):  # of a run that was killed
            leftover.unlink()
    _keep_settings(out / "settings.json", settings)
    split.write(out / "split")

    jobs, left_out, views, unwanted = [], [], tuple(views), set(leave_out)
    for part in PARTS:
        for sequence in getattr(split, part):
            if sequence.name in unwanted:
                left_out.append(_entry(sequence, LeftOut("on the list of those to leave out")))
            elif not (source / "Object_Poses" / sequence.folder).is_dir():
                left_out.append(_entry(sequence, LeftOut("not in the source")))
            else:
                found = find_views(source, sequence, views, settings.markers)
                jobs += [Job(source, out, mano, sequence, view, part, settings) for view in found]
    records = list(_run(jobs, workers))
    left_out += [entry for record in records for entry in record["left_out"]]
    report = {
        "clips": {p: sum(len(r["clips"]) for r in records if r["part"] == p) for p in PARTS},
        "sequences": {name: len(getattr(split, name)) for name in (*PARTS, "held_out")},
        "reasons": dict(Counter(entry["reason"] for entry in left_out).most_common()),
        "left_out": left_out,
    }
    _write_json(out / "report.json", report)
    with whole_file(out / "report.txt") as partial:
        partial.write_text(
            "\n".join([*report_summary(report), "", *map(_sentence, left_out)]).rstrip() + "\n"
        )
    return report


def report_summary(report: dict[str, Any]) -> list[str]:
    """The numbers of a report, in lines for people."""
    clips, sequences = report["clips"], report["sequences"]
    lines = [
        f"{clips['train']} clips to train on, of {sequences['train']} sequences.",
        f"{clips['test']} clips to test with, of {sequences['test']} sequences, {sequences['held_out']} of which have "
        "held-out words.",
    ]
    if report["reasons"]:
        lines.append("Left out (clips, or all of a view or sequence at once):")
    return lines + [f"{count:7d}  {reason}" for reason, count in report["reasons"].items()]


def _sentence(entry: dict[str, Any]) -> str:
    start = "" if entry["start"] is None else f"from frame {entry['start']}"
    where = " ".join(filter(None, (entry["sequence"], entry["view"], start)))
    return f"{where}: {entry['reason']}. {entry['detail']}".rstrip()


def _entry(
    sequence: Sequence, why: LeftOut, view: str | None = None, start: int | None = None
) -> dict[str, Any]:
    return {
        "sequence": str(sequence),
        "view": view,
        "start": start,
        "reason": why.reason,
        "detail": why.detail,
    }


def _keep_settings(path: Path, settings: Settings) -> None:
    ours = json.loads(json.dumps(asdict(settings)))
    if not path.is_file():
        _write_json(path, ours)
        return
    with reading(path, "holds no settings", "choose another folder"):
        theirs = dict(json.loads(path.read_text()))
    if theirs != ours:
        other = ", ".join(f"{key} {theirs.get(key)}" for key in ours if theirs.get(key) != ours[key])
        raise ValueError(
            f"{path.parent} was filled with {other}: choose another folder, or the same settings"
        )


def _write_json(path: Path, content: Any) -> None:
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1))


# Jobs


class Job(NamedTuple):
    """All clips of one view of one sequence."""

    source: Path
    out: Path
    mano: Path
    sequence: Sequence
    view: str
    part: str
    """Of the split: "train" or "test"."""
    settings: Settings

    @property
    def name(self) -> str:
        """Of its record, and what its clips' names begin with."""
        return f"{self.sequence.name}_{self.view}"

    @property
    def record(self) -> Path:
        """Where what came of it is written."""
        return self.out / "records" / f"{self.name}.json"

    def has(self, clip: str) -> bool:
        """Whether a clip is there; its motion is written last."""
        return (self.out / self.part / f"{clip}.npz").is_file()


def run_job(job: Job) -> dict[str, Any]:
    """Make the clips of a view that are not there yet.

    Returns:
        Its record: the part of the split, the names of its clips, and what was left out and why.

    Raises:
        OSError: a clip cannot be written.
        ImportError: PyAV or trimesh is missing.
    """
    if job.record.is_file():
        with reading(job.record, "is no record of a view", f"delete {job.record}"):
            record = dict(json.loads(job.record.read_text()))
            done = not record["left_out"] and all(map(job.has, record["clips"]))
        if done:
            return record
    planned, left_out = {}, []
    try:
        scene = read_scene(job.source, job.sequence, job.view, _models(job.mano), job.settings)
        windows = job.settings.windows(len(scene.hands))
        if not windows:
            raise LeftOut("too short", f"{len(scene.hands)} frames, and a clip takes {job.settings.span}")
        for window in windows:
            try:
                planned[f"{job.name}_{window[0]:04d}"] = plan_clip(scene, window, job.settings)
            except LeftOut as why:
                left_out.append(_entry(job.sequence, why, job.view, int(window[0])))
        missing = {name: clip for name, clip in planned.items() if not job.has(name)}
        for name, pixels in film_clips(scene.video, missing, job.settings).items():
            write_clip(job.out / job.part, name, Clip(pixels, missing[name].motion))
    except LeftOut as why:
        left_out.append(_entry(job.sequence, why, job.view))
    record = {"part": job.part, "clips": list(filter(job.has, planned)), "left_out": left_out}
    _write_json(job.record, record)
    return record


_models = cache(load_hands)


def _run(jobs: list[Job], workers: int) -> Iterator[dict[str, Any]]:
    """The records of all jobs, in any order."""
    if workers == 1:
        yield from map(run_job, tqdm(jobs, unit="view"))
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            futures = [pool.submit(run_job, job) for job in jobs]
            for future in tqdm(as_completed(futures), total=len(jobs), unit="view"):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
