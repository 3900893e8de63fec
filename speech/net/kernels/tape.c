/* A network over time and frequency as a tape of operations on one piece of signal after another.
 *
 * A tensor of a piece is float [frames][bands][channels]; channels are whole vectors of 8 (the
 * caller fills up with zeros), except in the network's input. A phase is a run of operations that
 * need nothing of other pieces. A core takes a piece through a whole phase, block of frames by
 * block of frames: what one operation has written is still in the cache when the next one reads it.
 * Blocks follow each other as time does, and the other way in the backward pass, where a gradient
 * needs those of later frames. Sums over a piece (moments, gradients of weights) are kept piece by
 * piece: results do not depend on the number of threads.
 *
 * All products are one (`product`): a tile of rows x vectors of the result stays in registers while
 * the sum runs. speech/net/tape.py describes each operation.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#define LANES 8
typedef float vec __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(32)));
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

enum { CONV, CONV_WEIGHTS, BANDS, BANDS_WEIGHTS, APPLY, ACT_GRADIENT, NORM_GRADIENT, ADD,
       MOMENTS, MOMENT_GRADIENTS };
enum { LINEAR, SILU };

typedef struct {
    float *data;
    int64_t stride; /* floats from one owner to the next */
    int32_t per;    /* who owns one: 0 all share it, 1 each piece, 2 each thread */
    int32_t frame;  /* floats per frame; 0: no time, or room for one block only */
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
    float epsilon;
    Tensor in, out, extra, residual, value, weights, bias, scale, shift, level, sums;
} Op;

/* Frames [start, start + count) of a piece of `frames`. */
typedef struct {
    int64_t piece;
    int thread, frames, start, count;
    int is_first; /* of the blocks, as they follow each other */
} Block;

/* Where a block's first frame stands; NULL for a tensor that is not there. */
INLINE float *at(const Tensor *t, const Block *b)
{
    if (!t->data) return NULL;
    return t->data + t->stride * (t->per == 1 ? b->piece : t->per == 2 ? b->thread : 0) +
           (int64_t)t->frame * b->start;
}

/* Sums over a piece so far, double [2][out_channels]. */
INLINE double *sums_of(const Op *op, const Block *b)
{
    if (!op->sums.data) return NULL;
    double *sums = (double *)op->sums.data + 2 * op->out_channels * b->piece;
    if (b->is_first) memset(sums, 0, 2 * (size_t)op->out_channels * sizeof(double));
    return sums;
}

INLINE vec splat(float x) { return (vec){x, x, x, x, x, x, x, x}; }
INLINE vec load(const float *p) { return *(const vec *)p; }
INLINE void store(float *p, vec x) { *(vec *)p = x; }

/* Lane by lane: compilers know the instruction for it. */
INLINE ivec clamp(ivec x, int low, int high)
{
    ivec result;
    for (int i = 0; i < LANES; i++) result[i] = x[i] < high ? x[i] : high;
    for (int i = 0; i < LANES; i++) result[i] = result[i] > low ? result[i] : low;
    return result;
}

/* 1 / (1 + exp(-x)) to 3 parts in 10^7: 2^n times a polynomial for 2^f, |f| <= 0.5. For |x| up to
 * 10^14; a network that comes to such values says nothing any more. */
INLINE vec sigmoid(vec x)
{
    const float magic = 12582912.0f; /* added to a number, it leaves the nearest n in its bits */
    const int bits = 0x4B400000;
    vec y = x * -1.44269504f;
    vec shifted = y + magic;
    vec f = y - (shifted - magic);
    vec p = splat(1.32764604e-3f);
    p = p * f + 9.67554124e-3f;
    p = p * f + 5.55071331e-2f;
    p = p * f + 2.40221197e-1f;
    p = p * f + 6.93146967e-1f;
    p = p * f + 1.0f;
    ivec n = clamp((ivec)shifted, bits - 126, bits + 126) - (bits - 127);
    return 1.0f / (1.0f + p * (vec)(n << 23));
}

/* ---------------------------------------------------------------------------------------------
 * out[r][c] (+)= bias + sum over segments and k of
 *                in[r * in_step + k * in_depth] * weights[k * weight_step + c] */

typedef struct {
    const float *in, *weights;
} Segment;

