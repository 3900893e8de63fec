/* A network over time and frequency as a tape of operations on one piece of signal after another.
 *
 * A tensor of a piece is float [frames][bands][channels]; channels are whole vectors of 8 (the
 * caller fills up with zeros), except in the network's input. Each operation reads tensors and
 * writes one; a phase is a run of operations that need nothing of other pieces, so each core takes
 * a piece through a whole phase while it lies in its cache. Sums over a piece (moments, gradients
 * of weights) are kept piece by piece: results do not depend on the number of threads.
 *
 * All products are small matrix products with the channels as vector lanes: a tile of rows times
 * columns stays in registers while the sum runs. speech/net/tape.py describes each operation.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#define LANES 8
typedef float vec __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(32)));
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

enum { CONV, CONV_WEIGHTS, BANDS, BANDS_WEIGHTS, APPLY, ACT_GRADIENT, NORM_GRADIENT, ADD };
enum { LINEAR, SILU };

typedef struct {
    float *data;
    int64_t stride; /* floats from one owner to the next */
    int32_t per;    /* who owns one: 0 all share it, 1 each piece, 2 each thread */
    int32_t unused;
} Tensor;

typedef struct {
    int32_t kind;
    int32_t accumulate;              /* add to `out` instead of replacing it */
    int32_t taps, first, step;       /* tap k over time reads frame t + first + k * step */
    int32_t width, stride, pad;      /* taps over bands: band f reads from f * stride - pad on */
    int32_t in_bands, in_channels;   /* of `in` */
    int32_t out_bands, out_channels; /* of `out` (gradients of weights: of `extra`) */
    int32_t activation;
    int32_t history; /* frames of `in` that stand in memory before frame 0 */
    Tensor in, out, extra, residual, weights, bias, scale, shift, level, sums;
} Op;

INLINE float *at(const Tensor *t, int64_t piece, int thread)
{
    return t->data + t->stride * (t->per == 1 ? piece : t->per == 2 ? thread : 0);
}

INLINE vec splat(float x) { return (vec){x, x, x, x, x, x, x, x}; }
INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }
INLINE vec load(const float *p) { return *(const vec *)p; }
INLINE void store(float *p, vec x) { *(vec *)p = x; }

/* 1 / (1 + exp(-x)); the polynomial is the Taylor series of 2^f, |f| <= 0.5, to 1 part in 10^7. */
INLINE vec sigmoid(vec x)
{
    vec y = x * -1.44269504f;
    y = choose(y > 126.0f, splat(126.0f), y);
    y = choose(y < -126.0f, splat(-126.0f), y);
    vec whole = (y + 12582912.0f) - 12582912.0f;
    vec f = y - whole;
    vec p = splat(1.5403530e-4f);
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    ivec n = __builtin_convertvector(whole, ivec) + 127;
    n <<= 23;
    return 1.0f / (1.0f + p * (vec)n);
}

/* ---------------------------------------------------------------------------------------------
 * rows x columns tile of out += in * weights, summed over segments of `depth` */

typedef struct {
    const float *in, *weights;
} Segment;

