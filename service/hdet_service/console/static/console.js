// Keeps an open page up to date, and reads charts off. Nothing here changes anything on the server.
"use strict";

const SILENCE_MS = 25_000; // the server speaks every 10 s
const CALM_MS = 1_000;     // between two looks at the server
const HIDDEN_MS = 30_000;  // a page that nobody sees gives its stream back: browsers have few a host

// ---------------------------------------------------------------- live

const badge = document.getElementById("live");
const WORDS = { on: "live", wait: "reconnecting", off: "offline", over: "ended", out: "logged out" };

function say(kind) {
  if (!badge || badge.dataset.kind === kind) return;
  badge.dataset.kind = kind;
  badge.className = `live ${kind}`;
  badge.textContent = WORDS[kind];
  const at = new Date().toLocaleTimeString();
  badge.title = kind === "on" ? "This page follows the job" : `Nothing new since ${at}`;
}

let source = null;
let silence = 0;
let retry = 0;
let shown = badge?.dataset.version;
let isReading = false;
let isStale = false;
let readAt = 0;

function heard() {
  clearTimeout(silence);
  silence = setTimeout(() => { say(navigator.onLine ? "wait" : "off"); connect(); }, SILENCE_MS);
}

function connect() {
  source?.close();
  clearTimeout(retry);
  source = new EventSource(badge.dataset.address);
  source.addEventListener("open", heard);
  source.addEventListener("alive", () => { heard(); say("on"); });
  source.addEventListener("version", event => {
    heard();
    say("on");
    if (event.data !== shown) refresh(event.data);
  });
  source.addEventListener("error", () => {
    say(navigator.onLine ? "wait" : "off");
    if (source.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
    // The server refused: it may be starting, or the session may be over.
    retry = setTimeout(async () => { if (await refresh(null)) connect(); else if (badge.dataset.kind !== "out") connect(); }, 3_000);
  });
}

async function refresh(version) {
  if (isReading) { isStale = true; return true; }
  isReading = true;
  const rest = readAt + CALM_MS - Date.now();
  if (rest > 0) await new Promise(done => setTimeout(done, rest));
  readAt = Date.now();
  let isRead = false;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const theirs = page.getElementById("live");
    if (theirs) {
      swap(page);
      shown = version ?? theirs.dataset.version ?? shown;
      isRead = true;
      if ("over" in theirs.dataset) end();
    } else if (answer.ok || answer.status === 401 || answer.status === 404) {
      stop("out");
    }
  } catch {
    say(navigator.onLine ? "wait" : "off");
  }
  isReading = false;
  if (isStale && isRead) { isStale = false; refresh(null); }
  return isRead;
}

function pause() {
  clearTimeout(silence);
  clearTimeout(retry);
  source?.close();
  source = null;
}

function stop(kind) {
  pause();
  say(kind);
}

function end() { stop("over"); }

function swap(page) {
  badge.dataset.now = page.getElementById("live").dataset.now;
  setClock();
  const focused = document.activeElement?.closest("figure")?.id;
  for (const theirs of page.querySelectorAll("[data-live]")) {
    const ours = document.querySelector(`[data-live="${theirs.dataset.live}"]`);
    if (!ours || ours.innerHTML === theirs.innerHTML) continue;
    const places = [...ours.querySelectorAll(".scroll, .events")].map(box => [box.scrollTop, box.scrollLeft]);
    ours.replaceChildren(...document.importNode(theirs, true).childNodes);
    [...ours.querySelectorAll(".scroll, .events")].forEach((box, i) => {
      if (places[i]) [box.scrollTop, box.scrollLeft] = places[i];
    });
  }
  document.title = page.title;
  if (focused && !document.activeElement?.closest("figure")) {
    document.getElementById(focused)?.querySelector(".canvas")?.focus({ preventScroll: true });
  }
  replay();
}

// How long ago things were goes on by the server's clock, also where nothing else happens.
let ahead = 0;

function setClock() { ahead = Number(badge.dataset.now) - Date.now() / 1000; }

