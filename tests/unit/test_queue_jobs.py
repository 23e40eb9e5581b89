"""The job file: how rows multiply, what a job's identity is, and what is said about mistakes."""

import json
import shutil
from glob import glob
from pathlib import Path

import pytest

from svimo_queue import jobs, patterns
from svimo_queue.jobs import InputFile, JobFileError, read_jobs, read_what_can_be, read_workflow, slug

ROOT = Path(__file__).resolve().parents[2]
OURS = "image_to_video_and_motion"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("b.png", "a.png"):
        (tmp_path / "images" / name).write_bytes(name.encode())
    return tmp_path


def csv(folder, text: str):
    (folder / "jobs.csv").write_text(text, encoding="utf-8")
    return read_jobs(folder / "jobs.csv")


def jsonl(folder, *rows: dict):
    (folder / "jobs.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return read_jobs(folder / "jobs.jsonl")


def test_rows_multiply_in_order(folder):
    jobs = csv(
        folder,
        f"workflow,image,prompt,seed,8.cfg\n{OURS},images/*.png,stir | pour 1-2 cups,0-2,1.5\n{OURS},,one,,\n",
    )
    assert len(jobs) == 2 * 2 * 3 + 1
    assert [job.values["seed"] for job in jobs[:4]] == [0, 1, 2, 0]
    assert [job.values["image"].path.name for job in jobs[:12:6]] == ["a.png", "b.png"]
    assert [job.values["prompt"] for job in jobs[:6:3]] == ["stir", "pour 1-2 cups"]
    assert jobs[0].values["8.cfg"] == 1.5
    assert jobs[-1].values == {"prompt": "one"}
    assert jobs[-1].row == 3
    assert (jobs[0].name, jobs[-1].name) == ("a-stir-seed-0-cfg-1.5", "one")


def test_csv_and_jsonl_say_the_same_jobs(folder):
    lines = csv(folder, f'workflow,image,prompt,seed\n{OURS},images/*.png,"stir, slowly","1, 5, 7-9"\n')
    row = {"workflow": OURS, "image": ["images/a.png", "images/b.png"], "prompt": "stir, slowly"}
    assert [job.identity for job in jsonl(folder, row | {"seed": [1, 5, 7, 8, 9]})] == [
        job.identity for job in lines
    ]
    assert [job.values["prompt"] for job in jsonl(folder, row | {"prompt": ["a | b"]})] == ["a | b"] * 2


def test_patterns_may_lie_elsewhere(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("elsewhere")
    for name in ("a.png", "b.png"):
        shutil.copy(folder / "images" / name, other)
    here, there = (csv(folder, f"workflow,image\n{OURS},{x}/*.png\n") for x in ("images", other.as_posix()))
    assert [job.identity for job in here] == [job.identity for job in there]


def test_identity_is_content(folder):
    shutil.copy(ROOT / "workflows" / "api" / f"{OURS}.json", folder / "mine.json")
    shutil.copy(folder / "images" / "a.png", folder / "copy.png")
    (one,) = csv(folder, "workflow,image,seed\nmine.json,images/a.png,1\n")
    (moved,) = csv(folder, "name,workflow,image,seed\nother name,mine.json,copy.png,1\n")
    assert one.identity == moved.identity
    (ours,) = csv(folder, f"workflow,image,seed\n{OURS},images/a.png,1\n")
    assert one.identity == ours.identity

    (folder / "images" / "a.png").write_bytes(b"painted over")
    (painted,) = csv(folder, "workflow,image,seed\nmine.json,images/a.png,1\n")
    graph = json.loads((folder / "mine.json").read_text())
    graph["8"]["inputs"]["steps"] += 1
    (folder / "mine.json").write_text(json.dumps(graph))
    (changed,) = csv(folder, "workflow,image,seed\nmine.json,copy.png,1\n")
    assert len({one.identity, painted.identity, changed.identity}) == 3


def test_same_job_twice_runs_once(folder, caplog):
    jobs = csv(folder, f"workflow,seed\n{OURS},0-2\n{OURS},2-3\n")
    assert [job.values["seed"] for job in jobs] == [0, 1, 2, 3]
    assert "row 3: seed-2 is the same job as seed-2 of row 2" in caplog.text


def test_spreadsheets_of_other_countries(folder):
    for first in ("", "sep=;\r\n"):  # Excel's own line, which it hides: rows count without it
        (job,) = csv(folder, f"\ufeff{first}workflow;prompt\r\n{OURS};\u7528\u52fa\u5b50\r\n")
        assert (job.values, job.row) == ({"prompt": "\u7528\u52fa\u5b50"}, 2)
    (job,) = csv(folder, f"sep=|\nworkflow|prompt\n{OURS}|a, b; c\n")
    assert job.values == {"prompt": "a, b; c"}
    # empty columns at the end are what is left of others
    (job,) = csv(folder, f"workflow,prompt,,\n{OURS},a,,\n")
    assert job.values == {"prompt": "a"}
    for text, message in (
        (
            f"workflow;8.cfg\n{OURS};2,5\n",
            r"column 8\.cfg: expected 2\.5 for one number, or 2, 5 for two, got 2,5",
        ),
        (
            f'workflow,width\n{OURS},"1,024"\n',
            "expected 1024 for one number, or 1, 024 for several, got 1,024",
        ),
        (f"workflow,\n{OURS},a\n", "row 2: expected a name in the header for the column with a, got none"),
    ):
        with pytest.raises(JobFileError, match=message):
            csv(folder, text)


def test_results_of_jobs_are_no_input_for_a_pattern(folder):
    """Or the same command again would find more jobs each time."""
    for name in ("jobs_outputs/one/job.json", "jobs_outputs/one/x.png", "jobs_outputs/two/error.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}")
    found = [path.name for path in patterns.matching(folder, "**/*.*")]
    assert found == ["a.png", "b.png"]
    assert [path.name for path in patterns.matching(folder, "jobs_outputs/*/*.png")] == ["x.png"]


def test_all_mistakes_are_said_at_once(folder):
    with pytest.raises(JobFileError) as error:
        csv(
            folder,
            "workflow,image,seed,prompt\n"
            ",images/a.png,1,x\n"
            "no_such_one,images/a.png,1,x\n"
            f"{OURS},images/c.png,9-0,x\n"
            f"{OURS},images,1,x,y\n"
            f"{OURS},images,1,x\n"
            f"{OURS},*.jpg,1,x\n",
        )
    expected = [
        "jobs.csv, row 2, column workflow: expected an API-format file or the name of one of ours, got nothing",
        "jobs.csv, row 3, column workflow: expected an API-format file (.json) or the name of one of ours, "
        "got no_such_one; ours are in workflows/api",
        "jobs.csv, row 4, column image: there is no file images/c.png",
        "jobs.csv, row 4, column seed: expected a range from low to high",
        "jobs.csv, row 5: expected 4 cells as in the header, got 5; a cell with a comma needs quotes",
        "jobs.csv, row 6, column image: expected a file, got the folder images; write images/*.png",
        "jobs.csv, row 7, column image: no file matches *.jpg",
    ]
    said = str(error.value).splitlines()
    assert len(said) == len(expected)
    for line, start in zip(said, expected, strict=True):
        assert line.startswith(start)


def test_a_column_that_is_almost_the_workflow(folder):
    with pytest.raises(JobFileError, match=r"row 2, column workflow: .* is it the column Worflow\?"):
        csv(folder, f"Worflow,seed\n{OURS},1\n")


def test_a_workflow_that_is_almost_ours_and_a_folder_as_job_file(folder):
    with pytest.raises(JobFileError, match=r"got image_to_motion_and_video; did you mean .*motion_to_video"):
        csv(folder, "workflow\nimage_to_motion_and_video\n")
    with pytest.raises(JobFileError, match=r"expected a job file, got the folder .*images; name the \.csv"):
        read_jobs(folder / "images")


def test_a_name_twice_in_one_object(folder):
    rows = [f'{{"workflow": "{OURS}", "seed": 1}}', f'{{"workflow": "{OURS}", "seed": 1, " seed": 2}}']
    (folder / "jobs.jsonl").write_text("\n".join(rows))
    with pytest.raises(JobFileError) as error:
        read_jobs(folder / "jobs.jsonl")
    assert str(error.value) == "jobs.jsonl, row 2, column seed: expected each name once, got it twice"


def test_what_is_sound_beside_mistakes_can_be_checked(folder):
    text = (
        f'workflow,image,seed\n{OURS},images/*.png,9-0\n{OURS},none.png,0-1\n,a.png,1\n{OURS},images/a.png,"1'
    )
    (folder / "jobs.csv").write_text(text)
    jobs, problems = read_what_can_be(folder / "jobs.csv")
    assert [(problem.row, problem.where) for problem in problems] == [
        (5, ""),
        (2, "column seed"),
        (3, "column image"),
        (4, "column workflow"),
    ]
    assert [(job.row, sorted(job.values), sorted(job.unread)) for job in jobs] == [
        *[(2, ["image"], ["seed"])] * 2,
        *[(3, ["seed"], ["image"])] * 2,
    ]


def test_a_pattern_reads_what_glob_would(folder):
    for name in ("images/c/d/e.png", "images/c/f.png", "images/c/.hidden/g.png", "images/.h.png", "x[1].png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    for pattern in (
        "**/*.png",
        "images/**",
        "*/?.png",
        "**/c/*.png",
        "images/../*.png",
        "x[[]1].png",
        "**/d/**/*",
    ):
        found = [path.relative_to(folder).as_posix() for path in patterns.matching(folder, pattern)]
        known = {Path(name).as_posix() for name in glob(pattern, root_dir=folder, recursive=True)}
        assert found == sorted(name for name in known if (folder / name).is_file()), pattern
        assert patterns.matching(folder, f"{folder.as_posix()}/{pattern}") == [
            folder / name for name in found
        ]


def test_a_pattern_of_the_whole_disk_ends_soon_and_what_takes_long_is_said(folder, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(patterns, "MOST_ENTRIES", 2)
    monkeypatch.setattr(jobs, "SAY_EVERY", -1.0)
    with pytest.raises(JobFileError) as error:
        csv(folder, f"workflow,image\n{OURS},/**\n{OURS},images/*.png\n")
    assert str(error.value) == (
        "jobs.csv, row 2, column image: expected a pattern that looks at no more than 2 files and folders, "
        "got /**; name a folder further down"
    )
    assert "jobs.csv: looking for /**: 2 files and folders so far" in caplog.text
    assert "jobs.csv: reading input files: 0.0 GB so far, now " in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("jobs.csv", b"", "at least one row"),
        ("jobs.csv", b"workflow,seed\n", "at least one row"),
        ("jobs.csv", b"workflow,seed,seed\nx,1,2\n", "row 1, column seed: expected each name once"),
        ("jobs.csv", b"workflow\n\xff\xfe", "not UTF-8 text .*CSV UTF-8"),
        ("jobs.csv", b'workflow\n"open', "jobs.csv, row 2: expected CSV"),
        ("jobs.txt", b"", r"ends in .csv or .jsonl"),
        ("jobs.jsonl", b'{"workflow": NaN}', "row 1: expected one JSON object"),
        ("jobs.jsonl", b"[" * 100_000, "row 1: expected one JSON object"),
        ("jobs.jsonl", b"[1]", "row 1: expected one JSON object"),
        ("jobs.jsonl", rb'{"workflow": "\ud800"}', "row 1, column workflow: expected text that UTF-8 can"),
        (
            "jobs.jsonl",
            rb'{"workflow": "image_to_video_and_motion", "prompt": ["a", "b\ud800"]}',
            "column prompt: exp",
        ),
        (
            "jobs.csv",
            b"workflow,image\nimage_to_video_and_motion,~no_such_user/x.png",
            "row 2, column image: .*home",
        ),
        ("jobs.csv", b"workflow\n~no_such_user/x.json", "row 2, column workflow: .*no such home folder"),
        ("jobs.jsonl", b'{"workflow": "mine.json"}', "row 1, column workflow: there is no file mine.json"),
        (
            "jobs.jsonl",
            b'{"workflow": "image_to_video_and_motion", "seed": {"a": 1}}',
            "column seed: expected text, a num",
        ),
        (
            "jobs.jsonl",
            b'{"workflow": "image_to_video_and_motion", "a": "0-9999", "b": "0-9999"}',
            "at most 100000 jobs",
        ),
    ],
)
def test_a_bad_file_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(JobFileError, match=message):
        read_jobs(tmp_path / name)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no job file jobs.csv"):
        read_jobs(tmp_path / "jobs.csv")


def test_a_workflow_of_the_page_says_how_to_export(tmp_path):
    shutil.copy(ROOT / "workflows" / f"{OURS}.json", tmp_path / "page.json")
    with pytest.raises(ValueError, match=r"page.json is a workflow for ComfyUI's page.*Export \(API\)"):
        read_workflow(tmp_path / "page.json")
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"list.json is no workflow in API format"):
        read_workflow(tmp_path / "list.json")


def test_a_node_input_is_a_file_where_there_is_one(folder):
    jobs = jsonl(
        folder,
        {"workflow": OURS, "2.image": "images/*.png", "4.text": "see notes.txt", "3.tool": "what?.really"},
    )
    assert [job.values["2.image"].text for job in jobs] == ["images/a.png", "images/b.png"]
    assert isinstance(jobs[0].values["2.image"], InputFile)
    assert jobs[0].values["4.text"] == "see notes.txt"
    assert jobs[0].values["3.tool"] == "what?.really"


def test_a_slug_is_a_name_everywhere():
    assert len(slug("\u7528" * 300).encode()) <= 80
    assert (slug("con.old name"), slug("LPT1"), slug("contour")) == (
        "job-con.old-name",
        "job-LPT1",
        "contour",
    )
