// The page's Python: Pyodide with lora_kit. A message is a text: an event for `Page.act`, or "#" and an address to start from.
import { loadPyodide } from "./pyodide.mjs";

const fetched = self.fetch.bind(self);
const TYPES = { "pyodide.asm.mjs": "text/javascript", "pyodide.asm.wasm": "application/wasm", "python_stdlib.zip": "application/zip", "kit.zip": "application/zip" };

// What is large is compressed whatever the server does, and all of it is asked for at once.
const parts = Object.fromEntries(Object.entries(TYPES).map(([name, type]) => [name, unpacked(name, type)]));
async function unpacked(name, type) {
  const answer = await fetched(new URL(`${name}.gz`, import.meta.url));
  if (!answer.ok) throw new Error(`${name} could not be fetched: ${answer.status}`);
  return new Response(answer.body.pipeThrough(new DecompressionStream("gzip")), { headers: { "Content-Type": type } });
}
self.fetch = (address, ...more) => parts[String(address.url ?? address).split("/").pop()] ?? fetched(address, ...more);

let page;
const asked = [];
self.onmessage = ({ data }) => (page ? answer(data) : asked.push(data));

function answer(text) {
  try {
    self.postMessage(text.startsWith("#") ? { start: page.start(text) } : { changed: page.act(text) });
  } catch (error) {
    self.postMessage({ error: error.message.trim().split("\n").pop() });
  }
}

try {
  const script = URL.createObjectURL(await (await parts["pyodide.asm.mjs"]).blob());
  const python = await loadPyodide({
    createPyodideModule: (await import(script)).default,
    lockFileContents: { info: {{lock}}, packages: {} },
    env: { HOME: "/home/pyodide", PYTHONNODEBUGRANGES: "1" },
  });
  python.FS.writeFile("/kit.zip", new Uint8Array(await (await parts["kit.zip"]).arrayBuffer()));
  page = python.runPython(`
import sys, zipfile
zipfile.ZipFile("/kit.zip").extractall("/kit")
sys.path.insert(0, "/kit")
from lora_kit.explorer.web import Page
Page`)(`${import.meta.url.split("/").at(-2)}/atlas/`);
  self.postMessage({ alive: true });
  asked.forEach(answer);
} catch (error) {
  self.postMessage({ failed: String(error.message ?? error).trim().split("\n").pop() });
}
