"use strict";

const part = (id) => document.getElementById(id);
const PAGE = 60;        // images of the collection on a page
const COARSE = 33;      // pixels: smaller images are enlarged without smoothing
const KEPT = 20;        // uploaded images that the back button can return to

part("status").dataset.idle = part("status").textContent;

let about = null;       // what /collection says
let searching = null;   // AbortController of the running search
let browsing = null;
let shown = null;       // the address of the images on the page
let uploads = new Map();  // number → {file, address}
let uploadNumber = 0;

// A name may be written from right to left; it must not turn round what stands beside it.
const apart = (name) => element("bdi", {}, name);
const labelled = (item) => ["label:\u00a0", apart(item.label)];
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

function element(kind, attributes = {}, ...children) {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

async function ask(address, options = {}) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(content.error || `The server answered with status ${answer.status}.`);
  return content;
}

// ---- The address (row, k, start, label) and, for an uploaded image, the state of the history say what is shown. ----

function whole(parameters, name) {
  const text = parameters.get(name);
  return text !== null && /^[0-9]{1,15}$/.test(text) ? Number(text) : null;
}

function view() {
  const parameters = new URLSearchParams(location.search);
  return {
    row: whole(parameters, "row"),
    k: whole(parameters, "k") ?? 10,
    start: whole(parameters, "start") ?? 0,
    label: parameters.get("label") ?? "",
    upload: history.state?.upload ?? null,
  };
}

function addressOf({ row, k, start, label }) {
  const parameters = new URLSearchParams();
  if (row !== null) parameters.set("row", row);
  if (k !== 10) parameters.set("k", k);
  if (start) parameters.set("start", start);
  if (label) parameters.set("label", label);
  const text = parameters.toString();
  return text ? `/?${text}` : "/";
}

function go(changes, focus) {
  const next = { ...view(), ...changes };
  history.pushState({ upload: next.upload }, "", addressOf(next));
  show(focus);
}

function select(id, value) {
  part(id).value = value;
  if (part(id).value !== value) part(id).add(new Option(value, value, false, true));
}

function show(focus = null) {
  const now = view();
  select("k", String(now.k));
  select("label", now.label);
  search(now, focus === "results");
  return browse(now, focus === "collection");
}

// ---- Tiles ----

function picture(row, name) {
  const image = element("img", { alt: `Image ${row}, ${name}`, width: 128, height: 128, loading: "lazy", decoding: "async" });
  image.addEventListener("load", () => image.classList.toggle("coarse", image.naturalWidth < COARSE));
  image.addEventListener("error", () => image.replaceWith(element("span", { class: "missing" }, `Image ${row} cannot be read`)));
  image.src = `/thumbnail?row=${row}`;
  return element("span", { class: "frame" }, image);
}

function tile(item, now, text) {
  const link = element("a", { class: "tile", href: addressOf({ ...now, row: item.row }), title: item.name, "data-row": item.row },
    picture(item.row, item.name), element("span", { class: "text" }, ...text));
  return element("li", {}, link);
}

