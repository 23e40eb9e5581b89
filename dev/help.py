"""Write what the page shows about the nodes: help in `js/docs`, and `locales/en/nodeDefs.json`.

    python -m dev.help

Inputs and outputs come from a real ComfyUI, so that help and tooltips never disagree; the advice is below. Help in
another language takes the texts of its `nodeDefs.json`, and the rest from its `help.json`, which holds English ->
translation; what is not translated yet stays English. A test compares the files with what this writes.

The page asks for `<NodeId>/<language>.md`, and for `<NodeId>.md` where that is missing.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

from dev.comfy import PACK_NAME, ROOT, ComfyClient, ComfyServer

DOCS = ROOT / "js" / "docs"
LOCALES = ROOT / "locales"
TRANSLATIONS = ["zh"]

ADVICE = {
    "SViMoCheckpointLoader": """
- The easiest start: one file feeds every other node. Its drawing encoder, if it has one, comes with `interaction`.
- For models larger than your memory load the parts with their own loaders and choose a smaller storage type
  there.
- The tiny checkpoint that comes with the pack shows that everything works; its pictures are small and simple.
""",
    "SViMoDiffusionModelLoader": """
- CogVideoX-5b-I2V gives video without motion: leave *SViMo Feedback* out, connect `model` to *SViMo Image Encode*
  too, and use *SViMo Decode Video* alone.
- The model is one of core's own kind: core's samplers, schedulers, LoRA loaders, *EasyCache* and *TorchCompileModel*
  take it.
- Of a sharded model in diffusers' layout choose any shard; the others are found beside it.
- CogVideoX 1.5 has another layout and is refused with a message.
- Leave `rotary_positions` as it is, except to compare with diffusers, or for a model that was tuned under its rule.
""",
    "SViMoInteractionLoader": """
- The motion statistics in the file turn the network's numbers into metres: use the interaction model of the
  same training run as the diffusion model.
""",
    "SViMoVAELoader": """
- SViMo draws motion with the same VAE as the video, so one VAE serves both.
- When memory runs out while decoding, it goes on in tiles by itself, as core's VAE does.
""",
    "SViMoLoraLoader": """
- Chain several to combine them. The model given in is left as it was.
- On SViMo, what the LoRA changes of the video stream, it changes of the motion stream as well. Core's LoRA loaders do
  the same, for files with kohya names.
- A LoRA made for another model, and a DoRA or LoHa on layers that motion shares, is refused with a message.
""",
    "SViMoConvertCogVideoX": """
- The new motion stream starts as a copy of the video stream, and its guidance at zero: before training, the
  video is the same as CogVideoX's.
- The file is about as large as the original. Train it with `python -m svimo_train`.
""",
    "SViMoPrompt": """
- Connect `prompt` to the text of *SViMo Text Encode*.
- Any words may be used; those of the training data work best.
""",
    "SViMoTextEncode": """
- Use it twice: once with the prompt, once with empty text for the negative.
- Full-size models need T5-XXL: core's *Load CLIP* with type `sd3` and a `t5xxl` file. Other types, such as `mochi`,
  hide the padding of a prompt, which CogVideoX was trained to see, and are refused.
""",
    "SViMoImageEncode": """
- The image is scaled to cover the clip and cropped at its centre. Crop it yourself first when the hands are
  near an edge.
- Large sizes cost memory quickly: tokens grow with width times height times frames.
- The latent holds two streams, the video and its drawing, if the model makes both. Connect `model` where the VAE does
  not come from the same SViMo checkpoint, so that the latent fits it.
""",
    "SViMoMotionEncode": """
- Motion comes from *Load SViMo Motion*: an earlier result, a BVH, or the arrays of a hand tracker.
- The motion must have as many frames as the clip: change its frame rate in *Clean SViMo Motion*.
- With `end_percent` below 1 the given motion sets the scene, and *SViMo Feedback* finishes it.
- It is encoded once, so the VAE, which is exact, costs little here. Connect `interaction` where memory is short.
- Objects are drawn in the colours that the model knows, by name (tool, target) or else in order, with no more points
  than it knows. What is unlike the motions it has learned from, such as a hand behind the camera, is noted on the node.
