// One 3D view with its controls: what a person sees and touches. The drawing itself is in scene.mjs.

import { MotionScene } from "./scene.mjs";

const SPEEDS = [0.25, 0.5, 1, 2];
const EXTRAS = ["trails", "contacts", "grid", "camera"];
const DEFAULT_STATE = { view: "orbit", hidden: [], speed: 1, loop: true };
const ICONS = {
    play: "M4 2.5v11l9-5.5z",
    pause: "M4 2.5h3v11H4zM9 2.5h3v11H9z",
    loop: "M4 5h7V3l3 3-3 3V7H5v2H3V6a1 1 0 0 1 1-1zm8 6H5v2l-3-3 3-3v2h6V7h2v3a1 1 0 0 1-1 1z",
    home: "M8 2.2 1.8 7.6l1 1.1L4 7.7V13h3V9.5h2V13h3V7.7l1.2 1 1-1.1z",
    photo: "M5.5 3 4.4 4.5H2v8.5h12V4.5h-2.4L10.5 3zM8 6a2.6 2.6 0 1 1 0 5.2A2.6 2.6 0 0 1 8 6z",
};

export class MotionViewer {
    /**
     * @param element where to live
     * @param state how the view was left, as `onState` was given it
     * @param onState called with the state when a person changes it
     */
    constructor(element, { state, onState }) {
        this.state = { ...DEFAULT_STATE, ...state };
        this.onState = onState;
        this.frame = 0;
        this.playing = false;
        this.scene = null;
        this.loading = null;
        this.buildElements(element);
        this.observer = new ResizeObserver(() => this.resize());
        this.observer.observe(this.view);
    }

    /**
     * Load and show files: [{role, url, ...}], one of them the motion, the others sheets of frames.
     *
     * @returns whether they are shown now
     */
    async show(files) {
        this.loading?.abort();
        const loading = (this.loading = new AbortController());
        this.close();
        this.say("Loading ...");
        const byRole = Object.fromEntries(files.map(file => [file.role, file]));
        try {
            this.motion = withOwnNames(await load(byRole.motion.url, loading.signal));
            if (loading.signal.aborted) return false;
            this.canvas = element("canvas", { tabIndex: 0 });
            this.canvas.addEventListener("webglcontextlost", event => this.onContextLost(event));
            this.view.prepend(this.canvas);
            this.scene = new MotionScene(this.canvas, this.motion, byRole.video, () => this.requestDraw());
        } catch (error) {
            if (loading.signal.aborted) return false;
            this.close();
            this.say(error.message, true);
            return false;
        }
        this.say("");
        this.scrubber.max = this.motion.frames - 1;
        this.root.classList.add("svimo-ready");
        this.buildToggles();
        this.buildPanes([byRole.video, byRole.rendered_motion].filter(Boolean));
        this.applyState();
        this.resize();
        this.goTo(Math.min(this.frame, this.motion.frames - 1));
        return true;
    }

    dispose() {
        this.loading?.abort();
        this.observer.disconnect();
        this.close();
        this.root.remove();
    }

    close() {
        this.pause();
        cancelAnimationFrame(this.drawing);
        this.drawing = null;
        this.scene?.dispose();
        this.scene = null;
        this.canvas?.remove();
        this.root.classList.remove("svimo-ready");
    }

    // -- time

    play() {
        if (!this.scene || this.playing) return;
        const last = this.motion.frames - 1;
        if (this.frame === last && !this.state.loop) this.goTo(0);
        this.playing = true;
        this.setIcon(this.playButton, "pause", "Pause (space)");
        let position = this.frame; // in frames, with a fraction
        let before = null;
        const tick = now => {
            position += ((now - (before ?? now)) / 1000) * this.motion.fps * this.state.speed;
            before = now;
            if (this.seeked !== null) position = this.seeked;
            if (position >= last + 1 && !this.state.loop) {
                this.goTo(last);
                this.pause();
                return;
            }
            const frame = Math.floor(position) % (last + 1);
            if (frame !== this.frame) this.goTo(frame);
            this.seeked = null;
            this.ticking = requestAnimationFrame(tick);
        };
        this.seeked = null;
        this.ticking = requestAnimationFrame(tick);
    }

    pause() {
        this.playing = false;
        cancelAnimationFrame(this.ticking); // else it would go on beside the next one, when played again at once
        this.setIcon(this.playButton, "play", "Play (space)");
    }

