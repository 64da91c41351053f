// The explorer's page: places what lora_kit says, and tells it what the reader does. It makes no number and no text of a run.
const $ = (selector, inside = document) => inside.querySelector(selector);
const $$ = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const start = JSON.parse($("#start").textContent);
const view = start.view;
const bound = []; // what sets an input from the view, one function each

// What the reader does goes to Python one at a time; of what waits, the latest of a kind replaces the one before, as far as
// nothing without a kind lies between.
const waiting = [];
let busy = true, alive = false;

function act(event, kind) {
  const since = waiting.findLastIndex((one) => !one.kind || one.kind === kind);
  if (kind && waiting[since]?.kind) waiting.splice(since, 1);
  if (["take_preset", "mend", "read"].includes(event.do)) { // the browser's Back takes it back
    writeAddress();
    step = true;
  }
  waiting.push({ text: typeof event === "string" ? event : JSON.stringify(event), kind });
  if (!busy) next();
}
const turn = (name, value) => act({ do: "turn", name, value }, `turn ${name}`);
const look = (name, value) => act({ do: "look", [name]: value }, `look ${name}`);

function next() {
  busy = waiting.length > 0;
  if (busy) worker.postMessage(waiting.shift().text);
}

worker.onmessage = ({ data }) => {
  if (data.alive) {
    alive = true;
    if (location.hash.length > 1) waiting.unshift({ text: location.hash });
    else document.documentElement.classList.add("alive");
    say("");
    keepForLater();
  } else if (data.failed || data.error) {
    say(`✗ ${data.failed ? "Python could not start" : "That went wrong"}: ${data.failed ?? data.error}`);
    document.documentElement.classList.remove("linked");
    if (alive) bound.forEach((set) => set());
  } else {
    const changed = data.start ? JSON.parse(data.start).view : JSON.parse(data.changed);
    place(changed);
    document.documentElement.classList.remove("linked");
    if (data.start) document.documentElement.classList.add("alive");
    onplaced();
  }
  if (!data.failed) next();
};
worker.onerror = (event) => say(`✗ Python could not start: ${event.message || "a part of it could not be fetched"}`);
let onplaced = () => {};

function say(text) {
  $("#status").textContent = text;
}

// From the view to the page.
function place(changed) {
  for (const [name, value] of Object.entries(changed)) {
    view[name] = ["controls", "panels", "unused"].includes(name) ? { ...view[name], ...value } : value;
  }
  for (const place of $$("[data-html]")) if (place.dataset.html in changed) place.innerHTML = view[place.dataset.html];
  for (const place of $$("[data-text]")) if (place.dataset.text in changed) place.textContent = view[place.dataset.text];
  for (const [name, html] of Object.entries(changed.panels ?? {})) {
    const place = $(`[data-body=${name}]`), open = $$("details", place).map((one) => one.open);
    place.innerHTML = html;
    $$("details", place).forEach((one, index) => (one.open = open[index] ?? false));
  }
  if (changed.panels?.atlas !== undefined) strip();
  if (changed.cursor) $("#said").textContent = view.cursor.said;
  bound.forEach((set) => set());
  show();
  saveAddress();
}

// What the LoRA draws, once more: on a phone it stays in sight above the curve.
function strip() {
  $("#strip").replaceChildren(...$$("[data-body=atlas] :is(.lora-kit-name, .lora-kit-drawn)").map((picture) => picture.cloneNode(true)));
}

// What is put away: knobs that do nothing now, empty panels, and what the address hides.
function show() {
  const hidden = new Set(view.hidden);
  for (const part of $$("[data-part]")) part.hidden = false;
  for (const part of $$("[data-name]")) part.hidden = hidden.has(part.dataset.name) || part.dataset.name in view.folded;
  for (const panel of $$("[data-panel]")) {
    const name = panel.dataset.panel, empty = ["atlas", "map"].includes(name) && !view.panels[name];
    panel.hidden = empty || hidden.has(name) || (view.embedded !== "" && view.embedded !== name);
  }
  for (const part of $$("[data-part]")) part.hidden ||= view.embedded !== "" && !part.dataset.part.split(" ").includes(view.embedded);
  $("#stage").hidden = ![...$("#stage").children].some((part) => !part.hidden);
  $("#strip").hidden = view.embedded !== "" || hidden.has("atlas") || !$("#strip").children.length;
  for (const group of $$(".group")) {
    const line = view.unused[group.dataset.group];
    if ($(".unused", group).innerHTML !== line) $(".unused", group).innerHTML = line;
    group.hidden = $$("[data-name]", group).every((knob) => hidden.has(knob.dataset.name));
  }
  $(".start").hidden = hidden.has("preset") && hidden.has("pasted");
  document.body.classList.toggle("embedded", view.embedded !== "");
  for (const button of $$("[data-do]")) {
    const name = button.dataset.do;
    button.textContent = (name === "mend" && view.mend) || start.buttons[name][0];
    button.disabled = (name === "mend" && !view.mend) || (name === "unpin" && !view.pinned);
    if (name === "unpin") button.hidden = !view.pinned;
  }
  $("#copy-command").disabled = !(view.kind in view.commands);
  $("#play").disabled = !view.rate;
  $("#whole").href = `./#${view.address.replace(/(^|&)(embed|hide)=[^&]*/g, "")}`;
}