""",
    "SViMoFeedbackLoop": """
- Between the model and what samples it: *SViMo Sampler*, core's *KSampler*, or the guider of *SamplerCustomAdvanced*.
- LoRAs, *EasyCache* and *TorchCompileModel* go before it.
- The loop costs little: one pass of the interaction model for each denoising pass, and for each refresh a small network
  that encodes the drawn motion. A checkpoint without a drawing encoder leaves that to the VAE, which takes most of the
  time; `every` = 2 or 3 saves most of it then.
- Comparing: switch `enabled` off and keep the seed. The motion is still read and held against the image, but does not
  guide. While *SViMo Motion Encode* guides, the loop draws nothing either way.
- In a run of several parts (*SplitSigmas*, *KSampler (Advanced)*) each part reads anew, and the motion is the mean of
  what the last one read; the result differs a little from that of a run in one.
""",
    "SViMoGrowingCFG": """
- For core's *KSampler* and guiders. *SViMo Sampler* has it as `cfg_schedule`: do not use both.
- At a cfg of 1 it changes nothing.
""",
    "SViMoFeedback": """
- To renew a workflow: put *SViMo Feedback* between the model and the sampler, with the same values, and delete this
  node. Results stay the same.
""",
    "SViMoSampler": """
- The closed loop comes with the model: put *SViMo Feedback* before it.
- Core's *KSampler* with `euler` and `simple` samples the same way; its cfg grows with *SViMo Growing CFG*.
- Try few steps and a small size first; the preview under the node shows where it is going.
- Cancel works at every step, also within the feedback loop and while decoding.
- Out of memory: switch `sequential_cfg` on, lower the size, or load the model with a smaller `weight_dtype`.
""",
    "SViMoDecodeVideo": """
- Frames are core's IMAGE: send them to *Create Video* and *Save Video*, or to any image node.
- The rendered motion is what the model itself imagined beside the video, not a drawing of the 3D motion;
  comparing the two shows how well they agree.
""",
    "SViMoDecodeMotion": """
- Axes: x right, y down, z forward from the camera, in metres. The left hand comes first.
- Leave `refine` off: behind *SViMo Feedback*, *SViMo Sampler* has read the motion at every step, and the mean of many
  readings is better than the last one. A latent of another sampler, or one that was changed since, is read as it is.
""",
    "SViMoSplitLatent": """
- For core's *Save Latent*, *VAE Decode (Tiled)* and other nodes that expect one plain latent.
- Hands and objects are read off both together: decode motion from the joint latent, or put the two together again
  with *SViMo Join Latents*.
""",
    "SViMoVideoToMotion": """
- Connect core's *Get Video Components* behind *Load Video*: its images and its frame rate.
- Everything comes as a list, one entry for each window; the sampler and *SViMo Decode Motion* run once for each, and
  *SViMo Join Clips* puts the motions together.
- Words help where hands hide things: say what is held and what it does. The camera is taken to stand still.
- A larger `overlap` makes motions smoother and takes longer: two thirds of a window half as long again as the half.
- For the picture beside the motion take `images` of this node, which have the model's rate.
- Of pictures from outside of its world a model makes what it can. svimo-tiny-any knows nothing but synthetic clips:
  what it makes of a real video or photograph shows how this works, and is of no use.
""",
    "SViMoMotionToVideo": """
- The image should show the first frame of the motion, through the camera that the motion has.
- The motion is kept as it is: the sampler makes the video alone. To let it only guide, take *SViMo Motion Encode*.
- A longer motion: *SViMo Extend Clip* with the same motion goes on along it.
- Objects are drawn in the colours that the model knows, by name (tool, target) or else in order, with no more points
  than it knows. What is unlike the motions it has learned from, such as a hand behind the camera, is noted on the node.
- Of pictures from outside of its world a model makes what it can. svimo-tiny-any knows nothing but synthetic clips:
  what it makes of a real video or photograph shows how this works, and is of no use.
""",
    "SViMoExtendClip": """
- It gives the conditions and the latent of the next window; sample and decode it, and *SViMo Join Clips* puts it
  behind.
