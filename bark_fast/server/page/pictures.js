/** Draws the waveform and the spectrogram of speech while it arrives. */

import { LOUD_DB, QUIET_DB, TOP_HZ, Analysis } from "./analysis.js";

// CSS pixels. Both pictures have one axis of time.
const LEFT = 40;
const RIGHT = 10;
const BOTTOM = 36;
const TICK = 4;
const TICK_DISTANCE = 48;

const SPANS_S = [4, 8, 15, 30, 60, 120, 300, 600]; // of the axis, while the end is not known
const STEPS_S = [0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120]; // between its ticks
const KHZ_TICKS = [0, 4, 8, 12];
const LEAST_FULL = 0.1; // what fills the waveform's height at least: silence stays a line
const N_COLOURS = 5; // named --level-0 (quiet) and so on in the style sheet

/** Draws on two canvases, as wide as they are shown, in the colours that the style sheet names. */
export class Pictures {
  #waveform;
  #spectrogram;
  #analysis = new Analysis();
  #isComplete = false;
  #isAsked = false; // for the next frame

  constructor(waveform, spectrogram) {
    this.#waveform = waveform;
    this.#spectrogram = spectrogram;
    new ResizeObserver(() => this.#ask()).observe(waveform);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#ask());
  }

  /** Begin anew. */
  clear() {
    this.#analysis = new Analysis();
    this.#isComplete = false;
    this.#ask();
  }

  /** Add samples (Float32Array, -1 .. 1) to what is drawn. */
  add(samples) {
    this.#analysis.add(samples);
    this.#ask();
  }

  /** Say that nothing will be added: the pictures fill their width. */
  complete() {
    this.#isComplete = true;
    this.#ask();
  }

  /** Return in words what can be seen. */
  describe() {
    return this.#analysis.describe();
  }

  /** Return where a moment of the speech is, in CSS pixels from the left. */
  x_of(moment_s) {
    const width = this.#waveform.clientWidth - LEFT - RIGHT;
    return LEFT + (width * moment_s) / this.#span_s;
  }

  get #span_s() {
    const { duration_s } = this.#analysis;
    if (this.#isComplete && duration_s) return duration_s;
    return SPANS_S.find((span_s) => span_s >= duration_s) ?? duration_s;
  }

  #ask() {
    if (this.#isAsked) return;
    this.#isAsked = true;
    requestAnimationFrame(() => {
      this.#isAsked = false;
      const style = getComputedStyle(this.#waveform);
      this.#drawWaveform(style);
      this.#drawSpectrogram(style);
    });
  }

  #drawWaveform(style) {
    const { context, width, height } = prepare(this.#waveform);
    const middle = height / 2;
    const { least, greatest, peaks_per_s, loudest } = this.#analysis;
    const full = (0.96 * middle) / Math.max(loudest, LEAST_FULL); // pixels of a sample of 1
    const x = (i) => this.x_of(i / peaks_per_s);
    context.strokeStyle = style.getPropertyValue("--line");
    context.beginPath();
    context.moveTo(LEFT, middle);
    context.lineTo(width - RIGHT, middle);
    context.stroke();
    context.fillStyle = context.strokeStyle = style.getPropertyValue("--accent");
    context.beginPath();
    least.forEach((value, i) => context.lineTo(x(i), middle - value * full));
    for (let i = greatest.length - 1; i >= 0; i--) context.lineTo(x(i), middle - greatest[i] * full);
    context.closePath();
    context.fill();
    context.stroke(); // where the wave is thinner than a pixel
  }

  #drawSpectrogram(style) {
    const { context, width, height, scale } = prepare(this.#spectrogram);
    const plot = { width: width - LEFT - RIGHT, height: height - BOTTOM };
    const image = new ImageData(Math.ceil(plot.width * scale), Math.ceil(plot.height * scale));
    this.#paint(image, readColours(style));
    context.putImageData(image, Math.round(LEFT * scale), 0);

    context.fillStyle = style.getPropertyValue("--muted");
    context.strokeStyle = style.getPropertyValue("--line");
    context.font = `12px ${style.fontFamily}`;
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (const khz of KHZ_TICKS) {
      const y = plot.height * (1 - (khz * 1000) / TOP_HZ);
      line(context, LEFT - TICK, y, LEFT, y);
      context.fillText(String(khz), LEFT - 2 * TICK, Math.max(y, 7));
    }
    context.textAlign = "left";
    context.fillText("kHz", 0, plot.height * 0.5);
    context.textBaseline = "top";
    context.textAlign = "center";
    const most = plot.width / TICK_DISTANCE;
    const step_s = STEPS_S.find((step) => this.#span_s / step <= most) ?? this.#span_s;
    for (let i = 0; i * step_s <= this.#span_s; i++) {
      const x = this.x_of(i * step_s);
      line(context, x, plot.height, x, plot.height + TICK);
      context.fillText(String(Number((i * step_s).toFixed(1))), x, plot.height + 2 * TICK - 1);
    }
    context.fillText("seconds", LEFT + plot.width / 2, plot.height + 22);
  }

  /** Fill an image with the spectrogram: time to the right, frequency upwards. */
  #paint(image, colours) {
    const { spectra, spectra_per_s } = this.#analysis;
    const pixels = new Uint32Array(image.data.buffer);
    const { width, height } = image;
    const perPixel = (this.#span_s * spectra_per_s) / width;
    const n_bins = spectra[0]?.length ?? 1;
    const level = new Float32Array(n_bins);
    for (let x = 0; x < width; x++) {
      const first = Math.floor(x * perPixel);
      const end = Math.min(Math.max(Math.floor((x + 1) * perPixel), first + 1), spectra.length);
      level.fill(0);
      for (let i = first; i < end; i++) {
        for (let bin = 0; bin < n_bins; bin++) level[bin] += spectra[i][bin];
      }
      for (let y = 0; y < height; y++) {
        const bin = Math.floor(((height - 1 - y) * n_bins) / height);
        const mean_db = end > first ? level[bin] / (end - first) : QUIET_DB;
        const share = (mean_db - QUIET_DB) / (LOUD_DB - QUIET_DB);
        pixels[y * width + x] = colours[Math.round(255 * Math.min(Math.max(share, 0), 1))];
      }
    }
  }
}

/** Fit a canvas to its place on the screen, empty; return what to draw with, in CSS pixels. */
function prepare(canvas) {
  const scale = devicePixelRatio;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = Math.max(Math.round(width * scale), 1);
  canvas.height = Math.max(Math.round(height * scale), 1);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return { context, width, height, scale };
}

function line(context, x0, y0, x1, y1) {
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
}

/** Return 256 colours between those of the style sheet, as pixels of ImageData. */
function readColours(style) {
  const stops = Array.from({ length: N_COLOURS }, (_, i) => {
    const hex = style.getPropertyValue(`--level-${i}`).trim();
    return [1, 3, 5].map((at) => Number.parseInt(hex.slice(at, at + 2), 16));
  });
  const colours = new Uint8Array(256 * 4);
  for (let i = 0; i < 256; i++) {
    const place = (i / 255) * (N_COLOURS - 1);
    const low = Math.min(Math.floor(place), N_COLOURS - 2);
    const mixed = stops[low].map((from, c) => from + (stops[low + 1][c] - from) * (place - low));
    colours.set([...mixed, 255], 4 * i);
  }
  return new Uint32Array(colours.buffer);
}
