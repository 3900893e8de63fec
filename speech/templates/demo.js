"use strict";

const get = (id) => document.getElementById(id);
const VERSIONS = ["before", "after"];
const AXIS_STEPS_S = [0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800];

let clip = null; // a File or Blob, with a name
let clipName = "";
let maxBytes = 0;
let busy = false;
let recorder = null;

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function fail(text) {
  get("error").textContent = text;
  get("error").hidden = !text;
}

function say(text) {
  get("status").textContent = text;
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 2 : 0)} MB`;
}

function seconds(value) {
  if (value < 60) return `${value.toFixed(value < 10 ? 2 : 1)} s`;
  const whole = Math.round(value);
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

function amount(value) {
  return value >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}

function ready() {
  get("go").disabled = busy || !clip || recorder !== null;
}

function take(blob, name) {
  fail("");
  if (blob.size > maxBytes) {
    clip = null;
    fail(`${name}: ${megabytes(blob.size)} are more than the ${megabytes(maxBytes)} of this page; start it with --max-mb, or use the command`);
  } else {
    clip = blob;
    clipName = name;
    get("chosen").textContent = name;
    get("limit").textContent = megabytes(blob.size);
  }
  ready();
}

async function answerOf(response) {
  if (response.ok) return response;
  throw new Error((await response.json()).error);
}

// The server has gone, or its own words.
function words(error) {
  return error instanceof TypeError ? "the page's server does not answer; is the command still running?" : error.message;
}

async function start() {
  const offer = await (await answerOf(await fetch("/offer"))).json();
  maxBytes = offer.max_bytes;
  get("limit").textContent += `; up to ${maxBytes / 1e6} MB`;
  offer.choices.forEach((label, number) => get("choice").append(new Option(label, number)));
  offer.clips.forEach((name) => get("clip").append(new Option(name, name)));
}

// Clips: a file, a drop, a bundled one, a recording.
get("file").addEventListener("change", () => {
  const [file] = get("file").files;
  if (file) take(file, file.name);
  get("file").value = ""; // so that the same file can be chosen again
});

for (const kind of ["dragover", "drop"]) {
  // Beside the field, too, a drop must not make the browser leave the page.
  document.addEventListener(kind, (event) => event.preventDefault());
}
document.addEventListener("dragover", () => get("drop").classList.add("over"));
document.addEventListener("dragleave", () => get("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  get("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) take(file, file.name);
});

get("clip").addEventListener("change", async () => {
  const noise = get("clip").value;
  if (!noise) return;
  try {
    const response = await answerOf(await fetch(`/clip?noise=${encodeURIComponent(noise)}`));
    take(await response.blob(), `${noise}.wav`);
  } catch (error) {
    fail(words(error));
  }
  get("clip").value = "";
});

get("record").addEventListener("click", async () => {
  if (recorder) {
    recorder.stop();
    return;
  }
  fail("");
  let stream = null;
  try {
    // What browsers do to a voice is what this page is to be compared with, not added to.
    const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    stream = await navigator.mediaDevices.getUserMedia({ audio: plain });
    const parts = [];
    const made = new MediaRecorder(stream);
    made.addEventListener("dataavailable", (event) => parts.push(event.data));
    made.addEventListener("stop", () => finishRecording(stream, parts));
    made.start();
    recorder = made;
  } catch (error) {
    if (stream) stream.getTracks().forEach((track) => track.stop());
    fail(`no recording: ${error.message}`);
    return;
  }
  const began = performance.now();
  const tick = () => {
    if (!recorder) return;
    get("record").textContent = `Stop (${Math.floor((performance.now() - began) / 1000)} s)`;
    setTimeout(tick, 200);
  };
  get("record").setAttribute("aria-pressed", "true");
  tick();
  ready();
});

async function finishRecording(stream, parts) {
  stream.getTracks().forEach((track) => track.stop());
  recorder = null;
  get("record").textContent = "Record";
  get("record").setAttribute("aria-pressed", "false");
  const context = new AudioContext();
  try {
    const content = await new Blob(parts).arrayBuffer();
    take(wav(await context.decodeAudioData(content)), "recording.wav");
  } catch (error) {
    fail(`no recording: ${error.message}`);
  }
  context.close();
  ready();
}

// Returns the first channel as a WAV file of 16 bits.
function wav(audio) {
  const samples = audio.getChannelData(0);
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (place, letters) => [...letters].forEach((c, i) => view.setUint8(place + i, c.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, audio.sampleRate, true);
  view.setUint32(28, 2 * audio.sampleRate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((x, i) => view.setInt16(44 + 2 * i, Math.round(32767 * Math.max(-1, Math.min(1, x))), true));
  return new Blob([view], { type: "audio/wav" });
}

// Enhancement.
get("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (busy || !clip) return;
  busy = true;
  ready();
  fail("");
  get("result").hidden = true;
  const began = performance.now();
  const tick = () => {
    if (busy) say(`Enhancing ${clipName}: ${Math.floor((performance.now() - began) / 1000)} s`);
    if (busy) setTimeout(tick, 500);
  };
  tick();
  let done = "";
  try {
    const query = new URLSearchParams({ choice: get("choice").value, name: clipName });
    const response = await answerOf(await fetch(`/enhance?${query}`, {
      method: "POST", body: clip, headers: { "Content-Type": "application/octet-stream" },
    }));
    await show(await response.json());
    done = "Done.";
  } catch (error) {
    fail(words(error));
  }
  busy = false;
  say(done);
  ready();
});

async function fetched(result, what) {
  const query = new URLSearchParams({ key: result.key, what });
  return (await answerOf(await fetch(`/file?${query}`))).blob();
}

function link(node, attribute, blob) {
  if (node.getAttribute(attribute)) URL.revokeObjectURL(node.getAttribute(attribute));
  node.setAttribute(attribute, URL.createObjectURL(blob));
}

async function show(result) {
  const blobs = await Promise.all([...VERSIONS, "output"].map((what) => fetched(result, what)));
  VERSIONS.forEach((name, place) => {
    const box = get(name);
    link(box.querySelector("audio"), "src", new Blob([blobs[place]], { type: "audio/wav" }));
    box.querySelector("img").src = result[`${name}_image`];
    box.querySelector("img").alt = `Spectrogram ${name}: ${seconds(result.audio_seconds)}, 0 to 8 kHz`;
    box.querySelector("i").hidden = true;
  });
  link(get("download"), "href", blobs[2]);
  get("download").download = result.output_name;
  get("download").textContent = `Download ${result.output_name}`;
  get("title").textContent = result.name;

  const speed = result.seconds / (result.audio_seconds * result.channels);
  const facts = [
    ["with", result.label],
    ["length", seconds(result.audio_seconds)],
    ["rate", `${result.sample_rate_hz} Hz`],
    ["channels", result.channels],
    ["took", `${seconds(result.seconds)}, with start and loading ${seconds(result.seconds_in_all)}`],
    ["real-time factor", speed.toFixed(4)],
  ];
  if (result.network) facts.push(["network", result.network]);
  if (result.in_blocks) facts.push(["long", "in cross-faded blocks"]);
  if (result.is_silent) facts.push(["note", "the clip is silent, and stays so"]);
  get("facts").replaceChildren(...facts.map(([name, value]) => {
    const pair = element("div");
    pair.append(element("dt", name), element("dd", value));
    return pair;
  }));
  showAxis(result.audio_seconds);
  showExperts(result.experts);
  get("notes").replaceChildren(...result.notes.map((note) => element("li", note)));
  get("command").textContent = result.command;
  get("result").hidden = false;
}

function showAxis(length) {
  const step = AXIS_STEPS_S.find((s) => length / s <= 8) || 3600;
  const ticks = [];
  for (let place = 0; place <= 0.97 * length; place += step) ticks.push(place);
  get("axis").replaceChildren(...ticks.map((place, number) => {
    const text = step >= 60 ? `${place / 60}` : `${place}`;
    const unit = number === ticks.length - 1 ? (step >= 60 ? " min" : " s") : "";
    const label = element("span", text + unit);
    label.style.left = `${(100 * place) / length}%`;
    return label;
  }));
}

function showExperts(experts) {
  const largest = Math.max(...experts.map((own) => own.error), 1e-30);
  get("experts").hidden = experts.length === 0;
  get("experts").querySelector("ul").replaceChildren(...experts.map((own) => {
    const row = element("li", undefined, own.picked ? "picked" : "");
    const bar = element("meter");
    bar.max = largest;
    bar.value = own.error;
    bar.setAttribute("aria-hidden", "true");
    row.append(
      element("span", own.name), bar, element("span", amount(own.error)),
      element("span", `${Math.round(own.num_bytes / 1000)} kB`), element("em", own.picked ? "picked" : ""),
    );
    return row;
  }));
}

// Players: one at a time; the other goes on where the first one was.
function mark(box) {
  const player = box.querySelector("audio");
  const line = box.querySelector("i");
  line.hidden = !(player.duration > 0);
  line.style.left = `${(100 * player.currentTime) / player.duration}%`;
  if (!player.paused) requestAnimationFrame(() => mark(box));
}

for (const name of VERSIONS) {
  const box = get(name);
  const other = get(VERSIONS.find((each) => each !== name));
  const player = box.querySelector("audio");
  const rival = other.querySelector("audio");
  player.addEventListener("play", () => {
    if (!rival.paused) {
      rival.pause();
      player.currentTime = rival.currentTime;
    }
    mark(box);
  });
  player.addEventListener("seeking", () => mark(box));
  box.querySelector(".spectrogram").addEventListener("click", (event) => {
    const area = event.currentTarget.getBoundingClientRect();
    if (player.duration > 0) player.currentTime = (player.duration * (event.clientX - area.left)) / area.width;
    player.play();
  });
}

const offered = start().catch((error) => fail(words(error)));
