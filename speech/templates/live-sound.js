"use strict";

// On the browser's thread for sound: takes the microphone's samples, and gives them back, noisy or
// enhanced, once the page has had them enhanced.
//
// A sample is named by its number since the start, on both ways: the enhanced ones come back in order
// and none is missing. So the latency of what is heard is a difference of two numbers, and the noisy
// and the enhanced signal can't lose step.

const RING_S = 10; // the page gives up before so much waits
const FADE_S = 0.01; // of the switch
const FIRST_SPARE_S = 0.016; // what is kept in hand against delays, at first
const MOST_SPARE_S = 0.3;
const CALM_S = 20; // so long without an under-run, and less is kept in hand

class LiveSound extends AudioWorkletProcessor {
  constructor({ processorOptions }) {
    super();
    this.block = processorOptions.block;
    this.mix = this.wanted = processorOptions.after ? 1 : 0;
    this.noisy = new Float32Array(Math.round(RING_S * sampleRate));
    this.enhanced = new Float32Array(this.noisy.length);
    this.taken = this.sent = this.ready = this.read = this.shown = 0; // numbers of samples
    this.isPlaying = this.isEnded = false;
    this.spare = Math.round(FIRST_SPARE_S * sampleRate);
    this.underruns = 0;
    this.least = Infinity; // in hand, since `checked`
    this.checked = this.calm = 0;
    this.port.onmessage = ({ data }) => this.obey(data);
  }

  obey({ enhanced, after, end }) {
    if (enhanced) this.ready = this.put(this.enhanced, this.ready, enhanced);
    if (after !== undefined) this.wanted = after ? 1 : 0;
    if (end) this.isEnded = true;
  }

  put(ring, at, samples) {
    for (let i = 0; i < samples.length; i++) ring[(at + i) % ring.length] = samples[i];
    return at + samples.length;
  }

  part(ring, first, count) {
    const found = new Float32Array(count);
    for (let i = 0; i < count; i++) found[i] = ring[(first + i) % ring.length];
    return found;
  }

  process([[input]], [[output]]) {
    // Without a microphone, time goes on in silence.
    this.taken = this.put(this.noisy, this.taken, input || new Float32Array(output.length));
    while (this.taken - this.sent >= this.block) {
      this.port.postMessage({ block: this.part(this.noisy, this.sent, this.block) });
      this.sent += this.block;
    }
    this.play(output);
    while (this.read - this.shown >= this.block) this.show();
    return !this.isEnded;
  }

  play(output) {
    const count = output.length;
    const inHand = this.ready - this.read;
    let from = this.isPlaying ? 1 : 0; // the sound's share at the start of these samples
    let to = from;
    if (!this.isPlaying && inHand >= this.spare + this.block) {
      this.isPlaying = true;
      to = 1;
      this.watch();
    } else if (this.isPlaying && inHand < 2 * count) {
      this.isPlaying = false; // what is left fades away: no click
      to = 0;
      this.underruns++;
      this.spare = Math.min(Math.round(1.5 * this.spare), Math.round(MOST_SPARE_S * sampleRate));
      this.calm = this.taken;
    }
    if (from === 0 && to === 0) return;
    const skip = this.isPlaying ? this.late(inHand) : 0;
    const step = 1 / (FADE_S * sampleRate);
    for (let i = 0; i < count; i++) {
      const share = (i + 1) / count;
      this.mix += Math.max(-step, Math.min(step, this.wanted - this.mix));
      let sound = this.mixed(this.read + i);
      if (skip) sound += share * (this.mixed(this.read + skip + i) - sound);
      output[i] = sound * (from + share * (to - from));
    }
    this.read += count + skip;
  }

  mixed(number) {
    const place = number % this.noisy.length;
    return this.noisy[place] + this.mix * (this.enhanced[place] - this.noisy[place]);
  }

  // Returns how many samples to leave out, so that no delay stays longer than it is needed.
  late(inHand) {
    this.least = Math.min(this.least, inHand);
    if (this.taken - this.checked < sampleRate) return 0;
    const skip = Math.max(this.least - this.spare, 0);
    this.watch();
    if (this.taken - this.calm > CALM_S * sampleRate) {
      this.spare = Math.max(Math.round(0.9 * this.spare), Math.round(FIRST_SPARE_S * sampleRate));
      this.calm = this.taken;
    }
    return skip > this.block / 2 ? skip : 0;
  }

  watch() {
    this.least = Infinity;
    this.checked = this.taken;
  }

  show() {
    this.port.postMessage({
      noisy: this.part(this.noisy, this.shown, this.block),
      enhanced: this.part(this.enhanced, this.shown, this.block),
      played: this.read,
      latency: (this.taken - this.read) / sampleRate,
      inHand: (this.ready - this.read) / sampleRate,
      underruns: this.underruns,
    });
    this.shown += this.block;
  }
}

registerProcessor("live-sound", LiveSound);
