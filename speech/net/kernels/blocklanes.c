/* Inference: the convolution of blockconv.c with the blocks, not the channels, as SIMD lanes.
 *
 * A signal is cut into blocks of `hop` samples; block 2p and block 2p + 1 are the real and the
 * imaginary part of lane p. It lies as [chunk, channel, hop, 2, WIDE]: sample n of block b of a
 * channel is in chunk b / 2 / WIDE, row n, part b % 2, lane b / 2 % WIDE. The samples before and
 * after a block, which its window needs, are those of the neighbouring lanes, so all layers of a
 * network work in this layout and nothing is transposed in between.
 *
 * A layer overwrites its input, chunk by chunk, while that is still in the cache. What a chunk's
 * neighbours need of it, its outermost lanes, is kept apart: edges [chunk, channel, hop, 2] hold
 * the real part of the first lane and the imaginary part of the last.
 *
 * A weight is one number for all lanes. Kernels that are zero, as pruning leaves them, are
 * therefore skipped one by one: only the (in, out) pairs in `index` are multiplied.
 */
#include <math.h>

#include "transform.h"

#define WIDE LANES
#define ROW (2 * WIDE)

typedef struct {
    const float *edges; /* [chunks, channels, hop, 2] */
    int channels;
    float slope;        /* what is read is leaky(scale x + shift), scale and shift [channels], */
    const float *scale; /* or x if scale is NULL */
    const float *shift;
} lane_source;

typedef struct {
    const float *weights; /* [size/2 + 1, pairs, 2], conjugate, over size */
    const int *index;     /* [pairs]: input channel, output channel by output channel */
    const int *first;     /* [out + 1]: where an output channel's pairs begin */
    int pairs;
} lane_spectra;

typedef struct {
    float *edges; /* [chunks, channels, hop, 2] */
    int channels;
    const float *bias; /* [channels] or NULL */
    float *sums;       /* [chunks, channels, 2]: sum and squared deviations from its mean; or NULL */
} lane_sink;

int lane_width(void) { return WIDE; }

INLINE float total(vec v) {
    float sum = 0;
    for (int l = 0; l < LANES; l++) sum += v[l];
    return sum;
}

/* ------------------------------------------------------------------------- reading and writing */

/* What the windows of all lanes of one channel are read from. */
typedef struct {
    const float *own;           /* the channel's rows in this chunk */
    const float *before, *after; /* its edges in the chunks before and after; NULL at the ends */
    int hop, pad;
    const float *mask;          /* [size, 2, WIDE], 0 outside of the signal; NULL if all is inside */
    float scale, shift, slope;
} window;

/* Returns row n of the windows, which is the time n - pad of every lane's block. */
INLINE complex_vec read_row(const window *x, int n, const int activate) {
    const int time = n - x->pad;
    complex_vec v;
    if (time < 0) { /* in the block before: the other part, for the real one a lane down */
        const float *row = x->own + (int64_t)(time + x->hop) * ROW;
        v = (complex_vec){load(row + WIDE - 1), load(row)};
        v.re[0] = x->before ? x->before[2 * (time + x->hop) + 1] : 0;
    } else if (time < x->hop) {
        const float *row = x->own + (int64_t)time * ROW;
        v = take(row, WIDE);
    } else { /* in the block after: the other part, for the imaginary one a lane up */
        const float *row = x->own + (int64_t)(time - x->hop) * ROW;
        v = (complex_vec){load(row + WIDE), load(row + 1)};
        v.im[WIDE - 1] = x->after ? x->after[2 * (time - x->hop)] : 0;
    }
    if (activate) {
        v.re = leaky(v.re * x->scale + x->shift, x->slope);
        v.im = leaky(v.im * x->scale + x->shift, x->slope);
    }
    if (x->mask) {
        const float *mask = x->mask + (size_t)n * ROW;
        v.re *= load(mask);
        v.im *= load(mask + WIDE);
    }
    return v;
}

/* Reads the windows and does the first stage of their transform. */
INLINE void read_stage(const plan *p, const window *x, float *z, const int activate) {
    const int S = WIDE, q = p->size / 4;
    for (int n = 0; n < q; n++) {
        complex_vec v[4];
        for (int r = 0; r < 4; r++) v[r] = read_row(x, n + r * q, activate);
        forward_four(v, p->twiddle + 6 * n, n);
        for (int r = 0; r < 4; r++) put(RE(n + r * q), S, v[r]);
    }
}

