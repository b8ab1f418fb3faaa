/** Talks to the server that this page came from. */

const KEY = "bark-fast.api-key"; // in the tab's session storage, and nowhere else

/** The server refused, or could not be reached. */
export class ApiError extends Error {
  /**
   * @param status the HTTP status; 0 if there was no answer
   * @param param the field of the request that is to blame, or null
   * @param retry_s seconds after which to try again, or null
   */
  constructor(message, { status = 0, param = null, retry_s = null } = {}) {
    super(message);
    Object.assign(this, { status, param, retry_s });
  }
}

export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export function getKey() {
  return sessionStorage.getItem(KEY) ?? "";
}

/** Return the JSON that a GET of `path` gives; throws ApiError. */
export async function get(path) {
  return (await request(path, {})).json();
}

/**
 * Ask for speech; throws ApiError, and AbortError once `signal` aborts.
 *
 * @param fields the request by the API's names; a seed is a string of digits
 * @returns {response, seed, warnings}: the response with its body still to be read, the seed
 *     that was used as a string, and a list of texts
 */
export async function speak(fields, signal) {
  const response = await request("v1/audio/speech", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: toJson(fields),
    signal,
  });
  return {
    response,
    seed: response.headers.get("x-seed"),
    warnings: readWarnings(response.headers.get("warning")),
  };
}

async function request(path, options) {
  const headers = new Headers(options.headers);
  try {
    if (getKey()) headers.set("authorization", `Bearer ${getKey()}`);
  } catch {
    throw new ApiError("An API key holds only letters, digits and signs of ASCII.", { status: 401 });
  }
  let response;
  try {
    // Relative, so that the page works behind a prefix too.
    response = await fetch(new URL(path, document.baseURI), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.");
  }
  if (!response.ok) throw await readError(response);
  return response;
}

async function readError(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // Something between here and the server answered, in a form of its own.
  }
  const retry_s = Number.parseInt(response.headers.get("retry-after"), 10);
  return new ApiError(error.message || `The server answered ${response.status}.`, {
    status: response.status,
    param: error.param ?? null,
    retry_s: Number.isNaN(retry_s) ? null : retry_s,
  });
}

/** Return `fields` as JSON. A seed has up to 64 bits, more than a number of JavaScript holds. */
function toJson({ seed, ...others }) {
  const json = JSON.stringify(others);
  if (!seed) return json;
  const value = /^\d+$/.test(seed) ? seed.replace(/^0+(?=\d)/, "") : JSON.stringify(seed);
  return `${json.slice(0, -1)},"seed":${value}}`;
}

/** Return the texts of a header like `299 bark-fast "text", 299 bark-fast "another"`. */
function readWarnings(header) {
  const quoted = (header ?? "").matchAll(/\d{3} \S+ "((?:[^"\\]|\\.)*)"/g);
  return [...quoted].map((match) => match[1].replace(/\\(.)/g, "$1"));
}