    /** Show one frame everywhere: scene, scrubber, label and pictures. */
    goTo(frame) {
        this.frame = frame;
        this.scene.setFrame(frame);
        this.scrubber.value = frame;
        const seconds = (frame / this.motion.fps).toFixed(2);
        this.label.textContent = `${frame + 1} / ${this.motion.frames}   ${seconds} s`;
        for (const { picture, sheet } of this.panes) {
            const [x, y] = [frame % sheet.columns, Math.floor(frame / sheet.columns)];
            picture.style.backgroundPosition = `${percent(x, sheet.columns - 1)} ${percent(y, sheet.rows - 1)}`;
        }
        this.root.dataset.frame = frame;
        this.requestDraw();
    }

    /** As a person moves through time: playing goes on from there. */
    seek(frame) {
        this.seeked = frame;
        this.goTo(frame);
    }

    // -- drawing

    requestDraw() {
        this.drawing ??= requestAnimationFrame(() => {
            this.drawing = null;
            if (this.scene && this.scene.size && this.view.clientWidth) this.scene.render();
        });
    }

    resize() {
        const { clientWidth: width, clientHeight: height } = this.view;
        if (!this.scene || !width || !height) return; // hidden: collapsed, or on another tab
        const zoom = this.view.getBoundingClientRect().width / width; // of the graph
        const first = !this.scene.size;
        this.scene.resize(width, height, Math.min(2, window.devicePixelRatio * Math.max(1, zoom)));
        if (first) this.scene.resetView();
        this.scene.render(); // at once: a resized canvas is blank
    }

    onContextLost(event) {
        event.preventDefault();
        if (this.scene) this.say("The browser closed this 3D view, perhaps because too many are open. Reload the page.", true);
    }

    snapshot() {
        this.scene.render(); // the picture is only there right after drawing
        const link = element("a", {
            href: this.canvas.toDataURL("image/png"),
            download: `svimo_motion_frame_${String(this.frame + 1).padStart(4, "0")}.png`,
        });
        link.click();
    }

    // -- what a person chose

    change(changes) {
        Object.assign(this.state, changes);
        this.applyState();
        this.onState?.({ ...this.state });
    }

    applyState() {
        const { view, hidden, speed, loop } = this.state;
        for (const button of this.viewButtons) button.setAttribute("aria-pressed", button.value === view);
        for (const button of this.toggles.children) button.setAttribute("aria-pressed", !hidden.includes(button.value));
        this.loopButton.setAttribute("aria-pressed", loop);
        this.speed.value = speed;
        if (!this.scene) return;
        this.scene.setHidden(hidden);
        this.scene.setView(view);
        this.requestDraw();
    }

    toggle(name) {
        const { hidden } = this.state;
        this.change({ hidden: hidden.includes(name) ? hidden.filter(other => other !== name) : [...hidden, name] });
    }

    onKey(event) {
        const steps = { ArrowLeft: -1, ArrowRight: 1 };
        if (!this.scene || event.target === this.speed) return;
        if (event.key === " ") {
            if (event.target.tagName === "BUTTON") return; // it presses the button
            this.playing ? this.pause() : this.play();
        } else if (event.key in steps && event.target !== this.scrubber) {
            this.seek(Math.min(Math.max(this.frame + steps[event.key], 0), this.motion.frames - 1));
        } else return;
        event.preventDefault();
    }

    // -- elements

