// The page: what is asked, and when; `results.js` and `attention.js` show the answers.

import { showAttention, showUsed } from "./attention.js";
import { showCosts, showResults } from "./results.js";
import * as server from "./server.js";

const TYPING_MS = 250;
const ANSWERS = 12;
const at = (id) => document.getElementById(id);

const state = {
  info: null,
  indexes: [],
  query: null, // {modality, text} or {modality, image}
  answers: new Map(), // k to answer, of this query, index and way
  times: new Map(), // kind of request to the milliseconds of each
  shown: null, // row to place, of the answer on the page
  asking: null, // aborts what is asked for a query that is not wanted any more
};

const index = () => state.indexes.find((one) => one.name === chosen("index"));
const k = () => Number(at("k").value);
const itemsWhole = () => index()?.output === "tokens" && chosen("how") === "rerank" && chosen("item-k") === "all";
const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`)?.value;
const modalityOf = (kind) => Object.entries(state.info.modalities).find(([, made]) => made.kind === kind)?.[0];

// -- start

async function start() {
  at("problem").hidden = true;
  try {
    state.info = await server.info();
    state.indexes = await server.indexes();
  } catch (error) {
    startLater(error);
    return;
  }
  at("key-form").hidden = true;
  describe();
  buildSlider();
  buildIndexes();
  at("main").hidden = false;
  showEmpty();
  (at("text-query").hidden ? at("file") : at("text")).focus({ preventScroll: true });
}

function startLater(error) {
  const form = at("key-form");
  if (error.status === 401) {
    at("about").textContent = "";
    at("key-error").hidden = form.hidden;
    at("key-error").textContent = "The server does not know this key.";
    form.hidden = false;
    at("key").focus();
  } else if (error.code === "not_ready") {
    at("about").textContent = error.message;
    setTimeout(start, 1000 * error.retryAfter);
  } else {
    at("about").textContent = "";
    at("problem").textContent = error.message;
    at("problem").hidden = false;
  }
}

function describe() {
  const { model, precision, num_register_tokens: n, num_overlapping_tokens: shared, dimension } = state.info;
  at("about").textContent =
    `${model}, ${precision}: ${n} register tokens of dimension ${dimension}, ${shared} of them shared`;
  const kinds = Object.values(state.info.modalities).map((made) => made.kind);
  at("text-query").hidden = !kinds.includes("text");
  at("image-query").hidden = !kinds.includes("image");
  at("or").hidden = !kinds.includes("text");
}

function buildSlider() {
  const total = state.info.num_register_tokens;
  Object.assign(at("k"), { max: total, value: total, disabled: total === 1 });
  const beads = total > 24 ? [] : Array.from({ length: total }, () => document.createElement("i"));
  beads.forEach((bead, token) => {
    bead.className = `bead${token < state.info.num_overlapping_tokens ? "" : " own"}`;
  });
  at("beads").replaceChildren(...beads);
  showK();
}

function showK() {
  const shared = state.info.num_overlapping_tokens;
  at("k-shown").textContent = `k = ${k()}`;
  at("k").setAttribute("aria-valuetext", `${k()} of ${at("k").max} register tokens`);
  [...at("beads").children].forEach((bead, token) => bead.classList.toggle("on", token < k()));
  at("k-note").textContent = note(shared);
  showUsed(at("maps"), k());
}

function note(shared) {
  const where = index();
  if (k() > shared) {
    const from = k() === shared + 1 ? `Token ${k()} is` : `Tokens ${shared + 1} to ${k()} are`;
    return `${from} complementary: what this modality alone knows. Search compares the first ${shared}.`;
  }
  const first = k() === 1 ? "The first token alone" : `The first ${k()} tokens`;
  if (itemsWhole()) return `${first} of the query, against all ${Math.min(where.k, shared)} of each item.`;
  if (where?.output === "tokens" && chosen("how") === "rerank") return `${first}, of the query and of each item.`;
  if (where?.output === "tokens") return `${first} of the query in one vector, against each item's first.`;
  return where ? `${first} of the query; the items were embedded with k = ${where.k}.` : `${first} of the query.`;
}

