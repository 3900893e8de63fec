/* The runtime of a network over time and frequency, one hop at a time. See denoise.h.
 *
 * A hop of samples makes a frame; its spectrum is compressed and becomes features; the layers of
 * the table turn them into a complex mask; the mask times the compressed spectrum is expanded and
 * becomes samples again. A convolution over time finds the frames that it looks back to in a ring,
 * which its source is written into. Kernels are read where they are if they are floats of the right
 * shape; others are unpacked into the same scratch memory, one layer at a time. Indices that are
 * coded are decoded once, at the start, behind the scratch.
 *
 * Channels come in groups of 8. With GCC and Clang a group is one vector or two, elsewhere 8 floats.
 */

#include "denoise.h"

#include <math.h>
#include <string.h>

#define LANES 8

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 16")
#else
#define UNROLL
#endif

/* A group of 8 values is PARTS vectors of what the processor has. */
#if defined(__GNUC__) && defined(__AVX__)
typedef float vec __attribute__((vector_size(32), aligned(4), may_alias));
#define PARTS 1
#elif defined(__GNUC__)
typedef float vec __attribute__((vector_size(16), aligned(4), may_alias));
#define PARTS 2
#else
typedef float vec;
#define PARTS 8
#endif

/* Powers |X|^2 below this count as silence: 100 dB below a sine of full scale. */
static const float POWER_FLOOR = 1e-6f;

/* Squares of spectra of louder samples may not fit in a float. */
static const float MOST_SAMPLE = 1e15f;

/* ---------------------------------------------------------------------------------------------
 * Memory: some arrays of a frame each, the tensors, the scratch, then indices that were decoded */

enum { HISTORY, OVERLAP, WINDOW, TWIDDLES, SPECTRUM, WORK, MORE_WORK, NUM_ARRAYS };

INLINE float *array_of(const denoise_state *s, int which)
{
    return s->memory + (size_t)which * (size_t)(s->model->frame + LANES);
}

/* A tensor's frame: the one at hand, or one that is some frames old; with its zeros before. */
INLINE float *frame_of(const denoise_state *s, const denoise_tensor *t, int age)
{
    size_t floats = (size_t)(t->before + t->bands + t->after) * (size_t)t->channels;
    float *place = array_of(s, NUM_ARRAYS) + t->place;
    if (t->frames == 1) return place;
    int slot = s->slot[t->ring] - age;
    return place + (size_t)(slot < 0 ? slot + t->frames : slot) * floats;
}

INLINE float *bands_of(const denoise_state *s, const denoise_tensor *t)
{
    return frame_of(s, t, 0) + t->before * t->channels;
}

/* Zeros before and after the bands: other tensors may have been there meanwhile. */
static void clear_margins(const denoise_state *s, const denoise_tensor *t)
{
    float *bands = bands_of(s, t);
    memset(frame_of(s, t, 0), 0, (size_t)(t->before * t->channels) * sizeof *bands);
    memset(bands + t->bands * t->channels, 0, (size_t)(t->after * t->channels) * sizeof *bands);
}

/* ---------------------------------------------------------------------------------------------
 * Kernels */

