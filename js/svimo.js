// What the pack adds to the page: the 3D view in "SViMo Motion Viewer". The view itself, and three.js with it, is only
// loaded once a node has something to show.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const NODE = "SViMoMotionViewer";
const OUTPUT = "svimo_viewer";
const VIEW = "svimo_view"; // a property of the node, saved with the workflow
const FILES = "svimo_files"; // another one of workflows before 0.2
const MIN_HEIGHT = 340;
const SIZE = [560, 520]; // of a new node

const viewers = new WeakMap(); // node -> NodeViewer
const left = new Map(); // id of a removed node -> its element, which may still be in the page

class NodeViewer {
    constructor(node) {
        this.node = node;
        this.element = document.createElement("div");
        this.element.className = "widget-expands"; // in Nodes 2.0: fill the node
        this.element.style.cssText = `position: relative; width: 100%; height: 100%; min-height: ${MIN_HEIGHT}px;`;
        this.viewer = null;
        this.removed = false;
        this.shown = "";

        const widget = node.addDOMWidget("viewer", "SVIMO_VIEWER", this.element, {
            serialize: false,
            hideOnZoom: false,
            getMinHeight: () => MIN_HEIGHT,
        });
        widget.serialize = false;
        node.setSize(SIZE.map((pixels, i) => Math.max(pixels, node.size[i])));

        const viewer = this;
        const { onExecuted, onConfigure, onRemoved } = node;
        node.onExecuted = function (output) {
            onExecuted?.apply(this, arguments);
            viewer.show(output?.[OUTPUT]);
        };
        node.onConfigure = function () {
            onConfigure?.apply(this, arguments);
            delete this.properties[FILES];
            viewer.show(outputOf(this));
        };
        node.onRemoved = function () {
            onRemoved?.apply(this, arguments);
            viewer.remove();
        };
    }

    /** Show the files that a run made: [{role, filename, subfolder, type, ...}]. */
    async show(files) {
        const key = JSON.stringify(files ?? []);
        if (!files?.length || key === this.shown) return;
        this.shown = key;
        try {
            const { MotionViewer } = await import("./viewer/viewer.mjs");
            if (this.removed) return;
            this.enterPage();
            this.viewer ??= new MotionViewer(this.element, {
                state: this.node.properties[VIEW],
                onState: state => this.keep(state),
            });
            const shown = await this.viewer.show(files.map(file => ({ ...file, url: fileUrl(file) })));
            if (!shown && this.shown === key) this.shown = ""; // they may be there the next time
        } catch (error) {
            this.shown = "";
            this.element.textContent = `The viewer could not start: ${error.message}`;
        }
    }

    /** Nodes 2.0 keeps the element of a node that an undo has made anew, and never asks for that of the new one. */
    enterPage() {
        if (!this.element.isConnected) left.get(this.node.id)?.replaceWith(this.element);
        left.delete(this.node.id);
    }

    /** Keep a state of the view with the workflow, and tell the page of it: it saves what it was told of. */
    keep(state) {
        app.canvas.emitBeforeChange();
        this.node.properties[VIEW] = state;
        app.canvas.emitAfterChange();
    }

    remove() {
        this.removed = true;
        left.set(this.node.id, this.element);
        this.viewer?.dispose();
        this.viewer = null;
    }
}

function fileUrl({ filename, subfolder, type }) {
    return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

/** The node of an output: "12", or "<subgraph>:12" for one inside a subgraph. */
function findNode(locator) {
    const [id, subgraph] = locator.split(":").reverse();
    const graph = subgraph ? app.graph.subgraphs?.get(subgraph) : app.graph;
    return graph?.getNodeById(id);
}

/** The files that a node has made, if the page still knows: an undo makes all nodes anew and keeps what they made. */
function outputOf({ id, graph }) {
    const locator = graph === app.graph ? id : `${graph?.id}:${id}`;
    return app.nodeOutputs?.[locator]?.[OUTPUT];
}

app.registerExtension({
    name: "comfyuisvimo.MotionViewer",

    nodeCreated(node) {
        if (node.comfyClass === NODE) viewers.set(node, new NodeViewer(node));
    },

    // A run picked from the history, or a workflow of another tab.
    onNodeOutputsUpdated(outputs) {
        for (const [locator, output] of Object.entries(outputs)) {
            if (output?.[OUTPUT]) viewers.get(findNode(locator))?.show(output[OUTPUT]);
        }
    },
});
