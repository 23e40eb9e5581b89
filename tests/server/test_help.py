"""What the page says about the nodes: complete, and the same as the nodes say themselves."""

import json

import requests

from dev.comfy import PACK_NAME, ROOT
from dev.help import ADVICE, DOCS, advice, files, is_ours


def test_help_and_english_texts_are_up_to_date(client):
    info = client.object_info()
    assert {name for name in info if is_ours(info[name])} == set(ADVICE)
    for path, content in files(info).items():
        assert path.is_file(), f"run python -m dev.help: {path.name} is missing"
        assert path.read_text(encoding="utf-8") == content, f"run python -m dev.help: {path.name} is old"
    assert set(DOCS.rglob("*.md")) <= set(files(info)), "run python -m dev.help: there is help of old nodes"


def test_a_new_node_has_help_before_it_has_translations(client):
    """Its page is in English, within the words of the language around it."""
    info = client.object_info()
    new = json.loads(json.dumps(info["SViMoCleanMotion"]).replace("SViMoCleanMotion", "SViMoNew"))
    new["output_name"][0] = "brand new"
    pages = files({**info, "SViMoNew": new})
    words = json.loads((ROOT / "locales" / "zh" / "help.json").read_text(encoding="utf-8"))
    lines = pages[DOCS / "SViMoNew" / "zh.md"].splitlines()
    assert f"## {words['Outputs']}" in lines
    assert "- **motion** (SVIMO_MOTION): 3D motion." in lines
    assert "- **brand new** (SVIMO_MOTION): The cleaned motion." in lines


def test_advice_is_translated():
    words = json.loads((ROOT / "locales" / "zh" / "help.json").read_text(encoding="utf-8"))
    sentences = {item for name in ADVICE for item in advice(name)}
    assert sentences <= set(words), "translate in locales/zh/help.json"
    around = {"Inputs", "Outputs", "default", "optional", "or", "file"}
    assert set(words) == sentences | around, "remove from locales/zh/help.json"


def test_the_page_finds_help_and_translations(server):
    with requests.Session() as session:
        session.trust_env = False
        for page in ("SViMoSampler", "SViMoSampler/en", "SViMoSampler/zh"):
            reply = session.get(f"{server.url}/extensions/{PACK_NAME}/docs/{page}.md", timeout=30)
            assert reply.ok
            assert reply.text.startswith("# SViMo Sampler") == (not page.endswith("zh"))
        texts = session.get(f"{server.url}/i18n", timeout=30).json()
    for language in ("en", "zh"):
        assert "SViMoSampler" in texts[language]["nodeDefs"]


def keys(tree) -> set:
    if isinstance(tree, str):
        assert tree
        return {()}
    return {(key, *rest) for key, branch in tree.items() for rest in keys(branch)}


def test_every_language_says_everything():
    folders = sorted((ROOT / "locales").iterdir())
    texts = {
        folder.name: json.loads((folder / "nodeDefs.json").read_text(encoding="utf-8")) for folder in folders
    }
    assert set(texts) == {"en", "zh"}
    assert keys(texts["zh"]) == keys(texts["en"])