- Other words in a later window change what happens there.
- In between: connect the clip to arrive at to `next_images` and `next_motion`. A model of short clips then sees the
  last frame alone, so that something is left to make.
- Each window loses a little, as what the next one sees was decoded and is encoded again.
- Of pictures from outside of its world a model makes what it can. svimo-tiny-any knows nothing but synthetic clips:
  what it makes of a real video or photograph shows how this works, and is of no use.
""",
    "SViMoJoinClips": """
- Of *SViMo Video to Motion*: connect the list of motions, and nothing else.
- Of *SViMo Extend Clip*: connect the new window, and the clip so far to `motion_before` and `images_before`.
- Where windows overlap, each counts more the farther it is from its own end, in motion and in images.
""",
    "SViMoJoinLatents": """
- What *SViMo Split Latent* took apart, in the same order: the video first.
- Both decoders and every sampler take the result; *SViMo Decode Motion* reads the motion anew.
""",
    "SViMoLoadMotion": """
- Put files into ComfyUI's input folder. `docs/motion-format.md` describes what is read.
- The node shows what it understood, a line for each decision.
- Hand trackers such as HaMeR and WiLoR save no frame rate: set `fps`.
- Axes, mirrored hands, gaps, motion that no camera saw: *Import SViMo Motion*.
""",
    "SViMoImportMotion": """
- Look at the picture: left and right are named. Each line of the report is a decision, with its numbers.
- **HaMeR, WiLoR**: one `.npz` with a row per detection: `frame`, `right`, `pred_keypoints_3d`, `pred_cam_t_full`,
  `scaled_focal_length`, `img_size`; or their `pred_mano_params`. Set `fps`, and a `max_gap` of a few frames.
- **MediaPipe**: the results of a video as JSON, a list with an entry per frame; its world landmarks are read. They
  do not know where a hand is: set `distance`, about 0.5. Its left and right are those of a mirrored selfie: for any
  other picture set `sides` to swap, and for one that was mirrored for it, to mirror.
- **Blender**: `up` +z and `forward` +y, for BVH that it exports as for arrays in its world axes.
- **Mixamo, Unity, Unreal, VRM, Rokoko, Xsens, MakeHuman, Rigify**: BVH of the body or of one hand; bones are found by
  their names. Set `distance`, about 0.6 for hands and more for a body that walks; a note says how much. Arrays from
  Unity: `up` +y, `forward` +z, `sides` mirror.
- **MANO data sets** (TACO, DexYCB, ARCTIC, HO-3D, InterHand2.6M): pose, shape and translation as `.npz` or `.json`,
  with your own MANO files in `models/svimo/mano`. What zeros and left hands mean is the data set's habit, known for
  these: `mano_mean`, `mano_left`.
- **A keyed animation**: BVH, or this pack's own. One file per hand: the left one as `motion`, the right one as
  `other_hand`.
- **One hand** is enough. Nothing is invented unless `missing_hands` says so; training alone needs both.
- Then *Clean SViMo Motion* for the frame rate and *SViMo Motion Encode* to guide a video with it.
""",
    "SViMoAddObject": """
- TACO: the `_cm.obj` mesh with `unit` centimetres, its poses in metres. ARCTIC: `poses_layout` arctic, both units
  millimetres; its hinge stays as it is in the mesh.
- One or two markers are enough: they are shown as a ball or a rod, which never turns about its own axis. A lost marker
  is filled in from three others.
- Add several objects by chaining the node, or as several arrays of markers in one .npz.
- Poses move the mesh's own axes: export the mesh where it was modelled, without its place in the scene. Blender's OBJ
  and GLB are y up by default: choose forward Y and up Z if the poses are Blender's. The report says size and place.
""",
    "SViMoPreviewMotion": """
- `frames` can be saved as a video or laid beside the generated one.
- Of a very long motion every so many frames are drawn, at its own speed; the node says so.
- To look from other sides use *SViMo Motion Viewer*.
""",
    "SViMoSaveMotion": """
