/** The form: its choices, what it says, and what is wrong with it. */

const LANGUAGES = ["en", "de", "es", "fr", "hi", "it", "ja", "ko", "pl", "pt", "ru", "tr", "zh"];
const TEXTS = ["input", "voice", "language", "seed"]; // the other fields are numbers

const at = (id) => document.getElementById(id);
const languageNames = new Intl.DisplayNames(["en"], { type: "language" });

for (const code of LANGUAGES) at("language").add(new Option(languageNames.of(code), code));

/** Offer the voices that the server has; what was chosen stays chosen. */
export function showVoices({ voices, aliases = {} }) {
  const groups = new Map();
  const offer = (title, name, id) => {
    if (!groups.has(title)) groups.set(title, []);
    groups.get(title).push(new Option(name, id));
  };
  for (const { id, name } of voices) {
    const language = languageOf(id);
    offer(language ? languageNames.of(language) : "Others", name || id, id);
  }
  for (const [name, id] of Object.entries(aliases)) {
    offer("By OpenAI’s names", `${name} (${id})`, name);
  }
  const chosen = at("voice").value;
  at("voice").replaceChildren(
    ...[...groups].map(([label, options]) => {
      const group = Object.assign(document.createElement("optgroup"), { label });
      group.append(...options);
      return group;
    }),
  );
  if (chosen) at("voice").value = chosen;
}

/** Return the request that the form describes, by the API's names; what is empty is left out. */
export function readForm() {
  const fields = { model: at("form").dataset.model };
  for (const [name, typed] of new FormData(at("form"))) {
    const value = name === "input" ? typed : typed.trim();
    if (value || name === "input") fields[name] = TEXTS.includes(name) ? value : toNumber(value);
  }
  // An alias has the voice's own name beside it.
  const shown = at("voice").selectedOptions[0]?.text;
  const language = fields.language || languageOf(fields.voice) || languageOf(shown);
  return language ? { ...fields, language } : fields;
}

/** Return the number that was typed, with a comma or a point; the server judges anything else. */
function toNumber(typed) {
  const number = Number(typed.replace(",", "."));
  return Number.isFinite(number) ? number : typed;
}

/** Return the language that a voice such as "v2/de_speaker_3" speaks, or "". */
function languageOf(voice) {
  const code = /(?:^|\/)([a-z]{2})_/.exec(voice)?.[1];
  return LANGUAGES.includes(code) ? code : "";
}

/** Show what went wrong, an ApiError or a fault of the page's own, and go to the field to blame. */
export function showProblem({ message, status, param, retry_s }) {
  let field = at(param?.split(".")[0] ?? "");
  if (status === 401) {
    at("key-row").hidden = false;
    field = at("key");
  }
  at("error").textContent = retry_s ? `${message}. ${whenToRetry(retry_s)}` : message;
  if (!field?.closest(".field")) return;
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-errormessage", "error");
  const folded = field.closest("details");
  if (folded) folded.open = true;
  field.focus({ preventScroll: true });
  field.scrollIntoView({ block: "center" }); // the message stands at the edge
}

function whenToRetry(retry_s) {
  const time = new Date(Date.now() + 1000 * retry_s).toLocaleTimeString();
  return `Next try: in ${retry_s} s, at ${time}.`;
}

/** Show what the server did otherwise than it was asked. */
export function showWarnings(texts) {
  at("warnings").replaceChildren(
    ...texts.map((text) => Object.assign(document.createElement("p"), { textContent: text })),
  );
}

/** Take away what `showProblem` and `showWarnings` have shown. */
export function clearProblems() {
  at("error").textContent = "";
  showWarnings([]);
  for (const field of document.querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-errormessage");
  }
}
