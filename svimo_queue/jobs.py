"""The job file: rows of readable values that multiply into jobs, each known by a hash of its content.

A CSV or JSONL file has a `workflow` in each row and any other columns: `prompt`, `seed`, `image`, or `node.input`.
Nothing in here knows what runs the jobs.
"""

from __future__ import annotations

import csv
import difflib
import glob
import hashlib
import io
import itertools
import json
import logging
import math
import re
import textwrap
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, SkipValidation

from svimo_core.files import reason

from .patterns import matching

logger = logging.getLogger(__name__)

OUR_WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows" / "api"
FILE_COLUMNS = {"image", "mask", "video", "audio", "motion", "mesh", "file"}
"""Whose values are files on this machine, by a path relative to the job file."""
TEXT_COLUMNS = {"name", "workflow", "prompt", "negative_prompt", "text"}
"""Whose values are never read as numbers."""
MOST_JOBS = 100_000
SAY_EVERY = 5.0
"""Seconds between two words on reading what takes long."""
NUMBER = re.compile(r"-?\d{1,20}(\.\d{1,20})?")
RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9\u00b9\u00b2\u00b3])", re.IGNORECASE)
"""What Windows keeps for devices, whatever follows after a dot."""
SEPARATOR = re.compile(r"sep=([^\w\s\"]|\t)\r?\n", re.IGNORECASE)
"""A line that Excel writes and hides: it counts no row."""
RANGE = re.compile(r"(\d{1,20})-(\d{1,20})")


class JobFileError(ValueError):
    """A job file with mistakes; the message has one line for each of them."""


SAME_AGAIN = (
    *(ValueError, TypeError, LookupError, ArithmeticError, AttributeError),
    *(AssertionError, NotImplementedError),
)
"""Errors that are about what a node was given, and come again with it."""


class JobFailed(Exception):
    """A job did not succeed.

    Attributes:
        details: more than the message, such as a traceback.
        again: whether another try may end otherwise.
    """

    def __init__(self, message: str, details: str = "", *, again: bool = True):
        super().__init__(message)
        self.details = details
        self.again = again


class JobStalled(JobFailed):
    """A running job made no progress for too long; it is still running."""


class InputFile(BaseModel):
    """A file that a job takes.

    Attributes:
        path: on this machine.
        text: as the job file names it.
        sha256: of its bytes.
    """

    model_config = ConfigDict(frozen=True)
    path: Path
    text: str
    sha256: str


Scalar = bool | int | float | str
Value = InputFile | Scalar


class Job(BaseModel):
    """One run of a workflow with one set of values.

    Attributes:
        identity: SHA-256 of the workflow, the values and the bytes of their files; the same in every run.
        name: readable, for people; two jobs may share it.
        job_file: name of the job file.
        row: in it, as a spreadsheet counts (the header is row 1), or the line of a JSONL file.
        workflow: the API-format file.
        graph: what is in it, node id -> {class_type, inputs}.
        values: by column, in the order of the file; without the columns `workflow` and `name`.
        unread: columns that have no value here because their cell is wrong; such a job is only to be checked.
    """

    model_config = ConfigDict(frozen=True)
    identity: str
    name: str
    job_file: str
    row: int
    workflow: Path
    graph: SkipValidation[dict[str, dict[str, Any]]]  # else each job would have its own copy
    values: dict[str, Value]
    unread: frozenset[str] = frozenset()

    @property
    def title(self) -> str:
        """Its name and where it stands."""
        return f"{self.name} ({self.job_file}, row {self.row})"


class Problem(NamedTuple):
    """Something that is wrong with a row of a job file."""

    job_file: str
    row: int
    where: str
    """In the row: a column, or the workflow; empty for all of it."""
    text: str


def say_problems(problems: Iterable[Problem]) -> str:
    """One line for each problem, by row, that begins with the job file; the same one in several rows is one line."""
    rows: dict[tuple[str, str, str], set[int]] = {}
    for job_file, row, where, text in problems:
        rows.setdefault((job_file, where, text), set()).add(row)
    lines = []
    for (job_file, where, text), numbers in sorted(rows.items(), key=lambda item: min(item[1])):
        few, more = sorted(numbers)[:8], len(numbers) - 8
        shown = f"row{'s' if len(numbers) > 1 else ''} {', '.join(map(str, few))}"
        shown += f" and {more} more" if more > 0 else ""
        lines.append(_one_line(f"{', '.join(filter(None, (job_file, shown, where)))}: {text}"))
    return "\n".join(lines)