- The prompt and the graph travel in the file, unless the server runs with `--disable-metadata`.
- Python: `numpy.load(file)["hands"]` is frames x 2 x 21 x 3.
""",
    "SViMoCleanMotion": """
- Where a finger touches an object it keeps touching it: it is smoothed together with the object.
- Raise the frame rate for smooth animation (8 to 24 or 30), lower it to drive a clip.
- `first_frame` and `frames` trim, before all else.
""",
    "SViMoRigMotion": """
- Bone lengths are made constant over the clip; `report` says how far that moves the joints.
- `mano` needs MANO_LEFT and MANO_RIGHT, which you get after registering at mano.is.tue.mpg.de. They are not
  part of this pack and their licence is for research only.
""",
    "SViMoSaveGLB": """
- Connect `model_file` to core's *Preview 3D & Animation* and press play there; until then it shows the rest pose.
- Newer ComfyUI: `model_3d` is the file itself, for *Preview 3D (Advanced)* and *Save 3D Model*. Saved workflows may
  keep their link to `model_file`.
- Dropped onto the page, the file opens the graph that made it.
- With MANO hands, MANO's parameters are saved beside it as `..._mano.npz`.
- `bone_names` changes names alone, not the rest pose: choose what your retargeter looks for.
- Blender: File > Import > glTF 2.0. Units, axes, frame rate and camera are set.
""",
    "SViMoSaveBVH": """
- Objects have no place in BVH: save them as GLB.
- With both hands in one file, a root called `hands` stays at the camera, and both wrists move below it.
- BVH cannot say that a hand is absent: it moves on there, and the node counts the frames. GLB hides it.
- *Import SViMo Motion* reads the files back, whatever the names.
""",
    "SViMoOverlayMotion": """
- The frames may have another size than the clip; the camera is scaled with them.
- `opacity` 1 hides what is behind, 0.5 shows both.
""",
    "SViMoMotionViewer": """
- **Orbit**: drag to turn, right-drag to move, wheel to zoom. The house looks at the whole clip again.
- **Camera**: through the clip's own camera, in front of the video if one is connected. Hands that lie on the
  hands of the video show that motion and video agree.
- Space plays and pauses; the arrow keys step through the frames. The chips show and hide hands, objects,
  trails, contacts (joints that touch an object turn gold), the ground (5 cm per square, more below a wide motion) and
  the camera.
