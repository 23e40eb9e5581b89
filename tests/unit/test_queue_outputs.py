"""The folder of a batch: finished means whole, names are readable, and the table and sheet tell all."""

import csv
import json
import shutil
from datetime import datetime, timezone
from pathlib import Path

import pytest
from PIL import Image

from svimo_queue.jobs import JobFailed, read_jobs, sha256_of
from svimo_queue.outputs import Outputs, Record, read_written

NOW = datetime(2026, 11, 28, tzinfo=timezone.utc)


@pytest.fixture
def jobs(tmp_path):
    path = tmp_path / "jobs.csv"
    path.write_text("workflow,prompt,seed\nimage_to_video_and_motion,use spoon to stir cup,0-2\n")
    return read_jobs(path)


def make(outputs: Outputs, job, *names: str):
    folder = outputs.begin(job)
    for name in names:
        with folder.file(name) as path:
            if name.endswith(".png"):
                Image.new("RGB", (640, 480), "teal").save(path, "PNG")
            else:
                path.write_bytes(name.encode())
    return folder.finish(started=NOW, seconds=1.5, where="here", versions={"torch": "2"})


def test_a_job_is_done_when_its_record_is_there(tmp_path, jobs):
    names = [
        f"video_{jobs[0].identity[:8]}_00001_.mp4",
        "picture_00001_.png",
        "picture_00002_.png",
        "hand_00001_left.bvh",
        "job.json",
    ]
    with Outputs(tmp_path / "out", jobs) as outputs:
        record = make(outputs, jobs[0], *names)
        folder = outputs.begin(jobs[1])
        with folder.file("video.mp4") as path:
            path.write_bytes(b"video")
    made = ["video.mp4", "picture.png", "picture_2.png", "hand_left.bvh", "job_2.json"]
    assert [file.name for file in record.files] == made
    folder = tmp_path / "out" / f"seed-0-{jobs[0].identity[:8]}"
    assert record.files[0].sha256 == sha256_of(folder / "video.mp4")
    assert json.loads((folder / "job.json").read_text())["values"] == {
        "prompt": "use spoon to stir cup",
        "seed": 0,
    }

    with Outputs(tmp_path / "out", jobs) as outputs:
        assert [outputs.is_done(job) for job in jobs] == [True, False, False]
    (folder / "video.mp4").write_bytes(b"cut")
    with Outputs(tmp_path / "out", jobs) as outputs:
        assert not outputs.is_done(jobs[0])


def test_nothing_is_half_written(tmp_path, jobs):
    with Outputs(tmp_path / "out", jobs) as outputs:
        folder = outputs.begin(jobs[0])
        with pytest.raises(ZeroDivisionError), folder.file("a.mp4") as path:
            path.write_bytes(b"half" * (1 // 0))
        assert list(folder.folder.iterdir()) == []
        (folder.folder / "a.mp4.123.partial").write_bytes(b"of a killed run")
    (folder.folder / "job.json").write_text('{"identity": ')
    with Outputs(tmp_path / "out", jobs) as outputs:
        assert not outputs.is_done(jobs[0])
    assert [path.name for path in folder.folder.iterdir()] == ["job.json"]


@pytest.mark.parametrize(
    ("sound", "damaged"), [('"a.png"', '"{folder}/a.png"'), ("1.5", "1e400"), ('"2"', '"2')]
)
def test_a_damaged_record_is_said_and_spoils_neither_table_nor_sheet(tmp_path, jobs, caplog, sound, damaged):
    with Outputs(tmp_path / "out", jobs) as outputs:
        make(outputs, jobs[0], "a.png")
        make(outputs, jobs[1], "b.png")
    path = next((tmp_path / "out").glob("seed-0-*/job.json"))
    path.write_text(path.read_text().replace(sound, damaged.replace("{folder}", path.parent.as_posix())))
    with Outputs(tmp_path / "out", jobs) as outputs:
        assert [outputs.is_done(job) for job in jobs] == [False, True, False]
        assert "job.json" in caplog.text
        outputs.write_table()
        assert "b.png" in outputs.write_sheet("batch").read_text()


def test_two_runs_never_share_a_folder(tmp_path, jobs):
    first, second = (Outputs(tmp_path / "out", jobs) for _ in range(2))
    with first, pytest.raises(OSError, match="another run is at work"):
        second.__enter__()
    with second:
        pass
    with pytest.raises(OSError, match="expected a folder"), Outputs(tmp_path / "jobs.csv", jobs):
        pass


def test_the_table_tells_all(tmp_path, jobs):
    with Outputs(tmp_path / "out", jobs) as outputs:
        make(outputs, jobs[0], "a.png")
        outputs.fail(jobs[1], "KSampler: no memory", details="trace", where="there", tries=2)
        outputs.write_table()
    with Outputs(
        tmp_path / "out", jobs[1:]
    ) as outputs:  # the job file lost a row: its result stays in the table
        with outputs.write_table().open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["status"], row["row"], row["seed"]) for row in rows] == [
            ("failed", "2", "1"),
            ("waiting", "2", "2"),
            ("done", "", "0"),
        ]
        assert rows[0]["error"] == "KSampler: no memory"
        assert rows[2]["files"] == "a.png"

        make(outputs, jobs[1], "b.png")
        assert outputs.rows()[0]["status"] == "done"
        assert not (outputs.folder / rows[0]["folder"] / "error.json").exists()