static void read_chunk(const plan *p, const lane_source *x, const float *own, int64_t chunk,
                       int64_t chunks, int channel, int hop, int pad, const float *mask, float *z) {
    const int64_t between = (int64_t)x->channels * hop * 2;
    const float *edges = x->edges + chunk * between + (int64_t)channel * hop * 2;
    window w = {.own = own,
                .before = chunk > 0 ? edges - between : NULL,
                .after = chunk + 1 < chunks ? edges + between : NULL,
                .hop = hop,
                .pad = pad,
                .mask = mask,
                .slope = x->slope};
    if (x->scale) {
        w.scale = x->scale[channel], w.shift = x->shift[channel];
        read_stage(p, &w, z, 1);
    } else {
        read_stage(p, &w, z, 0);
    }
    forward_rows(p, z, WIDE, 0);
}

/* Does the last stage of the inverse transform and writes the rows that are outputs. The sums of
 * squares are taken around a value close to the mean and moved to the mean at the end.
 * `valid` [hop, 2, WIDE] is 0 outside of the signal, NULL if all is inside; `count` are inside. */
static void write_chunk(const plan *p, const lane_sink *y, float *out, int64_t chunk, int channel,
                        int hop, const float *valid, int64_t count, float *z) {
    const int S = WIDE, q = p->size / 4;
    const int64_t place = chunk * y->channels + channel;
    float *edges = y->edges + place * hop * 2;
    const float bias = y->bias ? y->bias[channel] : 0;
    vec sum = {}, squares = {}, around = {};
    inverse_rows(p, z, WIDE, 0);
    for (int n = 0; n < q; n++) {
        complex_vec v[4];
        for (int r = 0; r < 4; r++) v[r] = take(RE(n + r * q), S);
        inverse_four(v, p->twiddle + 6 * n, n);
        if (n == 0) around = (vec){} + (total(v[0].re) / LANES + bias);
        for (int r = 0; r < 4; r++) {
            const int row = n + r * q;
            if (row >= hop) continue;
            const complex_vec w = {v[r].re + bias, v[r].im + bias};
            put(out + (size_t)row * ROW, WIDE, w);
            vec a = w.re - around, b = w.im - around;
            if (valid) {
                const float *inside = valid + (size_t)row * ROW;
                a *= load(inside), b *= load(inside + WIDE);
            }
            sum += a + b;
            squares += a * a + b * b;
        }
    }
    for (int row = 0; row < hop; row++) {
        edges[2 * row] = out[(size_t)row * ROW];
        edges[2 * row + 1] = out[(size_t)row * ROW + ROW - 1];
    }
    if (!y->sums) return;
    const float off = total(sum);
    y->sums[place * 2] = off + around[0] * count;
    y->sums[place * 2 + 1] = count ? total(squares) - off * off / count : 0;
}

/* --------------------------------------------------------------------------- matrix products */

/* Frequencies f and N - f of all lanes, which share their weights but for the conjugate:
 * Y[out] = sum over its inputs of X[in] w and of Z[in] conj(w). Without `both`, f alone. */
INLINE void multiply(const float *X, const float *Z, const float *weights, const lane_spectra *w,
                     int outputs, float *Y, float *V, size_t slot, const int both) {
    for (int o = 0; o < outputs; o++) {
        /* Two sums of each kind, for the multiply-adds not to wait for each other. */
        complex_vec y[2] = {}, v[2] = {};
        const int last = w->first[o + 1];
#define STEP(j)                                                                     \
    {                                                                               \
        const size_t at = (size_t)w->index[k + j] * ROW;                            \
        const float re = weights[2 * (k + j)], im = weights[2 * (k + j) + 1];       \
        const complex_vec x = take(X + at, WIDE);                                   \
        y[j].re = y[j].re + x.re * re - x.im * im;                                  \
        y[j].im = y[j].im + x.im * re + x.re * im;                                  \
        if (both) {                                                                 \
            const complex_vec z = take(Z + at, WIDE);                               \
            v[j].re = v[j].re + z.re * re + z.im * im;                              \
            v[j].im = v[j].im + z.im * re - z.re * im;                              \
        }                                                                           \
    }
        int k = w->first[o];
        for (; k + 2 <= last; k += 2) {
            STEP(0)
            STEP(1)
        }
        if (k < last) STEP(0)
#undef STEP
        put(Y + o * slot, WIDE, plus(y[0], y[1]));
        if (both) put(V + o * slot, WIDE, plus(v[0], v[1]));
    }
}

/* ------------------------------------------------------------------------------------ layers */

typedef struct {
    lane_spectra spectra;
    int in, out, pad;
    const float *bias;                /* [out] or NULL */
    const double *gamma, *beta;       /* [out], NULL if the outputs are not normalised */
    double epsilon;
    float slope;                      /* of the LeakyReLU that follows, 1 for none */
    const float *const *masks;        /* [chunks] of [size, 2, WIDE]; NULL where all is inside */
    const float *const *valid;        /* [chunks] of [hop, 2, WIDE]; likewise */
    float *sums;                      /* [chunks, out, 2] */
} lane_layer;