def _one_line(text: str) -> str:
    """A text that quotes what people wrote, as a line that a terminal shows."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def read_jobs(path: str | Path) -> list[Job]:
    """The jobs of a `.csv` or `.jsonl` file, in its order; rows that say the same job give it once.

    Raises:
        FileNotFoundError: no such file.
        JobFileError: it cannot be read, or rows are wrong; names every mistake.
    """
    jobs, problems = read_what_can_be(path)
    if problems:
        raise JobFileError(say_problems(problems))
    return jobs


def read_what_can_be(path: str | Path) -> tuple[list[Job], list[Problem]]:
    """The jobs of a file as far as it can be read, and what is wrong with it; see :func:`read_jobs`.

    Where anything is wrong the jobs are there to be checked, not to be run.

    Raises:
        FileNotFoundError: no such file.
        JobFileError: nothing of it can be read.
    """
    path = Path(path)
    problems = _Problems(path)
    reader = _RowReader(path, problems)
    drafts = [draft for row, cells in _read_rows(path, problems) for draft in reader.multiply(row, cells)]
    if not (drafts or problems.found):
        raise JobFileError(
            f"{path.name}: expected a header and at least one row below it, or one JSON object a line"
        )

    jobs: dict[str, Job] = {}
    names = _names(drafts)
    for draft, name in zip(drafts, names, strict=True):
        reader.say(f"{len(jobs)} of {len(drafts)} jobs")
        values = {c: value for c, value in draft.values.items() if c not in ("workflow", "name")}
        workflow, graph, digest = reader.workflow(draft.values["workflow"])
        identity = _identity(digest, values)
        if draft.unread:
            identity += f" {len(jobs)}"  # a job without its values is like no other
        if identity in jobs:
            logger.warning(
                "%s, row %d: %s is the same job as %s of row %d; it runs once",
                path.name,
                draft.row,
                name,
                jobs[identity].name,
                jobs[identity].row,
            )
            continue
        jobs[identity] = Job(
            identity=identity,
            name=name,
            job_file=path.name,
            row=draft.row,
            workflow=workflow,
            graph=graph,
            values=values,
            unread=draft.unread,
        )
    return list(jobs.values()), problems.found


def read_workflow(path: Path) -> dict[str, dict[str, Any]]:
    """The graph of an API-format file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file; says how to export one.
    """
    how = "in ComfyUI open the workflow and choose Workflow > Export (API)"
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path.name} in {path.parent}")
    try:
        graph = json.loads(path.read_bytes(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is no JSON ({reason(error)}): {how}") from error
    if isinstance(graph, dict) and isinstance(graph.get("prompt"), dict):
        graph = graph["prompt"]  # as a program posts it
    if isinstance(graph, dict) and isinstance(graph.get("nodes"), list):
        raise ValueError(f"{path.name} is a workflow for ComfyUI's page, expected its API format: {how}")
    if not isinstance(graph, dict) or not graph or not all(_is_node(node) for node in graph.values()):
        raise ValueError(
            f"{path.name} is no workflow in API format (node id -> class_type and inputs): {how}"
        )
    return graph


def _is_node(node: Any) -> bool:
    return (
        isinstance(node, dict)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), dict)
    )


def sha256_of(path: Path, on_block: Callable[[int], None] = lambda size: None) -> str:
    """SHA-256 of a file, in hexadecimal.

    Args:
        on_block: called with the size in bytes of each part that was read.
    """
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
            on_block(len(block))
    return digest.hexdigest()


class _Problems:
    """Mistakes of a job file, gathered so that all are said at once."""

    def __init__(self, path: Path):
        self.path = path
        self.found: list[Problem] = []

    def add(self, row: int, column: str, text: str) -> None:
        self.found.append(Problem(self.path.name, row, column and f"column {column[:60]}", text))


def _read_rows(path: Path, problems: _Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row number and column -> what is written there, of each row that is not empty."""
    if path.is_dir():
        raise JobFileError(f"expected a job file, got the folder {path}; name the .csv or .jsonl in it")
    if not path.is_file():
        raise FileNotFoundError(f"there is no job file {path.name} in {path.parent.resolve()}")
    kind = path.suffix.lower()
    if kind not in (".csv", ".jsonl"):
        raise JobFileError(f"{path.name}: expected a job file that ends in .csv or .jsonl")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JobFileError(
            f"{path.name} is not UTF-8 text (byte {error.start}): save it as 'CSV UTF-8'"
        ) from None
    yield from (_csv_rows if kind == ".csv" else _json_rows)(text, problems)