INLINE void tile(int rows, int vectors, const Segment *segments, int count, int depth,
                 int64_t in_step, int64_t weight_step, float *out, int64_t out_step,
                 const float *bias, int accumulate)
{
    vec sum[12][4];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++)
            sum[r][v] = accumulate ? load(out + r * out_step + v * LANES)
                        : bias     ? load(bias + v * LANES)
                                   : splat(0);
    for (int s = 0; s < count; s++) {
        const float *in = segments[s].in, *w = segments[s].weights;
        for (int k = 0; k < depth; k++, in++, w += weight_step) {
            vec column[4];
            UNROLL for (int v = 0; v < vectors; v++) column[v] = load(w + v * LANES);
            UNROLL for (int r = 0; r < rows; r++) {
                vec x = splat(in[r * in_step]);
                UNROLL for (int v = 0; v < vectors; v++) sum[r][v] += x * column[v];
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) store(out + r * out_step + v * LANES, sum[r][v]);
}

#define TILES(vectors, most)                                                                    \
    static void tiles_##vectors(int rows, const Segment *segments, int count, int depth,        \
                                int64_t in_step, int64_t weight_step, float *out,               \
                                int64_t out_step, const float *bias, int accumulate)            \
    {                                                                                           \
        Segment now[MOST_SEGMENTS];                                                             \
        for (int s = 0; s < count; s++) now[s] = segments[s];                                   \
        while (rows > 0) {                                                                      \
            int done;                                                                           \
            if (rows >= most) {                                                                 \
                done = most;                                                                    \
                tile(most, vectors, now, count, depth, in_step, weight_step, out, out_step,     \
                     bias, accumulate);                                                         \
            } else if (rows >= 4) {                                                             \
                done = 4;                                                                       \
                tile(4, vectors, now, count, depth, in_step, weight_step, out, out_step, bias,  \
                     accumulate);                                                               \
            } else if (rows >= 2) {                                                             \
                done = 2;                                                                       \
                tile(2, vectors, now, count, depth, in_step, weight_step, out, out_step, bias,  \
                     accumulate);                                                               \
            } else {                                                                            \
                done = 1;                                                                       \
                tile(1, vectors, now, count, depth, in_step, weight_step, out, out_step, bias,  \
                     accumulate);                                                               \
            }                                                                                   \
            rows -= done;                                                                       \
            out += done * out_step;                                                             \
            for (int s = 0; s < count; s++) now[s].in += done * in_step;                        \
        }                                                                                       \
    }

#define MOST_SEGMENTS 64
TILES(1, 12)
TILES(2, 12)
TILES(3, 8)
TILES(4, 6)

/* Returns how many vectors to take at once of `left`: groups as even as they go. */
INLINE int group_of(int left) { return left <= 4 ? left : left == 5 ? 3 : left <= 6 ? 3 : 4; }

/* out[rows][channels] (+)= sum over segments of in[rows][depth] * weights[depth][channels] */
static void product(int rows, const Segment *segments, int count, int depth, int64_t in_step,
                    float *out, int64_t out_step, int channels, const float *bias, int accumulate)
{
    if (rows <= 0) return;
    int vectors = channels / LANES;
    for (int v = 0; v < vectors;) {
        int now = group_of(vectors - v);
        Segment part[MOST_SEGMENTS];
        for (int s = 0; s < count; s++)
            part[s] = (Segment){segments[s].in, segments[s].weights + v * LANES};
        const float *b = bias ? bias + v * LANES : NULL;
        float *o = out + v * LANES;
        switch (now) {
        case 1: tiles_1(rows, part, count, depth, in_step, channels, o, out_step, b, accumulate); break;
        case 2: tiles_2(rows, part, count, depth, in_step, channels, o, out_step, b, accumulate); break;
        case 3: tiles_3(rows, part, count, depth, in_step, channels, o, out_step, b, accumulate); break;
        default: tiles_4(rows, part, count, depth, in_step, channels, o, out_step, b, accumulate);
        }
        v += now;
    }
}

/* Adds sums and sums of squares of rows x channels to float [2][channels], through doubles. */
static void add_moments(const float *x, int rows, int channels, double *sums)
{
    for (int v = 0; v < channels; v += LANES) {
        vec total = splat(0), squares = splat(0);
        for (int r = 0; r < rows; r++) {
            vec now = load(x + (int64_t)r * channels + v);
            total += now;
            squares += now * now;
        }
        for (int i = 0; i < LANES; i++) {
            sums[v + i] += total[i];
            sums[channels + v + i] += squares[i];
        }
    }
}

/* First and last band (not included) whose whole window lies inside, for a tap window. */
INLINE void inner_bands(const Op *op, int *first, int *last)
{
    int low = (op->pad + op->stride - 1) / op->stride;
    int high = (op->in_bands - op->width + op->pad);
    high = high < 0 ? 0 : high / op->stride + 1;
    if (low > op->out_bands) low = op->out_bands;
    if (high > op->out_bands) high = op->out_bands;
    if (high < low) high = low;
    *first = low;
    *last = high;
}

