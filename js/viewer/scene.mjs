// The 3D scene of one motion: hands, objects, camera, ground, trails and contacts. Knows nothing of buttons.
//
// A motion is in camera space: metres, x right, y down, z forward. three.js has y up and looks along -z, so everything
// lives in a group that is turned half around x.

import * as THREE from "./three.mjs";

const BONES = [
    ...[1, 5, 9, 13, 17].map(base => [0, base]),
    ...[[5, 9], [9, 13], [13, 17]],
    ...[1, 5, 9, 13, 17].flatMap(base => [0, 1, 2].map(i => [base + i, base + i + 1])),
];
const PALM = [[0, 1, 5], [0, 5, 9], [0, 9, 13], [0, 13, 17]];
const HAND_LENGTH = 0.095; // metres from wrist to the base of the middle finger, for which the radii below are made
const JOINT_RADII = [13, ...[11.5, 9.5, 8, 6.5], ...[9.5, 8, 7, 6], ...[9.5, 8, 7, 6], ...[9.5, 8, 7, 6], ...[9, 7, 6, 5.5]]; // mm
const CONTACT = 0.012; // metres between a joint and a point of an object
const TRAIL = 20; // frames
const TRAIL_JOINTS = [4, 8]; // tips of thumb and index finger

const BACKGROUND = 0x16181d;
const HAND_COLORS = { left: 0xeb6e64, right: 0x69d278 };
const OBJECT_COLORS = [0xe178dc, 0x6e82fa, 0xf0aa50, 0x5acddc];
const CONTACT_COLOR = 0xffd75a;

export class MotionScene {
    /**
     * @param canvas the canvas to draw on
     * @param motion a motion as svimo_core/export/json_.py writes it; a frame of a hand that is absent is null
     * @param sheet the video's frames in one picture ({url, columns, rows}), or undefined
     * @param onChange called when the scene wants to be drawn again
     */
    constructor(canvas, motion, sheet, onChange) {
        this.motion = motion;
        this.view = "orbit";
        this.frame = 0;
        this.hidden = new Set();
        this.renderer = new THREE.WebGLRenderer({ canvas, antialias: true });
        this.scene = new THREE.Scene();
        this.scene.add(new THREE.HemisphereLight(0xf4f6ff, 0x50505c, 2.2));
        const sun = new THREE.DirectionalLight(0xffffff, 2.0);
        sun.position.set(0.6, 1.5, 1);
        this.scene.add(sun);
        this.world = new THREE.Group();
        this.world.rotation.x = Math.PI;
        this.scene.add(this.world);

        const seen = Object.values(motion.hands).map(frames => frames.filter(hand => hand));
        this.bounds = bounds([...seen, ...Object.values(motion.objects)].flat(2));
        // There may be no hand, or one with all its joints in one place, and a file may be in other units than metres.
        const lengths = seen.filter(frames => frames.length).map(frames => median(frames.map(hand => distance(hand[0], hand[9]))));
        this.scale = Math.max(0, ...lengths) / HAND_LENGTH || this.radius;
        this.parts = {}; // name -> Object3D, which a toggle shows or hides
        for (const side of Object.keys(motion.hands)) this.parts[side] = this.addHand(HAND_COLORS[side]);
        Object.entries(motion.objects).forEach(([name, frames], i) => {
            this.parts[name] = this.addObject(frames, OBJECT_COLORS[i % OBJECT_COLORS.length]);
        });
        this.parts.trails = this.addTrails();
        this.parts.grid = this.addGrid();
        this.parts.camera = this.addCamera();
        this.parts.video = this.addVideo(sheet, onChange);

        this.orbitCamera = new THREE.PerspectiveCamera(40, 1, 0.01 * this.radius, 100 * this.radius);
        this.clipCamera = new THREE.PerspectiveCamera();
        this.controls = new THREE.OrbitControls(this.orbitCamera, canvas);
        this.controls.addEventListener("change", onChange);
        // They follow a drag on the document, to which newer Nodes 2.0 lets no pointermove or pointerup through.
        // Where both arrive, the second finds nothing left to do.
        canvas.addEventListener("pointermove", this.controls._onPointerMove);
        canvas.addEventListener("pointerup", this.controls._onPointerUp);
        this.resetView();
        this.setFrame(0);
    }

    static colorOf(name, motion) {
        const color = HAND_COLORS[name] ?? OBJECT_COLORS[Object.keys(motion.objects).indexOf(name) % OBJECT_COLORS.length];
        return `#${color.toString(16).padStart(6, "0")}`;
    }

    get radius() {
        return Math.max(distance(this.bounds.low, this.bounds.high) / 2, 1e-3);
    }

