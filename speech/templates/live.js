"use strict";

// Live: the microphone through the server and back. The sound itself is in live-sound.js.

const LIVE_RATE_HZ = 16000; // asked for; where the browser can't, the server resamples
const MOST_WAITING_S = 4; // of sound that waits for the server
const MOST_BLOCK_S = 0.5; // that travels at once
const COLUMNS = 625; // of a spectrogram, one for each block of 16 ms
const ROWS = 128;
const TOP_HZ = 8000;
const BRIGHTEST_DB = -30;
const RANGE_DB = 70;
const COLORS = [[0, 0, 4], [40, 17, 89], [114, 31, 129], [182, 54, 121], [241, 96, 93], [254, 175, 119], [252, 253, 191]];

let live = null; // what runs or starts
let lastCheck = 0;

function failLive(text) {
  get("live-error").textContent = text;
  get("live-error").hidden = !text;
}

function sayLive(text) {
  get("live-note").textContent = text;
}

function milliseconds(value) {
  return `${Math.round(1000 * value)} ms`;
}

async function post(path, query, body) {
  const response = await fetch(`${path}?${new URLSearchParams(query)}`, {
    method: "POST", body, headers: { "Content-Type": "application/octet-stream" },
  });
  return answerOf(response);
}

// Says whether the chosen model can run live, and else why not.
async function checkLive() {
  if (!get("choice").value) return false; // the server has offered nothing
  const number = ++lastCheck;
  let reason = "";
  try {
    const response = await answerOf(await fetch(`/live/offer?choice=${get("choice").value}`));
    reason = (await response.json()).refused;
  } catch (error) {
    reason = words(error);
  }
  if (number !== lastCheck) return false; // another model has been chosen since
  failLive(reason);
  get("live-go").disabled = reason !== "";
  return reason === "";
}

// Starting and stopping; what has been opened is closed again whenever it ends.
async function begin(own) {
  if (!navigator.mediaDevices || !window.AudioWorkletNode) {
    throw new Error("the browser lends its microphone only to a page of this machine, such as http://127.0.0.1, or to one with https");
  }
  const plain = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  own.stream = await navigator.mediaDevices.getUserMedia({ audio: plain }).catch((error) => {
    throw new Error(`no microphone: ${error.message}`);
  });
  if (own.isEnded) return;
  await openSound(own);
  await own.context.audioWorklet.addModule("/live-sound.js");
  if (own.isEnded) return;
  const query = { choice: get("choice").value, rate: own.context.sampleRate };
  own.session = await (await post("/live/start", query)).json();
  if (own.isEnded) return;
  own.views = VERSIONS.map((name) => new View(get(`live-${name}`), own.context.sampleRate));
  own.node = new AudioWorkletNode(own.context, "live-sound", {
    channelCount: 1, channelCountMode: "explicit", outputChannelCount: [1],
    processorOptions: { block: own.session.block_samples, after: isAfter() },
  });
  own.gain = new GainNode(own.context, { gain: get("live-heard").checked ? 1 : 0 });
  own.node.port.onmessage = ({ data }) => (data.block ? given(own, data.block) : played(own, data));
  own.source.connect(own.node).connect(own.gain).connect(own.context.destination);
  own.stream.getTracks()[0].addEventListener("ended", () => end(own, "the microphone has gone; connect it and start again"));
  await own.context.resume();
}

async function openSound(own) {
  const open = (options) => {
    own.context = new AudioContext({ latencyHint: "interactive", ...options });
    own.source = own.context.createMediaStreamSource(own.stream);
  };
  try {
    open({ sampleRate: LIVE_RATE_HZ });
  } catch {
    // Some browsers take a microphone only at its own rate.
    if (own.context) await own.context.close();
    open({});
  }
}

function end(own, reason = "") {
  if (own.isEnded) return;
  own.isEnded = true;
  release(own);
  live = null;
  get("live-go").textContent = "Start live";
  get("live-go").setAttribute("aria-pressed", "false");
  sayLive(reason ? "" : "Stopped.");
  failLive(reason);
}

function release(own) {
  if (own.node) own.node.port.postMessage({ end: true });
  if (own.stream) own.stream.getTracks().forEach((track) => track.stop());
  if (own.context && own.context.state !== "closed") own.context.close();
  if (own.session) navigator.sendBeacon(`/live/stop?session=${own.session.session}`);
}

