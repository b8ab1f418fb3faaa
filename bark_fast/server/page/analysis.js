/** What there is to see in speech: peaks, spectra, pauses. */

import { Spectrum } from "./fft.js";
import { SAMPLE_RATE_HZ } from "./pcm.js";

export const TOP_HZ = SAMPLE_RATE_HZ / 2;
export const QUIET_DB = -88; // what is below is silence to the eye
export const LOUD_DB = -22; // what is above is as loud as can be

const WINDOW = 512; // samples, 21 ms: shows the strokes of the voice, and its formants
const HOP = 128;
const PEAK = 32;

const PAUSE_LEVEL = 0.01; // -40 dB
const PAUSE_S = 0.25;
const MOST_TOLD = 4; // pauses; more are only counted
const MOST = 0.9; // of the energy

const spectrum = new Spectrum(WINDOW);

/** Takes samples as they come, and keeps what pictures are drawn from. */
export class Analysis {
  peaks_per_s = SAMPLE_RATE_HZ / PEAK;
  /** The least and the greatest of every `PEAK` samples. */
  least = [];
  greatest = [];

  spectra_per_s = SAMPLE_RATE_HZ / HOP;
  /** Levels in dB, a Float32Array [WINDOW / 2] every `HOP` samples, from 0 up to TOP_HZ. */
  spectra = [];

  /** The greatest of all, without its sign. */
  loudest = 0;

  #length = 0;
  #rest = new Float32Array(0); // samples of windows that are not full yet

  get duration_s() {
    return this.#length / SAMPLE_RATE_HZ;
  }

  /** Add samples, a Float32Array, -1 .. 1. */
  add(samples) {
    for (const sample of samples) {
      const last = Math.floor(this.#length / PEAK);
      this.least[last] = Math.min(this.least[last] ?? sample, sample);
      this.greatest[last] = Math.max(this.greatest[last] ?? sample, sample);
      this.loudest = Math.max(this.loudest, Math.abs(sample));
      this.#length += 1;
    }
    const waiting = new Float32Array(this.#rest.length + samples.length);
    waiting.set(this.#rest);
    waiting.set(samples, this.#rest.length);
    let start = 0;
    for (; start + WINDOW <= waiting.length; start += HOP) {
      this.spectra.push(spectrum.levels_db(waiting, start));
    }
    this.#rest = waiting.slice(start);
  }

  /** Return in words what the pictures show, for those who do not see them. */
  describe() {
    if (!this.#length) return "There is nothing to see.";
    const loudness = this.least.map((least, i) => Math.max(-least, this.greatest[i]));
    const loudest = loudness.indexOf(this.loudest);
    const pauses = this.#findPauses(loudness);
    return [
      `${this.duration_s.toFixed(1)} seconds,`,
      `${describePauses(pauses)};`,
      `loudest at ${(loudest / this.peaks_per_s).toFixed(1)} s;`,
      `nine tenths of the energy lie below ${(this.#most_hz() / 1000).toFixed(1)} kHz.`,
    ].join(" ");
  }

  /** Return [from_s, to_s] of each pause between sounds. */
  #findPauses(loudness) {
    const pauses = [];
    let lastSound = null;
    loudness.forEach((level, i) => {
      if (level < PAUSE_LEVEL) return;
      const from_s = (lastSound ?? i) / this.peaks_per_s;
      const to_s = i / this.peaks_per_s;
      if (to_s - from_s >= PAUSE_S) pauses.push([from_s, to_s]);
      lastSound = i;
    });
    return pauses;
  }

  /** Return the frequency below which most of the energy lies. */
  #most_hz() {
    const energy = new Float64Array(WINDOW / 2);
    for (const levels of this.spectra) {
      levels.forEach((level_db, bin) => (energy[bin] += 10 ** (level_db / 10)));
    }
    const total = energy.reduce((a, b) => a + b, 0);
    let [sum, bin] = [0, 0];
    while (bin < energy.length && sum < MOST * total) sum += energy[bin++];
    return (bin / energy.length) * TOP_HZ;
  }
}

function describePauses(pauses) {
  if (!pauses.length) return "without a pause";
  if (pauses.length > MOST_TOLD) return `with ${pauses.length} pauses`;
  const where = pauses.map(([from_s, to_s]) => `${from_s.toFixed(1)} to ${to_s.toFixed(1)}`);
  return `with pauses at ${where.join(", ")} s`;
}