typedef struct {
    int depth; /* of k */
    int64_t in_step, in_depth, weight_step, out_step;
    const float *bias;     /* by column */
    const float *row_bias; /* by row */
    int accumulate;
} Shape;

#define MOST_SEGMENTS 64

/* Has a vector in a register from here on: compilers like to load it again for each product. */
#ifdef __AVX__
#define KEEP(x) __asm__("" : "+v"(x))
#else
#define KEEP(x)
#endif

INLINE void tile(int rows, int vectors, const Segment *segments, int count, const Shape *s,
                 float *out, const float *bias, const float *row_bias)
{
    vec sum[12][4];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++)
            sum[r][v] = s->accumulate ? load(out + r * s->out_step + v * LANES)
                        : bias        ? load(bias + v * LANES)
                        : row_bias    ? splat(row_bias[r])
                                      : splat(0);
    int64_t in_step = s->in_step, in_depth = s->in_depth, weight_step = s->weight_step;
    for (int i = 0; i < count; i++) {
        const float *in = segments[i].in, *w = segments[i].weights;
        for (int k = 0; k < s->depth; k++, in += in_depth, w += weight_step) {
            vec column[4];
            UNROLL for (int v = 0; v < vectors; v++)
            {
                column[v] = load(w + v * LANES);
                KEEP(column[v]);
            }
            UNROLL for (int r = 0; r < rows; r++) {
                vec x = splat(in[r * in_step]);
                UNROLL for (int v = 0; v < vectors; v++) sum[r][v] += x * column[v];
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++)
            store(out + r * s->out_step + v * LANES, sum[r][v]);
}

#define TILES(vectors, most)                                                                      \
    static __attribute__((noinline)) void tiles_##vectors(int rows, Segment *now, int count, const Shape *s, float *out,    \
                                const float *bias, const float *row_bias)                         \
    {                                                                                             \
        while (rows > 0) {                                                                        \
            int done = rows >= most ? most : most > 4 && rows >= 4 ? 4 : rows >= 2 ? 2 : 1;       \
            if (done == most) tile(most, vectors, now, count, s, out, bias, row_bias);            \
            else if (done == 4) tile(4, vectors, now, count, s, out, bias, row_bias);             \
            else if (done == 2) tile(2, vectors, now, count, s, out, bias, row_bias);             \
            else tile(1, vectors, now, count, s, out, bias, row_bias);                            \
            rows -= done;                                                                         \
            out += done * s->out_step;                                                            \
            if (row_bias) row_bias += done;                                                       \
            for (int i = 0; i < count; i++) now[i].in += done * s->in_step;                       \
        }                                                                                         \
    }

/* As many rows as leave registers for a row of weights and one value. */
#ifdef __AVX512VL__
TILES(1, 12)
TILES(2, 12)
TILES(3, 8)
TILES(4, 6)
#else
TILES(1, 12)
TILES(2, 6)
TILES(3, 4)
TILES(4, 3)
#endif

/* Groups of up to 4 vectors, as even as they go. */
INLINE int group_of(int vectors) { return vectors <= 4 ? vectors : vectors <= 6 ? 3 : 4; }

static void product(int rows, int columns, const Segment *segments, int count, const Shape *s,
                    float *out)
{
    if (rows <= 0) return;
    for (int c = 0, vectors; c < columns; c += vectors * LANES) {
        vectors = group_of((columns - c) / LANES);
        Segment own[MOST_SEGMENTS];
        for (int i = 0; i < count; i++)
            own[i] = (Segment){segments[i].in, segments[i].weights + c};
        const float *bias = s->bias ? s->bias + c : NULL;
        if (vectors == 1) tiles_1(rows, own, count, s, out + c, bias, s->row_bias);
        else if (vectors == 2) tiles_2(rows, own, count, s, out + c, bias, s->row_bias);
        else if (vectors == 3) tiles_3(rows, own, count, s, out + c, bias, s->row_bias);
        else tiles_4(rows, own, count, s, out + c, bias, s->row_bias);
    }
}

/* ---------------------------------------------------------------------------------------------
 * Point by point, row by row. VECTORS of a row are worked on at a time, from channel `v` on; with
 * their number known, what holds for a channel stays in registers. */

