#!/usr/bin/env bash
# Rebuild js/viewer/three.mjs: of three.js (MIT) only what the viewer uses, in one file, because a page without internet
# must work and ComfyUI runs every .js below js/ as a script of its own. Needs npm; the result is committed.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$PWD/js/viewer
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
cd "$build"
npm install --silent three@0.187.0 esbuild@0.28.2
cat >entry.mjs <<'END'
export {
    BufferAttribute, BufferGeometry, Color, CylinderGeometry, DirectionalLight, DoubleSide, DynamicDrawUsage, Group,
    HemisphereLight, IcosahedronGeometry, InstancedMesh, LinearFilter, LineBasicMaterial, LineSegments, Matrix4, Mesh,
    MeshBasicMaterial, MeshStandardMaterial, PerspectiveCamera, Quaternion, Scene, SphereGeometry, SRGBColorSpace,
    TextureLoader, Vector3, WebGLRenderer,
} from "three";
export { OrbitControls } from "three/addons/controls/OrbitControls.js";
END
# three.js marks the page it runs in, to warn of a second copy; the page has its own copy, and two do no harm.
npx esbuild entry.mjs --bundle --minify --format=esm --legal-comments=inline --log-level=warning \
    --define:window.__THREE__=window.__SVIMO_THREE__ --outfile="$target/three.mjs"
cp node_modules/three/LICENSE "$target/three.LICENSE"