def _csv_rows(text: str, problems: _Problems) -> Iterator[tuple[int, dict[str, str]]]:
    if said := SEPARATOR.match(text):
        text, separator = text[said.end() :], said[1]
    else:  # a spreadsheet of many countries writes semicolons
        separator = max(",;\t", key=text.split("\n", 1)[0].count)
    rows: list[list[str]] = []
    try:
        rows += csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    except csv.Error as error:
        wrong = f"expected CSV, got what is none from here on ({error}); save it anew from a spreadsheet"
        problems.add(len(rows) + 1, "", wrong)
    if not rows:
        return
    columns = [column.strip() for column in rows[0]]
    for column in {column for column in columns if column and columns.count(column) > 1}:
        problems.add(1, column, "expected each name once, got it twice")
    for number, cells in enumerate(rows[1:], 2):
        cells = [cell.strip() for cell in cells]
        for column, cell in zip(columns, cells, strict=False):
            if cell and not column:
                problems.add(
                    number, "", f"expected a name in the header for the column with {cell[:60]}, got none"
                )
            elif separator == ";" and column not in TEXT_COLUMNS and re.fullmatch(r"-?\d+,\d+", cell):
                ways = f"{cell.replace(',', '.')} for one number, or {cell.replace(',', ', ')} for two"
                problems.add(number, column, f"expected {ways}, got {cell}")
        if not any(cells):
            continue
        if any(cells[len(columns) :]):
            problems.add(
                number,
                "",
                f"expected {len(columns)} cells as in the header, got {len(cells)}; a cell with a comma needs quotes",
            )
            continue
        yield number, {column: cell for column, cell in zip(columns, cells, strict=False) if column and cell}


def _json_rows(text: str, problems: _Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_no_constant, object_pairs_hook=_each_once)
        except _Twice as twice:
            problems.add(number, str(twice), "expected each name once, got it twice")
            continue
        except (ValueError, RecursionError) as error:
            problems.add(
                number, "", f"expected one JSON object on the line, got {line.strip()[:60]} ({reason(error)})"
            )
            continue
        if not isinstance(row, dict):
            problems.add(number, "", f"expected one JSON object on the line, got {line.strip()[:60]}")
            continue
        yield number, {column: value for column, value in row.items() if value is not None}


def _no_constant(name: str):
    raise ValueError(f"{name} is no number of JSON's")


class _Twice(ValueError):
    """A name that an object of JSON's has more than once; other readers take the last, or the first."""


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = {}
    for column, value in ((column.strip(), value) for column, value in pairs):
        if column in row:
            raise _Twice(column)
        row[column] = value
    return row


class _Draft(NamedTuple):
    """A job before it has a name: its row, what is known of its values, and the columns that are not."""

    row: int
    values: dict[str, Value]
    unread: frozenset[str]


