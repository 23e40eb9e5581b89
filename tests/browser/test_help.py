"""Help of the nodes in the page, in the user's language."""

import json
import re

import pytest

from dev.browser import comfy_page
from dev.comfy import ROOT
from dev.help import advice

NODE = "SViMoCleanMotion"


@pytest.fixture(params=["en", "zh"])
def page(server, request):
    with comfy_page(server.url, settings={"Comfy.Locale": request.param}) as page:
        page.language = request.param
        yield page


def test_help_opens_in_the_language_of_the_page_at_the_first_request(page):
    replies = []
    page.page.on("response", lambda reply: replies.append((reply.url, reply.status)))
    # Until it is there: starting up, the page replaces the graph and forgets the selection once more.
    page.page.wait_for_function(
        """type => {
            if (document.querySelector("[data-testid=info-button]")) return true;
            let node = app.graph.nodes.find(node => node.type === type);
            if (!node) {
                node = LiteGraph.createNode(type);
                node.pos = [300, 300];
                app.graph.add(node);
            }
            app.canvas.deselectAll();
            app.canvas.selectNode(node);
            app.canvas.setDirty(true, true);
            return false;
        }""",
        arg=NODE,
        polling=1000,
    )
    page.page.get_by_test_id("info-button").click()
    words = {}
    if page.language != "en":
        words = json.loads((ROOT / "locales" / page.language / "help.json").read_text(encoding="utf-8"))
    for text in (words.get(item, item) for item in advice(NODE)):
        page.page.get_by_text(re.sub("[`*]", "", text)).wait_for(timeout=10_000)
    asked = [(url.partition("/docs/")[2], status) for url, status in replies if "/docs/" in url]
    assert asked == [(f"{NODE}/{page.language}.md", 200)]
