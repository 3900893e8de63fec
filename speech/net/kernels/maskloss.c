/* Spectra of pieces of signal, and the loss of the network over time and frequency with its slope.
 *
 * 16 frames are transformed at a time, one per SIMD lane: [sample or bin][16]. A real frame of 512
 * samples is a complex one of 256, even samples real and odd ones imaginary, which is how it lies
 * in memory anyway. A core takes a whole piece, so results do not depend on the number of threads.
 *
 * speech/net/mask_loss.py says the same in NumPy, step by step.
 */
#include <math.h>

#include "transform.h"

enum { FRAME = 512, BINS = FRAME / 2, ROWS = FRAME * LANES };

typedef struct {
    const plan *fft;     /* of 256 */
    const float *roots;  /* exp(-2 pi i k / 512), k < 256, as (re, im) */
    const float *window; /* [512], of analysis and synthesis */
    int64_t samples;     /* of a piece */
    int32_t frames, hop;
    float power, floor; /* a spectrum X becomes |X|^power X / |X|; least |X|^2 */
} conventions;

typedef struct {
    double complex, magnitude, waveform, si_sdr; /* weights of the parts */
    double soft, floor;                          /* of SI-SDR */
    float tiny;                                  /* least |X|^2 of the estimate */
} parts;

INLINE vec splat(float x) { return x - (vec){}; }
INLINE vec larger(vec a, vec b) {
    vec most;
    for (int i = 0; i < LANES; i++) most[i] = a[i] > b[i] ? a[i] : b[i];
    return most;
}
INLINE vec root(vec x) {
    vec result;
    for (int i = 0; i < LANES; i++) result[i] = sqrtf(x[i]);
    return result;
}
INLINE double total(vec x) {
    double sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

/* x^exponent for normal x > 0: 2^(exponent log2(x)), to some parts in 10^6. */
INLINE vec power_of(vec x, float exponent) {
    const float magic = 12582912.0f; /* added to a number, it leaves the nearest n in its bits */
    /* x = 2^n (1 + f), 1 + f from sqrt(1/2) to sqrt(2); then the series of Cephes' logf */
    mask bits = (mask)x - 0x3F3504F3;
    vec n = __builtin_convertvector(bits >> 23, vec);
    vec f = (vec)((bits & 0x7FFFFF) + 0x3F3504F3) - 1.0f;
    vec p = splat(7.0376836292e-2f);
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    vec y = exponent * (n + 1.44269504f * (f + f * f * (p * f - 0.5f)));
    vec shifted = y + magic;
    f = y - (shifted - magic);
    p = splat(1.32764604e-3f);
    p = p * f + 9.67554124e-3f;
    p = p * f + 5.55071331e-2f;
    p = p * f + 2.40221197e-1f;
    p = p * f + 6.93146967e-1f;
    p = p * f + 1.0f;
    return (vec)((mask)p + (((mask)shifted - 0x4B400000) << 23));
}

INLINE vec square(complex_vec a) { return a.re * a.re + a.im * a.im; }
INLINE complex_vec times(complex_vec a, vec b) { return (complex_vec){a.re * b, a.im * b}; }
INLINE complex_vec conjugate(complex_vec a) { return (complex_vec){a.re, -a.im}; }
INLINE complex_vec bin(const float *rows, int k) {
    return take(rows + (size_t)k * 2 * LANES, LANES);
}
INLINE void put_bin(float *rows, int k, complex_vec a) {
    put(rows + (size_t)k * 2 * LANES, LANES, a);
}

INLINE int frames_from(const conventions *c, int first) {
    return c->frames - first < LANES ? c->frames - first : LANES;
}

#if defined(__clang__) || __GNUC__ >= 12
#define MIX(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MIX(a, b, ...) __builtin_shuffle(a, b, (mask){__VA_ARGS__})
#endif
#define EACH_LANE(f, d)                                                                           \
    f(0, d), f(1, d), f(2, d), f(3, d), f(4, d), f(5, d), f(6, d), f(7, d), f(8, d), f(9, d),     \
        f(10, d), f(11, d), f(12, d), f(13, d), f(14, d), f(15, d)
#define OF_FIRST(lane, d) ((lane) & (d) ? LANES + (lane) - (d) : (lane))
#define OF_SECOND(lane, d) ((lane) & (d) ? LANES + (lane) : (lane) + (d))
#define SWAP(x, d)                                                                                \
    _Pragma("GCC unroll 16") for (int r = 0; r < LANES; r++) if (!(r & (d)))                      \
    {                                                                                             \
        vec a = x[r], b = x[r + (d)];                                                             \
        x[r] = MIX(a, b, EACH_LANE(OF_FIRST, d));                                                 \
        x[r + (d)] = MIX(a, b, EACH_LANE(OF_SECOND, d));                                          \
    }

/* Row r, lane l of 16 x 16 numbers becomes row l, lane r. */
INLINE void transpose(vec x[LANES]) {
    SWAP(x, 1)
    SWAP(x, 2)
    SWAP(x, 4)
    SWAP(x, 8)
}

/* Spectra of 16 frames of a piece from `first` on; `work` takes as many rows. */
static void analyse(const conventions *c, const float *signal, int first, float *work,
                    float *spectra) {
    int64_t start = (int64_t)(first + 1) * c->hop - FRAME;
    for (int i = 0; i < FRAME; i += LANES) {
        vec x[LANES], window = load(c->window + i);
        for (int lane = 0; lane < LANES; lane++) {
            int64_t place = start + (int64_t)lane * c->hop + i;
            x[lane] = (vec){};
            if (place >= 0 && place + LANES <= c->samples) x[lane] = load(signal + place) * window;
            else
                for (int l = 0; l < LANES; l++)
                    if (place + l >= 0 && place + l < c->samples)
                        x[lane][l] = signal[place + l] * window[l];
        }
        transpose(x);
        for (int l = 0; l < LANES; l++) store(work + (i + l) * LANES, x[l]);
    }
    forward_rows(c->fft, work, LANES, 1);
    const int *position = c->fft->position;
    for (int k = 0; k <= BINS / 2; k++) {
        int other = (BINS - k) % BINS;
        complex_vec a = bin(work, position[k]), b = conjugate(bin(work, position[other]));
        complex_vec odd = turned(times(minus(a, b), splat(0.5f)), 1);
        odd = twiddled(odd, c->roots + 2 * k, 0);
        complex_vec even = times(plus(a, b), splat(0.5f));
        put_bin(spectra, k, plus(even, odd));
        if (k) put_bin(spectra, other, conjugate(minus(even, odd)));
    }
}

/* The inverse, but for the factor 1 / 256; leaves the samples of the frames in `work`. */
static void synthesize(const conventions *c, const float *spectra, float *work) {
    const int *position = c->fft->position;
    for (int k = 0; k < BINS; k++) {
        complex_vec a = bin(spectra, k), b = {};
        if (k) b = conjugate(bin(spectra, BINS - k));
        else a.im = splat(0);
        complex_vec odd = turned(twiddled(minus(a, b), c->roots + 2 * k, 1), 0);
        put_bin(work, position[k], times(plus(plus(a, b), odd), splat(0.5f)));
    }
    inverse_rows(c->fft, work, LANES, 1);
}

/* Rows [bin][re, im][16] from complex [frames][256] and back; frames that are not there are 0. */
static void gather(const float *from, int frames, float *rows) {
    for (int i = 0; i < FRAME; i += LANES) {
        vec x[LANES];
        for (int lane = 0; lane < LANES; lane++)
            x[lane] = lane < frames ? load(from + lane * FRAME + i) : (vec){};
        transpose(x);
        for (int l = 0; l < LANES; l++) store(rows + (i + l) * LANES, x[l]);
    }
}
static void scatter(const float *rows, int frames, float *to) {
    for (int i = 0; i < FRAME; i += LANES) {
        vec x[LANES];
        for (int l = 0; l < LANES; l++) x[l] = load(rows + (i + l) * LANES);
        transpose(x);
        for (int lane = 0; lane < frames; lane++) store(to + lane * FRAME + i, x[lane]);
    }
}

/* Compressed spectra, complex [pieces][frames][256]; `features`, if there, [...][3]: real part,
 * imaginary part, magnitude. Returns 1 if there is no memory. */
int compressed_spectra(const conventions *c, const float *signals, int64_t pieces, float *spectra,
                       float *features, int threads) {
    int failed = 0;
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic) num_threads(threads) reduction(| : failed)
#else
    (void)threads;
#endif
    for (int64_t piece = 0; piece < pieces; piece++) {
        float *work = scratch(3 * ROWS);
        if (!work) {
            failed |= 1;
            continue;
        }
        float *rows = work + ROWS, *levels = rows + ROWS;
        for (int first = 0; first < c->frames; first += LANES) {
            int64_t place = (piece * c->frames + first) * BINS;
            int count = frames_from(c, first);
            analyse(c, signals + piece * c->samples, first, work, rows);
            for (int k = 0; k < BINS; k++) {
                complex_vec x = bin(rows, k);
                x = times(x, power_of(larger(square(x), splat(c->floor)), (c->power - 1) / 2));
                put_bin(rows, k, x);
                if (features) store(levels + k * LANES, root(square(x)));
            }
            scatter(rows, count, spectra + 2 * place);
            for (int lane = 0; features && lane < count; lane++) {
                float *to = features + 3 * (place + lane * BINS);
                const float *from = spectra + 2 * (place + lane * BINS);
                for (int k = 0; k < BINS; k++) {
                    to[3 * k] = from[2 * k];
                    to[3 * k + 1] = from[2 * k + 1];
                    to[3 * k + 2] = levels[k * LANES + lane];
                }
            }
        }
    }
    return failed;
}

