/** Samples of speech as the server sends them: 16 bit, little endian, mono. */

export const SAMPLE_RATE_HZ = 24000;
const SAMPLE_BYTES = 2;
const WAV_HEADER_BYTES = 44;

/** What was said: samples that arrive in pieces. */
export class Recording {
  /** Samples so far. */
  length = 0;
  #pieces = []; // Float32Array each, -1 .. 1
  #half = null; // the first byte of a sample whose second is still on the way

  get duration_s() {
    return this.length / SAMPLE_RATE_HZ;
  }

  /** Add bytes, which may end within a sample; return the new samples, -1 .. 1, as Float32Array. */
  add(bytes) {
    const halves = this.#half === null ? 0 : 1;
    const whole = new Uint8Array(halves + bytes.length);
    if (halves) whole[0] = this.#half;
    whole.set(bytes, halves);
    const samples = new Float32Array(Math.floor(whole.length / SAMPLE_BYTES));
    const view = new DataView(whole.buffer);
    for (let i = 0; i < samples.length; i++) {
      samples[i] = view.getInt16(i * SAMPLE_BYTES, true) / 32768;
    }
    this.#half = whole.length % SAMPLE_BYTES ? whole.at(-1) : null;
    this.#pieces.push(samples);
    this.length += samples.length;
    return samples;
  }

  /** Return all samples, -1 .. 1, as one Float32Array. */
  samples() {
    const all = new Float32Array(this.length);
    let n = 0;
    for (const piece of this.#pieces) {
      all.set(piece, n);
      n += piece.length;
    }
    return all;
  }

  /** Return all samples as a file: "pcm" as they came, or "wav" with a header. */
  toBlob(format) {
    const start = format === "wav" ? WAV_HEADER_BYTES : 0;
    const view = new DataView(new ArrayBuffer(start + this.length * SAMPLE_BYTES));
    if (format === "wav") writeWavHeader(view, this.length * SAMPLE_BYTES);
    let at = start;
    for (const piece of this.#pieces) {
      for (const sample of piece) {
        view.setInt16(at, sample * 32768, true); // exactly what came: halves and doubles do not round
        at += SAMPLE_BYTES;
      }
    }
    return new Blob([view], { type: `audio/${format}` });
  }
}

function writeWavHeader(view, dataBytes) {
  const ascii = (at, text) => {
    for (let i = 0; i < text.length; i++) view.setUint8(at + i, text.charCodeAt(i));
  };
  ascii(0, "RIFF");
  view.setUint32(4, WAV_HEADER_BYTES - 8 + dataBytes, true);
  ascii(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // bytes of what follows, up to "data"
  view.setUint16(20, 1, true); // integers
  view.setUint16(22, 1, true); // one channel
  view.setUint32(24, SAMPLE_RATE_HZ, true);
  view.setUint32(28, SAMPLE_RATE_HZ * SAMPLE_BYTES, true);
  view.setUint16(32, SAMPLE_BYTES, true);
  view.setUint16(34, SAMPLE_BYTES * 8, true);
  ascii(36, "data");
  view.setUint32(40, dataBytes, true);
}
