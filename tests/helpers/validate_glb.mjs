// Runs Khronos' glTF validator (npm package gltf-validator) and writes its report as JSON.
// Usage: node validate_glb.mjs <folder with node_modules> <file.glb>
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

const [folder, file] = process.argv.slice(2);
const validator = createRequire(`${folder}/`)("gltf-validator");
const report = await validator.validateBytes(new Uint8Array(await readFile(file)));
console.log(JSON.stringify(report));