static double dot(const float *a, const float *b, int64_t count) {
    double sum = 0;
    int64_t i = 0;
    for (; i + 64 * LANES <= count; i += 64 * LANES) {
        vec part = {};
        for (int j = 0; j < 64 * LANES; j += LANES) part += load(a + i + j) * load(b + i + j);
        sum += total(part);
    }
    for (; i < count; i++) sum += a[i] * b[i];
    return sum;
}

/* Mean absolute error and negative SI-SDR (speech/net/losses.py); overwrites `enhanced` with the
 * gradient with respect to it. `error` takes as many samples. */
static double of_waveform(const parts *p, const float *clean, int64_t count, float *enhanced,
                          float *error) {
    double value = 0, clean_power = dot(clean, clean, count) / count;
    double along_error = 0, along_clean = 0, scale = 0;
    if (p->si_sdr && clean_power > 0) { /* SI-SDR says nothing about silence */
        const double decibels = 10 / log(10);
        double reference = clean_power + p->floor;
        scale = dot(enhanced, clean, count) / count / reference;
        if (scale < 0) scale = 0;
        for (int64_t i = 0; i < count; i++) error[i] = enhanced[i] - (float)scale * clean[i];
        double target_power = scale * scale * clean_power;
        double upper = dot(error, error, count) / count + p->soft * target_power + p->floor;
        double lower = target_power + p->floor;
        double d_target = 2 * scale * clean_power / reference / count;
        double d_error = 0;
        if (scale > 0) d_error = -2 * dot(error, clean, count) / count / reference / count;
        value += p->si_sdr * decibels * log(upper / lower);
        along_error = p->si_sdr * decibels * 2 / count / upper;
        along_clean = p->si_sdr * decibels *
                      ((d_error + p->soft * d_target) / upper - d_target / lower);
    }
    float of_error = (float)along_error, of_clean = (float)(along_clean - along_error * scale);
    float sign = (float)(p->waveform / count);
    double absolute = 0;
    for (int64_t start = 0; start < count; start += 1024) {
        float sum = 0;
        for (int64_t i = start; i < count && i < start + 1024; i++) {
            float gap = enhanced[i] - clean[i];
            sum += fabsf(gap);
            enhanced[i] = enhanced[i] * of_error + clean[i] * of_clean +
                          (gap > 0 ? sign : gap < 0 ? -sign : 0);
        }
        absolute += sum;
    }
    return value + p->waveform * absolute / count;
}