function age() {
  const now = Date.now() / 1000 + ahead;
  for (const item of document.querySelectorAll(".ago")) {
    const seconds = Math.max(0, now - Number(item.dataset.at));
    const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].find(([size]) => seconds >= size) ?? [1, "s"];
    const text = seconds < 5 ? "just now" : `${Math.floor(seconds / size)} ${unit} ago`;
    if (item.textContent !== text) item.textContent = text;
  }
}

if (badge) {
  setClock();
  setInterval(age, 5_000);
  if ("over" in badge.dataset) say("over");
  else connect();
  addEventListener("online", () => { if (badge.dataset.kind === "off") connect(); });
  addEventListener("offline", () => { if (badge.dataset.kind !== "over") say("off"); });
  addEventListener("pagehide", pause);
  let hidden = 0;
  document.addEventListener("visibilitychange", () => {
    clearTimeout(hidden);
    if (["over", "out"].includes(badge.dataset.kind)) return;
    if (document.hidden) hidden = setTimeout(pause, HIDDEN_MS);
    else if (!source) connect();
  });
  addEventListener("pageshow", event => { if (event.persisted && !("over" in badge.dataset)) connect(); });
}

// ---------------------------------------------------------------- charts

const tip = document.createElement("div");
tip.className = "tip";
tip.setAttribute("role", "status");
tip.hidden = true;
const hair = document.createElement("div");
hair.className = "hair";
hair.hidden = true;

const read = new WeakMap();
let open = null; // { name, place } of what is read off now

function dataOf(canvas) {
  if (!read.has(canvas)) read.set(canvas, canvas.dataset.hover ? JSON.parse(canvas.dataset.hover) : null);
  return read.get(canvas);
}

function nearest(xs, percent) {
  let low = 0, high = xs.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < percent) low = middle + 1; else high = middle;
  }
  return low > 0 && percent - xs[low - 1] < xs[low] - percent ? low - 1 : low;
}

function show(canvas, place) {
  const data = dataOf(canvas);
  if (!data || !data.x.length) return;
  place = Math.min(Math.max(place, 0), data.x.length - 1);
  open = { name: canvas.closest("figure").id, place };
  const title = document.createElement("b");
  title.textContent = data.t[place];
  const rows = data.r.map(row => {
    const line = document.createElement("div");
    const key = document.createElement("i");
    key.className = `key ${row.c}`;
    const name = document.createElement("span");
    name.textContent = row.n;
    const value = document.createElement("span");
    value.className = "value";
    value.textContent = row.v[place];
    line.append(key, name, value);
    return line;
  });
  tip.replaceChildren(title, ...rows);
  canvas.append(hair, tip);
  tip.hidden = hair.hidden = false;
  hair.style.left = `${data.x[place]}%`;
  const width = canvas.clientWidth, left = data.x[place] / 100 * width;
  const room = tip.offsetWidth + 12;
  tip.style.left = `${left + room > width ? Math.max(left - room, Math.min(0, width - tip.offsetWidth)) : left + 12}px`;
}

function hide() {
  tip.hidden = hair.hidden = true;
  open = null;
}

// The page was redrawn below the pointer: go on where it was read.
function replay() {
  if (!open) return;
  const canvas = document.getElementById(open.name)?.querySelector(".canvas");
  if (canvas) show(canvas, open.place); else hide();
}

addEventListener("pointermove", event => {
  const canvas = event.target instanceof Element ? event.target.closest(".canvas") : null;
  if (!canvas) { if (open && !document.activeElement?.matches(".canvas")) hide(); return; }
  const data = dataOf(canvas);
  if (!data || !data.x.length) return;
  const box = canvas.getBoundingClientRect();
  show(canvas, nearest(data.x, 100 * (event.clientX - box.left) / box.width));
});

addEventListener("keydown", event => {
  const canvas = document.activeElement;
  if (!canvas?.matches(".canvas")) return;
  const last = (dataOf(canvas)?.x.length ?? 0) - 1;
  const here = open?.name === canvas.closest("figure").id ? open.place : last;
  const to = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: last, PageUp: here - 10, PageDown: here + 10 }[event.key];
  if (event.key === "Escape") hide();
  if (to === undefined) return;
  event.preventDefault();
  show(canvas, to);
});

addEventListener("focusout", event => { if (event.target instanceof Element && event.target.matches(".canvas")) hide(); });