- The camera symbol at the end saves the view as a picture.
- The view is loaded from ComfyUI's temp folder: after a restart of the server run the workflow again.
""",
}

LATER_OUTPUTS = {
    "SViMoSaveGLB": [
        (
            "model_3d",
            "FILE_3D_GLB",
            "The file itself, for core's Preview 3D (Advanced), Save 3D Model and other 3D nodes.",
        )
    ]
}
"""Outputs (name, type, tooltip) that only newer ComfyUI than 0.3.75 gives: a help page serves all versions."""


def is_ours(node: dict) -> bool:
    """Whether an entry of /object_info is a node of this pack."""
    return node["python_module"].endswith(PACK_NAME)


def advice(name: str) -> list[str]:
    """The advice on a node, one item each."""
    return [" ".join(item.split()) for item in ADVICE.get(name, "").strip().removeprefix("- ").split("\n- ")]


def page(node: dict, texts: dict, words: dict[str, str]) -> str:
    """The help page of one node in one language.

    Args:
        node: of /object_info.
        texts: of the node, as in `nodeDefs.json`.
        words: English -> translation of all else.
    """

    def say(english: str) -> str:
        return words.get(english, english)

    def text(group: str, key: str, part: str, english: str) -> str:
        return plain(texts.get(group, {}).get(key, {}).get(part, english))

    lines = [f"# {plain(texts.get('display_name', node['display_name']))}", ""]
    lines += [plain(texts.get("description", node["description"])), ""]
    lines += [f"- {say(item)}" for item in advice(node["name"])]
    lines += ["", f"## {say('Inputs')}", ""]  # lists, since the page's panel is too narrow for tables
    for group in ("required", "optional"):
        for key, value in node["input"].get(group, {}).items():
            name = text("inputs", key, "name", key)
            details = ["" if name == key else f"`{key}`", f" {say('or')} ".join(map(say, kind(value)))]
            preset = default(value)
            details += [f"{say('default')} {preset}" if preset else ""]
            details += [say("optional") if group == "optional" else ""]
            tooltip = text("inputs", key, "tooltip", value[1]["tooltip"])
            lines.append(f"- **{name}** ({', '.join(filter(None, details))}): {tooltip}")
    if node["output"]:
        lines += ["", f"## {say('Outputs')}", ""]
    outputs = zip(node["output_name"], node["output"], node["output_tooltips"], strict=True)
    for i, (key, of, tooltip) in enumerate(outputs):
        name = text("outputs", str(i), "name", key)
        lines.append(f"- **{name}** ({of}): {text('outputs', str(i), 'tooltip', tooltip)}")
    return "\n".join(lines) + "\n"


def kind(value: list) -> list[str]:
    """Type of an input; or its choices, unless they are the files of one machine."""
    choices = value[0] if isinstance(value[0], list) else value[1].get("options")
    if choices is None:
        return [value[0]]
    named = [choice for choice in choices if choice != "none"]
    if not named or any("." in str(choice) for choice in named):
        return ["file"]
    return [f"`{choice}`" for choice in choices]


def default(value: list) -> str:
    """Default of an input, as the page shows it."""
    preset = value[1].get("default", "")
    return "" if preset == "" else f"`{preset}`"


def english(nodes: dict[str, dict]) -> dict:
    """All texts of the nodes in the form that ComfyUI translates: what other locales follow."""
    return {
        name: {
            "display_name": message(node["display_name"]),
            "description": message(node["description"]),
            "inputs": {
                key: {"name": key, "tooltip": message(value[1]["tooltip"])}
                for group in ("required", "optional")
                for key, value in node["input"].get(group, {}).items()
            },
            "outputs": {
                str(i): {"name": key, "tooltip": message(text)}
                for i, (key, text) in enumerate(
                    zip(node["output_name"], node["output_tooltips"], strict=True)
                )
            },
        }
        for name, node in sorted(nodes.items())
    }


def message(text: str) -> str:
    """Text for vue-i18n, to which some characters mean something."""
    return re.sub(r"[{}@|]", lambda found: f"{{'{found[0]}'}}", text)


def plain(text: str) -> str:
    """The text of a :func:`message`."""
    return re.sub(r"\{'([{}@|])'\}", r"\1", text)


def with_later_outputs(name: str, node: dict) -> dict:
    """A node as newer ComfyUI has it: see :data:`LATER_OUTPUTS`."""
    later = [output for output in LATER_OUTPUTS.get(name, []) if output[0] not in node["output_name"]]
    keys = ("output_name", "output", "output_tooltips")
    return node | {key: [*node[key], *(output[i] for output in later)] for i, key in enumerate(keys)}


def read_locale(language: str, file: str) -> dict:
    """A file of texts; empty where a language does not have it."""
    path = LOCALES / language / file
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def files(info: dict[str, dict]) -> dict[Path, str]:
    """Path -> content of every file that this module writes."""
    nodes = {name: with_later_outputs(name, node) for name, node in info.items() if is_ours(node)}
    written = {LOCALES / "en" / "nodeDefs.json": json.dumps(english(nodes), indent=2) + "\n"}
    for name, node in nodes.items():
        written[DOCS / f"{name}.md"] = written[DOCS / name / "en.md"] = page(node, {}, {})
    for language in TRANSLATIONS:
        texts, words = read_locale(language, "nodeDefs.json"), read_locale(language, "help.json")
        for name, node in nodes.items():
            written[DOCS / name / f"{language}.md"] = page(node, texts.get(name, {}), words)
    return written


def main() -> int:
    """Write every file, and remove help of nodes that are gone."""
    with (
        tempfile.TemporaryDirectory() as base,
        ComfyServer(Path(base)) as server,
        ComfyClient(server.url) as client,
    ):
        written = files(client.object_info())
    for path, content in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        print(path.relative_to(ROOT))
    for path in DOCS.rglob("*.md"):
        if path not in written:
            path.unlink()
            print(f"removed {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