static float half_value(const void *halves, size_t i)
{
    const uint8_t *byte = (const uint8_t *)halves + 2 * i;
    uint32_t half = (uint32_t)byte[0] | (uint32_t)byte[1] << 8;
    uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7FFFu;
    float value;
    if (rest < 0x400u) { /* subnormal: a multiple of 2^-24 */
        value = (float)rest * 5.9604644775390625e-8f;
        return sign ? -value : value;
    }
    uint32_t bits = sign | ((rest << 13) + 0x38000000u);
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float stored_value(const void *data, int format, size_t i)
{
    return format == DENOISE_HALVES ? half_value(data, i) : ((const float *)data)[i];
}

/* Indices stand one after the other, high bits first. */
INLINE unsigned index_at(const uint8_t *bytes, size_t bit, unsigned num_bits)
{
    const uint8_t *at = bytes + (bit >> 3);
    unsigned both = (unsigned)at[0] << 8 | at[1]; /* a byte of zeros ends the array */
    return both >> (16u - (unsigned)(bit & 7) - num_bits) & ((1u << num_bits) - 1u);
}

static int is_coded(const denoise_layer *l)
{
    return l->kernel_format == DENOISE_CODED_TO_FLOATS || l->kernel_format == DENOISE_CODED_TO_HALVES;
}

static int is_masked(const denoise_layer *l, size_t place)
{
    return l->mask && !(l->mask[place >> 3] >> (7 - (place & 7)) & 1);
}

#define MOST_VALUES 256
#define COUNT_STEP 2
#define MOST_TOTAL (1u << 15)
#define LEAST_RANGE (1u << 24)

/* Decodes `count` indices into a codebook of some values: a range decoder (speech.net.indexcoder
 * writes what it reads). Index i takes counts[i] / total of the range, and its count grows whenever
 * it comes. `code` says where in the range the data lie. It reads each byte once, and none beyond. */
static void decode(const uint8_t *from, size_t count, unsigned num_values, uint8_t *to)
{
    uint16_t counts[MOST_VALUES];
    uint32_t total = num_values, range = 0xFFFFFFFFu, code = 0;
    for (unsigned i = 0; i < num_values; i++) counts[i] = 1;
    for (int i = 0; i < 4; i++) code = code << 8 | *from++;
    for (; count; count--) {
        uint32_t part = range / total, place = code / part, below = 0;
        unsigned index = 0;
        while (index + 1 < num_values && below + counts[index] <= place) below += counts[index++];
        *to++ = (uint8_t)index;
        code -= part * below;
        for (range = part * counts[index]; range < LEAST_RANGE; range <<= 8)
            code = code << 8 | *from++;
        counts[index] += COUNT_STEP;
        total += COUNT_STEP;
        if (total <= MOST_TOTAL) continue;
        total = 0;
        for (unsigned i = 0; i < num_values; i++) {
            counts[i] -= counts[i] / 2;
            total += counts[i];
        }
    }
}

/* Decodes the kernels that are coded. */
static void decode_kernels(const denoise_state *s)
{
    uint8_t *indices = (uint8_t *)array_of(s, NUM_ARRAYS);
    for (int i = 0; i < s->model->num_layers; i++) {
        const denoise_layer *l = s->model->layers + i;
        if (!is_coded(l)) continue;
        size_t columns = (size_t)l->in * (size_t)l->out, count = 0;
        size_t rows = l->kind == DENOISE_CONVOLUTION ? (size_t)l->taps * (size_t)l->width : 1;
        for (size_t k = 0; k < columns; k++) count += !is_masked(l, k); /* the mask has one row */
        decode(l->kernel, rows * count, l->book_size, indices + l->indices);
    }
}

/* Unpacks a kernel as float [rows][wide_in][wide_out], zero beyond in and out. */
static void unpack(const denoise_state *s, const denoise_layer *l, int rows, int wide_in,
                   int wide_out, float *to)
{
    const uint8_t *indices =
        is_coded(l) ? (const uint8_t *)array_of(s, NUM_ARRAYS) + l->indices : NULL;
    int has_book = l->kernel_format >= DENOISE_INDICES_TO_FLOATS;
    int has_halves = l->kernel_format == DENOISE_INDICES_TO_HALVES ||
                     l->kernel_format == DENOISE_CODED_TO_HALVES;
    int book_format = has_halves ? DENOISE_HALVES : DENOISE_FLOATS;
    float book[MOST_VALUES];
    unsigned num_bits = 0;
    for (int i = 0; has_book && i < l->book_size; i++)
        book[i] = stored_value(l->book, book_format, (size_t)i);
    while (1u << num_bits < l->book_size) num_bits++;
    if (l->mask || wide_in != l->in || wide_out != l->out)
        memset(to, 0, (size_t)rows * (size_t)wide_in * (size_t)wide_out * sizeof *to);
    size_t read = 0;
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < l->in; i++) {
            float *row = to + ((size_t)r * (size_t)wide_in + (size_t)i) * (size_t)wide_out;
            size_t column = ((size_t)(l->mask_rows > 1 ? r * l->in : 0) + (size_t)i) * (size_t)l->out;
            for (int o = 0; o < l->out; o++, column++) {
                if (is_masked(l, column)) continue;
                if (indices) row[o] = book[indices[read]];
                else if (has_book) row[o] = book[index_at(l->kernel, read * num_bits, num_bits)];
                else row[o] = stored_value(l->kernel, l->kernel_format, read);
                read++;
            }
        }
}