async function startLive() {
  const own = { waiting: [], numWaiting: 0, number: 0, isSending: false, trip: 0, columns: [] };
  live = own;
  failLive("");
  sayLive("Starting; the browser may ask for the microphone.");
  get("live-go").textContent = "Stop live";
  get("live-go").setAttribute("aria-pressed", "true");
  try {
    await begin(own);
  } catch (error) {
    end(own, words(error));
  }
  if (own.isEnded) {
    release(own); // it ended while something was still being opened
    return;
  }
  get("live-view").hidden = false;
  sayHeard();
  requestAnimationFrame(() => draw(own));
}

function sayHeard() {
  sayLive(get("live-heard").checked ? "Live." : "Live. To hear it, put on headphones and tick Play it back.");
}

// Sound on its way to the server and back, one post after the other.
function given(own, block) {
  if (own.isEnded) return;
  own.waiting.push(block);
  own.numWaiting += block.length;
  if (own.numWaiting > MOST_WAITING_S * own.context.sampleRate) {
    end(own, `the server is more than ${MOST_WAITING_S} s behind; close what keeps this machine busy, and start again`);
  } else if (!own.isSending) {
    send(own);
  }
}

async function send(own) {
  own.isSending = true;
  try {
    while (own.waiting.length && !own.isEnded) {
      const most = Math.max(1, Math.floor((MOST_BLOCK_S * own.context.sampleRate) / own.session.block_samples));
      const blocks = own.waiting.splice(0, most);
      own.numWaiting -= blocks.length * own.session.block_samples;
      const began = performance.now();
      const response = await post("/live/push", { session: own.session.session, block: own.number++ }, new Blob(blocks));
      const enhanced = new Float32Array(await response.arrayBuffer());
      const trip = (performance.now() - began) / 1000;
      own.trip += own.trip ? 0.1 * (trip - own.trip) : trip;
      own.node.port.postMessage({ enhanced }, [enhanced.buffer]);
    }
  } catch (error) {
    end(own, words(error));
  }
  own.isSending = false;
}

// What was heard, and what is shown of it.
function played(own, data) {
  own.facts = data;
  own.columns.push([data.noisy, data.enhanced]);
  if (own.columns.length > COLUMNS) own.columns.shift(); // a page in the background draws nothing
}

function draw(own) {
  if (own.isEnded) return;
  const columns = own.columns.splice(0);
  own.views.forEach((view, place) => view.draw(columns.map((column) => column[place])));
  const now = performance.now();
  if (own.facts && !(now - own.told < 250)) {
    own.told = now;
    tell(own);
  }
  requestAnimationFrame(() => draw(own));
}

function tell(own) {
  const { facts, context, session } = own;
  const settings = own.stream.getTracks()[0].getSettings();
  const devices = (settings.latency || 0) + (context.baseLatency || 0) + (context.outputLatency || 0);
  const resampled = context.sampleRate === session.network_hz ? "" : ` with resampling from ${context.sampleRate} Hz`;
  get("live-latency").textContent = milliseconds(facts.latency + devices);
  get("live-network").textContent = `${Math.round(session.latency_ms)} ms${resampled}`;
  get("live-trip").textContent = `${(1000 * own.trip).toFixed(1)} ms`;
  get("live-hand").textContent = milliseconds(facts.inHand);
  get("live-devices").textContent = milliseconds(devices);
  get("live-underruns").textContent = facts.underruns;
  get("live-played").textContent = seconds(facts.played / context.sampleRate);
  own.views.forEach((view) => view.tell());
}

// A level and a running spectrogram.
class View {
  constructor(box, rateHz) {
    this.meter = box.querySelector("meter");
    this.label = box.querySelector(".said small");
    this.canvas = box.querySelector("canvas");
    this.canvas.width = COLUMNS;
    this.canvas.height = ROWS;
    this.pen = this.canvas.getContext("2d");
    this.pen.fillRect(0, 0, COLUMNS, ROWS);
    this.spectrum = new Spectrum(2 ** Math.round(Math.log2(0.032 * rateHz)));
    this.numBins = Math.min(this.spectrum.size / 2, Math.round((TOP_HZ / rateHz) * this.spectrum.size));
    this.power = 0;
  }