let saving, step = false;
function writeAddress() {
  saving = clearTimeout(saving);
  const end = view.address ? `#${view.address}` : "";
  if (!alive || location.hash === end) return;
  history[step ? "pushState" : "replaceState"](null, "", location.pathname + location.search + end);
  step = false;
}
function saveAddress() {
  saving ??= setTimeout(writeAddress, 200); // browsers refuse it when it is asked for at each move of a slider
}

// Knobs: a slider has a field for any number beside it.
const power = (control, value) => (control.kind === "logarithmic" ? Math.log10(value) : value);

function slider(range, control, now, send) {
  range.step = control.step;
  range.oninput = () => {
    const value = Number(range.value);
    send(control.kind === "logarithmic" ? 10 ** value : value);
    fill(range);
  };
  bound.push(() => {
    const { low, high, value, said, disabled } = now();
    if (low !== undefined) [range.min, range.max] = [low, high].map((end) => Math.round(1e9 * power(control, end)) / 1e9);
    if (!(range === document.activeElement && waiting.length)) range.value = power(control, value);
    range.setAttribute("aria-valuetext", said);
    range.disabled = Boolean(disabled);
    fill(range);
  });
}

function fill(range) {
  range.style.setProperty("--fill", `${(100 * (range.value - range.min)) / (range.max - range.min || 1)}%`);
}

function field(input, now, send) {
  let typing = false;
  input.oninput = () => (typing = true);
  input.onchange = () => { typing = false; send(input.value); };
  bound.push(() => {
    const { written, disabled } = now();
    if (!typing && input.value !== written) input.value = written;
    input.disabled = Boolean(disabled);
  });
}

// What was chosen stays so while it waits to be heard: the view that comes before it knows nothing of it yet.
const boundOnceHeard = (set) => bound.push(() => waiting.length || set());

function choice(select, options, now, send) {
  select.onchange = () => send(options()[select.selectedIndex][1]);
  bound.push(() => {
    const words = options().map(([word]) => word);
    if (words.join("\n") !== [...select.options].map((option) => option.text).join("\n"))
      select.replaceChildren(...words.map((word) => new Option(word)));
    else if (waiting.length) return;
    select.selectedIndex = options().findIndex(([, value]) => value === now());
  });
}

function toggle(box, now, send) {
  box.onchange = () => send(box.checked);
  boundOnceHeard(() => (box.checked = now()));
}

// The knobs stand in the page; here they get their values and are heard.
for (const row of $$(".knob")) {
  const name = row.dataset.name, control = start.controls[name], now = () => view.controls[name], send = (value) => turn(name, value);
  const input = $(`#knob-${name}`), number = $(".number", row), sets = $(".sets", row), hint = $(".hint", row);
  const typed = (text) => act({ do: "type", name, text });
  if (control.kind === "choice") choice(input, () => now().options, () => now().value, send);
  else if (control.kind === "switch") toggle(input, () => now().value, send);
  else field(number ?? input, now, typed);
  if (number) slider(input, control, now, send);
  if (sets) {
    const options = () => [...now().options, ...(now().options.some(([words]) => words === now().chosen) ? [] : [[now().chosen, ""]])];
    choice(sets, options, () => options().find(([words]) => words === now().chosen)[1], (value) => value && send(value));
  }
  bound.push(() => { if (hint.innerHTML !== now().hint) hint.innerHTML = now().hint; });
}

