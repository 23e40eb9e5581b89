"""What the page says about the nodes: complete, and the same as the nodes say themselves."""

import json

import requests

from dev.comfy import PACK_NAME, ROOT
from dev.help import ADVICE, files, is_ours


def test_help_and_english_texts_are_up_to_date(client):
    info = client.object_info()
    assert {name for name in info if is_ours(info[name])} == set(ADVICE)
    for path, content in files(info).items():
        assert path.is_file(), f"run python -m dev.help: {path.name} is missing"
        assert path.read_text(encoding="utf-8") == content, f"run python -m dev.help: {path.name} is old"
    assert {path.stem for path in (ROOT / "js" / "docs").glob("*.md")} == set(ADVICE)


def test_the_page_finds_help_and_translations(server):
    with requests.Session() as session:
        session.trust_env = False
        page = session.get(f"{server.url}/extensions/{PACK_NAME}/docs/SViMoSampler.md", timeout=30)
        assert page.text.startswith("# SViMo Sampler")
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