class _RowReader:
    """Turns rows into jobs; reads each workflow and hashes each file once."""

    def __init__(self, path: Path, problems: _Problems):
        self.folder = path.parent
        self.problems = problems
        self.count = 0
        self._files: dict[Path, str] = {}
        self._workflows: dict[Path, tuple[dict, str]] = {}
        self._bytes = 0
        self._said = time.monotonic()

    def multiply(self, row: int, cells: dict[str, Any]) -> list[_Draft]:
        """Every combination of a row's values, the last column fastest; none where its workflow is wrong."""
        if "workflow" not in cells:
            wrong = "expected an API-format file or the name of one of ours, got nothing"
            if close := close_names("workflow", cells):
                wrong += f"; is it the column {close[0]}?"
            self.problems.add(row, "workflow", wrong)
            return []
        choices, unread = {}, set()
        for column, written in cells.items():
            try:
                _check_text(column)
                for value in written if isinstance(written, list) else [written]:
                    _check_text(value)
                choices[column] = self._expand(column, written)
            except (ValueError, OSError) as error:
                self.problems.add(row, column, reason(error))
                unread.add(column)
        if "workflow" in unread:
            return []  # nothing else can be known
        self.count += math.prod(len(values) for values in choices.values())
        if self.count > MOST_JOBS:
            self.problems.add(
                row, "", f"expected at most {MOST_JOBS} jobs in a file, got more by here; split it"
            )
            return []
        combinations = itertools.product(*choices.values())
        unread -= {"name"}
        return [_Draft(row, dict(zip(choices, v, strict=True)), frozenset(unread)) for v in combinations]

    def workflow(self, name: str) -> tuple[Path, dict, str]:
        """Path, graph and SHA-256 of the graph of a workflow, by path or by the name of one of ours.

        Titles of nodes do not count: a workflow with new ones is the same.
        """
        path = self.folder / _expand_user(name)
        if not path.suffix and not path.is_file():
            path = OUR_WORKFLOWS / f"{name}.json"
            if not path.is_file():
                close = close_names(name, (file.stem for file in OUR_WORKFLOWS.glob("*.json")))
                near = f"did you mean {' or '.join(close)}?" if close else "ours are in workflows/api"
                raise FileNotFoundError(
                    f"expected an API-format file (.json) or the name of one of ours, got {name[:60]}; {near}"
                )
        if path not in self._workflows:
            graph = read_workflow(path)
            content = {
                key: {"class_type": n["class_type"], "inputs": n["inputs"]} for key, n in graph.items()
            }
            self._workflows[path] = graph, hashlib.sha256(_canonical(content)).hexdigest()
        return path, *self._workflows[path]

    def _expand(self, column: str, written: Any) -> list[Value]:
        """What a cell stands for, one value or several.

        A string is taken as in a spreadsheet: ` | ` between values, numbers as `0-9` or `1, 5, 7-9`. In a list of
        JSON's each element stands for itself.
        """
        if isinstance(written, str):
            parts = [part.strip() for part in re.split(r"\s\|\s", written)]
            values = [value for part in parts for value in self._read(column, part)]
        else:
            values = written if isinstance(written, list) else [written]
            if not values:
                raise ValueError("expected at least one value in the list, got none")
        if column == "workflow":
            for value in values:
                self.workflow(str(value))
            return [str(value) for value in values]
        expanded: list[Value] = []
        for value in values:
            if not isinstance(value, bool | int | float | str):
                raise ValueError(
                    f"expected text, a number, true or false, or a list of these, got {value!r:.60}"
                )
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"expected a number, got {value}")
            expanded += self._files_of(column, value) if isinstance(value, str) else [value]
        return list(dict.fromkeys(expanded))

    def _read(self, column: str, text: str) -> list[Scalar]:
        if column in TEXT_COLUMNS or column in FILE_COLUMNS:
            return [text]
        if re.fullmatch(r"-?\d{1,3}(,\d{3})+", text):
            one, several = text.replace(",", ""), text.replace(",", ", ")
            raise ValueError(f"expected {one} for one number, or {several} for several, got {text}")
        numbers: list[Scalar] = []
        for part in (part.strip() for part in text.split(",")):
            if span := RANGE.fullmatch(part):
                first, last = int(span[1]), int(span[2])
                if last < first or last - first >= MOST_JOBS:
                    raise ValueError(
                        f"expected a range from low to high of at most {MOST_JOBS} numbers, got {part}"
                    )
                numbers += range(first, last + 1)
            elif NUMBER.fullmatch(part):
                number = float(part) if "." in part else int(part)
                numbers.append(number if str(number) == part or "," in text else part)  # 007 stays what it is
            else:
                return [text]
        return numbers

    def _files_of(self, column: str, text: str) -> list[Value]:
        """The files that a value names; in a column `node.input`, which takes any text, where there are such."""
        needed = column in FILE_COLUMNS
        if column in TEXT_COLUMNS or not (needed or "." in column):
            return [text]
        try:
            pattern = str(_expand_user(text)) if text else ""
        except ValueError:
            if needed:
                raise
            return [text]
        has_suffix = bool(re.search(r"\.\w{1,12}$", pattern)) and "\n" not in pattern and len(pattern) < 1000
        if not (needed or has_suffix):
            return [text]
        if "\0" in pattern:
            raise ValueError("expected the name of a file, got a zero byte in it")
        path, files = self.folder / pattern, []
        if path.is_file():
            return [self._file(path, text)]
        if glob.has_magic(pattern):
            on_entry = lambda count: self.say(f"looking for {text}: {count} files and folders so far")  # noqa: E731
            relative = not Path(pattern).is_absolute()
            for found in matching(self.folder, pattern, on_entry):
                name = found.relative_to(self.folder) if relative else found
                files.append(self._file(found, name.as_posix()))
        if files:
            return files
        if not needed:
            return [text]
        if path.is_dir():
            raise ValueError(
                f"expected a file, got the folder {text}; write {text.rstrip('/')}/*.png, or the like"
            )
        what = "no file matches" if glob.has_magic(pattern) else "there is no file"
        raise FileNotFoundError(f"{what} {text} (looked in {self.folder.resolve()})")

    def _file(self, path: Path, text: str) -> InputFile:
        _check_text(text)  # what a pattern found
        if path not in self._files:
            self._files[path] = sha256_of(path, lambda size: self._count(size, path))
        return InputFile(path=path, text=text, sha256=self._files[path])

    def _count(self, size: int, path: Path) -> None:
        self._bytes += size
        self.say(f"reading input files: {self._bytes / 1e9:.1f} GB so far, now {path}")

    def say(self, text: str) -> None:
        """Say what takes long, every few seconds."""
        if time.monotonic() - self._said > SAY_EVERY:
            self._said = time.monotonic()
            logger.info("%s: %s", self.problems.path.name, text)


