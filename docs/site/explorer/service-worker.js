// The page without a network: a build's files are kept under its name, and the page itself is asked for first, so that a new
// build replaces the old as soon as there is a network.
const BUILD = "{{build}}", FILES = {{files}}, PAGE = "./";

self.addEventListener("install", (event) => event.waitUntil((async () => {
  const cache = await caches.open(`explorer-${BUILD}`);
  // a build's files never change, so what the page has just fetched is taken from the browser's own cache
  await Promise.all(FILES.map(async (file) => cache.put(file, await good(new Request(file, { cache: "force-cache" })))));
  await cache.put(PAGE, await good(new Request(PAGE, { cache: "no-cache" })));
  await self.skipWaiting();
})()));

self.addEventListener("activate", (event) => event.waitUntil((async () => {
  const old = (await caches.keys()).filter((name) => name.startsWith("explorer-") && name !== `explorer-${BUILD}`);
  await Promise.all(old.map((name) => caches.delete(name)));
  await self.clients.claim();
})()));

self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET") return;
  if (event.request.mode === "navigate") event.respondWith(good(new Request(event.request.url, { cache: "no-cache" })).catch(() => caches.match(PAGE)));
  else event.respondWith(caches.match(event.request).then((kept) => kept ?? fetch(event.request)));
});

async function good(request) {
  const answer = await fetch(request);
  if (!answer.ok) throw new Error(`${answer.status} ${request.url}`);
  return answer;
}
