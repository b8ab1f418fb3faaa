/** Plays samples without gaps while more of them arrive. */

import { SAMPLE_RATE_HZ } from "./pcm.js";

const LEAD_S = 0.1; // between the arrival of the first samples and their sound
const FADE_S = 0.015; // of a stop, so that it does not click

export class Player {
  /** Times that the next samples came too late. */
  underruns = 0;
  /** Silence because of that. */
  silence_s = 0;

  #context = null;
  #output = null; // a GainNode for each run, so that a stop fades only what it stops
  #sources = new Set();
  #pieces = []; // {start_s on the context's clock, from_s in the speech, duration_s}
  #isComplete = false;
  #onEnd = () => {};

  /**
   * Begin a run; what still plays stops.
   *
   * Call it from the handler of a click or a key: browsers allow no sound otherwise.
   *
   * @param onEnd called once when all samples have been heard, after `complete`; not after `stop`
   */
  start(onEnd) {
    this.stop();
    // At the samples' own rate nothing is resampled piece by piece, which would click at the seams.
    this.#context ??= new AudioContext({ sampleRate: SAMPLE_RATE_HZ });
    this.#context.resume();
    this.#output = new GainNode(this.#context);
    this.#output.connect(this.#context.destination);
    this.#pieces = [];
    this.#isComplete = false;
    this.#onEnd = onEnd;
    this.underruns = 0;
    this.silence_s = 0;
  }

  /** Play samples (Float32Array, -1 .. 1) right after those before them. */
  add(samples) {
    if (!samples.length) return;
    const context = this.#context;
    const last = this.#pieces.at(-1);
    const now_s = context.currentTime;
    const from_s = last ? last.from_s + last.duration_s : 0;
    let start_s = last ? last.start_s + last.duration_s : now_s + LEAD_S;
    if (start_s < now_s) {
      this.underruns += 1;
      this.silence_s += now_s + LEAD_S - start_s;
      start_s = now_s + LEAD_S;
    }
    const buffer = new AudioBuffer({ length: samples.length, sampleRate: SAMPLE_RATE_HZ });
    buffer.copyToChannel(samples, 0);
    const source = new AudioBufferSourceNode(context, { buffer });
    source.connect(this.#output);
    source.onended = () => {
      this.#sources.delete(source);
      this.#endIfOver();
    };
    source.start(start_s);
    this.#sources.add(source);
    this.#pieces.push({ start_s, from_s, duration_s: buffer.duration });
  }

  /** Say that no more samples will come. */
  complete() {
    this.#isComplete = true;
    this.#endIfOver();
  }

  /** Fall silent, at once but for a short fade. */
  stop() {
    const until_s = (this.#context?.currentTime ?? 0) + FADE_S;
    this.#output?.gain.linearRampToValueAtTime(0, until_s);
    for (const source of this.#sources) {
      source.onended = null;
      source.stop(until_s);
    }
    this.#sources.clear();
    this.#pieces = [];
  }

  /** Seconds into the speech of what is heard now; null if nothing plays. */
  get position_s() {
    if (!this.#sources.size) return null;
    const now_s = this.#context.currentTime - (this.#context.outputLatency || 0);
    const piece = this.#pieces.findLast((each) => each.start_s <= now_s);
    return piece ? piece.from_s + Math.min(now_s - piece.start_s, piece.duration_s) : 0;
  }

  #endIfOver() {
    if (this.#isComplete && !this.#sources.size) {
      this.#isComplete = false;
      this.#onEnd();
    }
  }
}