function choices(name, values, picked, onChange) {
  return values.map(([value, text]) => {
    const label = document.createElement("label");
    label.className = "choice";
    const input = Object.assign(document.createElement("input"), { type: "radio", name, value, checked: value === picked });
    input.addEventListener("change", onChange);
    const said = document.createElement("span");
    said.textContent = text;
    label.append(input, said);
    return label;
  });
}

function buildIndexes() {
  const names = state.indexes.map((one) => [one.name, `${one.name}: ${one.items.toLocaleString("en")} ${one.modality} items`]);
  at("index-card").hidden = names.length === 0;
  const changed = () => {
    buildHows();
    ask();
  };
  at("indexes").querySelector(".choices").replaceChildren(...choices("index", names, names[0]?.[0], changed));
  buildHows();
}

function buildHows() {
  const texts = { rerank: "all k tokens", pooled: "one vector" };
  const ways = index()?.how ?? [];
  at("hows").hidden = ways.length < 2;
  const values = ways.map((how) => [how, texts[how]]);
  const changed = () => {
    buildItemKs();
    ask();
  };
  at("hows").querySelector(".choices").replaceChildren(...choices("how", values, ways[0], changed));
  buildItemKs();
  const single = index()?.output === "concat";
  if (single) at("k").value = index().k;
  at("k").disabled = single || state.info.num_register_tokens === 1;
  showK();
}

// How many tokens of each item are compared: as many as of the query, or all that the index holds.
function buildItemKs() {
  const held = index()?.output === "tokens" && chosen("how") === "rerank" ? index().k : 1;
  at("item-ks").hidden = held === 1;
  const values = [["same", "as many"], ["all", `all ${Math.min(held, state.info.num_overlapping_tokens)}`]];
  at("item-ks").querySelector(".choices").replaceChildren(...choices("item-k", values, chosen("item-k") ?? "same", ask));
}

// -- the query

function takeText() {
  const text = at("text").value.trim();
  if (!text) {
    if (state.query?.text !== undefined) setQuery(null);
    return;
  }
  if (text !== state.query?.text) setQuery({ modality: modalityOf("text"), text });
}

function takeImage(file) {
  if (!file || at("main").hidden || at("image-query").hidden) return;
  at("text").value = "";
  setQuery({ modality: modalityOf("image"), image: file });
}

function setQuery(query) {
  state.query = query;
  const image = at("preview");
  if (image.src) URL.revokeObjectURL(image.src);
  image.removeAttribute("src");
  image.hidden = at("clear").hidden = query?.image === undefined;
  at("drop-text").hidden = !image.hidden;
  if (query?.image !== undefined) image.src = URL.createObjectURL(query.image);
  ask();
  look();
}

function pick(hit, shown) {
  const kind = index().kind;
  if (kind === "text" && !at("text-query").hidden) {
    at("text").value = hit.item;
    takeText();
  } else if (shown) {
    takeImage(shown.blob);
  }
  window.scrollTo({ top: 0 });
}

// -- the answers

function showEmpty() {
  const empty = at("empty");
  const kinds = [at("text-query"), at("image-query")].filter((part) => !part.hidden).length;
  empty.textContent = !state.indexes.length
    ? "This server has no index to search. Start it with --index DIR; make one with: fluxtalk index build."
    : kinds === 2
      ? "Type a text or drop an image, and what is nearest to it appears here."
      : "Give a query, and what is nearest to it appears here.";
  empty.hidden = false;
}

function showError(error) {
  at("answers-error").textContent = error?.message ?? "";
  at("answers-error").hidden = !error;
}

// All answers anew: another query, index or way to compare.
async function ask() {
  state.asking?.abort();
  state.answers = new Map();
  state.shown = null;
  showError(null);
  showK();
  if (!state.query || !index()) {
    at("results").replaceChildren();
    at("costs").hidden = at("costs-note").hidden = true;
    at("facts").textContent = "";
    at("results").setAttribute("aria-busy", "false");
    showEmpty();
    return;
  }
  const asking = (state.asking = new AbortController());
  await show(asking);
  // What the other k would give, for the table; one after the other, so that they measure themselves.
  for (const other of otherKs()) {
    if (asking.signal.aborted || at("answers-error").hidden === false) return;
    await answerAt(other, asking).catch(() => {});
    if (asking === state.asking) showTable();
  }
}