/* A layer's kernel as float [rows][wide_in][wide_out] and bias [wide_out], in place or unpacked. */
static const float *kernel_of(const denoise_state *s, const denoise_layer *l, int rows, int wide_in,
                              int wide_out, const float **bias)
{
    float *scratch = array_of(s, NUM_ARRAYS) + s->model->scratch;
    *bias = l->bias;
    if (l->bias && (l->bias_format != DENOISE_FLOATS || wide_out != l->out)) {
        for (int o = 0; o < wide_out; o++)
            scratch[o] = o < l->out ? stored_value(l->bias, l->bias_format, (size_t)o) : 0;
        *bias = scratch;
    }
    if (l->kernel_format == DENOISE_FLOATS && !l->mask && wide_in == l->in && wide_out == l->out)
        return l->kernel;
    scratch += (wide_out + LANES - 1) / LANES * LANES;
    unpack(s, l, rows, wide_in, wide_out, scratch);
    return scratch;
}

/* ---------------------------------------------------------------------------------------------
 * All products: out[r][c] = bias + sum over segments and k of x[r * x_row + k * x_depth] *
 * w[k * w_depth + c]. Columns come in groups of 8 that stay in registers, some rows at a time. */

#define MOST_TAPS 64

typedef struct {
    int count, depth;
    const float *x[MOST_TAPS], *w[MOST_TAPS]; /* of each segment */
    ptrdiff_t x_row, x_depth, w_depth, out_row;
    const float *column_bias, *row_bias; /* one of them, or none */
    float *out;
} Product;

INLINE vec load(const float *from) { return *(const vec *)from; }

INLINE void tile(const Product *p, int rows, int groups, int row, int column)
{
    enum { WIDE = LANES / PARTS };
    vec sum[12][3 * PARTS];
    int vectors = groups * PARTS;
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++)
        {
            vec level = {0};
            if (p->column_bias) level = load(p->column_bias + column + v * WIDE);
            if (p->row_bias) level += p->row_bias[row + r];
            sum[r][v] = level;
        }
    for (int i = 0; i < p->count; i++) {
        const float *x = p->x[i] + row * p->x_row, *w = p->w[i] + column;
        for (int k = 0; k < p->depth; k++, x += p->x_depth, w += p->w_depth) {
            vec weights[3 * PARTS];
            UNROLL for (int v = 0; v < vectors; v++) weights[v] = load(w + v * WIDE);
            UNROLL for (int r = 0; r < rows; r++)
                UNROLL for (int v = 0; v < vectors; v++) sum[r][v] += x[r * p->x_row] * weights[v];
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++)
            *(vec *)(p->out + (row + r) * p->out_row + column + v * WIDE) = sum[r][v];
}

/* As many rows at a time as leave registers for a row of weights. */
#define ROWS_OF(name, groups, most)                                                               \
    static void name(const Product *p, int rows, int column)                                      \
    {                                                                                             \
        int row = 0;                                                                              \
        for (; row + most <= rows; row += most) tile(p, most, groups, row, column);               \
        for (; row + 4 <= rows; row += 4) tile(p, 4, groups, row, column);                        \
        for (; row + 2 <= rows; row += 2) tile(p, 2, groups, row, column);                        \
        for (; row < rows; row++) tile(p, 1, groups, row, column);                                \
    }

#if defined(__AVX512VL__)
ROWS_OF(rows_of_1, 1, 12)
ROWS_OF(rows_of_2, 2, 8)
ROWS_OF(rows_of_3, 3, 8)
#else
ROWS_OF(rows_of_1, 1, 8)
ROWS_OF(rows_of_2, 2, 4)
ROWS_OF(rows_of_3, 3, 4)
#endif

static void multiply(const Product *p, int rows, int columns)
{
    for (int column = 0; column < columns;) {
        int groups = (columns - column) / LANES;
        if (groups > 3) groups = groups == 4 ? 2 : 3;
        if (groups == 1) rows_of_1(p, rows, column);
        else if (groups == 2) rows_of_2(p, rows, column);
        else rows_of_3(p, rows, column);
        column += groups * LANES;
    }
}