/* Convolution over time (dilated) and bands; `sums`, if there, gets the moments of the output. */
static void conv(const Op *op, int frames, int64_t piece, int thread)
{
    const float *in = at(&op->in, piece, thread), *w = at(&op->weights, piece, thread);
    const float *bias = op->bias.data ? at(&op->bias, piece, thread) : NULL;
    float *out = at(&op->out, piece, thread);
    int64_t in_frame = (int64_t)op->in_bands * op->in_channels;
    int64_t out_frame = (int64_t)op->out_bands * op->out_channels;
    int depth = op->width * op->in_channels;
    int64_t tap_size = (int64_t)depth * op->out_channels;
    int64_t row_step = (int64_t)op->stride * op->in_channels;
    double *sums = (double *)op->sums.data;
    if (sums) {
        sums += 2 * op->out_channels * piece;
        memset(sums, 0, 2 * op->out_channels * sizeof(double));
    }
    int first, last;
    inner_bands(op, &first, &last);
    for (int t = 0; t < frames; t++) {
        Segment segments[MOST_SEGMENTS];
        int count = 0;
        for (int k = 0; k < op->taps; k++) {
            int from = t + op->first + k * op->step;
            if (from < -op->history || from >= frames) continue;
            segments[count++] = (Segment){
                in + from * in_frame + first * row_step - op->pad * op->in_channels,
                w + k * tap_size};
        }
        product(last - first, segments, count, depth, row_step,
                out + t * out_frame + first * op->out_channels, op->out_channels,
                op->out_channels, bias, op->accumulate);
    }
    /* Bands at the edges see a part of the window; there the frames are the rows. */
    if (op->width > 1)
        for (int f = 0; f < op->out_bands; f++) {
            if (f == first) f = last;
            if (f >= op->out_bands) break;
            int start = f * op->stride - op->pad;
            int low = start < 0 ? -start : 0;
            int high = op->in_bands - start < op->width ? op->in_bands - start : op->width;
            Segment segment = {in + (start + low) * op->in_channels,
                               w + (int64_t)low * op->in_channels * op->out_channels};
            product(frames, &segment, high > low, (high - low) * op->in_channels, in_frame,
                    out + f * op->out_channels, out_frame, op->out_channels, bias,
                    op->accumulate);
        }
    if (sums) {
        int rows = 128 / op->out_bands > 0 ? 128 / op->out_bands : 1;
        for (int t = 0; t < frames; t += rows) {
            int now = frames - t < rows ? frames - t : rows;
            add_moments(out + t * out_frame, now * op->out_bands, op->out_channels, sums);
        }
    }
}

/* weights[8 rows of the window][vectors] += in^T extra, over bands [low, high) of some frames */
#define OUTER(vectors)                                                                           \
    static void outer_##vectors(const float *in, int64_t in_frame, int64_t row_step,             \
                                const float *g, int64_t g_frame, int channels, int frames,       \
                                int bands, float *out)                                           \
    {                                                                                            \
        vec sum[LANES][vectors];                                                                 \
        UNROLL for (int r = 0; r < LANES; r++)                                                   \
            UNROLL for (int v = 0; v < vectors; v++)                                             \
                sum[r][v] = load(out + (int64_t)r * channels + v * LANES);                       \
        for (int t = 0; t < frames; t++, in += in_frame, g += g_frame) {                         \
            const float *x = in, *y = g;                                                         \
            for (int f = 0; f < bands; f++, x += row_step, y += channels) {                      \
                vec now[vectors];                                                                \
                UNROLL for (int v = 0; v < vectors; v++) now[v] = load(y + v * LANES);           \
                UNROLL for (int r = 0; r < LANES; r++) {                                         \
                    vec value = splat(x[r]);                                                     \
                    UNROLL for (int v = 0; v < vectors; v++) sum[r][v] += value * now[v];        \
                }                                                                                \
            }                                                                                    \
        }                                                                                        \
        UNROLL for (int r = 0; r < LANES; r++)                                                   \
            UNROLL for (int v = 0; v < vectors; v++)                                             \
                store(out + (int64_t)r * channels + v * LANES, sum[r][v]);                       \
    }