    buildElements(parent) {
        loadStyle();
        this.panes = [];
        this.root = element("div", { className: "svimo-viewer" });
        this.view = element("div", { className: "svimo-view" });
        this.message = element("div", { className: "svimo-message" });
        this.toggles = element("div", { className: "svimo-toggles" });
        const views = element("div", { className: "svimo-views" });
        this.viewButtons = [
            ["orbit", "Orbit", "Look from anywhere: drag to turn, right-drag to move, wheel to zoom"],
            ["camera", "Camera", "Look through the clip's own camera, in front of the video if one is connected"],
        ].map(([value, textContent, title]) =>
            element("button", { value, textContent, title, onclick: () => this.change({ view: value }) }),
        );
        this.home = this.iconButton("home", "Look at the whole clip again", () => {
            this.scene?.resetView();
            this.change({ view: "orbit" });
        });
        views.append(...this.viewButtons, this.home);
        this.view.append(views, this.message);
        this.side = element("div", { className: "svimo-side" });
        const stage = element("div", { className: "svimo-stage" });
        stage.append(this.view, this.side);

        this.playButton = this.iconButton("play", "Play (space)", () => (this.playing ? this.pause() : this.play()));
        this.scrubber = element("input", { type: "range", min: 0, max: 0, step: 1, value: 0, title: "Frame (arrow keys)" });
        this.scrubber.addEventListener("input", () => this.scene && this.seek(Number(this.scrubber.value)));
        this.label = element("output", {});
        this.speed = element("select", { title: "Speed" });
        this.speed.append(...SPEEDS.map(speed => element("option", { value: speed, textContent: `${speed}x` })));
        this.speed.addEventListener("change", () => this.change({ speed: Number(this.speed.value) }));
        this.loopButton = this.iconButton("loop", "Play again from the start", () => this.change({ loop: !this.state.loop }));
        this.photo = this.iconButton("photo", "Save this view as a picture", () => this.scene && this.snapshot());
        const bar = element("div", { className: "svimo-bar" });
        bar.append(this.playButton, this.scrubber, this.label, this.speed, this.loopButton, this.photo);

        this.root.append(stage, this.toggles, bar);
        // What happens in here is not meant for the graph, but Ctrl+Enter, Ctrl+S and Ctrl+Z are for the page.
        this.root.addEventListener("keydown", event => {
            if (event.ctrlKey || event.metaKey) return;
            this.onKey(event);
            event.stopPropagation();
        });
        this.root.dataset.captureWheel = "true"; // tells Nodes 2.0 to leave us the wheel
        for (const type of ["pointerdown", "wheel", "dblclick", "contextmenu"]) {
            this.root.addEventListener(type, event => event.stopPropagation());
        }
        this.view.addEventListener("contextmenu", event => event.preventDefault());
        parent.replaceChildren(this.root);
    }

    buildToggles() {
        const colored = [...Object.keys(this.motion.hands), ...Object.keys(this.motion.objects)];
        const buttons = [...colored, ...EXTRAS].map(name => {
            const button = element("button", { value: name, title: `Show or hide: ${name}`, onclick: () => this.toggle(name) });
            if (colored.includes(name)) {
                const dot = element("i", {});
                dot.style.background = MotionScene.colorOf(name, this.motion);
                button.append(dot);
            }
            button.append(colored.slice(0, 2).includes(name) ? `${name} hand` : name);
            return button;
        });
        this.toggles.replaceChildren(...buttons);
    }

    buildPanes(sheets) {
        this.panes = sheets.map(sheet => {
            const picture = element("div", { className: "svimo-picture", title: sheet.role.replace("_", " ") });
            picture.setAttribute("role", "img");
            picture.style.backgroundImage = `url("${sheet.url}")`;
            picture.style.backgroundSize = `${100 * sheet.columns}% ${100 * sheet.rows}%`;
            picture.style.aspectRatio = `${sheet.width} / ${sheet.height}`;
            return { picture, sheet };
        });
        this.side.replaceChildren(...this.panes.map(pane => pane.picture));
    }

    iconButton(icon, title, onclick) {
        const button = element("button", { className: "svimo-icon", onclick });
        this.setIcon(button, icon, title);
        return button;
    }

    setIcon(button, icon, title) {
        button.innerHTML = `<svg viewBox="0 0 16 16"><path d="${ICONS[icon]}"/></svg>`;
        button.title = title;
        button.setAttribute("aria-label", title);
    }

    say(text, isError = false) {
        this.message.textContent = text;
        this.message.classList.toggle("svimo-error", isError);
        this.message.setAttribute("role", isError ? "alert" : "status");
    }
}

async function load(url, signal) {
    const response = await fetch(url, { signal });
    if (response.status === 404) throw new Error("This motion is no longer on the server: run the workflow again.");
    if (!response.ok) throw new Error(`The server could not give the motion (${response.status} ${response.statusText}).`);
    return response.json();
}

/** A motion whose objects have names that nothing else in the view has: GRAB and OakInk have a camera to hold. */
function withOwnNames(motion) {
    const taken = [...Object.keys(motion.hands), ...EXTRAS, "video"];
    const own = name => (taken.includes(name) ? `${name} (object)` : name);
    const objects = Object.entries(motion.objects).map(([name, points]) => [own(name), points]);
    return { ...motion, objects: Object.fromEntries(objects) };
}

function percent(index, last) {
    return `${last ? (100 * index) / last : 0}%`;
}

function element(tag, properties) {
    return Object.assign(document.createElement(tag), properties);
}

function loadStyle() {
    const href = new URL("./viewer.css", import.meta.url).href;
    if (!document.querySelector(`link[href="${href}"]`)) {
        document.head.append(element("link", { rel: "stylesheet", href }));
    }
}
