// What the page asks of its server.

const KEY = "fluxtalk-api-key";

export class ServerError extends Error {
  constructor(status, code, message, retryAfter) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

// The key stays in this tab, and is forgotten with it.
export function rememberKey(key) {
  sessionStorage.setItem(KEY, key);
}

// Paths are relative to the page, which a proxy may show under a prefix.
async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "unreachable", "The server cannot be reached; is it still running?");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  const { code = "error", message = `The server answered with ${response.status}.` } = body.error ?? {};
  throw new ServerError(response.status, code, message, Number(response.headers.get("retry-after")) || 1);
}

// A query is {modality, text} or {modality, image}; the server's field is called like the modality.
function post(path, query, fields, signal) {
  if (query.image === undefined) {
    const body = JSON.stringify({ [query.modality]: query.text, ...fields });
    return ask(path, { method: "POST", headers: { "content-type": "application/json" }, body, signal });
  }
  const body = new FormData();
  body.append(query.modality, query.image, "image");
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  return ask(path, { method: "POST", body, signal });
}

const json = async (answer) => (await answer).json();

export const info = () => json(ask("info"));
export const indexes = async () => (await json(ask("v1/indexes"))).data;
export const search = (query, fields, signal) => json(post("v1/search", query, fields, signal));
export const attention = (query, signal) => json(post("v1/attention", query, {}, signal));
export const picture = async (index, row) =>
  (await ask(`v1/indexes/${encodeURIComponent(index)}/items/${row}`)).blob();