/* ---------------------------------------------------------------------------------------------
 * Layers */

/* x / (1 + exp(-x)) to 3 parts in 10^7: exp(-x) is 2^n times a polynomial for 2^f, |f| <= 0.5. */
INLINE float silu(float x)
{
    float y = x * -1.44269504f;
    y = y < 126.0f ? y : 126.0f;
    y = y > -126.0f ? y : -126.0f;
    int32_t n = (int32_t)(y + 126.5f) - 126;
    float f = y - (float)n, p = 1.32764604e-3f;
    p = p * f + 9.67554124e-3f;
    p = p * f + 5.55071331e-2f;
    p = p * f + 2.40221197e-1f;
    p = p * f + 6.93146967e-1f;
    p = p * f + 1.0f;
    union {
        int32_t bits;
        float value;
    } power;
    power.bits = (n + 127) * (1 << 23);
    return x / (1.0f + p * power.value);
}

/* to = activation(from) + residual */
static void activate(int activation, const float *from, const float *residual, float *to, int count)
{
    if (activation == DENOISE_SILU)
        for (int i = 0; i < count; i++) to[i] = silu(from[i]);
    else if (to != from)
        memcpy(to, from, (size_t)count * sizeof *to);
    if (residual)
        for (int i = 0; i < count; i++) to[i] += residual[i];
}

static void run_layer(const denoise_state *s, const denoise_layer *l)
{
    const denoise_tensor *tensors = s->model->tensors;
    const denoise_tensor *from = tensors + l->source, *to = tensors + l->target;
    float *out = bands_of(s, to);
    int count = to->bands * to->channels;
    const float *bias = NULL, *values = out;
    Product p;
    p.column_bias = p.row_bias = NULL;
    p.out = out;
    p.out_row = to->channels;
    if (l->kind == DENOISE_CONVOLUTION) {
        int depth = l->width * from->channels;
        const float *kernel =
            kernel_of(s, l, l->taps * l->width, from->channels, to->channels, &bias);
        p.count = l->taps;
        p.depth = depth;
        for (int k = 0; k < l->taps; k++) {
            p.x[k] = frame_of(s, from, (l->taps - 1 - k) * l->dilation) + l->first * from->channels;
            p.w[k] = kernel + (ptrdiff_t)k * depth * to->channels;
        }
        p.x_row = (ptrdiff_t)l->stride * from->channels;
        p.x_depth = 1;
        p.w_depth = to->channels;
        p.column_bias = bias;
        multiply(&p, to->bands, to->channels);
    } else if (l->kind == DENOISE_OVER_BANDS) { /* the kernel's rows and columns change places */
        p.count = 1;
        p.depth = l->in;
        p.x[0] = kernel_of(s, l, 1, l->in, l->out, &bias);
        p.x_row = 1;
        p.x_depth = l->out;
        p.w[0] = bands_of(s, from);
        p.w_depth = from->channels;
        p.row_bias = bias;
        multiply(&p, to->bands, to->channels);
    } else
        values = bands_of(s, from);
    activate(l->activation, values, l->residual < 0 ? NULL : bands_of(s, tensors + l->residual), out,
             count);
    clear_margins(s, to);
}

/* ---------------------------------------------------------------------------------------------
 * Spectra: interleaved real and imaginary parts of frame / 2 + 1 bins */

/* Complex transform of n points (Stockham); the twiddles are exp(-2 pi i k / (2 n)). Returns where
 * the result is: in `x` or `other`. */
static float *transform(float *x, float *other, int n, const float *twiddles)
{
    for (int half = n / 2, stride = 1; half; half /= 2, stride *= 2) {
        for (int k = 0; k < half; k++) {
            const float *w = twiddles + 4 * (size_t)k * (size_t)stride;
            const float *a = x + 2 * (size_t)stride * (size_t)k;
            const float *b = a + 2 * (size_t)stride * (size_t)half;
            float *sum = other + 4 * (size_t)stride * (size_t)k, *rest = sum + 2 * stride;
            for (int i = 0; i < 2 * stride; i += 2) {
                float re = a[i] - b[i], im = a[i + 1] - b[i + 1];
                sum[i] = a[i] + b[i];
                sum[i + 1] = a[i + 1] + b[i + 1];
                rest[i] = re * w[0] - im * w[1];
                rest[i + 1] = re * w[1] + im * w[0];
            }
        }
        float *done = other;
        other = x;
        x = done;
    }
    return x;
}