/* One layer, one chunk, in place. Z and X are working memory. */
static void convolve_chunk(const plan *p, const lane_layer *layer, const lane_source *x,
                           const lane_sink *y, float *own, int hop, int64_t chunk, int64_t chunks,
                           int64_t count, size_t slot, float *Z, float *X) {
    const int N = p->size, I = x->channels, O = y->channels;
    const lane_spectra *w = &layer->spectra;
    float *mirror = X + (size_t)I * ROW;
    for (int i = 0; i < I; i++)
        read_chunk(p, x, own + (int64_t)i * hop * ROW, chunk, chunks, i, hop, layer->pad,
                   layer->masks[chunk], Z + i * slot);
    /* One frequency, and its mirror, of all inputs, which their outputs overwrite. */
    for (int f = 0; f <= N / 2; f++) {
        const float *weights = w->weights + (size_t)f * w->pairs * 2;
        float *at = Z + (size_t)p->position[f] * ROW;
        float *to = Z + (size_t)p->position[(N - f) % N] * ROW;
        for (int i = 0; i < I; i++) memcpy(X + i * ROW, at + i * slot, ROW * 4);
        if (at == to) {
            multiply(X, NULL, weights, w, O, at, NULL, slot, 0);
            continue;
        }
        for (int i = 0; i < I; i++) memcpy(mirror + i * ROW, to + i * slot, ROW * 4);
        multiply(X, mirror, weights, w, O, at, to, slot, 1);
    }
    for (int o = 0; o < O; o++)
        write_chunk(p, y, own + (int64_t)o * hop * ROW, chunk, o, hop, layer->valid[chunk], count,
                    Z + o * slot);
}

/* What the next layer reads its inputs through: normalisation and LeakyReLU as scale and shift.
 * The moments of the chunks are pooled as Chan, Golub and LeVeque do. */
static void activation(const lane_layer *layer, const int64_t *counts, int64_t chunks,
                       float *scale, float *shift) {
    double num_samples = 0;
    for (int64_t c = 0; c < chunks; c++) num_samples += counts[c];
    for (int o = 0; o < layer->out; o++) {
        scale[o] = 1, shift[o] = 0;
        if (!layer->gamma) continue;
        double sum = 0, squares = 0;
        for (int64_t c = 0; c < chunks; c++) sum += layer->sums[(c * layer->out + o) * 2];
        const double mean = sum / num_samples;
        for (int64_t c = 0; c < chunks; c++) {
            const float *own = layer->sums + (c * layer->out + o) * 2;
            const double off = own[0] / (double)counts[c] - mean;
            squares += own[1] + counts[c] * off * off;
        }
        const double factor = layer->gamma[o] / sqrt(squares / num_samples + layer->epsilon);
        scale[o] = factor, shift[o] = layer->beta[o] - factor * mean;
    }
}

/* -------------------------------------------------------------------------------- public calls */

/* All layers of a network, in place in values [chunks, most, hop, 2, WIDE], of which each layer
 * uses its first channels. counts [chunks] are the samples inside, from 1 on. edges are two lots
 * of [chunks, most, hop, 2], the first filled with the input's; the layers take them in turns.
 *
 * A thread keeps its chunks through all layers, as far as its cache holds them; it goes through
 * them forth and back, so that a layer begins with those that the one before has just left. */
int run_lanes(const plan *p, float *values, int most, float *const edges[2],
              const lane_layer *layers, int num_layers, int hop, int64_t chunks,
              const int64_t *counts, int threads) {
    /* Channels lie a little more than a power of two apart: they must not share cache sets. */
    const size_t slot = window_floats(p->size, WIDE);
    int failed = 0;
    if (threads > chunks) threads = chunks;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        const int64_t team = omp_get_num_threads(), rank = omp_get_thread_num();
        const int64_t first = chunks * rank / team, last = chunks * (rank + 1) / team;
        float *scale = scratch((slot + 2 * ROW) * most + padded(2 * most)), *shift = scale + most;
        float *Z = scale + padded(2 * most), *X = Z + slot * most;
        if (!scale) failed = 1;
        for (int l = 0; l < num_layers; l++) {
            const lane_layer *layer = layers + l, *before = layer - 1;
            lane_source x = {.edges = edges[l % 2], .channels = layer->in};
            if (!failed && l && (before->gamma || before->slope != 1)) {
                activation(before, counts, chunks, scale, shift);
                x.scale = scale, x.shift = shift, x.slope = before->slope;
            }
            const lane_sink y = {edges[(l + 1) % 2], layer->out, layer->bias,
                                 layer->gamma ? layer->sums : NULL};
            for (int64_t step = first; step < last && !failed; step++) {
                const int64_t chunk = l % 2 ? first + last - 1 - step : step;
                convolve_chunk(p, layer, &x, &y, values + chunk * most * hop * ROW, hop, chunk,
                               chunks, counts[chunk], slot, Z, X);
            }
#pragma omp barrier
        }
    }
    return failed;
}