#define FOR_VECTORS(channels, call)                                                               \
    for (int v = 0, now; v < (channels); v += now * LANES) {                                      \
        now = group_of(((channels) - v) / LANES);                                                 \
        if (now == 1) { enum { VECTORS = 1 }; call; }                                             \
        else if (now == 2) { enum { VECTORS = 2 }; call; }                                        \
        else if (now == 3) { enum { VECTORS = 3 }; call; }                                        \
        else { enum { VECTORS = 4 }; call; }                                                      \
    }

/* Adds vectors of sums to doubles. */
INLINE void add_sums(int vectors, const vec *sums, double *to)
{
    for (int v = 0; v < vectors; v++)
        for (int i = 0; i < LANES; i++) to[v * LANES + i] += sums[v][i];
}

/* Adds sums and sums of squares of rows to double [2][channels]; 64 rows at a time in floats. */
INLINE void moments_of(int vectors, const float *x, int64_t rows, int channels, double *sums)
{
    for (int64_t start = 0; start < rows; start += 64) {
        vec total[4], squares[4];
        int64_t stop = start + 64 < rows ? start + 64 : rows;
        UNROLL for (int k = 0; k < vectors; k++) total[k] = squares[k] = splat(0);
        for (int64_t r = start; r < stop; r++)
            UNROLL for (int k = 0; k < vectors; k++)
            {
                vec value = load(x + r * channels + k * LANES);
                total[k] += value;
                squares[k] += value * value;
            }
        add_sums(vectors, total, sums);
        add_sums(vectors, squares, sums + channels);
    }
}

/* out = activation(scale in + shift) + residual; without scale and shift: activation(in). */
INLINE void apply_to(int vectors, int v, const Op *op, const Block *b, int normalized,
                     int activation)
{
    const float *in = at(&op->in, b), *residual = at(&op->residual, b);
    float *out = at(&op->out, b);
    int64_t rows = (int64_t)b->count * op->out_bands;
    vec scale[4], shift[4];
    UNROLL for (int k = 0; normalized && k < vectors; k++)
    {
        scale[k] = load(op->scale.data + v + k * LANES);
        shift[k] = load(op->shift.data + v + k * LANES);
    }
    for (int64_t r = 0; r < rows; r++)
        UNROLL for (int k = 0; k < vectors; k++)
        {
            int64_t i = r * op->out_channels + v + k * LANES;
            vec x = load(in + i);
            if (normalized) x = x * scale[k] + shift[k];
            if (activation == SILU) x *= sigmoid(x);
            if (residual) x += load(residual + i);
            store(out + i, x);
        }
}

static void apply(const Op *op, const Block *b)
{
    int normalized = op->scale.data != NULL;
    if (op->activation == SILU && normalized)
        FOR_VECTORS(op->out_channels, apply_to(VECTORS, v, op, b, 1, SILU))
    else if (op->activation == SILU)
        FOR_VECTORS(op->out_channels, apply_to(VECTORS, v, op, b, 0, SILU))
    else if (normalized)
        FOR_VECTORS(op->out_channels, apply_to(VECTORS, v, op, b, 1, LINEAR))
    else FOR_VECTORS(op->out_channels, apply_to(VECTORS, v, op, b, 0, LINEAR))
}

/* out = in * activation'(y), y = scale extra + shift, `in` the gradient above, `extra` what the
 * forward pass read; value = activation(y); sums [2][channels]: of out, and of out * extra. May
 * work in place; without an activation nothing is written but the sums. */
INLINE void act_gradient_to(int vectors, int v, const Op *op, const Block *b, double *sums,
                            int normalized, int activation)
{
    const float *in = at(&op->in, b), *extra = at(&op->extra, b);
    float *out = at(&op->out, b), *value = at(&op->value, b);
    int channels = op->out_channels;
    int64_t rows = (int64_t)b->count * op->out_bands;
    vec scale[4], shift[4];
    UNROLL for (int k = 0; normalized && k < vectors; k++)
    {
        scale[k] = load(op->scale.data + v + k * LANES);
        shift[k] = load(op->shift.data + v + k * LANES);
    }
    for (int64_t start = 0; start < rows; start += 64) {
        vec total[4], products[4];
        int64_t stop = start + 64 < rows ? start + 64 : rows;
        UNROLL for (int k = 0; k < vectors; k++) total[k] = products[k] = splat(0);
        for (int64_t r = start; r < stop; r++)
            UNROLL for (int k = 0; k < vectors; k++)
            {
                int64_t i = r * channels + v + k * LANES;
                vec g = load(in + i), read = extra ? load(extra + i) : splat(0), x = read;
                if (activation == SILU) {
                    if (normalized) x = x * scale[k] + shift[k];
                    vec s = sigmoid(x), silu = x * s;
                    g *= s + silu * (1.0f - s);
                    store(out + i, g);
                    if (value) store(value + i, silu);
                }
                total[k] += g;
                products[k] += g * read;
            }
        if (sums) {
            add_sums(vectors, total, sums + v);
            add_sums(vectors, products, sums + channels + v);
        }
    }
}