OUTER(1)
OUTER(2)
OUTER(3)

/* Gradient of a convolution's weights: out[tap][window][channels] += in^T extra. */
static void conv_weights(const Op *op, int frames, int64_t piece, int thread)
{
    const float *in = at(&op->in, piece, thread), *g = at(&op->extra, piece, thread);
    float *out = at(&op->out, piece, thread);
    int64_t in_frame = (int64_t)op->in_bands * op->in_channels;
    int channels = op->out_channels, vectors = channels / LANES;
    int64_t g_frame = (int64_t)op->out_bands * channels;
    int depth = op->width * op->in_channels;
    int64_t row_step = (int64_t)op->stride * op->in_channels;
    int together = 96 / op->out_bands > 0 ? 96 / op->out_bands : 1;
    memset(out, 0, (size_t)op->taps * depth * channels * sizeof(float));
    for (int t = 0; t < frames; t += together) {
        for (int k = 0; k < op->taps; k++) {
            int delay = op->first + k * op->step;
            int low_t = t, high_t = t + together < frames ? t + together : frames;
            if (low_t + delay < 0) low_t = -delay;
            if (high_t + delay > frames) high_t = frames - delay;
            if (low_t >= high_t) continue;
            float *to = out + (int64_t)k * depth * channels;
            for (int j = 0; j < depth; j += LANES) {
                /* bands f with 0 <= (f stride - pad) channels + j and + j + 7 inside */
                int64_t offset = (int64_t)op->pad * op->in_channels - j;
                int low = offset > 0 ? (int)((offset + row_step - 1) / row_step) : 0;
                int64_t room = in_frame - LANES + offset;
                int high = room < 0 ? 0 : (int)(room / row_step) + 1;
                if (low > op->out_bands) low = op->out_bands;
                if (high > op->out_bands) high = op->out_bands;
                if (high < low) high = low;
                const float *x = in + (int64_t)(low_t + delay) * in_frame + low * row_step - offset;
                const float *y = g + (int64_t)low_t * g_frame + (int64_t)low * channels;
                for (int v = 0; v < vectors;) {
                    int now = vectors - v;
                    now = now == 4 ? 2 : now > 3 ? 3 : now;
                    float *o = to + (int64_t)j * channels + v * LANES;
                    const float *yv = y + v * LANES;
                    int n = high_t - low_t, bands = high - low;
                    if (now == 1) outer_1(x, in_frame, row_step, yv, g_frame, channels, n, bands, o);
                    else if (now == 2) outer_2(x, in_frame, row_step, yv, g_frame, channels, n, bands, o);
                    else outer_3(x, in_frame, row_step, yv, g_frame, channels, n, bands, o);
                    v += now;
                }
                if (op->in_channels % LANES == 0) continue; /* all of a block or nothing */
                for (int f = 0; f < op->out_bands; f++) {
                    if (f == low) f = high;
                    if (f >= op->out_bands) break;
                    for (int r = 0; r < LANES; r++) {
                        int64_t place = f * row_step - offset + r;
                        if (place < 0 || place >= in_frame) continue;
                        for (int u = low_t; u < high_t; u++) {
                            float value = in[(int64_t)(u + delay) * in_frame + place];
                            const float *row = g + (int64_t)u * g_frame + (int64_t)f * channels;
                            for (int c = 0; c < channels; c++)
                                to[(int64_t)(j + r) * channels + c] += value * row[c];
                        }
                    }
                }
            }
        }
    }
}

/* ---------------------------------------------------------------------------------------------
 * Dense over bands: out[t][g][c] (+)= bias[g] + sum over f of weights[f][g] in[t][f][c] */