// The query, where it is in the collection.
function mark(row) {
  for (const link of document.querySelectorAll("a.tile")) {
    if (Number(link.dataset.row) === row) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

const sameLabel = (item, found) => Boolean(item.label) && item.label === found.query?.label && item.row !== found.query.row;

function neighbourTile(item, now, found) {
  const bar = element("span");
  bar.style.width = `${(100 * item.distance) / found.code_length}%`;
  const same = sameLabel(item, found);
  const distance = item.distance ? `${item.distance} of ${plural(found.code_length, "bit")} differ` : "same code";
  return tile(item, now, [
    element("span", { class: "distance" }, item.row === found.query?.row ? "your image" : distance),
    element("span", { class: "bar", "aria-hidden": "true" }, bar),
    element("span", { class: "name" }, apart(item.name)),
    element("span", { class: same ? "label same" : "label" }, ...(item.label ? [same ? "same " : "", ...labelled(item)] : [])),
  ]);
}

function waiting(list, count) {
  if (!list.children.length) list.replaceChildren(...Array.from({ length: count }, () => element("li", { class: "waiting" })));
}

// ---- Search ----

function showQuery(now, query) {
  const image = part("query-image");
  const own = now.upload === null ? null : uploads.get(now.upload);
  const address = own ? own.address : now.row === null ? "" : `/thumbnail?row=${now.row}`;
  image.hidden = !address;
  part("query-none").hidden = Boolean(address);
  part("query-none").textContent = "No image chosen";
  if (address && image.getAttribute("src") !== address) image.src = address;
  if (!address) image.removeAttribute("src");
  image.alt = own ? `Your image ${own.file.name}` : now.row === null ? "" : `Image ${now.row}`;
  const caption = part("query-caption");
  const label = query?.label ? [", ", ...labelled(query)] : [];
  if (own) caption.replaceChildren(apart(own.file.name), ...(query ? [`: image ${query.row} of the collection, `, apart(query.name)] : []), ...label);
  else if (query) caption.replaceChildren(`Image ${query.row}, `, apart(query.name), ...label);
  else caption.replaceChildren(now.row === null ? "" : `Image ${now.row}`);
}

function showProblem(sentence) {
  part("problem").textContent = sentence;
  part("problem").hidden = false;
  part("status").textContent = "The search failed.";
  part("neighbours").replaceChildren();
}

function summary(found, now) {
  const others = found.neighbours.filter((item) => item.row !== found.query?.row);
  const from = now.label ? `with the label ${now.label}` : `of ${found.images.toLocaleString("en")}`;
  let text = `The ${plural(found.neighbours.length, "nearest image")} ${from}.`;
  if (others.length && found.query?.label && !now.label) {
    text += ` ${others.filter((item) => sameLabel(item, found)).length} of ${others.length} have the label of the query.`;
  }
  return text;
}

async function search(now, focus) {
  searching?.abort();
  const mine = (searching = new AbortController());
  showQuery(now, null);
  part("problem").hidden = true;
  mark(now.row);
  if (now.row === null && now.upload === null) {
    part("results").removeAttribute("aria-busy");
    part("neighbours").replaceChildren();
    part("status").textContent = part("status").dataset.idle;
    document.title = "Image search";
    return;
  }
  part("status").textContent = "Searching…";
  part("results").setAttribute("aria-busy", "true");
  waiting(part("neighbours"), Math.min(now.k, 20));
  if (focus) part("results-title").focus();
  try {
    const found = await (now.upload === null
      ? ask(`/search?row=${now.row}&${options(now)}`, { signal: mine.signal })
      : post(now, mine.signal));
    showQuery(now, found.query);
    part("neighbours").replaceChildren(...found.neighbours.map((item) => neighbourTile(item, { ...now, upload: null }, found)));
    mark(found.query?.row);
    part("status").textContent = summary(found, now);
    document.title = `${part("query-caption").textContent} – Image search`;
  } catch (error) {
    if (error.name === "AbortError") return;
    showProblem(error.message);
  }
  if (searching === mine) part("results").removeAttribute("aria-busy");
}

const options = (now) => new URLSearchParams({ k: now.k, ...(now.label ? { label: now.label } : {}) });

async function send(address, file, signal) {
  if (about && file.size > about.most_bytes) throw new Error(`The file is larger than ${about.most_bytes / 1e6} MB.`);
  const kind = file.type.startsWith("image/") ? file.type : "application/octet-stream";
  return ask(address, { method: "POST", body: file, headers: { "Content-Type": kind }, signal });
}

async function post(now, signal) {
  const own = uploads.get(now.upload);
  if (!own) throw new Error("This image is no longer available; choose it again.");
  return send(`/search?${options(now)}`, own.file, signal);
}

function searchWith(file) {
  const number = `${performance.timeOrigin}-${(uploadNumber += 1)}`;
  uploads.set(number, { file, address: URL.createObjectURL(file) });
  for (const [old, { address }] of uploads) {
    if (uploads.size <= KEPT) break;
    URL.revokeObjectURL(address);
    uploads.delete(old);
  }
  go({ upload: number, row: null }, "results");
}

// ---- Images of the collection ----

function page(link, start, now) {
  if (start === null) {
    link.removeAttribute("href");
    link.setAttribute("aria-disabled", "true");
  } else {
    link.href = addressOf({ ...now, start });
    link.removeAttribute("aria-disabled");
  }
}

async function browse(now, focus) {
  for (const link of document.querySelectorAll("#items .tile")) {
    link.href = addressOf({ ...now, row: Number(link.dataset.row) });
  }
  const parameters = new URLSearchParams({ start: now.start, count: PAGE, ...(now.label ? { label: now.label } : {}) });
  const address = `/collection?${parameters}`;
  if (shown !== address) {
    browsing?.abort();
    const mine = (browsing = new AbortController());
    waiting(part("items"), PAGE);
    try {
      about = await ask(address, { signal: mine.signal });
    } catch (error) {
      if (error.name === "AbortError") return;
      part("items").replaceChildren();
      part("range").textContent = error.message;
      shown = null;
      return;
    }
    shown = address;
    part("items").replaceChildren(...about.items.map((item) => tile(item, now, [
      element("span", { class: "name" }, apart(item.name)), element("span", { class: "label" }, apart(item.label))])));
    mark(now.row);
    const end = now.start + about.items.length;
    part("range").textContent = about.found ? `${(now.start + 1).toLocaleString("en")} to ${end.toLocaleString("en")} of ${about.found.toLocaleString("en")}` : "Empty";
    part("about").textContent = `${plural(about.images, "image")} in ${plural(about.code_length, "bit")}`;
    part("adding").hidden = !about.writable;
  }
  const { start } = now;
  page(part("previous"), start > 0 ? Math.max(0, start - PAGE) : null, now);
  page(part("next"), start + PAGE < about.found ? start + PAGE : null, now);
  if (focus) part("collection-title").focus();
}

async function loadLabels() {
  const { labels } = await ask("/labels").catch(() => ({ labels: [] }));
  part("label").replaceChildren(new Option("all", ""), ...labels.map((label) => new Option(label, label)));
  part("by-label").hidden = !labels.length;
  select("label", view().label);
}

async function add(files) {
  const told = [];
  for (const [number, file] of [...files].entries()) {
    part("added").textContent = `Adding ${number + 1} of ${plural(files.length, "image")}…`;
    try {
      const { image } = await send(`/add?${new URLSearchParams({ name: file.name })}`, file);
      told.push(`${file.name} is image ${image.row}.`);
    } catch (error) {
      told.push(`${file.name} was not added: ${error.message}`);
    }
  }
  part("added").textContent = told.join(" ");
  shown = null;
  await Promise.all([loadLabels(), browse(view(), false)]);
}

// ---- Events ----

document.addEventListener("click", (event) => {
  const link = event.target.closest("a.tile, #previous, #next");
  if (!link || !link.hasAttribute("href") || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  const parameters = new URL(link.href).searchParams;
  if (link.classList.contains("tile")) go({ row: whole(parameters, "row"), upload: null }, "results");
  else go({ start: whole(parameters, "start") ?? 0 }, "collection");
});

document.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: -1, ArrowRight: 1 };
  const link = event.target.closest?.("a.tile");
  if (!link || !(event.key in steps) || event.altKey || event.ctrlKey || event.metaKey) return;
  const tiles = [...link.closest(".grid").querySelectorAll("a.tile")];
  const next = tiles[tiles.indexOf(link) + steps[event.key]];
  if (next) {
    event.preventDefault();
    next.focus();
  }
});