static void act_gradient(const Op *op, const Block *b)
{
    double *sums = sums_of(op, b);
    if (op->activation == LINEAR)
        FOR_VECTORS(op->out_channels, act_gradient_to(VECTORS, v, op, b, sums, 0, LINEAR))
    else if (op->scale.data)
        FOR_VECTORS(op->out_channels, act_gradient_to(VECTORS, v, op, b, sums, 1, SILU))
    else FOR_VECTORS(op->out_channels, act_gradient_to(VECTORS, v, op, b, sums, 0, SILU))
}

/* out = scale in + shift extra + level: the gradient before a normalisation. */
static void norm_gradient(const Op *op, const Block *b)
{
    const float *in = at(&op->in, b), *extra = at(&op->extra, b);
    float *out = at(&op->out, b);
    int channels = op->out_channels;
    int64_t rows = (int64_t)b->count * op->out_bands;
    for (int64_t r = 0; r < rows; r++)
        for (int v = 0; v < channels; v += LANES) {
            int64_t i = r * channels + v;
            store(out + i, load(in + i) * load(op->scale.data + v) +
                               (load(extra + i) * load(op->shift.data + v) +
                                load(op->level.data + v)));
        }
}

/* out = in + extra; with `accumulate` out += in; without `extra` a copy. */
static void add(const Op *op, const Block *b)
{
    const float *in = at(&op->in, b), *extra = at(&op->extra, b);
    float *out = at(&op->out, b);
    int64_t count = (int64_t)b->count * op->out_bands * op->out_channels;
    for (int64_t i = 0; i < count; i += LANES) {
        vec x = load(in + i);
        if (extra) x += load(extra + i);
        if (op->accumulate) x += load(out + i);
        store(out + i, x);
    }
}

/* ---------------------------------------------------------------------------------------------
 * Convolution over time (dilated) and bands */

/* First and last band (not included) whose whole window lies inside. */
INLINE void inner_bands(const Op *op, int *first, int *last)
{
    int low = (op->pad + op->stride - 1) / op->stride;
    int high = op->in_bands - op->width + op->pad;
    high = high < 0 ? 0 : high / op->stride + 1;
    if (low > op->out_bands) low = op->out_bands;
    if (high > op->out_bands) high = op->out_bands;
    *first = low;
    *last = high < low ? low : high;
}

/* The part of a band's window that lies inside: taps [low, high), the first of them at band *from.
 * Returns 0 if none does. */
INLINE int window(const Op *op, int band, int *low, int *high, int *from)
{
    int start = band * op->stride - op->pad;
    *low = start < 0 ? -start : 0;
    *high = op->in_bands - start < op->width ? op->in_bands - start : op->width;
    *from = start + *low;
    return *high > *low;
}

/* How many frames from t on read the same taps over time as t. */
INLINE int alike(const Op *op, int t, const Block *b)
{
    int count = b->start + b->count - t;
    for (int k = 0; k < op->taps; k++) {
        int from = t + op->first + k * op->step;
        int until = from < -op->history ? -op->history - from : b->frames - from;
        if (until > 0 && until < count) count = until;
    }
    return count;
}

