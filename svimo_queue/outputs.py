"""What came of the jobs: a folder for each, with its files and `job.json`, a table of all, and a contact sheet.

A job is finished when its `job.json`, written last, is there and so are the files that it names. Whoever runs the
jobs says what came; nothing in here knows who that is.
"""

from __future__ import annotations

import csv
import errno
import io
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from svimo_core.files import reading, whole_file

from .jobs import InputFile, Job, JobFailed, Scalar, sha256_of, slug
from .sheet import write_sheet

logger = logging.getLogger(__name__)

OF_ALL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
"""Errors of the disk, which the next job would have as well."""

RECORD, FAILURE, TABLE, SHEET, LOCK = "job.json", "error.json", "table.csv", "contact_sheet.html", ".lock"


class OutputFile(BaseModel):
    """A file that a job made, in its folder."""

    name: str
    bytes: int
    sha256: str


class Record(BaseModel):
    """`job.json`: what a finished job was and what it made.

    Attributes:
        identity, name, job_file, row: the job's.
        workflow: name of its file.
        values: by column; of a file, what the job file calls it.
        input_files: column -> SHA-256 of the file.
        where: which server or worker ran it.
        versions: of what ran it, such as `comfyui`, `torch`.
        started: when, in UTC.
        seconds: how long it took, fetching its files included.
        tries: how often it was begun.
        files: what it made.
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)  # which the sheet's JSON has not
    identity: str
    name: str
    job_file: str = ""
    row: int
    workflow: str
    values: dict[str, Scalar]
    input_files: dict[str, str] = Field(default_factory=dict)
    where: str
    versions: dict[str, str] = Field(default_factory=dict)
    started: datetime
    seconds: float
    tries: int = 1
    files: list[OutputFile]


class Failure(BaseModel):
    """`error.json`: why a job failed the last time.

    Attributes:
        identity, job_file, row: the job's.
        message: one or few lines, in the words of what ran it.
        details: such as a traceback.
    """

    model_config = ConfigDict(extra="ignore")
    identity: str
    job_file: str = ""
    row: int = 0
    message: str
    details: str = ""
    where: str = ""
    tries: int = 1
    when: datetime = Field(default_factory=lambda: datetime.now(timezone.utc))


Written = TypeVar("Written", Record, Failure)


class Outputs:
    """The folder of a batch. Use it in a `with` block, which keeps a second run out of the folder.

    Args:
        folder: made when absent.
        jobs: of the batch, for the table.

    Raises:
        OSError: the folder cannot be written, or another run is at work in it.
    """

    def __init__(self, folder: str | os.PathLike, jobs: Sequence[Job]):
        self.folder = Path(folder).resolve()
        self.jobs = {job.identity: job for job in jobs}
        self.records: dict[str, Record] = {}
        self.failures: dict[str, Failure] = {}
        self._folders: dict[str, Path] = {}
        self._lock = FileLock(self.folder / LOCK, timeout=0)

    def __enter__(self) -> Outputs:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except FileExistsError as error:
            raise OSError(f"expected a folder for the results, got the file {self.folder}") from error
        except Timeout as error:
            raise OSError(
                f"another run is at work in {self.folder}: wait for it, or choose another --out"
            ) from error
        for entry in sorted(self.folder.iterdir()):
            try:
                if entry.is_dir():
                    self._read_folder(entry)
            except OSError as error:
                logger.warning("%s cannot be read: %s", entry.name, error.strerror or error)
        return self

    def __exit__(self, *_) -> None:
        self._lock.release()

    def is_done(self, job: Job) -> bool:
        """Whether a finished folder of this very content is there."""
        return job.identity in self.records

    def begin(self, job: Job) -> JobFolder:
        """A folder to put the files of a job into.

        Raises:
            JobFailed: it cannot be made.
            OSError: no job's folder can.
        """
        folder = self._folders.get(job.identity) or self.folder / f"{job.name}-{mark(job)}"
        with self._writing_of_one():
            folder.mkdir(exist_ok=True)
        return JobFolder(self, job, folder)

    def fail(self, job: Job, message: str, *, details: str = "", where: str = "", tries: int = 1) -> None:
        """Keep why a job failed, until it succeeds."""
        failure = Failure(
            identity=job.identity,
            job_file=job.job_file,
            row=job.row,
            message=message,
            details=details,
            where=where,
            tries=tries,
        )
        self.failures[job.identity] = failure
        try:
            folder = self.begin(job).folder
            with self._writing_of_one():
                _write_json(folder / FAILURE, failure)
        except JobFailed as error:
            logger.warning("%s: %s is not written: %s", job.name, FAILURE, error)

    def rows(self) -> list[dict[str, str | float | int]]:
        """The table: a row for each job, in the order of the job file, then other finished ones in the folder."""
        others = [identity for identity in self.records if identity not in self.jobs]
        rows = [self._row(identity) for identity in [*self.jobs, *others]]
        columns = dict.fromkeys(column for row in rows for column in row)
        last = ["seconds", "tries", "where", "files", "error"]
        order = [column for column in columns if column not in last] + last
        return [{column: row.get(column, "") for column in order} for row in rows]

    def write_table(self) -> Path:
        """Write `table.csv`, as spreadsheets open it."""
        rows = self.rows()
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["status"])
        writer.writeheader()
        writer.writerows(rows)
        path = self.folder / TABLE
        with whole_file(path) as partial:
            partial.write_bytes(text.getvalue().encode("utf-8-sig", errors="replace"))
        return path

    def write_sheet(self, title: str) -> Path:
        """Write the contact sheet, one page that shows the batch."""
        entries = []
        for row in self.rows():
            names = [name for name in str(row["files"]).split("; ") if name]
            entries.append((row, [self.folder / str(row["folder"]) / name for name in names]))
        named = {c for job in self.jobs.values() for c, v in job.values.items() if isinstance(v, InputFile)}
        named |= {column for record in self.records.values() for column in record.input_files}
        return write_sheet(self.folder / SHEET, title, entries, sorted(named))

    @contextmanager
    def _writing_of_one(self) -> Iterator[None]:
        """Make an error of one job's own files that job's; one that all would have goes on as it is."""
        try:
            yield
        except OSError as error:
            if error.errno in OF_ALL or not self.folder.is_dir():
                raise
            # Of a file that cannot be moved into place the first is its temporary name.
            name = Path(str(error.filename2 or error.filename or "")).name
            raise JobFailed(f"its results cannot be written: {error.strerror or error} ({name})") from error

    def _row(self, identity: str) -> dict[str, str | float | int]:
        job, record, failure = (kind.get(identity) for kind in (self.jobs, self.records, self.failures))
        folder = self._folders.get(identity)
        row = {
            "status": "done" if record else "failed" if failure else "waiting",
            "name": record.name if record else job.name,
            "row": job.row if job else "",
            "folder": folder.name if folder else "",
            "workflow": record.workflow if record else job.workflow.stem,
        }
        values = _said(job) if job else record.values
        # A column may have the name of one of ours.
        row |= {(f"value {column}" if column in _OWN else column): value for column, value in values.items()}
        if record:
            row["seconds"], row["tries"], row["where"] = round(record.seconds, 2), record.tries, record.where
            row["files"] = "; ".join(file.name for file in record.files)
        elif failure:
            row["error"], row["tries"], row["where"] = failure.message, failure.tries, failure.where
        return row

    def _read_folder(self, folder: Path) -> None:
        for left in folder.glob(
            "*.partial"
        ):  # of a run that was killed; the lock says that no other is at work
            if left.is_file():
                left.unlink(missing_ok=True)
        record, failure = _if_sound(folder / RECORD, Record), _if_sound(folder / FAILURE, Failure)
        if record and all(_is_there(folder, file) for file in record.files):
            self.records[record.identity] = record
            self._folders[record.identity] = folder
        elif record:
            logger.warning(
                "%s: files that %s names are missing or cut; the job runs again", folder.name, RECORD
            )
        if failure and failure.identity not in self.records:
            self.failures[failure.identity] = failure
            self._folders.setdefault(failure.identity, folder)


_OWN = {"status", "name", "row", "folder", "workflow", "seconds", "tries", "where", "files", "error"}


class JobFolder:
    """The folder of a job at work; `finish` makes it a finished one."""

    def __init__(self, outputs: Outputs, job: Job, folder: Path):
        self.folder = folder
        self._outputs = outputs
        self._job = job
        self._names: list[str] = []
        outputs._folders[job.identity] = folder

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """A path to write a file to, which appears whole or not at all under a readable name.

        Args:
            name: as whoever made it calls it; a counter such as `_00001_` and the mark of the job go.

        Raises:
            JobFailed: it cannot be written.
        """
        path = self.folder / self._free_name(name)
        with self._outputs._writing_of_one(), whole_file(path) as partial:
            yield partial
        self._names.append(path.name)

    def finish(
        self, *, started: datetime, seconds: float, where: str, versions: dict[str, str], tries: int = 1
    ) -> Record:
        """Write `job.json` last of all: from now on the job is done.

        Raises:
            JobFailed: it cannot be written.
        """
        with self._outputs._writing_of_one():
            record = self._write_record(started, seconds, where, versions, tries)
        self._outputs.records[self._job.identity] = record
        self._outputs.failures.pop(self._job.identity, None)
        return record

    def _write_record(
        self, started: datetime, seconds: float, where: str, versions: dict[str, str], tries: int
    ) -> Record:
        job = self._job
        files = [
            OutputFile(
                name=name, bytes=(self.folder / name).stat().st_size, sha256=sha256_of(self.folder / name)
            )
            for name in self._names
        ]
        record = Record(
            identity=job.identity,
            name=job.name,
            job_file=job.job_file,
            row=job.row,
            workflow=job.workflow.stem,
            values=_said(job),
            input_files={c: value.sha256 for c, value in job.values.items() if isinstance(value, InputFile)},
            where=where,
            versions=versions,
            started=started,
            seconds=round(seconds, 3),
            tries=tries,
            files=files,
        )
        _write_json(self.folder / RECORD, record)
        (self.folder / FAILURE).unlink(missing_ok=True)
        return record

    def _free_name(self, name: str) -> str:
        stem, dot, suffix = name.replace("\\", "/").rpartition("/")[2].rpartition(".")
        stem, suffix = (stem, slug(suffix)) if dot else (suffix, "")
        stem = re.sub(r"_\d{5}(_?$|(?=_\D))", "", stem.replace(f"_{mark(self._job)}", ""))
        stem = slug(slug(stem).strip("_") or "file")  # again: a name such as _con_ became another
        taken = {RECORD, FAILURE} | {name.lower() for name in self._names}
        for number in range(1, len(self._names) + 3):
            numbered = (stem if number == 1 else f"{stem}_{number}") + (f".{suffix}" if suffix else "")
            if numbered.lower() not in taken:
                return numbered
        raise AssertionError("more names taken than there are")


def default_folder(jobs: Path) -> Path:
    """Where the results of a job file go: beside it, under its name."""
    return jobs.with_name(f"{jobs.stem}_outputs")


def mark(job: Job) -> str:
    """What tells the files of a job apart in a folder that others write to, such as a server's."""
    return job.identity[:8]