    /** Look at the whole clip from the right and above. */
    resetView() {
        const center = this.bounds.low.map((low, i) => (low + this.bounds.high[i]) / 2);
        const [azimuth, elevation] = [25, 22].map(degrees => (degrees * Math.PI) / 180);
        const half = (this.orbitCamera.fov * Math.PI) / 360;
        const away = (0.85 * this.radius) / Math.sin(half) / Math.min(1, this.orbitCamera.aspect);
        this.controls.target.set(center[0], -center[1], -center[2]);
        this.orbitCamera.position
            .set(Math.sin(azimuth) * Math.cos(elevation), Math.sin(elevation), Math.cos(azimuth) * Math.cos(elevation))
            .multiplyScalar(away)
            .add(this.controls.target);
        this.controls.update();
    }

    setView(view) {
        this.view = view;
        this.controls.enabled = view === "orbit";
        this.updateVisibility();
    }

    setHidden(names) {
        this.hidden = new Set(names);
        this.updateVisibility();
        this.setFrame(this.frame);
    }

    updateVisibility() {
        const through = this.view === "camera";
        for (const [name, part] of Object.entries(this.parts)) part.visible = this.isShown(name);
        // The camera neither sees itself nor needs a ground; its picture is the backdrop then.
        for (const name of ["grid", "camera"]) this.parts[name].visible &&= !through;
        this.parts.video.visible &&= through || this.parts.camera.visible;
        const { material } = this.parts.video;
        material.depthTest = material.depthWrite = material.transparent = !through;
        material.opacity = through ? 1 : 0.6;
        material.needsUpdate = true;
    }

    isShown(name) {
        return !this.hidden.has(name) && this.motion.hands[name]?.[this.frame] !== null;
    }

    setFrame(frame) {
        this.frame = frame;
        const touching = this.hidden.has("contacts") ? () => false : this.contactTest();
        for (const [side, frames] of Object.entries(this.motion.hands)) {
            this.parts[side].visible = this.isShown(side);
            if (frames[frame]) this.poseHand(this.parts[side], frames[frame], HAND_COLORS[side], touching);
        }
        for (const [name, frames] of Object.entries(this.motion.objects)) this.placePoints(this.parts[name], frames[frame]);
        this.drawTrails();
        this.parts.video.userData.showFrame?.(frame);
    }

    resize(width, height, pixelRatio) {
        this.size = [width, height];
        this.renderer.setPixelRatio(pixelRatio);
        this.renderer.setSize(width, height, false);
        this.orbitCamera.aspect = width / height;
        this.orbitCamera.updateProjectionMatrix();
    }

    render() {
        const [width, height] = this.size;
        this.renderer.setScissorTest(false);
        this.renderer.setClearColor(this.view === "camera" ? 0x0b0c0f : BACKGROUND);
        this.renderer.setViewport(0, 0, width, height);
        this.renderer.clear();
        if (this.view === "orbit") {
            this.renderer.render(this.scene, this.orbitCamera);
            return;
        }
        // The clip's camera keeps its own proportions: draw into the largest rectangle that has them.
        const { fx, fy, cx, cy, width: w, height: h } = this.motion.camera;
        const near = 0.01 * this.radius;
        const far = 100 * this.radius + distance([0, 0, 0], this.bounds.high);
        this.clipCamera.projectionMatrix.makePerspective(
            (-cx / fx) * near, ((w - cx) / fx) * near, (cy / fy) * near, (-(h - cy) / fy) * near, near, far,
        );
        this.clipCamera.projectionMatrixInverse.copy(this.clipCamera.projectionMatrix).invert();
        const fit = Math.min(width / w, height / h);
        const frame = [(width - w * fit) / 2, (height - h * fit) / 2, w * fit, h * fit];
        this.renderer.setViewport(...frame);
        this.renderer.setScissor(...frame);
        this.renderer.setScissorTest(true);
        this.renderer.setClearColor(BACKGROUND);
        this.renderer.render(this.scene, this.clipCamera);
    }

    dispose() {
        this.controls.dispose();
        this.scene.traverse(part => {
            part.geometry?.dispose();
            part.material?.map?.dispose();
            part.material?.dispose();
            if (part.isInstancedMesh) part.dispose();
        });
        this.renderer.dispose();
        this.renderer.forceContextLoss(); // else the browser keeps it until the garbage collector comes by
    }

    // -- building