/* The spectrum of real x[frame]; x and `other` are overwritten. Pairs of samples are taken for
 * complex numbers. */
static void spectrum_of(const denoise_state *s, float *x, float *other, float *spectrum)
{
    int n = s->model->frame / 2;
    const float *w = array_of(s, TWIDDLES), *z = transform(x, other, n, w);
    for (int k = 0; k <= n; k++) {
        int i = 2 * (k % n), j = 2 * ((n - k) % n);
        float even_re = 0.5f * (z[i] + z[j]), even_im = 0.5f * (z[i + 1] - z[j + 1]);
        float odd_re = 0.5f * (z[i + 1] + z[j + 1]), odd_im = 0.5f * (z[j] - z[i]);
        float c = k < n ? w[2 * k] : -1.0f, d = k < n ? w[2 * k + 1] : 0.0f;
        spectrum[2 * k] = even_re + c * odd_re - d * odd_im;
        spectrum[2 * k + 1] = even_im + c * odd_im + d * odd_re;
    }
}

/* The inverse, real; the memory of both arrays serves. Returns where the samples are. */
static const float *signal_of(const denoise_state *s, const float *spectrum, float *x, float *other)
{
    int n = s->model->frame / 2;
    const float *w = array_of(s, TWIDDLES);
    float scale = 0.5f / (float)n;
    for (int k = 0; k < n; k++) {
        const float *a = spectrum + 2 * k, *b = spectrum + 2 * (n - k);
        /* At 0 and in the middle a real signal has no imaginary part. */
        float a_im = k ? a[1] : 0.0f, b_im = k ? b[1] : 0.0f;
        float even_re = a[0] + b[0], even_im = a_im - b_im;
        float re = a[0] - b[0], im = a_im + b_im;
        float odd_re = re * w[2 * k] + im * w[2 * k + 1], odd_im = im * w[2 * k] - re * w[2 * k + 1];
        x[2 * k] = scale * (even_re - odd_im);
        x[2 * k + 1] = -scale * (even_im + odd_re); /* conjugated: a transform forwards does */
    }
    float *samples = transform(x, other, n, w);
    for (int k = 0; k < n; k++) samples[2 * k + 1] = -samples[2 * k + 1];
    return samples;
}

/* ---------------------------------------------------------------------------------------------
 * Hops */

int denoise_start(denoise_state *s, const denoise_model *model, float *memory, size_t num_floats)
{
    const double pi = 3.14159265358979323846;
    if (num_floats < (size_t)model->num_floats) return -1;
    s->model = model;
    s->memory = memory;
    denoise_reset(s);
    decode_kernels(s);
    float *window = array_of(s, WINDOW), *twiddles = array_of(s, TWIDDLES);
    for (int i = 0; i < model->frame; i++) {
        double hann = 0.5 - 0.5 * cos(2 * pi * i / model->frame);
        window[i] = (float)(model->window == DENOISE_ROOT_HANN ? sqrt(hann) : hann);
    }
    for (int k = 0; k < model->frame / 2; k++) {
        twiddles[2 * k] = (float)cos(2 * pi * k / model->frame);
        twiddles[2 * k + 1] = (float)-sin(2 * pi * k / model->frame);
    }
    return 0;
}

/* Clears all tensors; the scratch behind them needs nothing, and the indices stay. */
static void clear_tensors(denoise_state *s)
{
    memset(s->slot, 0, sizeof s->slot);
    memset(array_of(s, NUM_ARRAYS), 0, (size_t)s->model->scratch * sizeof(float));
}

void denoise_reset(denoise_state *s)
{
    s->silenced = 0;
    memset(array_of(s, HISTORY), 0, (size_t)s->model->frame * sizeof(float));
    memset(array_of(s, OVERLAP), 0, (size_t)s->model->frame * sizeof(float));
    clear_tensors(s);
}

