// The answers of a search, and what each k cost.

import * as server from "./server.js";

const TINY = 64; // pixels below which enlarging shows pixels, and no blur

const pictures = new Map(); // index and row to the promise of {url, blob}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Of a path the file's name, without its suffix.
function shortName(item, kind) {
  return kind === "text" ? item : item.split(/[\\/]/).pop().replace(/\.[A-Za-z0-9]{1,5}$/, "");
}

function picture(index, row) {
  const key = `${index}/${row}`;
  if (!pictures.has(key)) {
    const made = server.picture(index, row).then((blob) => ({ blob, url: URL.createObjectURL(blob) }));
    pictures.set(key, made);
    made.catch(() => pictures.delete(key));
  }
  return pictures.get(key);
}

function pictureFrame(index, hit) {
  const frame = element("div", "picture");
  picture(index.name, hit.row).then(
    ({ url }) => {
      const image = new Image();
      image.alt = "";
      image.onload = () => image.classList.toggle("tiny", image.naturalWidth < TINY);
      image.src = url;
      frame.replaceChildren(image);
    },
    () => frame.replaceChildren(element("span", "", "no picture")),
  );
  return frame;
}

function movedFrom(before, place) {
  if (before === undefined) return "new";
  if (before === place) return "";
  return before > place ? `▲ ${before - place}` : `▼ ${place - before}`;
}

// `previous`: row to place at the k that was shown before, or null for a new query.
// `onPick`: called with the hit, and its picture where it has one.
export function showResults(list, answer, index, previous, onPick) {
  list.classList.toggle("words", !index.has_pictures);
  list.replaceChildren(
    ...answer.data.map((hit, place) => {
      const card = element("button", "hit");
      card.type = "button";
      card.title = hit.item;
      if (index.has_pictures) card.append(pictureFrame(index, hit));
      const caption = element("div", "caption");
      const meter = element("div", "meter");
      const bar = element("i");
      bar.style.width = `${100 * Math.max(0, hit.score)}%`;
      meter.append(bar);
      const figures = element("div", "figures");
      const moved = previous ? movedFrom(previous.get(hit.row), place) : "";
      figures.append(element("span", "", hit.score.toFixed(3)), element("span", "moved", moved));
      caption.append(element("span", "name", shortName(hit.item, index.kind)), meter, figures);
      card.append(caption);
      card.addEventListener("click", async () => {
        const shown = index.has_pictures ? await picture(index.name, hit.row).catch(() => null) : null;
        onPick(hit, shown);
      });
      const item = element("li");
      item.append(card);
      return item;
    }),
  );
}

const number = new Intl.NumberFormat("en");

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

// `answers`: k to answer, those that are known; `fullest`: the largest k of them all.
// `times`: k to the milliseconds of every request of this kind so far, of this query and others.
export function showCosts(table, head, answers, times, k, fullest) {
  const reference = answers.get(fullest);
  const all = new Set(reference?.data.map((hit) => hit.row));
  head.textContent = `same as k = ${fullest}`;
  table.tBodies[0].replaceChildren(
    ...[...answers].sort(([a], [b]) => a - b).map(([tokens, answer]) => {
      const row = element("tr", tokens === k ? "now" : "");
      const same = answer.data.filter((hit) => all.has(hit.row)).length;
      const cells = [
        tokens,
        reference ? `${same} of ${answer.data.length}` : "…",
        number.format(answer.bytes_per_item),
        median(times(tokens).map((one) => one.embed)).toFixed(2),
        median(times(tokens).map((one) => one.search)).toFixed(2),
      ];
      row.append(...cells.map((text) => element("td", "", String(text))));
      return row;
    }),
  );
  table.hidden = answers.size === 0;
}
