"""The evaluation on the smallest model: what it reports, from which clips, and against what."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from svimo_core.checkpoint import save_checkpoint
from svimo_core.model.text import TOKENIZER_FILE, build_text_encoder
from svimo_core.sampling.pipeline import generate, to_uint8
from svimo_core.windows import join_motions
from svimo_train import vbench
from svimo_train.clips import Clip, resize_video, write_clip
from svimo_train.data.synthetic import generate_motion
from svimo_train.data.words import Triplet
from svimo_train.evaluate import COLUMNS, evaluate, main, mean_motion, table
from svimo_train.judges import SHIPPED, Judges
from svimo_train.metrics import mpjpe_mm, psnr_moving_db, smoothness_mm
from svimo_train.scores import other_action
from svimo_train.tasks import MEASURES, Setting
from svimo_train.truth import FIRST_CLIP, folder_clips, synthetic_clips

KEYS = {"mpjpe_mm", "chamfer_mm2", "smoothness", "fid", "prompt_obedience"}
VIDEO_KEYS = {"psnr_db", "psnr_moving_db", "ssim"}


@pytest.fixture(scope="module")
def clips(config):
    return synthetic_clips(0, 3, "test", config)


@pytest.fixture(scope="module")
def scores(model, clips):
    return evaluate(model, clips, Judges.load(), steps=2)[0]


def test_clips_come_from_the_seed_and_never_from_training(clips, config):
    again, other = synthetic_clips(0, 3, "test", config), synthetic_clips(1, 3, "test", config)
    assert [clip.seed for clip in clips] == [FIRST_CLIP + i for i in range(3)]
    for one, same, different in zip(clips, again, other, strict=True):
        np.testing.assert_array_equal(one.video, same.video)
        assert different.seed not in {clip.seed for clip in clips}
        assert one.motion.metadata["split"] == "test"
    assert clips[0].video.shape == (config.frames, config.height, config.width, 3)


def test_every_score_is_there_and_finite(scores):
    for name in ("model", "feedback_off", "baseline_triplet_mean", "baseline_first_pose"):
        row = scores if name == "model" else scores[name]
        keys = KEYS | (VIDEO_KEYS | {"reprojection_px"} if "baseline" not in name else set())
        assert keys <= row.keys()
        assert all(np.isfinite(row[key]) for key in keys)
    assert scores["baseline_repeat_image"].keys() == VIDEO_KEYS
    assert scores["clips"] == 3
    assert 0 <= scores["prompt_obedience"] <= 1
    text = table(scores)
    assert all(heading in text for heading in COLUMNS.values())
    assert "baseline_triplet_mean" in text


def test_baselines_are_what_they_say(scores, clips, model):
    assert scores["baseline_first_pose"]["smoothness"] == 0
    assert scores["truth"]["mpjpe_mm"] == scores["truth"]["reprojection_px"] == 0
    repeated = [psnr_moving_db(np.repeat(clip.video[:1], len(clip.video), 0), clip.video) for clip in clips]
    assert scores["baseline_repeat_image"]["psnr_moving_db"] == pytest.approx(np.mean(repeated))
    expected = np.mean([mpjpe_mm(mean_motion(c.triplet, c.motion).hands, c.motion.hands) for c in clips])
    assert scores["baseline_triplet_mean"]["mpjpe_mm"] == pytest.approx(expected)
    assert scores["truth"]["smoothness"] == pytest.approx(
        np.mean([smoothness_mm(c.motion.hands) for c in clips])
    )


def test_the_mean_knows_the_words_but_not_the_image():
    like = generate_motion(FIRST_CLIP, "test", frames=9)
    stir, hit = Triplet("spoon", "stir", "cup"), Triplet("hammer", "hit", "box")
    stirring, hitting = mean_motion(stir, like).hands, mean_motion(hit, like).hands
    apart = mpjpe_mm(stirring, hitting)
    assert apart > 20
    other = generate_motion(FIRST_CLIP + 1, "test", frames=9)
    np.testing.assert_array_equal(mean_motion(stir, other).hands, stirring)
    # words that training has not: the nearest that it has
    unseen = mean_motion(Triplet("spoon", "stir", "pot"), like).hands
    assert mpjpe_mm(unseen, stirring) < 0.7 * apart


def test_a_repetition_gives_the_same_scores(model, clips, scores):
    again, made = evaluate(model, clips[:1], Judges.load(), steps=2)
    assert len(made) == 1
    whole = mpjpe_mm(made[0].motion.hands, clips[0].motion.hands)
    assert again["mpjpe_mm"] == whole
    assert again["fid"] is None  # a distance between distributions needs more than one clip
    assert scores["feedback_gain"].keys() == {"mpjpe_mm", "chamfer_mm2", "reprojection_px", "psnr_moving_db"}
    gains = scores["feedback_gain"].values()
    assert all(gain["mean"] for gain in gains)  # the loop was open, and that matters


def test_what_is_given_is_what_the_other_directions_show(model, config):
    """With weights that know nothing: what comes back of what was given is the VAE's and the drawing's, and no more."""
    options = dict(steps=1, guidance_scale=1.0, guidance_schedule="constant")
    setting = Setting(model=model, judges=Judges.load(), options=options)
    drawn = synthetic_clips(0, 6, "test", config)
    clips = [clip for clip in drawn if other_action(clip.triplet)][:2]

    scores, made = MEASURES["video-to-motion"](setting, clips)
    video = setting.known(clips[0], motion=False).latents.video
    assert np.array_equal(to_uint8(made[0].video), to_uint8(model.vae.decode(video)[0]))
    assert scores["psnr_db"] == scores["without_words"]["psnr_db"] != scores["joint"]["psnr_db"]
    assert scores["mpjpe_mm"] != scores["without_words"]["mpjpe_mm"]
    assert scores["video_gain"]["mpjpe_mm"]["mean"] == pytest.approx(
        scores["joint"]["mpjpe_mm"] - scores["mpjpe_mm"]
    )

    scores, made = MEASURES["motion-to-video"](setting, clips)
    drawing = setting.known(clips[0], video=False).latents.drawing
    assert np.array_equal(to_uint8(made[0].drawing), to_uint8(model.vae.decode(drawing)[0]))
    assert scores["psnr_db"] != scores["joint"]["psnr_db"]
    assert scores["another_motion"].keys() >= {"psnr_moving_db", "psnr_moving_db_words_alone"}

    long = synthetic_clips(0, 2, "test", config, frames=17)
    scores, made = MEASURES["continue"](setting, long)
    for one, clip in zip(made, long, strict=True):
        assert len(one.motion) == len(one.video) == len(one.drawing) == 17
        assert np.array_equal(one.motion.hands[:4], clip.motion.hands[:4])  # then windows overlap
        assert np.array_equal(to_uint8(one.video[:9]), clip.video[:9])
    assert scores["window_1"]["mpjpe_mm"] < scores["window_2"]["mpjpe_mm"]
    assert scores["window_1"]["psnr_still_db"] > scores["window_2"]["psnr_still_db"]
    assert scores["window_2"]["mpjpe_mm_pose_held"] < scores["window_3"]["mpjpe_mm_pose_held"]
    assert scores["seam"]["ratio"] == pytest.approx(
        scores["seam"]["smoothness"] / scores["seam"]["elsewhere"]
    )
    assert "seam" in table(scores)

    scores, _ = MEASURES["between"](setting, clips)
    assert scores["mpjpe_mm"] != scores["first_frame_only"]["mpjpe_mm"]


def test_a_long_video_is_seen_in_windows_as_the_nodes_see_it(model, config):
    options = dict(steps=1, guidance_scale=1.0, guidance_schedule="constant")
    setting = Setting(model=model, judges=None, options=options, window_overlap=3)
    clips = synthetic_clips(0, 2, "test", config, frames=17)
    scores, made = MEASURES["video-to-motion"](setting, clips)
    assert (scores["frames"], scores["windows"]) == (17, 3)

    starts, windows = (0, 6, 8), []
    for start in starts:
        frames = torch.from_numpy(clips[0].video[start : start + 9]).float() / 255
        known = model.known(setting.size, video=frames)
        windows.append(
            generate(model, frames[0], clips[0].motion.prompt, clips[0].seed, known=known, **options)
        )
    joined = join_motions([window.motion for window in windows], starts)
    assert np.array_equal(made[0].motion.hands, joined.hands)
    assert scores["mpjpe_mm"] == pytest.approx(
        np.mean([mpjpe_mm(x.motion.hands, clip.motion.hands) for x, clip in zip(made, clips, strict=True)])
    )
    barely = synthetic_clips(0, 1, "test", config, frames=10)  # its seam reaches both ends
    scores, _ = MEASURES["video-to-motion"](setting, barely)
    assert scores["windows"] == 2
    assert scores["seam"]["acceleration"] > 0
    first, second, third = (window.motion.hands for window in windows)
    alone, _ = MEASURES["video-to-motion"](setting, clips[:1])
    assert alone["seam"]["apart_mm"] == pytest.approx(
        np.mean([mpjpe_mm(first[6:], second[:3]), mpjpe_mm(second[2:], third[:7])])
    )
    assert alone["first_window"]["mpjpe_mm"] == pytest.approx(mpjpe_mm(first, clips[0].motion.hands[:9]))
    others = [smoothness_mm(hands) for hands in (second, third)]
    assert alone["other_windows"]["smoothness"] == pytest.approx(np.mean(others))
    blended = clips[0].motion.hands[4:]  # no frame around a seam is among the first four
    assert alone["seam"]["of_truth"] == pytest.approx(smoothness_mm(blended))
    assert alone["seam"]["acceleration"] == pytest.approx(smoothness_mm(joined.hands[4:]))


def test_command_writes_json_and_a_sheet(checkpoint_file, tmp_path, capsys):
    arguments = ["--checkpoint", str(checkpoint_file), "--count", "2", "--steps", "1", "--seed", "3"]
    files = ["--json", str(tmp_path / "scores.json"), "--sheet", str(tmp_path / "sheet.png")]
    assert main([*arguments, *files]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["seed"], scores["split"], scores["clips"]) == (3, "test", 2)
    assert "baseline_first_pose" in capsys.readouterr().out
    assert cv2.imread(str(tmp_path / "sheet.png")).shape[1] == 5 * 3 * 48
    assert main([*arguments, "--task", "between"]) == 1
    assert "was not trained with known streams and frames: between needs it" in capsys.readouterr().err
    assert main([*arguments, "--frames", "33"]) == 1
    assert "--frames and --overlap are about long videos" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--count", "0"], "at least one clip"), (["--checkpoint", "no.safetensors"], "no.safetensors")],
)
def test_mistakes_are_named(arguments, message, capsys, checkpoint_file):
    assert main(["--checkpoint", str(checkpoint_file), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_model_without_a_part_is_refused(config, parts, normalizer, tmp_path, capsys):
    path = tmp_path / "vae.safetensors"
    save_checkpoint(path, replace(config, text=None), {"vae": parts["vae"]}, normalizer)
    assert main(["--checkpoint", str(path), "--count", "1"]) == 1
    assert "backbone" in capsys.readouterr().err


PAPER = dict(zip(vbench.DIMENSIONS, (0.9500, 0.9533, 0.9898, 0.9801), strict=True))
"""Of SViMo (its table 1), and 0.8785 for their product."""


def vbench_says(file: Path, scores: dict[str, float], names: list[str]) -> str:
    """A results file in VBench's form (vbench/__init__.py, evaluate)."""
    videos = [{"video_path": f"somewhere/videos/{name}", "video_results": 1.0} for name in names]
    file.write_text(json.dumps({dimension: [score, videos] for dimension, score in scores.items()}))
    return str(file)


