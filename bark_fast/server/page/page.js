/** The page: asks for speech, plays and shows it while it arrives, and makes files of it. */

import * as api from "./api.js";
import { clearProblems, readForm, showProblem, showVoices, showWarnings } from "./form.js";
import { Recording } from "./pcm.js";
import { Pictures } from "./pictures.js";
import { Player } from "./player.js";

const LOADING_POLL_MS = 2000;
const FILE_KEPT_MS = 60_000; // a download reads it after the click
const CALM_STEP_S = 0.5; // of the playhead, where motion is not wanted

const at = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const player = new Player();
const pictures = new Pictures(at("waveform"), at("spectrogram"));

/** What was asked for last, a `Run`. */
let run = null;
/** What can be stopped: an AbortController while the server is asked for something. */
let asking = null;
let isPlaying = false;

/** What was asked for, and what came. */
class Run {
  recording = new Recording();
  isComplete = false;
  seed = null;

  constructor(fields) {
    this.fields = fields;
  }
}

// The server --------------------------------------------------------------------------------------

let isConnected = false;

/** Wait until the server is ready, and show what it has; throws ApiError. */
async function connect() {
  await waitUntilReady();
  const [models, voices] = await Promise.all([api.get("v1/models"), api.get("v1/audio/voices")]);
  const model = models.data[0].id;
  at("server").textContent = `Ready, with the model ${model}`;
  at("form").dataset.model = model;
  showVoices(voices);
  isConnected = true;
}

async function waitUntilReady() {
  for (;;) {
    try {
      await api.get("ready");
      return;
    } catch (error) {
      if (error.status !== 503 && error.status !== 0) throw error;
      at("server").textContent = error.message;
      await new Promise((resolve) => setTimeout(resolve, LOADING_POLL_MS));
    }
  }
}

// Speaking ----------------------------------------------------------------------------------------

async function speak() {
  stop();
  clearProblems();
  player.start(heard); // first of all, while the browser knows of the click
  isPlaying = true;
  const mine = new AbortController();
  asking = mine;
  pictures.clear();
  for (const each of document.querySelectorAll(".figures dd")) each.textContent = "–";
  at("pictures-text").textContent = "They are drawn as the speech arrives.";
  run = null;
  show("Waiting for the first sound…");
  try {
    if (!isConnected) await connect();
    mine.signal.throwIfAborted();
    run = new Run(readForm());
    await receive(run, mine.signal);
  } catch (error) {
    if (mine.signal.aborted) return; // whoever stopped it has said so
    fail(error);
  }
  if (asking === mine) asking = null;
  enable();
}

/** Play and show what the server says to `run.fields`, and measure. */
async function receive(run, signal) {
  const asked_ms = performance.now();
  const since_s = () => (performance.now() - asked_ms) / 1000;
  const { recording } = run;
  const { response, seed, warnings } = await api.speak(
    { ...run.fields, response_format: "pcm", stream: true },
    signal,
  );
  run.seed = seed;
  tell("used-seed", seed ?? "not told");
  showWarnings(warnings);
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await readOn(reader);
    if (done) break;
    const samples = recording.add(value);
    if (!samples.length) continue;
    if (recording.length === samples.length) {
      tell("first-audio", `${since_s().toFixed(2)} s`);
      show("Speaking…");
      showPlayhead();
    }
    player.add(samples);
    pictures.add(samples);
    const { underruns, silence_s } = player;
    tell("length", `${recording.duration_s.toFixed(1)} s`);
    tell("gaps", underruns || "none", underruns ? `${silence_s.toFixed(1)} s of silence` : "");
    enable();
  }
  const factor = since_s() / recording.duration_s;
  run.isComplete = true;
  pictures.complete();
  if (!recording.length) throw new api.ApiError("The server sent no sound for this text.");
  tell("factor", factor.toFixed(2), `${(1 / factor).toFixed(1)} × as fast`);
  at("pictures-text").textContent = pictures.describe();
  player.complete();
}

/** Read the next bytes; what breaks off in the middle gets a message of its own. */
async function readOn(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new api.ApiError("The speech broke off: the server failed, or the connection did.");
  }
}