function otherKs() {
  if (at("k").disabled) return [];
  const total = Number(at("k").max);
  const all = Array.from({ length: total }, (_, token) => token + 1);
  return total <= 8 ? all : all.filter((tokens) => tokens === total || (tokens & (tokens - 1)) === 0);
}

async function answerAt(tokens, asking) {
  const { answers, query } = state;
  if (!answers.has(tokens)) {
    const fields = { index: index().name, k: tokens, n: ANSWERS, how: chosen("how") ?? index().how[0] };
    if (itemsWhole()) fields.item_k = index().k;
    const answer = await server.search(query, fields, asking.signal);
    answers.set(tokens, answer);
    timesOf(query, fields).push(answer.milliseconds);
  }
  return answers.get(tokens);
}

function timesOf(query, { index, how, k, item_k }) {
  const kind = [query.modality, index, how, k, item_k].join("/");
  if (!state.times.has(kind)) state.times.set(kind, []);
  return state.times.get(kind);
}

// The answers at the slider's k.
async function show(asking) {
  const tokens = k();
  at("results").setAttribute("aria-busy", "true");
  try {
    const answer = await answerAt(tokens, asking);
    if (asking !== state.asking || tokens !== k()) return;
    showError(null);
    at("empty").hidden = true;
    showResults(at("results"), answer, index(), state.shown, pick);
    state.shown = new Map(answer.data.map((hit, place) => [hit.row, place]));
    const { embed, search } = answer.milliseconds;
    at("facts").textContent =
      `k = ${tokens} · ${answer.bytes_per_item.toLocaleString("en")} bytes per item · ${(embed + search).toFixed(1)} ms`;
    showTable();
  } catch (error) {
    if (error.name === "AbortError" || asking !== state.asking) return;
    if (error.status === 401) return startLater(error);
    at("results").replaceChildren();
    at("costs").hidden = at("costs-note").hidden = at("empty").hidden = true;
    at("facts").textContent = "";
    showError(error);
  }
  at("results").setAttribute("aria-busy", "false");
}

function showTable() {
  const fullest = Math.max(...otherKs(), k());
  const fields = { index: index().name, how: chosen("how") ?? index().how[0] };
  if (itemsWhole()) fields.item_k = index().k;
  const times = (tokens) => timesOf(state.query, { ...fields, k: tokens });
  showCosts(at("costs"), at("same-head"), state.answers, times, k(), fullest);
  at("costs-note").hidden = at("costs").hidden;
}

// -- attention

async function look() {
  const query = state.query;
  at("attention").hidden = query?.image === undefined;
  at("maps").replaceChildren();
  at("attention-note").textContent = "";
  if (query?.image === undefined) return;
  try {
    const answer = await server.attention(query);
    if (query !== state.query) return;
    await showAttention(at("maps"), at("attention-note"), query.image, answer, state.info.num_overlapping_tokens, k());
  } catch (error) {
    if (query !== state.query) return;
    // An image that cannot be used has said so in the place of the answers.
    at("attention").hidden = error.code === "invalid_input";
    at("attention-note").textContent = error.message;
  }
}

// -- events

let typing;
at("text").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(takeText, TYPING_MS);
});
at("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  clearTimeout(typing);
  takeText();
});
at("k").addEventListener("input", () => {
  showK();
  if (state.query && index()) show(state.asking);
});
at("file").addEventListener("change", (event) => {
  takeImage(event.target.files[0]);
  event.target.value = "";
});
at("clear").addEventListener("click", () => setQuery(null));
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  server.rememberKey(at("key").value.trim());
  start();
});
addEventListener("paste", (event) => takeImage([...event.clipboardData.files].find((file) => file.type.startsWith("image/"))));
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  takeImage(event.dataTransfer.files[0]);
});

start();
