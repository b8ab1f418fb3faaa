// OpenAI's client for Node against a server: node client.js URL KEY WHAT. Prints what happened as
// JSON; the test that starts it judges.

import OpenAI from "openai";

const [url, apiKey, what] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
const order = { model: "tts-1", voice: "v2/en_speaker_1", response_format: "pcm", seed: 3 };
const text = "The weather is nice. We will go to the garden. It rained for three days.";

async function bytes(response) {
  return Buffer.from(await response.arrayBuffer());
}

async function failure(ask) {
  try {
    await ask();
  } catch (error) {
    const { name } = error.constructor;
    const { status, param, code, type, requestID, message } = error;
    return { name, status, param, code, type, requestID, message };
  }
  return null;
}

const tries = {
  async create() {
    const made = {};
    for (const format of ["mp3", "opus", "aac", "flac", "wav", "pcm"]) {
      const response = await client.audio.speech.create({
        ...order, input: "Hello, my dog is cute.", response_format: format,
      });
      made[format] = {
        type: response.headers.get("content-type"),
        content: (await bytes(response)).toString("base64"),
      };
    }
    return made;
  },

  async stream() {
    const response = await client.audio.speech.create({ ...order, input: text });
    const pieces = [];
    for await (const piece of response.body) pieces.push(Buffer.from(piece));
    const whole = await bytes(
      await client.audio.speech.create({ ...order, input: text, stream: false }),
    );
    return {
      pieces: pieces.length,
      same: Buffer.concat(pieces).equals(whole),
      bytes: whole.length,
      length: Number(response.headers.get("content-length")),
      seed: response.headers.get("x-seed"),
    };
  },

  async events() {
    const response = await client.audio.speech.create({
      ...order, input: text, stream_format: "sse",
    });
    const events = (await response.text())
      .split("\n\n")
      .filter((event) => event !== "")
      .map((event) => JSON.parse(event.replace(/^data: /, "")));
    const deltas = events.filter((event) => event.type === "speech.audio.delta");
    return {
      bytes: deltas.reduce((n, event) => n + Buffer.from(event.audio, "base64").length, 0),
      last: events.at(-1),
    };
  },

  async models() {
    const listed = [];
    for await (const model of client.models.list()) listed.push(model.id);
    const one = await client.models.retrieve("demo");
    return { listed, one, requestID: one._request_id };
  },

  async errors() {
    const other = client.withOptions({ apiKey: "another" });
    return {
      voice: await failure(() =>
        client.audio.speech.create({ ...order, input: text, voice: "nobody" }),
      ),
      speed: await failure(() => client.audio.speech.create({ ...order, input: text, speed: 9 })),
      model: await failure(() => client.audio.speech.create({ ...order, input: text, model: "x" })),
      key: await failure(() => other.models.list()),
    };
  },

  async retry() {
    const began = performance.now();
    const patient = client.withOptions({ maxRetries: 1 });
    const content = await bytes(await patient.audio.speech.create({ ...order, input: "Hi." }));
    return { bytes: content.length, seconds: (performance.now() - began) / 1000 };
  },
};

console.log(JSON.stringify(await tries[what]()));