/* `sums`, if there, gets the moments of the output. */
static void conv(const Op *op, const Block *b)
{
    const float *in = at(&op->in, b), *w = at(&op->weights, b);
    float *out = at(&op->out, b);
    int64_t in_frame = (int64_t)op->in_bands * op->in_channels;
    int64_t out_frame = (int64_t)op->out_bands * op->out_channels;
    int depth = op->width * op->in_channels;
    Shape s = {depth, (int64_t)op->stride * op->in_channels, 1, op->out_channels,
               op->out_channels, at(&op->bias, b), NULL, op->accumulate};
    int first, last;
    inner_bands(op, &first, &last);
    int whole = last - first == op->in_bands; /* the rows of frames follow each other */
    int64_t offset = first * s.in_step - op->pad * op->in_channels;
    for (int t = b->start, now; t < b->start + b->count; t += now) {
        Segment segments[MOST_SEGMENTS];
        int count = 0;
        for (int k = 0; k < op->taps; k++) {
            int from = t + op->first + k * op->step;
            if (from >= -op->history && from < b->frames)
                segments[count++] = (Segment){in + (from - b->start) * in_frame + offset,
                                              w + (int64_t)k * depth * op->out_channels};
        }
        now = whole ? alike(op, t, b) : 1;
        product(now * (last - first), op->out_channels, segments, count, &s,
                out + (t - b->start) * out_frame + first * op->out_channels);
    }
    /* Bands at the edges see a part of the window; there the frames are the rows. */
    s.in_step = in_frame;
    s.out_step = out_frame;
    for (int f = 0; f < op->out_bands; f++) {
        if (f == first) f = last;
        if (f == op->out_bands) break;
        int low, high, from, some = window(op, f, &low, &high, &from);
        Segment segment = {in + from * op->in_channels,
                           w + (int64_t)low * op->in_channels * op->out_channels};
        s.depth = (high - low) * op->in_channels;
        product(b->count, op->out_channels, &segment, some, &s, out + f * op->out_channels);
    }
    double *sums = sums_of(op, b);
    int64_t rows = (int64_t)b->count * op->out_bands;
    if (sums)
        FOR_VECTORS(op->out_channels, moments_of(VECTORS, out + v, rows, op->out_channels, sums + v))
}

/* Gradient of the weights, out[tap][window][channels] = sum of in^T extra. */
static void conv_weights(const Op *op, const Block *b)
{
    const float *in = at(&op->in, b), *g = at(&op->extra, b);
    float *out = at(&op->out, b);
    int channels = op->out_channels, depth = op->width * op->in_channels;
    int64_t in_frame = (int64_t)op->in_bands * op->in_channels;
    int64_t g_frame = (int64_t)op->out_bands * channels;
    Shape s = {0, 1, (int64_t)op->stride * op->in_channels, channels, channels, NULL, NULL, 1};
    int first, last;
    inner_bands(op, &first, &last);
    if (b->is_first) memset(out, 0, (size_t)op->taps * depth * channels * sizeof(float));
    for (int t = b->start; t < b->start + b->count; t += MOST_SEGMENTS)
        for (int k = 0; k < op->taps; k++) {
            int delay = op->first + k * op->step;
            int start = t, stop = t + MOST_SEGMENTS;
            if (stop > b->start + b->count) stop = b->start + b->count;
            if (start + delay < 0) start = -delay;
            if (stop + delay > b->frames) stop = b->frames - delay;
            if (start >= stop) continue;
            const float *x = in + (start + delay - b->start) * in_frame;
            const float *y = g + (start - b->start) * g_frame;
            float *to = out + (int64_t)k * depth * channels;
            Segment segments[MOST_SEGMENTS];
            for (int i = 0; i < stop - start; i++)
                segments[i] = (Segment){
                    x + i * in_frame + first * s.in_depth - op->pad * op->in_channels,
                    y + i * g_frame + (int64_t)first * channels};
            s.depth = last - first;
            product(depth, channels, segments, stop - start, &s, to);
            s.depth = 1;
            for (int f = 0; f < op->out_bands; f++) {
                int low, high, from;
                if (f == first) f = last;
                if (f == op->out_bands) break;
                if (!window(op, f, &low, &high, &from)) continue;
                for (int i = 0; i < stop - start; i++)
                    segments[i] = (Segment){x + i * in_frame + from * op->in_channels,
                                            y + i * g_frame + (int64_t)f * channels};
                product((high - low) * op->in_channels, channels, segments, stop - start, &s,
                        to + (int64_t)low * op->in_channels * channels);
            }
        }
}