def test_vbench_measures_what_is_exported(checkpoint_file, clips, tmp_path, capsys):
    """Its custom input: a folder of videos, and prompts by their files' names; its answer joins the scores."""
    out, scores = tmp_path / "vbench", tmp_path / "scores.json"
    command = ["--checkpoint", str(checkpoint_file), "--count", "2", "--steps", "1", "--compare", "drawing"]
    command += ["--json", str(scores), "--export-vbench", str(out)]
    assert main(command) == 0
    prompts = json.loads((out / "prompts.json").read_text())
    assert prompts == {f"{number}.mp4": clips[number].triplet.prompt for number in (0, 1)}
    assert {path.name for path in (out / "videos").iterdir()} == set(prompts)
    video = cv2.VideoCapture(str(out / "videos" / "0.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == len(clips[0].video)
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(clips[0].motion.fps)
    assert main(command) == 1
    assert "videos is not empty" in capsys.readouterr().err

    before = json.loads(scores.read_text())
    two = dict(list(PAPER.items())[:2])
    first = vbench_says(tmp_path / "a.json", two, list(prompts))
    assert main(["--json", str(scores), "--vbench-results", first]) == 1
    assert "a.json has nothing on motion_smoothness, dynamic_degree" in capsys.readouterr().err
    rest = {name: score for name, score in PAPER.items() if name not in two}
    second = vbench_says(tmp_path / "b.json", rest, list(prompts))
    assert main(["--json", str(scores), "--vbench-results", first, second]) == 0
    after = json.loads(scores.read_text())
    assert after.pop("vbench") == pytest.approx({**PAPER, "overall": 0.8785, "videos": 2}, abs=2e-4)
    assert after == before
    assert "subject_consistency 0.950" in capsys.readouterr().out


def test_exported_video_is_the_generated_one(clips, tmp_path):
    vbench.export(tmp_path, ["clip"], [""], [clips[0].video], 8)
    read = cv2.VideoCapture(str(tmp_path / "videos" / "clip.mp4"))
    for frame in clips[0].video:
        difference = read.read()[1][..., ::-1].astype(float) - frame
        assert np.abs(difference).mean() < 4  # of 255: colours have half the resolution


@pytest.mark.parametrize(
    ("scores", "names", "says"),
    [
        ({**PAPER, "dynamic_degree": 98.0}, ["0.mp4"], "dynamic_degree should be between 0 and 1, got 98"),
        ({**PAPER, "dynamic_degree": float("nan")}, ["0.mp4"], "got nan"),
        (PAPER, [], "measures other videos in one dimension"),
    ],
)
def test_results_that_are_not_vbenchs_are_refused(scores, names, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        vbench.read_results([vbench_says(tmp_path / "a.json", scores, names)])
    (tmp_path / "b.json").write_text('{"mpjpe_mm": 3}')
    with pytest.raises(ValueError, match=r"b\.json is not what VBench writes"):
        vbench.read_results([tmp_path / "b.json"])


# --- clips of a folder ---


@pytest.fixture(scope="module")
def long_clips(config):
    """Longer and larger than the model's."""
    larger = replace(config, height=2 * config.height, width=2 * config.width)
    return synthetic_clips(0, 3, "test", larger, frames=13)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, long_clips):
    """Those, and one of a first frame."""
    folder = tmp_path_factory.mktemp("clips")
    for number, clip in enumerate(long_clips):
        write_clip(folder, f"clip-{number}", Clip(clip.video, clip.motion))
    write_clip(folder, "first-frame", Clip(long_clips[0].video[:1], long_clips[0].motion))
    return folder


def test_clips_of_a_folder_are_cut_resized_and_in_an_order_of_their_own(
    folder, long_clips, config, normalizer, tmp_path
):
    found = folder_clips(folder, 0, 64, config, normalizer)
    assert {clip.name for clip in found} == {"clip-0", "clip-1", "clip-2"}
    for clip in found:
        long = long_clips[int(clip.name[-1])]
        np.testing.assert_array_equal(clip.video, resize_video(long.video[:9], config.height, config.width))
        np.testing.assert_array_equal(clip.motion.hands, long.motion.hands[:9])
        assert clip.motion.camera == long.motion.camera.resized(config.width, config.height)
        assert (clip.motion.prompt, clip.triplet) == (long.motion.prompt, None)
    more = tmp_path / "more"
    shutil.copytree(folder, more)
    write_clip(more, "another", Clip(long_clips[0].video, long_clips[0].motion))
    seeds = {clip.name: clip.seed for clip in found}
    again = [clip for clip in folder_clips(more, 0, 64, config, normalizer) if clip.name != "another"]
    assert [(clip.name, clip.seed) for clip in again] == list(seeds.items())
    orders = [[c.name for c in folder_clips(folder, seed, 2, config, normalizer)] for seed in range(8)]
    assert len(set(map(tuple, orders))) > 2
    assert orders[0] == list(seeds)[:2]


def test_a_folder_gives_the_scores_of_the_same_clips_built_in(folder, long_clips, model, config, normalizer):
    """All but what only judges of the synthetic world can tell."""
    clips = folder_clips(folder, 0, 2, config, normalizer)
    built_in = [replace(clip, triplet=long_clips[int(clip.name[-1])].triplet) for clip in clips]
    expected, _ = evaluate(model, built_in, Judges.load(), steps=1, compare="drawing")
    scores, _ = evaluate(model, clips, None, steps=1, compare="drawing")
    judged = {"fid", "prompt_obedience"}
    for known in (expected, expected["exact_drawing"]):
        for name in judged:
            del known[name]
    assert scores == expected

    scores, made = evaluate(model, clips[:1], None, steps=1)
    assert {name for name, value in scores.items() if isinstance(value, dict)} == {
        *("feedback_off", "feedback_gain", "baseline_first_pose", "baseline_repeat_image", "truth")
    }
    for row in (scores, scores["feedback_off"], scores["baseline_first_pose"], scores["truth"]):
        assert judged.isdisjoint(row)
    assert scores["mpjpe_mm"] == mpjpe_mm(made[0].motion.hands, clips[0].motion.hands)
    scores, _ = MEASURES["motion-to-video"](
        Setting(model=model, judges=None, options=dict(steps=1)), clips[:1]
    )
    assert scores.keys() >= VIDEO_KEYS
    assert "another_motion" not in scores


def test_command_measures_a_folder(folder, checkpoint_file, tmp_path, capsys):
    files = {
        "--json": tmp_path / "scores.json",
        "--sheet": tmp_path / "sheet.png",
        "--export-vbench": tmp_path,
    }
    arguments = ["--checkpoint", str(checkpoint_file), "--clips", str(folder), "--steps", "1", "--count", "2"]
    assert (
        main([*arguments, *(str(word) for pair in files.items() for word in pair), "--precision", "bf16"])
        == 0
    )
    out = capsys.readouterr().out
    assert "FID is left out for want of judges of such clips: train some" in out
    assert "Obedience of words and the mean motion of a prompt are left out" in out
    assert "baseline_first_pose" in out
    for absent in ("FID  ", "obeys", "changed", "baseline_triplet_mean"):
        assert absent not in out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["folder"], scores["clips"]) == (str(folder), 2)
    assert "split" not in scores
    assert cv2.imread(str(tmp_path / "sheet.png")).shape == (2 * (18 + 2 * 32), 5 * 3 * 48, 3)
    prompts = json.loads((tmp_path / "prompts.json").read_text())
    assert len(prompts) == 2
    assert set(prompts) < {"clip-0.mp4", "clip-1.mp4", "clip-2.mp4"}
    assert {path.name for path in (tmp_path / "videos").iterdir()} == set(prompts)
    assert main([*arguments, "--split", "train"]) == 1
    assert "--split is about synthetic clips" in capsys.readouterr().err


def test_judges_of_such_clips_give_a_folder_fid(folder, checkpoint_file, tmp_path, capsys):
    torch.manual_seed(0)
    Judges.new().save(tmp_path / "judges.safetensors", {})
    arguments = ["--checkpoint", str(checkpoint_file), "--clips", str(folder), "--steps", "1", "--count", "2"]
    file = str(tmp_path / "scores.json")
    assert main([*arguments, "--judges", str(tmp_path / "judges.safetensors"), "--json", file]) == 0
    out = capsys.readouterr().out
    assert "FID is left out" not in out
    assert "obeys" not in out
    scores = json.loads(Path(file).read_text())
    assert scores["judges"] == "judges.safetensors"
    assert scores["truth"]["fid"] == pytest.approx(0, abs=1e-4)
    assert scores["fid"] > 1e-3
    assert "prompt_obedience" not in scores
    assert main([*arguments, "--judges", str(SHIPPED)]) == 1
    assert "knows the synthetic world and no other clips" in capsys.readouterr().err
    assert main([*arguments[:2], "--judges", str(SHIPPED)]) == 1
    assert "--judges is for --clips" in capsys.readouterr().err


def without_a_hand(clip):
    hands = clip.motion.hands.copy()
    hands[4:6, 0] = np.nan
    return Clip(clip.video, replace(clip.motion, hands=hands))


def with_other_objects(clip):
    tool, cup = clip.motion.objects.values()
    return Clip(clip.video, replace(clip.motion, objects={"tool": tool, "cup": cup}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda clip: Clip(clip.video[:8], clip.motion.take(slice(8))), "has 8 frames, 9 are needed"),
        (lambda clip: Clip(clip.video[:9], clip.motion), "has 9 frames of video and 13 of motion"),
        (
            without_a_hand,
            "bad: this model needs both hands in every frame, and the left one is absent in 2 of 9",
        ),
        (with_other_objects, r"bad: the motion lacks \['target'\]: this model needs objects named"),
        (lambda clip: Clip(np.zeros_like(clip.video), clip.motion), "bad: nothing moves in the true video"),
    ],
)
def test_clips_that_cannot_be_measured_against_are_named(
    change, says, long_clips, config, normalizer, tmp_path
):
    write_clip(tmp_path, "bad", change(long_clips[0]))
    write_clip(tmp_path, "good", Clip(long_clips[1].video, long_clips[1].motion))
    with pytest.raises(ValueError, match="1 clips of .* cannot be measured against.*\n.*" + says):
        folder_clips(tmp_path, 0, 64, config, normalizer)


