// Heat maps of the registers' attention over an image.

const SIDE = 280; // pixels of a map's longer side

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}\u00a0%`;

function drawImage(context, bitmap, shape, width, height) {
  if (shape.resize !== "crop") {
    context.drawImage(bitmap, 0, 0, width, height);
    return;
  }
  const scale = Math.max(width / bitmap.width, height / bitmap.height);
  const [w, h] = [bitmap.width * scale, bitmap.height * scale];
  context.drawImage(bitmap, (width - w) / 2, (height - h) / 2, w, h);
}

function heat(weights, rows, columns) {
  const cells = new OffscreenCanvas(columns, rows);
  const context = cells.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  const [least, most] = [Math.min(...weights), Math.max(...weights)];
  weights.forEach((weight, cell) => {
    const share = most > least ? (weight - least) / (most - least) : 0;
    pixels.data.set([255 - 35 * share, 190 - 130 * share, 60 - 20 * share, 205 * share], 4 * cell);
  });
  context.putImageData(pixels, 0, 0);
  return cells;
}

function map(bitmap, answer, register, overlapping) {
  const [rows, columns] = answer.grid;
  const weights = answer.attention[register].slice(answer.before_grid);
  const scale = SIDE / Math.max(answer.image.height, answer.image.width);
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(answer.image.width * scale);
  canvas.height = Math.round(answer.image.height * scale);
  const context = canvas.getContext("2d");
  if (answer.image.background) {
    context.fillStyle = `rgb(${answer.image.background.join(" ")})`;
    context.fillRect(0, 0, canvas.width, canvas.height);
  }
  context.imageSmoothingEnabled = bitmap.width >= 64;
  drawImage(context, bitmap, answer.image, canvas.width, canvas.height);
  context.imageSmoothingEnabled = true;
  context.drawImage(heat(weights, rows, columns), 0, 0, canvas.width, canvas.height);

  const peak = weights.indexOf(Math.max(...weights));
  const place = `row ${Math.floor(peak / columns) + 1}, column ${(peak % columns) + 1}`;
  const share = percent(weights[peak]);
  const kind = register < overlapping ? "shared" : "complementary";
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Register ${register + 1}: most, ${share}, at ${place} of ${rows} by ${columns}`);
  const caption = document.createElement("figcaption");
  const name = document.createElement("b");
  name.textContent = `Register ${register + 1}`;
  const said = document.createElement("div");
  said.className = "quiet small";
  said.textContent = `${kind}; at most ${share} in a cell`;
  caption.append(name, said);
  const figure = document.createElement("figure");
  figure.append(canvas, caption);
  return figure;
}

// `file`: the image as it was sent. Those behind `k` are shown faintly; see `showUsed`.
export async function showAttention(parent, note, file, answer, overlapping, k) {
  if (!answer.grid) {
    note.textContent = `The encoder's ${answer.length} features do not lie on a grid over the image.`;
    parent.replaceChildren();
    return;
  }
  const bitmap = await createImageBitmap(file);
  parent.replaceChildren(...answer.attention.map((_, register) => map(bitmap, answer, register, overlapping)));
  bitmap.close();
  const [rows, columns] = answer.grid;
  note.textContent = `Where each register looked, over ${rows} × ${columns} cells (attention is the mean over heads); each map from its least to its most. ` +
    `Evenly, a cell would have ${percent(1 / answer.length)}.`;
  showUsed(parent, k);
}

export function showUsed(parent, k) {
  [...parent.children].forEach((figure, register) => figure.classList.toggle("off", register >= k));
}
