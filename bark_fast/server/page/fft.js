/** The power spectrum of short pieces of sound. */

/** Computes spectra of `size` samples, a power of two, with a Hann window. */
export class Spectrum {
  #window;
  #cos;
  #sin;
  #reversed;
  #real;
  #imaginary;

  constructor(size) {
    this.size = size;
    const angles = Float32Array.from({ length: size }, (_, i) => (2 * Math.PI * i) / size);
    this.#window = angles.map((angle) => 0.5 - 0.5 * Math.cos(angle));
    this.#cos = angles.map(Math.cos);
    this.#sin = angles.map(Math.sin);
    this.#reversed = reverseBits(size);
    this.#real = new Float32Array(size);
    this.#imaginary = new Float32Array(size);
  }

  /**
   * Return the levels of the frequencies 0 .. half the sampling rate.
   *
   * @param samples Float32Array; those from `start` on are taken, zeros past its end
   * @returns Float32Array [size / 2] in dB; 0 is a sine of full scale
   */
  levels_db(samples, start) {
    const { size } = this;
    const [real, imaginary] = [this.#real, this.#imaginary];
    for (let i = 0; i < size; i++) {
      real[this.#reversed[i]] = (samples[start + i] ?? 0) * this.#window[i];
    }
    imaginary.fill(0);
    this.#transform();
    const scale = (4 / size) ** 2; // a sine's amplitude is size / 2, and the window halves it
    return Float32Array.from({ length: size / 2 }, (_, k) => {
      const power = (real[k] ** 2 + imaginary[k] ** 2) * scale;
      return 10 * Math.log10(power + 1e-12);
    });
  }

  /** Transform in place (Cooley and Tukey, radix 2); the samples are in bit-reversed order. */
  #transform() {
    const { size } = this;
    const [real, imaginary] = [this.#real, this.#imaginary];
    for (let half = 1; half < size; half *= 2) {
      const stride = size / (2 * half); // between this level's angles
      for (let first = 0; first < size; first += 2 * half) {
        for (let k = 0; k < half; k++) {
          const [cos, sin] = [this.#cos[k * stride], -this.#sin[k * stride]];
          const [low, high] = [first + k, first + k + half];
          const re = real[high] * cos - imaginary[high] * sin;
          const im = real[high] * sin + imaginary[high] * cos;
          real[high] = real[low] - re;
          imaginary[high] = imaginary[low] - im;
          real[low] += re;
          imaginary[low] += im;
        }
      }
    }
  }
}

function reverseBits(size) {
  const n_bits = Math.log2(size);
  return Uint32Array.from({ length: size }, (_, i) => {
    let reversed = 0;
    for (let bit = 0; bit < n_bits; bit++) reversed |= ((i >> bit) & 1) << (n_bits - 1 - bit);
    return reversed;
  });
}