/* Magnitude and complex part for 16 frames, `gradient` with respect to the estimate; `spectra`
 * becomes the expanded estimate. Returns the sum of the squares, weighted. */
static double of_spectra(const conventions *c, const parts *p, const float *estimate,
                         const float *target, float *gradient, float *spectra) {
    double count = (double)c->frames * BINS;
    float slope = (float)(2 * p->complex / count), steepness = (float)(2 * p->magnitude / count);
    float exponent = (1 / c->power - 1) / 2;
    double squares[2] = {0, 0};
    for (int start = 0; start < BINS; start += 16) {
        vec sums[2] = {};
        for (int k = start; k < start + 16; k++) {
            complex_vec e = bin(estimate, k), t = bin(target, k), error = minus(e, t);
            vec power = square(e);
            vec level = root(power + p->tiny), excess = level - root(square(t) + p->tiny);
            sums[0] += square(error);
            sums[1] += excess * excess;
            complex_vec g = plus(times(error, splat(slope)), times(e, excess / level * steepness));
            put_bin(gradient, k, g);
            put_bin(spectra, k, times(e, power_of(larger(power, splat(p->tiny)), exponent)));
        }
        for (int i = 0; i < 2; i++) squares[i] += total(sums[i]);
    }
    return (p->complex * squares[0] + p->magnitude * squares[1]) / count;
}

/* Adds the gradient that comes through the expansion, given that of the expanded estimate. */
static void add_expanded(const conventions *c, const parts *p, const float *estimate,
                         const float *above, float factor, float *gradient) {
    float exponent = (1 / c->power - 1) / 2;
    for (int k = 0; k < BINS; k++) {
        complex_vec e = bin(estimate, k), a = times(bin(above, k), splat(factor));
        if (k == 0) a = (complex_vec){0.5f * a.re, {}};
        vec power = larger(square(e), splat(p->tiny));
        vec gain = power_of(power, exponent);
        /* E = gain e: dE = gain de + 2 exponent gain / |e|^2 Re(conj(e) de) e */
        vec along = (a.re * e.re + a.im * e.im) * (2 * exponent) * gain / power;
        put_bin(gradient, k, plus(bin(gradient, k), plus(times(a, gain), times(e, along))));
    }
}