    addHand(color) {
        const group = new THREE.Group();
        const bones = instanced(new THREE.CylinderGeometry(1, 1, 1, 14, 1, true), color, BONES.length);
        const joints = instanced(new THREE.SphereGeometry(1, 18, 12), 0xffffff, JOINT_RADII.length);
        const palm = new THREE.Mesh(
            new THREE.BufferGeometry(),
            new THREE.MeshStandardMaterial({ color, roughness: 0.6, side: THREE.DoubleSide, flatShading: true }),
        );
        const corners = new THREE.BufferAttribute(new Float32Array(9 * PALM.length), 3);
        palm.geometry.setAttribute("position", corners.setUsage(THREE.DynamicDrawUsage));
        palm.frustumCulled = false;
        group.add(bones, joints, palm);
        group.userData = { bones, joints, palm };
        this.world.add(group);
        return group;
    }

    addObject(frames, color) {
        const points = frames[0];
        const box = bounds(points);
        const radius = (0.24 * distance(box.low, box.high)) / Math.sqrt(points.length) || 0.003 * this.scale;
        const mesh = instanced(new THREE.IcosahedronGeometry(radius, 1), color, points.length);
        this.world.add(mesh);
        return mesh;
    }

    addGrid() {
        const { low, high } = this.bounds;
        const extent = Math.max(high[0] - low[0], high[2] - low[2]);
        let cell = 0.05 * this.scale;
        while (extent / cell > 16) cell *= 2;
        const [x0, z0] = [0, 2].map(i => Math.floor(low[i] / cell) - 1);
        const [x1, z1] = [0, 2].map(i => Math.ceil(high[i] / cell) + 1);
        const y = high[1] + 0.004 * this.scale;
        const corners = [];
        for (let x = x0; x <= x1; x++) corners.push([x * cell, y, z0 * cell], [x * cell, y, z1 * cell]);
        for (let z = z0; z <= z1; z++) corners.push([x0 * cell, y, z * cell], [x1 * cell, y, z * cell]);
        return this.addLines(corners, 0x3c414b);
    }

    /** Corners of the camera's picture, as a screen behind everything that moves. */
    pictureCorners() {
        const { fx, fy, cx, cy, width, height } = this.motion.camera;
        const depth = Math.max(this.bounds.high[2], 0) + 0.05 * this.scale;
        return [[0, 0], [width, 0], [width, height], [0, height]].map(([u, v]) => [
            ((u - cx) / fx) * depth, ((v - cy) / fy) * depth, depth,
        ]);
    }

    addCamera() {
        const corners = this.pictureCorners();
        const edges = corners.flatMap((corner, i) => [[0, 0, 0], corner, corner, corners[(i + 1) % 4]]);
        return this.addLines(edges, 0x6a7282);
    }

    /** The video's frame where the camera's picture is; nothing without a video. */
    addVideo(sheet, onChange) {
        if (!sheet) {
            const nothing = new THREE.Mesh(new THREE.BufferGeometry(), new THREE.MeshBasicMaterial());
            return nothing;
        }
        const [a, b, c, d] = this.pictureCorners();
        const geometry = new THREE.BufferGeometry();
        geometry.setAttribute("position", new THREE.BufferAttribute(new Float32Array([a, b, c, a, c, d].flat()), 3));
        const uv = new THREE.BufferAttribute(new Float32Array(12), 2);
        geometry.setAttribute("uv", uv);
        const map = new THREE.TextureLoader().load(sheet.url, onChange);
        map.colorSpace = THREE.SRGBColorSpace;
        map.generateMipmaps = false;
        map.minFilter = THREE.LinearFilter;
        const material = new THREE.MeshBasicMaterial({ map, side: THREE.DoubleSide, transparent: true });
        const mesh = new THREE.Mesh(geometry, material);
        mesh.renderOrder = -1;
        mesh.userData.showFrame = frame => {
            const [w, h] = [1 / sheet.columns, 1 / sheet.rows];
            const [left, top] = [(frame % sheet.columns) * w, 1 - Math.floor(frame / sheet.columns) * h];
            const [p, q, r, s] = [[left, top], [left + w, top], [left + w, top - h], [left, top - h]];
            uv.array.set([p, q, r, p, r, s].flat());
            uv.needsUpdate = true;
        };
        this.world.add(mesh);
        return mesh;
    }

    addLines(corners, color) {
        const geometry = new THREE.BufferGeometry();
        geometry.setAttribute("position", new THREE.BufferAttribute(new Float32Array(corners.flat()), 3));
        const lines = new THREE.LineSegments(geometry, new THREE.LineBasicMaterial({ color }));
        this.world.add(lines);
        return lines;
    }