def _said(job: Job) -> dict[str, Scalar]:
    return {c: value.text if isinstance(value, InputFile) else value for c, value in job.values.items()}


def _is_there(folder: Path, file: OutputFile) -> bool:
    path = folder / file.name
    return path.name == file.name and path.is_file() and path.stat().st_size == file.bytes


def _write_json(path: Path, content: BaseModel) -> None:
    with whole_file(path) as partial:
        partial.write_bytes((content.model_dump_json(indent=2) + "\n").encode("utf-8", errors="replace"))


def read_written(path: Path, kind: type[Written]) -> Written:
    """A `job.json` or `error.json`.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be read.
    """
    with reading(path, "is damaged", "the job runs again"):
        try:
            return kind.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ValueError(_wrong(error)) from error


KINDS = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "finite": "a number",
    "bool": "text, a number, true or false",
    "datetime": "a time",
    "dict": "names with values",
    "list": "a list",
    "model": "an object",
}
"""First word of the types of pydantic's errors -> what was expected."""


def _wrong(error: ValidationError) -> str:
    """What was expected in a file and what came, by the first thing that is wrong with it."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"])).removesuffix(".bool")  # the first kind that a value may have
    word = first["type"].partition("_")[0]
    if word == "json":
        return "expected JSON, got what is none, or only a part"
    if word == "missing":
        return f"expected {place}, got nothing"
    return (
        f"expected {KINDS.get(word, 'another value')} as {place or 'the whole'}, got {first['input']!r:.60}"
    )


def _if_sound(path: Path, kind: type[Written]) -> Written | None:
    """The content of a file, or None where there is none or it is damaged."""
    if not path.is_file():
        return None
    try:
        return read_written(path, kind)
    except (ValueError, OSError) as error:
        logger.warning("%s: %s", path.parent.name, error)
        return None