#define BAND_TILE(rows, vectors)                                                                 \
    static void bands_##rows##_##vectors(const float *in, int channels, int in_bands,            \
                                         const float *w, int out_bands, const float *bias,       \
                                         float *out, int accumulate)                             \
    {                                                                                            \
        vec sum[rows][vectors];                                                                  \
        UNROLL for (int r = 0; r < rows; r++)                                                    \
            UNROLL for (int v = 0; v < vectors; v++)                                             \
                sum[r][v] = accumulate ? load(out + (int64_t)r * channels + v * LANES)           \
                                       : splat(bias ? bias[r] : 0);                              \
        for (int f = 0; f < in_bands; f++, in += channels, w += out_bands) {                     \
            vec x[vectors];                                                                      \
            UNROLL for (int v = 0; v < vectors; v++) x[v] = load(in + v * LANES);                \
            UNROLL for (int r = 0; r < rows; r++) {                                              \
                vec weight = splat(w[r]);                                                        \
                UNROLL for (int v = 0; v < vectors; v++) sum[r][v] += weight * x[v];             \
            }                                                                                    \
        }                                                                                        \
        UNROLL for (int r = 0; r < rows; r++)                                                    \
            UNROLL for (int v = 0; v < vectors; v++)                                             \
                store(out + (int64_t)r * channels + v * LANES, sum[r][v]);                       \
    }
BAND_TILE(8, 1) BAND_TILE(8, 2) BAND_TILE(8, 3)
BAND_TILE(1, 1) BAND_TILE(1, 2) BAND_TILE(1, 3)

static void bands(const Op *op, int frames, int64_t piece, int thread)
{
    const float *in = at(&op->in, piece, thread), *w = at(&op->weights, piece, thread);
    const float *bias = op->bias.data ? at(&op->bias, piece, thread) : NULL;
    float *out = at(&op->out, piece, thread);
    int channels = op->in_channels, vectors = channels / LANES, outs = op->out_bands;
    for (int t = 0; t < frames; t++) {
        const float *x = in + (int64_t)t * op->in_bands * channels;
        float *y = out + (int64_t)t * outs * channels;
        for (int v = 0; v < vectors;) {
            int now = vectors - v;
            now = now == 4 ? 2 : now > 3 ? 3 : now;
            for (int g = 0; g < outs;) {
                const float *b = bias ? bias + g : NULL, *from = x + v * LANES, *wg = w + g;
                float *to = y + (int64_t)g * channels + v * LANES;
                int accumulate = op->accumulate, ins = op->in_bands;
                if (outs - g >= 8) {
                    if (now == 1) bands_8_1(from, channels, ins, wg, outs, b, to, accumulate);
                    else if (now == 2) bands_8_2(from, channels, ins, wg, outs, b, to, accumulate);
                    else bands_8_3(from, channels, ins, wg, outs, b, to, accumulate);
                    g += 8;
                } else {
                    if (now == 1) bands_1_1(from, channels, ins, wg, outs, b, to, accumulate);
                    else if (now == 2) bands_1_2(from, channels, ins, wg, outs, b, to, accumulate);
                    else bands_1_3(from, channels, ins, wg, outs, b, to, accumulate);
                    g += 1;
                }
            }
            v += now;
        }
    }
}

/* Gradient of those weights, out[f][g] = sum over t, c of in[t][f][c] extra[t][g][c], and of the
 * bias, sums[g]. Vectors of partial sums wait in `level`, per thread: in_bands * out_bands. */