/* ---------------------------------------------------------------------------------------------
 * Dense over bands: out[t][g][c] (+)= bias[g] + sum over f of weights[f][g] in[t][f][c] */

static void bands(const Op *op, const Block *b)
{
    const float *in = at(&op->in, b), *w = at(&op->weights, b);
    float *out = at(&op->out, b);
    int channels = op->in_channels, ins = op->in_bands, outs = op->out_bands;
    Shape s = {ins, 1, outs, channels, channels, NULL, at(&op->bias, b), op->accumulate};
    for (int t = 0; t < b->count; t++) {
        Segment segment = {w, in + (int64_t)t * ins * channels};
        product(outs, channels, &segment, 1, &s, out + (int64_t)t * outs * channels);
    }
}

#if defined(__clang__) || __GNUC__ >= 12
#define MIX(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MIX(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

/* to[c][r] = from[r][c], 8 x 8; from row `rows` on, zeros. */
INLINE void turn(const float *from, int64_t from_step, int rows, float *to, int64_t to_step)
{
    vec x[LANES], y[LANES];
    UNROLL for (int r = 0; r < LANES; r++) x[r] = r < rows ? load(from + r * from_step) : splat(0);
    UNROLL for (int r = 0; r < LANES; r += 2)
    {
        y[r] = MIX(x[r], x[r + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        y[r + 1] = MIX(x[r], x[r + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    UNROLL for (int r = 0; r < LANES; r += 4) UNROLL for (int i = 0; i < 2; i++)
    {
        x[r + 2 * i] = MIX(y[r + i], y[r + 2 + i], 0, 1, 8, 9, 4, 5, 12, 13);
        x[r + 2 * i + 1] = MIX(y[r + i], y[r + 2 + i], 2, 3, 10, 11, 6, 7, 14, 15);
    }
    UNROLL for (int c = 0; c < 4; c++)
    {
        store(to + c * to_step, MIX(x[c], x[c + 4], 0, 1, 2, 3, 8, 9, 10, 11));
        store(to + (c + 4) * to_step, MIX(x[c], x[c + 4], 4, 5, 6, 7, 12, 13, 14, 15));
    }
}

/* Gradient of those weights, out[f][g] = sum over t, c of in[t][f][c] extra[t][g][c], and of the
 * bias, sums[g]; g filled up to whole vectors. `level` takes some frames of `extra`, [t][c][g]. */
#define TURNED 4

static void bands_weights(const Op *op, const Block *b)
{
    const float *in = at(&op->in, b), *g = at(&op->extra, b);
    float *out = at(&op->out, b), *bias = at(&op->sums, b), *turned = at(&op->level, b);
    int channels = op->in_channels, ins = op->in_bands, outs = op->out_bands;
    int wide = (outs + LANES - 1) / LANES * LANES;
    Shape s = {channels, channels, 1, wide, wide, NULL, NULL, 1};
    if (b->is_first) {
        memset(out, 0, (size_t)ins * wide * sizeof(float));
        if (bias) memset(bias, 0, (size_t)wide * sizeof(float));
    }
    for (int t = 0; t < b->count; t += TURNED) {
        int now = b->count - t < TURNED ? b->count - t : TURNED;
        Segment segments[TURNED];
        for (int i = 0; i < now; i++) {
            const float *from = g + (int64_t)(t + i) * outs * channels;
            float *to = turned + (int64_t)i * channels * wide;
            for (int j = 0; j < outs; j += LANES)
                for (int c = 0; c < channels; c += LANES)
                    turn(from + j * channels + c, channels, outs - j, to + c * wide + j, wide);
            segments[i] = (Segment){in + (int64_t)(t + i) * ins * channels, to};
        }
        product(ins, wide, segments, now, &s, out);
        for (int v = 0; bias && v < wide; v += LANES) {
            vec sum[4] = {load(bias + v), splat(0), splat(0), splat(0)};
            for (int r = 0; r < now * channels; r += 4)
                UNROLL for (int i = 0; i < 4; i++) sum[i] += load(turned + (r + i) * wide + v);
            store(bias + v, (sum[0] + sum[1]) + (sum[2] + sum[3]));
        }
    }
}

/* ---------------------------------------------------------------------------------------------
 * Between phases, once for all pieces. `value` holds the statistics, double [2][channels]: mean
 * and variance of all rows; in[channels] is gamma. */

INLINE double over_pieces(const Op *op, int64_t pieces, int index)
{
    double sum = 0;
    for (int64_t piece = 0; piece < pieces; piece++)
        sum += ((double *)op->sums.data)[2 * op->out_channels * piece + index];
    return sum;
}

/* The moments of the batch become statistics, scale and shift; extra[channels] is beta. */
static void moments(const Op *op, int64_t pieces, int frames)
{
    double count = (double)pieces * frames * op->out_bands;
    double *mean = (double *)op->value.data, *variance = mean + op->out_channels;
    for (int c = 0; c < op->out_channels; c++) {
        mean[c] = over_pieces(op, pieces, c) / count;
        variance[c] = over_pieces(op, pieces, op->out_channels + c) / count - mean[c] * mean[c];
        if (variance[c] < 0) variance[c] = 0;
        op->scale.data[c] = (float)(op->in.data[c] / sqrt(variance[c] + op->epsilon));
        op->shift.data[c] = (float)(op->extra.data[c] - op->scale.data[c] * mean[c]);
    }
}

/* The sums of `act_gradient` become out[2][channels], the gradients of gamma and beta, and what
 * `norm_gradient` needs. */
static void moment_gradients(const Op *op, int64_t pieces, int frames)
{
    double count = (double)pieces * frames * op->out_bands;
    double *mean = (double *)op->value.data, *variance = mean + op->out_channels;
    for (int c = 0; c < op->out_channels; c++) {
        double inverse = 1 / sqrt(variance[c] + op->epsilon), scale = op->in.data[c] * inverse;
        double sum = over_pieces(op, pieces, c);
        double product = over_pieces(op, pieces, op->out_channels + c);
        double d_gamma = inverse * (product - mean[c] * sum);
        double tilt = -scale * inverse * d_gamma / count;
        op->out.data[c] = (float)d_gamma;
        op->out.data[op->out_channels + c] = (float)sum;
        op->scale.data[c] = (float)scale;
        op->shift.data[c] = (float)tilt;
        op->level.data[c] = (float)(-scale * sum / count - tilt * mean[c]);
    }
}

/* Takes a piece through operations, `size` frames at a time; `backwards`: the last ones first. */
static void run_piece(const Op *ops, const Op *end, Block b, int size, int backwards)
{
    for (int done = 0; done < b.frames; done += b.count, b.is_first = 0) {
        b.count = b.frames - done < size ? b.frames - done : size;
        b.start = backwards ? b.frames - done - b.count : done;
        for (const Op *op = ops; op < end; op++) switch (op->kind) {
            case CONV: conv(op, &b); break;
            case CONV_WEIGHTS: conv_weights(op, &b); break;
            case BANDS: bands(op, &b); break;
            case BANDS_WEIGHTS: bands_weights(op, &b); break;
            case APPLY: apply(op, &b); break;
            case ACT_GRADIENT: act_gradient(op, &b); break;
            case NORM_GRADIENT: norm_gradient(op, &b); break;
            default: add(op, &b);
            }
    }
}

typedef struct {
    const Op *ops;
    int32_t count;
    int32_t size; /* frames of a block */
} Phase;

/* Takes all pieces through one phase after the other. Returns 0. */
int run_phases(const Phase *phases, int num_phases, int64_t pieces, int frames, int backwards,
               int threads)
{
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#else
    (void)threads;
#endif
    for (const Phase *phase = phases; phase < phases + num_phases; phase++) {
        const Op *ops = phase->ops, *end = ops + phase->count;
        for (; ops < end && ops->kind >= MOMENTS; ops++) {
#ifdef _OPENMP
#pragma omp single
#endif
            if (ops->kind == MOMENTS) moments(ops, pieces, frames);
            else moment_gradients(ops, pieces, frames);
        }
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
        for (int64_t piece = 0; piece < pieces; piece++) {
            Block b = {.piece = piece, .frames = frames, .is_first = 1};
#ifdef _OPENMP
            b.thread = omp_get_thread_num();
#endif
            run_piece(ops, end, b, phase->size, backwards);
        }
    }
    return 0;
}

int op_bytes(void) { return (int)sizeof(Op); }