def test_damaged_clips_are_all_named(folder, checkpoint_file, tmp_path, capsys):
    broken = tmp_path / "clips"
    shutil.copytree(folder, broken)
    (broken / "clip-0.npz").write_bytes(b"not an archive")
    (broken / "clip-1.npy").unlink()
    (broken / "clip-2.npy").write_bytes(b"\x93NUMPY")
    assert main(["--checkpoint", str(checkpoint_file), "--clips", str(broken)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("3 clips of")
    assert sorted(name for name in ("0.npz", "1.npy", "2.npy") for line in lines[1:] if name in line) == [
        *("0.npz", "1.npy", "2.npy")
    ]
    for path in broken.glob("clip-*"):
        path.unlink()
    for clips, says in ((broken, "have only their first frames"), (tmp_path, "no clips in")):
        assert main(["--checkpoint", str(checkpoint_file), "--clips", str(clips)]) == 1
        assert says in capsys.readouterr().err


def test_a_model_without_a_text_encoder_takes_t5s_features(
    folder, checkpoint_file, config, parts, normalizer, tmp_path, capsys
):
    """As at full size."""
    bare = tmp_path / "bare.safetensors"
    others = {name: part for name, part in parts.items() if name != "text_encoder"}
    save_checkpoint(bare, replace(config, text=None), others, normalizer)
    t5 = tmp_path / "t5"
    parts["text_encoder"].save_pretrained(t5)
    PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER_FILE), pad_token="<pad>").save_pretrained(t5)

    def run(*more):
        file = tmp_path / "scores.json"
        common = ["--clips", str(folder), "--count", "1", "--steps", "1", "--compare", "drawing"]
        common += ["--guidance-scale", "20"]  # so that words matter to a model that knows nothing
        code = main([*common, "--json", str(file), *map(str, more)])
        return capsys.readouterr().err if code else json.loads(file.read_text())

    scores, own = run("--checkpoint", bare, "--text-model", t5), run("--checkpoint", checkpoint_file)
    assert scores["psnr_db"] == pytest.approx(own["psnr_db"], rel=1e-3)  # T5 computes in bfloat16
    assert "bare.safetensors has no text encoder of its own: set --text-model" in run("--checkpoint", bare)
    assert "leave --text-model out" in run("--checkpoint", checkpoint_file, "--text-model", t5)
    assert "there is no folder" in run("--checkpoint", bare, "--text-model", tmp_path / "no")
    assert "holds no T5" in run("--checkpoint", bare, "--text-model", folder)
    wide = build_text_encoder(replace(config.text, dim=32))
    wide.save_pretrained(t5)
    assert "gives text features of 32 numbers" in run("--checkpoint", bare, "--text-model", t5)