static void bands_weights(const Op *op, int frames, int64_t piece, int thread)
{
    const float *in = at(&op->in, piece, thread), *grad = at(&op->extra, piece, thread);
    float *out = at(&op->out, piece, thread), *partial = at(&op->level, piece, thread);
    int channels = op->in_channels, ins = op->in_bands, outs = op->out_bands;
    memset(partial, 0, (size_t)ins * outs * LANES * sizeof(float));
    int together = 512 / (ins + outs) > 0 ? 512 / (ins + outs) : 1;
    together = together > 8 ? 8 : together;
    for (int start = 0; start < frames; start += together) {
        int stop = start + together < frames ? start + together : frames;
        for (int f = 0; f < ins; f += 4)
            for (int g = 0; g < outs; g += 4) {
                int rows = ins - f < 4 ? ins - f : 4, columns = outs - g < 4 ? outs - g : 4;
                if (rows == 4 && columns == 4) {
                    vec sum[4][4];
                    UNROLL for (int r = 0; r < 4; r++)
                        UNROLL for (int c = 0; c < 4; c++)
                            sum[r][c] = load(partial + ((int64_t)(f + r) * outs + g + c) * LANES);
                    for (int t = start; t < stop; t++) {
                        const float *x = in + ((int64_t)t * ins + f) * channels;
                        const float *y = grad + ((int64_t)t * outs + g) * channels;
                        for (int v = 0; v < channels; v += LANES) {
                            vec right[4];
                            UNROLL for (int c = 0; c < 4; c++) right[c] = load(y + c * channels + v);
                            UNROLL for (int r = 0; r < 4; r++) {
                                vec left = load(x + r * channels + v);
                                UNROLL for (int c = 0; c < 4; c++) sum[r][c] += left * right[c];
                            }
                        }
                    }
                    UNROLL for (int r = 0; r < 4; r++)
                        UNROLL for (int c = 0; c < 4; c++)
                            store(partial + ((int64_t)(f + r) * outs + g + c) * LANES, sum[r][c]);
                } else
                    for (int r = 0; r < rows; r++)
                        for (int c = 0; c < columns; c++) {
                            float *to = partial + ((int64_t)(f + r) * outs + g + c) * LANES;
                            vec sum = load(to);
                            for (int t = start; t < stop; t++)
                                for (int v = 0; v < channels; v += LANES)
                                    sum += load(in + ((int64_t)t * ins + f + r) * channels + v) *
                                           load(grad + ((int64_t)t * outs + g + c) * channels + v);
                            store(to, sum);
                        }
            }
    }
    for (int i = 0; i < ins * outs; i++) {
        vec sum = load(partial + (int64_t)i * LANES);
        float total = 0;
        for (int l = 0; l < LANES; l++) total += sum[l];
        out[i] = total;
    }
    if (op->sums.data) {
        float *bias = at(&op->sums, piece, thread);
        for (int g = 0; g < outs; g++) {
            vec sum = splat(0);
            for (int t = 0; t < frames; t++)
                for (int v = 0; v < channels; v += LANES)
                    sum += load(grad + ((int64_t)t * outs + g) * channels + v);
            float total = 0;
            for (int l = 0; l < LANES; l++) total += sum[l];
            bias[g] = total;
        }
    }
}

/* ---------------------------------------------------------------------------------------------
 * Point by point */

/* out = activation(scale in + shift) + residual; without scale and shift: activation(in). */
static void apply(const Op *op, int frames, int64_t piece, int thread)
{
    const float *in = at(&op->in, piece, thread);
    const float *residual = op->residual.data ? at(&op->residual, piece, thread) : NULL;
    const float *scale = op->scale.data, *shift = op->shift.data;
    float *out = at(&op->out, piece, thread);
    int channels = op->out_channels;
    int64_t rows = (int64_t)frames * op->out_bands;
    for (int64_t r = 0; r < rows; r++)
        for (int v = 0; v < channels; v += LANES) {
            int64_t i = r * channels + v;
            vec x = load(in + i);
            if (scale) x = x * load(scale + v) + load(shift + v);
            if (op->activation == SILU) x *= sigmoid(x);
            if (residual) x += load(residual + i);
            store(out + i, x);
        }
}

/* out = in * activation'(scale extra + shift), `in` the gradient above, `extra` what the forward
 * pass read; sums [2][channels]: of out, and of out * extra. May work in place; without an
 * activation nothing is written but the sums. */