  draw(blocks) {
    if (!blocks.length) return;
    this.pen.drawImage(this.canvas, -blocks.length, 0);
    const image = this.pen.createImageData(blocks.length, ROWS);
    blocks.forEach((block, place) => this.column(image, place, block));
    this.pen.putImageData(image, COLUMNS - blocks.length, 0);
  }

  column(image, place, block) {
    const power = block.reduce((sum, x) => sum + x * x, 0) / block.length;
    this.power += 0.2 * (power - this.power);
    const powers = this.spectrum.powers(block);
    for (let row = 0; row < ROWS; row++) {
      const first = Math.floor(((ROWS - 1 - row) * this.numBins) / ROWS);
      const last = Math.max(first + 1, Math.floor(((ROWS - row) * this.numBins) / ROWS));
      let most = 1e-14;
      for (let bin = first; bin < last; bin++) most = Math.max(most, powers[bin]);
      const share = (10 * Math.log10(most) - BRIGHTEST_DB) / RANGE_DB + 1;
      image.data.set([...color(share), 255], 4 * (row * image.width + place));
    }
  }

  tell() {
    const level = 10 * Math.log10(Math.max(this.power, 1e-12));
    this.meter.value = level;
    this.label.textContent = level < -100 ? "silent" : `${Math.round(level)} dB`;
  }
}

function color(share) {
  const place = Math.max(0, Math.min(1, share)) * (COLORS.length - 1);
  const below = Math.min(Math.floor(place), COLORS.length - 2);
  return COLORS[below].map((from, i) => from + (place - below) * (COLORS[below + 1][i] - from));
}

// The spectrum of the last `size` samples: a sine at full scale has the power 1 in its bin.
class Spectrum {
  constructor(size) {
    this.size = size;
    this.last = new Float32Array(size);
    this.window = this.last.map((_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / size));
    this.cos = this.last.map((_, i) => Math.cos((2 * Math.PI * i) / size));
    this.sin = this.last.map((_, i) => Math.sin((2 * Math.PI * i) / size));
    this.real = new Float32Array(size);
    this.imaginary = new Float32Array(size);
  }

  powers(block) {
    const { size, last, window, real, imaginary } = this;
    last.copyWithin(0, block.length);
    last.set(block.subarray(Math.max(block.length - size, 0)), Math.max(size - block.length, 0));
    for (let i = 0, turned = 0; i < size; i++) {
      real[turned] = window[i] * last[i];
      imaginary[turned] = 0;
      let bit = size >> 1; // counts with its bits turned around
      for (; turned & bit; bit >>= 1) turned ^= bit;
      turned |= bit;
    }
    for (let half = 1; half < size; half *= 2) {
      for (let k = 0; k < half; k++) {
        const c = this.cos[(k * size) / (2 * half)];
        const s = -this.sin[(k * size) / (2 * half)];
        for (let i = k; i < size; i += 2 * half) {
          const j = i + half;
          const x = c * real[j] - s * imaginary[j];
          const y = c * imaginary[j] + s * real[j];
          real[j] = real[i] - x;
          imaginary[j] = imaginary[i] - y;
          real[i] += x;
          imaginary[i] += y;
        }
      }
    }
    const scale = 16 / size ** 2;
    return real.subarray(0, size / 2).map((x, i) => scale * (x * x + imaginary[i] * imaginary[i]));
  }
}

// What the user does.
function isAfter() {
  return document.querySelector("[name=heard]:checked").value === "after";
}

function hear() {
  if (live && live.node) live.node.port.postMessage({ after: isAfter() });
}

get("live-go").addEventListener("click", () => (live ? end(live) : startLive()));

document.querySelectorAll("[name=heard]").forEach((radio) => radio.addEventListener("change", hear));

get("live").addEventListener("keydown", (event) => {
  if (event.key.toLowerCase() !== "b" || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  document.querySelector(`[name=heard][value=${isAfter() ? "before" : "after"}]`).checked = true;
  hear();
});

get("live-heard").addEventListener("change", () => {
  const isHeard = get("live-heard").checked;
  if (live && live.gain) live.gain.gain.setTargetAtTime(isHeard ? 1 : 0, live.context.currentTime, 0.01);
  if (live) sayHeard();
});

get("choice").addEventListener("change", async () => {
  const wasLive = live !== null;
  if (wasLive) end(live);
  if ((await checkLive()) && wasLive) startLive();
});

window.addEventListener("pagehide", () => live && end(live));

offered.then(checkLive);