/** Everything has been played. */
function heard() {
  isPlaying = false;
  const said = run.isComplete ? "Said all of it" : "Said what there is of it";
  show(`${said}: ${run.recording.duration_s.toFixed(1)} seconds.`);
}

function fail(error) {
  if (!(error instanceof api.ApiError)) console.error(error);
  pictures.complete();
  if (run?.recording.length) {
    player.complete(); // what has come is still played
  } else {
    isPlaying = false;
    show("Nothing was said.");
  }
  showProblem(error);
}

/** End what is under way: playing, receiving, or making a file. The server sees it and ends too. */
function stop() {
  if (!asking && !isPlaying) return;
  const position_s = player.position_s;
  asking?.abort();
  asking = null;
  player.stop();
  isPlaying = false;
  pictures.complete();
  show(position_s === null ? "Stopped." : `Stopped after ${position_s.toFixed(1)} seconds.`);
}

function playAgain() {
  if (isPlaying || asking) stop();
  player.start(heard);
  player.add(run.recording.samples());
  player.complete();
  isPlaying = true;
  show("Playing it again…");
  showPlayhead();
}

// Files -------------------------------------------------------------------------------------------

/** Save what was said. The server says it again for the formats that it has to make: with one seed
 * it is the same speech. */
async function download() {
  const format = at("response_format").value;
  const { recording, fields, seed } = run;
  if (format === "wav" || format === "pcm") {
    save(recording.toBlob(format), format);
    return;
  }
  clearProblems();
  asking?.abort();
  const mine = new AbortController();
  asking = mine;
  show(`Making the ${format} file…`);
  try {
    const { response } = await api.speak(
      { ...fields, seed, response_format: format, stream: false },
      mine.signal,
    );
    save(await response.blob(), format);
    show(`Made the ${format} file.`);
  } catch (error) {
    if (mine.signal.aborted) return;
    show("There is no file.");
    showProblem(error);
  } finally {
    if (asking === mine) asking = null;
    enable();
  }
}

function save(blob, format) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `speech-${run.seed ?? "bark"}.${format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), FILE_KEPT_MS);
}

// What is shown -----------------------------------------------------------------------------------

function show(status) {
  at("status").textContent = status;
  enable();
}

/** Let the buttons be pressed that do something now. */
function enable() {
  const canStop = Boolean(asking) || isPlaying;
  if (!canStop && document.activeElement === at("stop")) at("speak").focus();
  at("stop").disabled = !canStop;
  at("again").disabled = !run?.recording.length;
  at("download").disabled = !(run?.isComplete && run.recording.length);
  at("keep").disabled = !run?.seed;
  at("said").classList.toggle("busy", Boolean(asking));
}

/** Show a figure, and in small letters what is to be said of it. */
function tell(id, figure, remark = "") {
  const small = Object.assign(document.createElement("small"), { textContent: remark });
  at(id).replaceChildren(figure, ...(remark ? [" ", small] : []));
}

/** Show the pictures, which may be below the screen's edge, and where in them the sound is. */
function showPlayhead() {
  at("pictures").scrollIntoView({ block: "nearest", behavior: calm.matches ? "auto" : "smooth" });
  requestAnimationFrame(movePlayhead);
}

function movePlayhead() {
  const position_s = player.position_s;
  at("playhead").hidden = position_s === null;
  if (position_s !== null) {
    const shown_s = calm.matches ? Math.floor(position_s / CALM_STEP_S) * CALM_STEP_S : position_s;
    at("playhead").style.transform = `translateX(${pictures.x_of(shown_s)}px)`;
  }
  if (isPlaying) requestAnimationFrame(movePlayhead);
  else at("playhead").hidden = true;
}

// Hands -------------------------------------------------------------------------------------------

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  speak();
});
at("stop").addEventListener("click", stop);
at("again").addEventListener("click", playAgain);
at("download").addEventListener("click", download);
at("keep").addEventListener("click", () => {
  at("seed").value = run.seed;
  at("seed").focus();
});
at("key").addEventListener("input", () => api.setKey(at("key").value));
at("key").addEventListener("change", () => {
  clearProblems();
  connect().catch(showProblem);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
});

connect().catch(showProblem);