static void act_gradient(const Op *op, int frames, int64_t piece, int thread)
{
    const float *in = at(&op->in, piece, thread);
    const float *extra = op->extra.data ? at(&op->extra, piece, thread) : NULL;
    const float *scale = op->scale.data, *shift = op->shift.data;
    float *out = at(&op->out, piece, thread);
    int channels = op->out_channels;
    int64_t rows = (int64_t)frames * op->out_bands;
    double *sums = (double *)op->sums.data;
    if (sums) {
        sums += 2 * channels * piece;
        memset(sums, 0, 2 * channels * sizeof(double));
    }
    for (int64_t start = 0; start < rows; start += 128) {
        int64_t stop = start + 128 < rows ? start + 128 : rows;
        for (int v = 0; v < channels; v += LANES) {
            vec total = splat(0), products = splat(0);
            vec a = scale ? load(scale + v) : splat(1), b = scale ? load(shift + v) : splat(0);
            for (int64_t r = start; r < stop; r++) {
                int64_t i = r * channels + v;
                vec g = load(in + i), x = extra ? load(extra + i) : splat(0);
                if (op->activation == SILU) {
                    vec y = a * x + b, s = sigmoid(y);
                    g *= s * (1.0f + y * (1.0f - s));
                    store(out + i, g);
                }
                total += g;
                products += g * x;
            }
            if (sums)
                for (int l = 0; l < LANES; l++) {
                    sums[v + l] += total[l];
                    sums[channels + v + l] += products[l];
                }
        }
    }
}

/* out = scale in + shift extra + level: the gradient before a normalisation. */
static void norm_gradient(const Op *op, int frames, int64_t piece, int thread)
{
    const float *in = at(&op->in, piece, thread), *extra = at(&op->extra, piece, thread);
    float *out = at(&op->out, piece, thread);
    int channels = op->out_channels;
    int64_t rows = (int64_t)frames * op->out_bands;
    for (int64_t r = 0; r < rows; r++)
        for (int v = 0; v < channels; v += LANES) {
            int64_t i = r * channels + v;
            store(out + i, load(in + i) * load(op->scale.data + v) +
                               load(extra + i) * load(op->shift.data + v) +
                               load(op->level.data + v));
        }
}

/* out = in + extra; with `accumulate` out += in; without `extra` a copy. */
static void add(const Op *op, int frames, int64_t piece, int thread)
{
    const float *in = at(&op->in, piece, thread);
    const float *extra = op->extra.data ? at(&op->extra, piece, thread) : NULL;
    float *out = at(&op->out, piece, thread);
    int64_t count = (int64_t)frames * op->out_bands * op->out_channels;
    for (int64_t i = 0; i < count; i += LANES) {
        vec x = load(in + i);
        if (extra) x += load(extra + i);
        if (op->accumulate) x += load(out + i);
        store(out + i, x);
    }
}

/* Takes each piece through the operations. Returns 0. */
int run_phase(const Op *ops, int num_ops, int64_t pieces, int frames, int threads)
{
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t piece = 0; piece < pieces; piece++) {
        int thread = 0;
#ifdef _OPENMP
        thread = omp_get_thread_num();
#endif
        for (int i = 0; i < num_ops; i++) {
            const Op *op = ops + i;
            switch (op->kind) {
            case CONV: conv(op, frames, piece, thread); break;
            case CONV_WEIGHTS: conv_weights(op, frames, piece, thread); break;
            case BANDS: bands(op, frames, piece, thread); break;
            case BANDS_WEIGHTS: bands_weights(op, frames, piece, thread); break;
            case APPLY: apply(op, frames, piece, thread); break;
            case ACT_GRADIENT: act_gradient(op, frames, piece, thread); break;
            case NORM_GRADIENT: norm_gradient(op, frames, piece, thread); break;
            default: add(op, frames, piece, thread);
            }
        }
    }
    return 0;
}

int op_bytes(void) { return (int)sizeof(Op); }