    addTrails() {
        const centers = Object.values(this.motion.objects).map(frames => frames.map(mean));
        const tips = Object.values(this.motion.hands).flatMap(frames => TRAIL_JOINTS.map(j => frames.map(hand => hand?.[j])));
        const owners = [...Object.keys(this.motion.objects), ...Object.keys(this.motion.hands).flatMap(side => [side, side])];
        this.trails = [...centers, ...tips].map((path, i) => ({ path, owner: owners[i] }));
        const geometry = new THREE.BufferGeometry();
        for (const name of ["position", "color"]) {
            const values = new Float32Array(6 * TRAIL * this.trails.length);
            geometry.setAttribute(name, new THREE.BufferAttribute(values, 3).setUsage(THREE.DynamicDrawUsage));
        }
        const lines = new THREE.LineSegments(geometry, new THREE.LineBasicMaterial({ vertexColors: true }));
        lines.frustumCulled = false;
        this.world.add(lines);
        return lines;
    }

    // -- one frame

    poseHand({ userData: { bones, joints, palm } }, hand, color, touching) {
        const radii = JOINT_RADII.map(millimetres => (millimetres / 1000) * this.scale);
        const own = new THREE.Color(color);
        const bright = own.clone().lerp(new THREE.Color(0xffffff), 0.18);
        const contact = new THREE.Color(CONTACT_COLOR);
        hand.forEach((joint, i) => {
            // A touching joint is a little larger than the finger around it, so that its colour shows.
            const touches = touching(joint);
            const size = radii[i] * (touches ? 1.18 : 1);
            joints.setMatrixAt(i, new THREE.Matrix4().makeScale(size, size, size).setPosition(...joint));
            joints.setColorAt(i, touches ? contact : bright);
        });
        BONES.forEach(([a, b], i) => {
            const [start, end] = [a, b].map(joint => new THREE.Vector3(...hand[joint]));
            const along = end.clone().sub(start);
            const turn = new THREE.Quaternion().setFromUnitVectors(UP, along.clone().normalize());
            const radius = Math.min(radii[a], radii[b]) * 0.96;
            const size = new THREE.Vector3(radius, along.length(), radius);
            bones.setMatrixAt(i, new THREE.Matrix4().compose(start.add(end).multiplyScalar(0.5), turn, size));
        });
        const corners = palm.geometry.attributes.position;
        corners.array.set(PALM.flat().flatMap(joint => hand[joint]));
        corners.needsUpdate = true;
        for (const mesh of [bones, joints]) mesh.instanceMatrix.needsUpdate = true;
        joints.instanceColor.needsUpdate = true;
    }

    placePoints(mesh, points) {
        const matrix = new THREE.Matrix4();
        points.forEach((point, i) => mesh.setMatrixAt(i, matrix.setPosition(...point)));
        mesh.instanceMatrix.needsUpdate = true;
    }

    /** joint -> whether it touches a point of a visible object. */
    contactTest() {
        const visible = Object.entries(this.motion.objects).filter(([name]) => !this.hidden.has(name));
        const points = visible.flatMap(([, frames]) => frames[this.frame]);
        const reach = CONTACT * this.scale;
        return joint => points.some(point => distance(point, joint) < reach);
    }

    drawTrails() {
        const { position, color } = this.parts.trails.geometry.attributes;
        const faded = new THREE.Color(BACKGROUND);
        let i = 0;
        for (const { path, owner } of this.trails) {
            if (this.hidden.has(owner) || !path[this.frame]) continue;
            const own = new THREE.Color(MotionScene.colorOf(owner, this.motion));
            for (let age = 0; age < TRAIL && this.frame - age > 0; age++) {
                if (!path[this.frame - age - 1] || !path[this.frame - age]) break; // the hand was absent
                for (const past of [age, age + 1]) {
                    position.setXYZ(i, ...path[this.frame - past]);
                    const shade = own.clone().lerp(faded, past / TRAIL);
                    color.setXYZ(i++, shade.r, shade.g, shade.b);
                }
            }
        }
        this.parts.trails.geometry.setDrawRange(0, i);
        position.needsUpdate = color.needsUpdate = true;
    }
}

const UP = new THREE.Vector3(0, 1, 0);

function instanced(geometry, color, count) {
    const material = new THREE.MeshStandardMaterial({ color, roughness: 0.6 });
    const mesh = new THREE.InstancedMesh(geometry, material, count);
    mesh.instanceMatrix.setUsage(THREE.DynamicDrawUsage);
    mesh.frustumCulled = false; // its bounds are those of one instance
    return mesh;
}

function bounds(points) {
    const [low, high] = [[Infinity, Infinity, Infinity], [-Infinity, -Infinity, -Infinity]];
    for (const point of points) {
        for (let i = 0; i < 3; i++) {
            low[i] = Math.min(low[i], point[i]);
            high[i] = Math.max(high[i], point[i]);
        }
    }
    return { low, high };
}

function mean(points) {
    return [0, 1, 2].map(i => points.reduce((sum, point) => sum + point[i], 0) / points.length);
}

function median(values) {
    return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
}

function distance(a, b) {
    return Math.hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]);
}
