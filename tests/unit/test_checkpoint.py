import gc
import json
import pickle
import struct
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from svimo_core.checkpoint import PARTS, describe, empty_part, load_part, main, read_header, save_checkpoint
from svimo_core.weights import open_weights, read_tensors


def rewrite(source, target, metadata=None, tensors=None):
    """The same file with changed metadata or tensors."""
    header = json.loads(source.read_bytes()[8 : 8 + struct.unpack("<Q", source.read_bytes()[:8])[0]])
    save_file(tensors or load_file(source), target, metadata=header["__metadata__"] | (metadata or {}))
    return target


def test_round_trip(checkpoint_file, config, parts, normalizer):
    header = read_header(checkpoint_file)
    assert header.config == config
    assert header.parts == PARTS
    assert header.provenance == {"source": "seeds 0 to 4"}
    torch.testing.assert_close(header.normalizer.hands_mean, normalizer.hands_mean)
    for part, module in parts.items():
        loaded = load_part(header, part).state_dict()
        for key, value in module.state_dict().items():
            torch.testing.assert_close(loaded[key], value, rtol=0, atol=0)
    assert "holds" not in describe(header)
    assert "backbone" in describe(header)


def test_storage_type_can_be_chosen(checkpoint_file):
    module = load_part(read_header(checkpoint_file), "interaction", torch.bfloat16)
    assert {weight.dtype for weight in module.parameters()} == {torch.bfloat16}


def test_rows_are_those_of_the_whole_tensor(tmp_path):
    """Also where a tensor has another form in the file, or is fp8 with a scale for each row."""
    shape, path = (7, 3), tmp_path / "weights.safetensors"
    values = {"plain": torch.randn(shape), "table": torch.randn(1, *shape), "scale": torch.rand(7, 1)}
    save_file(values | {"scaled": torch.randn(shape).to(torch.float8_e4m3fn)}, path)
    tensors, _ = open_weights(path)
    tensors["table"] = tensors["table"]._replace(shape=shape)
    tensors["scaled"] = tensors["scaled"]._replace(scale=tensors.pop("scale"))
    whole = dict(read_tensors(tensors))
    for rows in (slice(0, 4), slice(4, 7), slice(7, 7)):
        for name, piece in read_tensors(tensors, stream=True, rows=dict.fromkeys(tensors, rows)):
            assert torch.equal(piece, whole[name][rows])


def test_reading_weights_leaves_nothing_behind(checkpoint_file):
    """`get_tensor` of safetensors 0.4.5 to 0.8.0 leaves two integers for each tensor."""
    tensors, _ = open_weights(checkpoint_file)

    def blocks_after_reading() -> int:
        for _ in read_tensors(tensors):
            pass
        gc.collect()
        return sys.getallocatedblocks()

    blocks_after_reading()
    before = blocks_after_reading()
    for _ in range(4):
        after = blocks_after_reading()
    assert len(tensors) > 50
    assert after - before < len(tensors)


def test_a_file_may_hold_one_part(tmp_path, config, parts):
    path = save_checkpoint(tmp_path / "vae.safetensors", config, {"vae": parts["vae"]})
    header = read_header(path)
    assert header.parts == ("vae",)
    assert header.normalizer is None
    with pytest.raises(ValueError, match="holds vae, but no backbone"):
        load_part(header, "backbone")


def test_saving_refuses_what_could_not_be_loaded(tmp_path, config, parts):
    with pytest.raises(ValueError, match="statistics"):
        save_checkpoint(tmp_path / "x", config, {"interaction": parts["interaction"]})
    with pytest.raises(ValueError, match="one or more of"):
        save_checkpoint(tmp_path / "x", config, {"wheels": parts["vae"]})
    assert list(tmp_path.iterdir()) == []


def test_missing_unknown_and_misshapen_weights_are_named(tmp_path, checkpoint_file):
    tensors = load_file(checkpoint_file)
    key = "backbone.proj_out.weight"
    missing = {k: v for k, v in tensors.items() if k != key}
    unknown = tensors | {"backbone.extra": torch.zeros(1)}
    misshapen = tensors | {key: torch.zeros(3, 3)}
    for changed, message in (
        (missing, "lacks proj_out.weight"),
        (unknown, "unknown extra"),
        (misshapen, r"proj_out.weight is \(3, 3\), expected"),
    ):
        header = read_header(rewrite(checkpoint_file, tmp_path / "changed.safetensors", tensors=changed))
        for load in (load_part, empty_part):
            with pytest.raises(ValueError, match=message):
                load(header, "backbone")


def test_foreign_and_damaged_files_are_refused(tmp_path, checkpoint_file):
    good = checkpoint_file.read_bytes()

    def file(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    cases = [
        (file("pickle.safetensors", pickle.dumps({"a": 1})), "PyTorch pickle"),
        (file("zip.safetensors", b"PK\x03\x04rest of a torch.save file"), "PyTorch pickle"),
        (file("gguf.safetensors", b"GGUF\x03\x00\x00\x00more"), "GGUF"),
        (
            file("cut.safetensors", good[:-100]),
            f"announces {len(good)} bytes, the file has {len(good) - 100}",
        ),
        (file("stub.safetensors", good[:20]), "not a complete safetensors file"),
        (file("empty.safetensors", b""), "not a complete safetensors file"),
        (file("junk.safetensors", struct.pack("<Q", 4) + b"{]{]"), "header that cannot be read"),
        (rewrite(checkpoint_file, tmp_path / "new.safetensors", {"version": "99"}), "update the pack"),
        (
            rewrite(checkpoint_file, tmp_path / "odd.safetensors", {"version": "one"}),
            "does not say its version",
        ),
        (rewrite(checkpoint_file, tmp_path / "bad.safetensors", {"config": "{}"}), "damaged SViMo metadata"),
    ]
    save_file({"patch_embed.text_proj.weight": torch.zeros(1)}, tmp_path / "cog.safetensors")
    save_file({"x.lora_A.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    cases += [
        (tmp_path / "cog.safetensors", "CogVideoX"),
        (tmp_path / "lora.safetensors", "LoRA"),
    ]
    for path, message in cases:
        with pytest.raises(ValueError, match=message) as raised:
            read_header(path)
        assert path.name in str(raised.value)
    with pytest.raises(FileNotFoundError, match="absent"):
        read_header(tmp_path / "absent.safetensors")


def test_inspect_command(capsys, checkpoint_file, tmp_path):
    assert main(["inspect", str(checkpoint_file)]) == 0
    assert "native clip: 9 frames of 48 x 32" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "absent")]) == 1
    assert "absent" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])