/* Compresses the spectrum in place: |X|^power X / |X|; fills in the features. */
static void compress(const denoise_state *s, float *spectrum)
{
    const denoise_model *m = s->model;
    const denoise_tensor *t = m->tensors + m->features;
    float *features = bands_of(s, t);
    clear_margins(s, t);
    for (int k = 0; k < m->frame / 2; k++, spectrum += 2, features += t->channels) {
        float level = spectrum[0] * spectrum[0] + spectrum[1] * spectrum[1];
        float gain = powf(level > POWER_FLOOR ? level : POWER_FLOOR, 0.5f * (m->power - 1));
        spectrum[0] *= gain;
        spectrum[1] *= gain;
        features[0] = spectrum[0];
        features[1] = spectrum[1];
        features[2] = sqrtf(spectrum[0] * spectrum[0] + spectrum[1] * spectrum[1]);
    }
}

/* Multiplies the compressed spectrum by the masks and expands it. Returns 0 if the result has no
 * measure. */
static int expand(const denoise_state *s, float *spectrum)
{
    const denoise_model *m = s->model;
    const denoise_tensor *t = m->tensors + m->masks;
    const float *masks = bands_of(s, t);
    float exponent = 0.5f * (1 / m->power - 1), sum = 0;
    for (int k = 0; k < m->frame / 2; k++, spectrum += 2) {
        int place = k + m->split / 2;
        const float *mask = masks + place / m->split * t->channels + 2 * (place % m->split);
        float re = spectrum[0] * mask[0] - spectrum[1] * mask[1];
        float im = spectrum[0] * mask[1] + spectrum[1] * mask[0];
        float level = re * re + im * im, gain = level > 0 ? powf(level, exponent) : level;
        spectrum[0] = re * gain;
        spectrum[1] = im * gain;
        sum += spectrum[0] * 0 + spectrum[1] * 0; /* 0, or NaN from the first infinity on */
    }
    spectrum[0] = spectrum[1] = 0; /* half the rate is left out */
    return sum == 0;
}

void denoise_hop(denoise_state *s, const float *in, float *out)
{
    const denoise_model *m = s->model;
    int frame = m->frame, hop = m->hop, bad = 0;
    float *history = array_of(s, HISTORY), *overlap = array_of(s, OVERLAP);
    float *work = array_of(s, WORK), *more = array_of(s, MORE_WORK);
    float *spectrum = array_of(s, SPECTRUM), *window = array_of(s, WINDOW);
    memmove(history, history + hop, (size_t)(frame - hop) * sizeof *history);
    memcpy(history + frame - hop, in, (size_t)hop * sizeof *history);
    for (int i = frame - hop; i < frame; i++) bad |= !(fabsf(history[i]) <= MOST_SAMPLE);
    if (bad) memset(history + frame - hop, 0, (size_t)hop * sizeof *history);
    for (int i = 0; i < frame; i++) work[i] = history[i] * window[i];
    spectrum_of(s, work, more, spectrum);
    compress(s, spectrum);
    for (int i = 0; i < m->num_layers; i++) run_layer(s, m->layers + i);
    if (!expand(s, spectrum)) { /* nothing of it may stay */
        memset(spectrum, 0, (size_t)(frame + 2) * sizeof *spectrum);
        clear_tensors(s);
        bad = 1;
    }
    const float *samples = signal_of(s, spectrum, work, more);
    /* The squared windows add up to this. */
    float gain = (float)hop / ((m->window == DENOISE_ROOT_HANN ? 0.5f : 0.375f) * (float)frame);
    for (int i = 0; i < frame; i++) overlap[i] += samples[i] * window[i] * gain;
    memcpy(out, overlap, (size_t)hop * sizeof *out);
    memmove(overlap, overlap + hop, (size_t)(frame - hop) * sizeof *overlap);
    memset(overlap + frame - hop, 0, (size_t)hop * sizeof *overlap);
    for (int i = 0; i < m->num_tensors; i++) {
        const denoise_tensor *t = m->tensors + i;
        if (t->frames > 1) s->slot[t->ring] = (uint16_t)((s->slot[t->ring] + 1) % t->frames);
    }
    s->silenced += (uint32_t)bad;
}

void denoise_hops(denoise_state *s, const float *in, float *out, size_t num_hops)
{
    for (size_t i = 0; i < num_hops; i++)
        denoise_hop(s, in + i * (size_t)s->model->hop, out + i * (size_t)s->model->hop);
}