/* The product of masks and noisy spectra, or with `back` of gradients and their conjugates. */
INLINE void multiply(const float *rows, const float *noisy, int back, float factor, float *out) {
    for (int k = 0; k < BINS; k++) {
        complex_vec a = times(bin(rows, k), splat(factor)), b = bin(noisy, k);
        if (back) b = conjugate(b);
        put_bin(out, k, (complex_vec){a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re});
    }
}

/* Adds 16 frames to their signal. */
static void overlap_add(const conventions *c, const float *work, int first, int frames, float gain,
                        float *signal) {
    int64_t start = (int64_t)(first + 1) * c->hop - FRAME;
    for (int i = 0; i < FRAME; i += LANES) {
        vec x[LANES], window = load(c->window + i) * gain;
        for (int l = 0; l < LANES; l++) x[l] = load(work + (i + l) * LANES);
        transpose(x);
        for (int lane = 0; lane < frames; lane++) {
            int64_t place = start + (int64_t)lane * c->hop + i;
            vec samples = x[lane] * window;
            if (place >= 0 && place + LANES <= c->samples)
                store(signal + place, load(signal + place) + samples);
            else
                for (int l = 0; l < LANES; l++)
                    if (place + l >= 0 && place + l < c->samples) signal[place + l] += samples[l];
        }
    }
}

/* The loss of one piece; `memory` as `piece_floats` says. */
static double piece_loss(const conventions *c, const parts *p, const float *mask_of,
                         const float *noisy, const float *target, const float *clean, float factor,
                         float *memory, float *out) {
    int groups = (c->frames + LANES - 1) / LANES;
    float *work = memory, *rows = work + ROWS, *spectra = rows + ROWS;
    float *estimate = spectra + ROWS, *gradient = estimate + (int64_t)groups * ROWS;
    float *signal = gradient + (int64_t)groups * ROWS, *error = signal + c->samples;
    int waveform = p->waveform || p->si_sdr;
    double value = 0;
    /* The squared window adds up to a constant, half a frame or 3/8 of it, over frame / hop. */
    double energy = 0;
    for (int i = 0; i < FRAME; i++) energy += (double)c->window[i] * c->window[i];
    float gain = (float)(c->hop / energy);
    memset(signal, 0, (size_t)c->samples * sizeof(float));
    for (int group = 0; group < groups; group++) {
        int first = group * LANES, count = frames_from(c, first);
        int64_t place = (int64_t)first * FRAME;
        float *e = estimate + (int64_t)group * ROWS, *g = gradient + (int64_t)group * ROWS;
        gather(mask_of + place, count, work);
        gather(noisy + place, count, rows);
        multiply(work, rows, 0, 1, e);
        gather(target + place, count, rows);
        value += of_spectra(c, p, e, rows, g, spectra);
        if (!waveform) continue;
        synthesize(c, spectra, work);
        overlap_add(c, work, first, count, gain / BINS, signal);
    }
    if (waveform) value += of_waveform(p, clean, c->samples, signal, error);
    for (int group = 0; group < groups; group++) {
        int first = group * LANES, count = frames_from(c, first);
        int64_t place = (int64_t)first * FRAME;
        float *e = estimate + (int64_t)group * ROWS, *g = gradient + (int64_t)group * ROWS;
        if (waveform) {
            analyse(c, signal, first, work, spectra);
            add_expanded(c, p, e, spectra, gain * 2 / FRAME, g);
        }
        gather(noisy + place, count, rows);
        multiply(g, rows, 1, factor, work);
        scatter(work, count, out + place);
    }
    return value;
}

/* Losses of pieces, double [pieces], and the gradient of their mean with respect to the masks.
 * Masks, noisy, target and gradient are complex [pieces][frames][256], clean [pieces][samples].
 * Returns 1 if there is no memory. */
int mask_loss(const conventions *c, const parts *p, const float *masks, const float *noisy,
              const float *target, const float *clean, int64_t pieces, double *values,
              float *gradient, int threads) {
    int failed = 0;
    size_t groups = (size_t)(c->frames + LANES - 1) / LANES;
    size_t floats = (3 + 2 * groups) * ROWS + 2 * (size_t)c->samples;
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic) num_threads(threads) reduction(| : failed)
#else
    (void)threads;
#endif
    for (int64_t piece = 0; piece < pieces; piece++) {
        float *memory = scratch(floats);
        if (!memory) {
            failed |= 1;
            continue;
        }
        int64_t place = piece * c->frames * FRAME;
        values[piece] = piece_loss(c, p, masks + place, noisy + place, target + place,
                                   clean + piece * c->samples, 1.0f / (float)pieces, memory,
                                   gradient + place);
    }
    return failed;
}