def test_the_sheet_shows_pictures_and_says_errors(tmp_path, jobs):
    assets = Path(__file__).resolve().parents[2] / "workflows"
    with Outputs(tmp_path / "out", jobs) as outputs:
        make(outputs, jobs[0], "a.png", "broken.mp4", "clip.glb")
        shutil.copy(assets / "motion_to_video.jpg", tmp_path / "out")
        outputs.fail(jobs[1], "<!--<script></script><b>bad</b>")
        page = outputs.write_sheet("a & b").read_text()
    content = page.split('id="batch">')[1].split("</script>")[0]
    batch = json.loads(content)
    assert batch["title"] == "a & b"
    first, second, _ = batch["jobs"]
    assert [file["kind"] for file in first["files"]] == ["image", "video", "file"]
    assert first["files"][0]["picture"]["address"].startswith("data:image/jpeg;base64,")
    assert (first["files"][0]["picture"]["width"], first["files"][1]["picture"]) == (640, None)
    assert (tmp_path / "out" / first["files"][0]["link"]).is_file()
    assert second["row"]["error"] == "<!--<script></script><b>bad</b>"
    assert "<" not in content


def test_a_folder_that_cannot_be_written_fails_its_own_job(tmp_path, jobs, caplog):
    first, second, third = ((tmp_path / "out" / f"{job.name}-{job.identity[:8]}") for job in jobs)
    (second / "job.json").mkdir(parents=True)
    (second / "a.partial").mkdir()
    first.write_text("a file")
    with Outputs(tmp_path / "out", jobs) as outputs:
        for job, name in zip(jobs, (first.name, "job.json"), strict=False):
            with pytest.raises(JobFailed, match=rf"its results cannot be written: .* \({name}\)$"):
                make(outputs, job, "a.png")
            outputs.fail(job, "no")
        assert "error.json is not written" in caplog.text
        make(outputs, jobs[2], "a.png")
        assert [row["status"] for row in outputs.rows()] == ["failed", "failed", "done"]
    assert (third / "a.png").is_file()


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"row": "x"}, "expected a whole number as row, got 'x'"),
        ({"values": {"seed": [1]}}, "expected text, a number, true or false as values.seed, got [1]"),
        ({"files": [{"name": 1}]}, "expected text as files.0.name, got 1"),
        ({"seconds": float("nan")}, "expected a number as seconds, got nan"),
        ({"started": "yesterday"}, "expected a time as started, got 'yesterday'"),
        ({"identity": None}, "expected text as identity, got None"),
        ({}, None),
    ],
)
def test_a_damaged_record_is_told_in_our_words(tmp_path, jobs, change, wrong):
    with Outputs(tmp_path / "out", jobs) as outputs:
        make(outputs, jobs[0], "a.png")
        path = outputs.folder / str(outputs.rows()[0]["folder"]) / "job.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    if wrong is None:
        assert read_written(path, Record).identity == jobs[0].identity
        path.write_text(path.read_text()[:-9])
        wrong = "expected JSON, got what is none, or only a part"
    with pytest.raises(ValueError) as error:
        read_written(path, Record)
    assert str(error.value) == f"job.json is damaged: {wrong}; the job runs again"