def _check_text(value: Any) -> None:
    """Refuse what no file and no server takes: half of a surrogate pair, which JSON can write as an escape."""
    if isinstance(value, str) and (half := re.search("[\ud800-\udfff]", value)):
        raise ValueError(
            f"expected text that UTF-8 can write, got half a character ({half[0]!r}) in {value!r:.60}"
        )


def _expand_user(text: str) -> Path:
    try:
        return Path(text.replace("\\", "/")).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"expected the path of a file, got {text}: this machine knows no such home folder"
        ) from error


def close_names(name: str, names: Iterable[str]) -> list[str]:
    """Up to three of the names, nearest first, that somebody may have meant who wrote another."""
    by_letters = {known.lower().replace(" ", "_"): known for known in sorted(names)}
    close = difflib.get_close_matches(name.lower().replace(" ", "_"), by_letters, n=3)
    return [by_letters[letters] for letters in close]


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _identity(workflow_digest: str, values: dict[str, Value]) -> str:
    content = {
        column: [value.sha256] if isinstance(value, InputFile) else value for column, value in values.items()
    }
    return hashlib.sha256(_canonical([workflow_digest, content])).hexdigest()


def _names(drafts: list[_Draft]) -> list[str]:
    """A readable name for each job: what the row calls it, and the values in which the jobs differ."""
    of_row: dict[int, list[dict[str, Value]]] = {}
    for row, draft, _ in drafts:
        of_row.setdefault(row, []).append(draft)
    everywhere = _varying(draft.values for draft in drafts)
    within = {row: _varying(drafts) for row, drafts in of_row.items()}
    names = []
    for row, draft, _ in drafts:
        varying = within[row] if "name" in draft else everywhere
        parts = [str(draft["name"])] if "name" in draft else []
        parts += [_said(c, value) for c, value in draft.items() if c in varying - {"name", "workflow"}]
        parts += [Path(str(draft["workflow"])).stem] if "workflow" in varying or not parts else []
        names.append(slug(" ".join(parts)))
    return names


def _varying(drafts: Iterable[dict[str, Value]]) -> set[str]:
    """Columns whose values differ, or which only some have."""
    seen: dict[str, list[Value]] = {}
    count = 0
    for count, draft in enumerate(drafts, 1):  # noqa: B007
        for column, value in draft.items():
            seen.setdefault(column, []).append(value)
    return {column for column, values in seen.items() if len(values) < count or len(set(values)) > 1}


def _said(column: str, value: Value) -> str:
    if isinstance(value, InputFile):
        return value.path.stem
    if isinstance(value, str):
        return textwrap.shorten(value, 40, placeholder="")
    return f"{column.rpartition('.')[2]} {value}"


def slug(text: str, length: int = 80) -> str:
    """A text as a name that every file system takes: letters and digits of any language, and hyphens.

    Args:
        text: anything.
        length: of the name at most, in bytes of UTF-8, as file systems count.
    """
    words = re.findall(r"[\w.]+", unicodedata.normalize("NFC", text))
    name = "-".join(words).encode()[:length].decode(errors="ignore").strip("-.") or "job"
    return f"job-{name}" if RESERVED.fullmatch(name.partition(".")[0]) else name