// What changes no setting.
choice($("#preset"), () => start.looks.preset.options, () => view.preset, (name) => act({ do: "take_preset", name }));
choice($("#axis"), () => start.looks.axis.options, () => view.axis, (value) => look("axis", value));
toggle($("#log"), () => view.log, (value) => look("log", value));
slider($("#cursor"), start.looks.cursor, () => ({ ...view.cursor, said: `${view.rate} ${view.cursor.said}`, low: 0, high: view.cursor.max }), (value) => {
  stop();
  look("cursor", value);
});
for (const name of ["kind", "trainers"]) {
  const inputs = $$(`input[name=${name}]`);
  const chosen = () => inputs.filter((input) => input.checked).map((input) => input.value);
  for (const input of inputs) input.onchange = () => look(name, input.type === "radio" ? input.value : chosen());
  boundOnceHeard(() => inputs.forEach((input) => (input.checked = [view[name]].flat().includes(input.value))));
}
for (const button of $$("[data-do]")) button.onclick = () => act(button.dataset.do === "read" ? { do: "read", text: $("#pasted").value } : { do: button.dataset.do });

// A finger drawn over the picture moves the line in it; over the map it turns rate and rank.
const follow = {
  picture(event) {
    const line = $("[data-updates]"), { from, to, updates } = line.dataset;
    const { x } = new DOMPoint(event.clientX, event.clientY).matrixTransform(line.getScreenCTM().inverse());
    stop();
    look("cursor", Math.round(Math.min(Math.max(((x - from) / (to - from)) * updates, 0), view.cursor.max)));
  },
  map(event) { // over the places that its cells had at first: what is said above them may move them
    if (event.type === "pointerdown") cells = $$("[data-rate]").map((cell) => ({ ...cell.dataset, box: cell.getBoundingClientRect() }));
    const far = ({ box }) => Math.hypot(event.clientX - box.x - box.width / 2, event.clientY - box.y - box.height / 2);
    const { rate, rank } = cells.reduce((near, cell) => (far(cell) < far(near) ? cell : near));
    if (event.type === "pointermove" && latest === `${rate} ${rank}`) return;
    latest = `${rate} ${rank}`;
    turn("learning_rate", Number(rate));
    turn("rank", Number(rank));
  },
};
let cells, latest;
let followed;
addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || !event.target.closest(".picture svg:has([data-updates]), [data-rate]")) return;
  followed = follow[event.target.closest("[data-body]").dataset.body];
  followed(event);
});
addEventListener("pointermove", (event) => followed?.(event));
for (const type of ["pointerup", "pointercancel"]) addEventListener(type, () => (followed = undefined));

// Play: the cursor from 0 to the end, or from where the reader has left it, as fast as the pictures come.
const LASTS = 8000; // ms
let plays = false, left = false;
function playing(now) {
  plays = now;
  $("#play").textContent = plays ? "❚❚" : "▶";
  $("#play").setAttribute("aria-label", plays ? "Pause" : "Play");
}
function stop() {
  onplaced = () => {};
  left = true;
  playing(false);
}
$("#play").onclick = () => {
  if (plays) return stop();
  const { value, max } = view.cursor, from = left && value < max ? value : 0, begun = performance.now();
  playing(true);
  onplaced = () => requestAnimationFrame((now) => {
    if (!plays) return;
    const update = Math.min(Math.round(from + (view.cursor.max * (now - begun)) / LASTS), view.cursor.max);
    if (view.cursor.value >= view.cursor.max) stop();
    else if (update === view.cursor.value) onplaced();
    else look("cursor", update);
  });
  look("cursor", from);
};

// Copying, colours, addresses.
$("#answer").onclick = ({ target }) => target.matches(".lora-kit-bad") && $("#findings").scrollIntoView({ block: "center" });
async function copy(button, text) {
  const words = (button.dataset.words ??= button.textContent);
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied ✓";
  } catch {
    button.textContent = "Copy by hand";
  }
  say(button.textContent);
  setTimeout(() => { button.textContent = words; say(""); }, 1600);
}
$("#copy-link").onclick = (event) => {
  copy(event.target, new URL(view.address ? `#${view.address}` : "#", location.href.split("#")[0]).href.replace(/#$/, ""));
};
$("#copy-command").onclick = (event) => copy(event.target, view.commands[view.kind]);

const system = matchMedia("(prefers-color-scheme: dark)");
const dark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
const paintTheme = () => $("#theme").setAttribute("aria-pressed", dark());
system.onchange = paintTheme;
$("#theme").onclick = () => {
  const theme = dark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try { localStorage.setItem("theme", theme); } catch {} // a page in a frame may have none
  paintTheme();
};

$(".skip").onclick = (event) => { // its address would be one of settings
  event.preventDefault();
  $("#knobs").focus();
};
addEventListener("hashchange", (event) => {
  saving = clearTimeout(saving); // what was about to be written there is past
  act(new URL(event.newURL).hash || "#");
});

function keepForLater() {
  if ("serviceWorker" in navigator && isSecureContext) navigator.serviceWorker.register("service-worker.js").catch(() => {});
}

paintTheme();
strip();
bound.forEach((set) => set());
show();