part("by-number").addEventListener("submit", (event) => {
  event.preventDefault();
  go({ row: Number(part("row").value), upload: null }, "results");
});

part("k").addEventListener("change", () => go({ k: Number(part("k").value) }));
part("label").addEventListener("change", () => go({ label: part("label").value, start: 0 }));

function onFiles(id, use) {
  part(id).addEventListener("change", () => {
    const files = [...part(id).files];
    part(id).value = "";
    if (files.length) use(files);
  });
}
onFiles("file", ([file]) => searchWith(file));
onFiles("add", add);

part("query-image").addEventListener("load", () => {
  const image = part("query-image");
  image.classList.toggle("coarse", image.naturalWidth < COARSE);
});
part("query-image").addEventListener("error", () => {
  part("query-image").hidden = true;
  part("query-none").textContent = "This image cannot be shown";
  part("query-none").hidden = false;
});

const addsTo = (target) => Boolean(about?.writable && target.closest?.("#collection"));
const holdsFiles = (event) => Boolean(event.dataTransfer) && [...event.dataTransfer.types].includes("Files");
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    document.body.classList.add("dragging");
    document.body.classList.toggle("to-collection", addsTo(event.target));
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  document.body.classList.remove("dragging");
  if (!holdsFiles(event)) return;
  event.preventDefault();
  const files = [...event.dataTransfer.files];
  if (!files.length) return;
  if (addsTo(event.target)) add(files);
  else searchWith(files[0]);
});

window.addEventListener("popstate", () => show());
// Shown when the layout is complete and does not move any more.
Promise.allSettled([show(), loadLabels()]).then(() => document.querySelector("main").classList.remove("starting"));
