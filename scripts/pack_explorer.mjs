// node pack_explorer.mjs PYODIDE KIT OUT: what the explorer's page needs of Python and of the kit, packed by pack_explorer.py.
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const [pyodide, kit, out] = process.argv.slice(2).map((path) => resolve(path));
const { loadPyodide } = await import(pathToFileURL(join(pyodide, "pyodide.mjs")));
const python = await loadPyodide({ indexURL: pyodide + "/", env: { HOME: "/home/pyodide", PYTHONNODEBUGRANGES: "1" } });
python.FS.mkdirTree("/out");
python.FS.mkdirTree("/in/kit");
python.FS.mount(python.FS.filesystems.NODEFS, { root: kit }, "/in/kit");
python.runPython("import sys; sys.path.insert(1, '/in/kit'); sys.dont_write_bytecode = True");
try {
  python.runPython("1 / 0");
} catch {} // what an error's message needs is needed, too
const source = readFileSync(join(fileURLToPath(new URL(".", import.meta.url)), "pack_explorer.py"), "utf8");
let packed;
try {
  packed = python.runPython(source, { filename: "pack_explorer.py" });
} catch (error) {
  console.error(error.message);
  process.exit(1);
}
mkdirSync(out, { recursive: true });
for (const name of python.FS.readdir("/out")) {
  if (!name.startsWith(".")) writeFileSync(join(out, name), python.FS.readFile(`/out/${name}`));
}
writeFileSync(join(out, "packed.json"), packed);
