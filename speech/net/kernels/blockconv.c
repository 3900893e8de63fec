/* Convolution of long multichannel signals with short kernels, through block transforms.
 *
 * A signal is [time, channels], channels contiguous. It is cut into windows of N samples, each of
 * which yields N - K + 1 valid outputs of a kernel of K taps (overlap-save). Two neighbouring
 * windows are packed into one complex window: z = window(2p) + i window(2p+1). The kernels are
 * real, hence the pair stays separate through the convolution and no spectrum has to be unpacked.
 * Every step of the transform works on whole rows of channels, so that the SIMD lanes are the
 * channels and nothing is ever transposed:
 *
 *   rows of z --FFT--> Z[f, in] --complex matrix product with W[f, in, out]--> Y[f, out] --IFFT-->
 *
 * Normalisation and LeakyReLU of the layer below are applied while a window is read, statistics
 * for the layer's own normalisation are taken while its output is written: a layer reads and
 * writes each sample once.
 */
#include "transform.h"

/* Block pairs that share one pass over the kernel spectra, and the register tile of the matrix
 * product: ROWS windows x COLS vectors of output channels, real and imaginary. */
#define GROUP 8
#ifdef __AVX512F__
#define ROWS 4
#define COLS 2
#else
#define ROWS 2
#define COLS 1
#endif

/* What is read: rows of a [length, channels] signal, zero outside of it. */
enum { READ_PLAIN = 0, READ_ACTIVATION = 1, READ_GRADIENT = 2 };
typedef struct {
    const float *values; /* the signal, or the gradient with respect to the activation */
    const float *inputs; /* READ_GRADIENT: what the normalisation was given */
    int64_t length;
    int channels;
    int mode;
    float slope;
    /* each [padded channels]:
     * ACTIVATION: leaky(scale x + shift)
     * GRADIENT: gain leaky'(scale y + shift) g + tilt y + level */
    const float *scale, *shift, *gain, *tilt, *level;
} source;

/* What is written, and what is summed on the way, per block of outputs. */
enum { SUM_NOTHING = 0, SUM_MOMENTS = 1, SUM_GRADIENT = 2 };
typedef struct {
    float *values;
    int64_t length;
    int channels;
    int mode;
    float slope;
    const float *bias;               /* [padded channels] or NULL */
    const float *inputs;             /* SUM_GRADIENT: what the normalisation was given */
    const float *scale, *shift, *mean;
    float *sums;                     /* [blocks, 2, padded channels] */
} sink;

/* ------------------------------------------------------------------------- reading and writing */

INLINE vec read_vector(const source *x, const float *values, const float *inputs, int s) {
    vec v = load(values + s);
    if (x->mode == READ_PLAIN) return v;
    if (x->mode == READ_ACTIVATION) {
        return leaky(v * load(x->scale + s) + load(x->shift + s), x->slope);
    }
    vec y = load(inputs + s);
    vec a = y * load(x->scale + s) + load(x->shift + s);
    vec g = v * load(x->gain + s);
    return select_positive(a, g, g * x->slope) + y * load(x->tilt + s) + load(x->level + s);
}

/* Reads `count` rows from time `start` on into every second half-row of z; the rest is zero. */
static void read_window(const source *x, int64_t start, int count, int size, float *z, int S) {
    const int C = x->channels;
    int first = start < 0 ? (int)(-start < count ? -start : count) : 0;
    int64_t left = x->length - start;
    int last = left < count ? (int)(left < first ? first : left) : count;
    for (int n = 0; n < first; n++)
        for (int s = 0; s < S; s += LANES) store(RE(n) + s, (vec){});
    for (int n = first; n < last; n++) {
        const float *values = x->values + (start + n) * C;
        const float *inputs = x->inputs ? x->inputs + (start + n) * C : NULL;
        if (C >= LANES) {
            /* Whole vectors; the last one ends with the row, so nothing is read beyond it. */
            int s = 0;
            for (; s + LANES <= C; s += LANES) store(RE(n) + s, read_vector(x, values, inputs, s));
            if (s < C) {
                store(RE(n) + s, (vec){});
                store(RE(n) + C - LANES, read_vector(x, values, inputs, C - LANES));
            }
        } else {
            float a[LANES] = {0}, b[LANES] = {0};
            memcpy(a, values, C * sizeof(float));
            if (inputs) memcpy(b, inputs, C * sizeof(float));
            store(RE(n), read_vector(x, a, b, 0));
        }
    }
    for (int n = last; n < size; n++)
        for (int s = 0; s < S; s += LANES) store(RE(n) + s, (vec){});
}

/* Writes one vector of channels, `at` .. `at` + LANES, of `count` rows; sums go to `first` and
 * `second`. `row` is where the vector stands in a row of the output. */
INLINE void write_columns(const sink *y, int64_t start, int count, const float *z, int S, int at,
                          const int mode, vec *first, vec *second) {
    const int C = y->channels;
    const vec bias = y->bias ? load(y->bias + at) : (vec){};
    float *out = y->values + start * C + at;
    vec sum = {}, other = {};
    if (mode == SUM_GRADIENT) {
        const vec scale = load(y->scale + at), shift = load(y->shift + at);
        const vec mean = load(y->mean + at);
        const float *inputs = y->inputs + start * C + at;
        for (int n = 0; n < count; n++) {
            vec v = load(RE(n) + at) + bias, u = load(inputs + (size_t)n * C);
            store(out + (size_t)n * C, v);
            vec g = select_positive(u * scale + shift, v, v * y->slope);
            sum += g;
            other += g * (u - mean);
        }
    } else {
        for (int n = 0; n < count; n++) {
            vec v = load(RE(n) + at) + bias;
            store(out + (size_t)n * C, v);
            sum += v;
        }
    }
    if (mode == SUM_MOMENTS) {
        const vec centre = sum / (float)count - bias;
        for (int n = 0; n < count; n++) {
            vec d = load(RE(n) + at) - centre;
            other += d * d;
        }
    }
    *first = sum;
    *second = other;
}

/* Writes rows of fewer channels than a vector has lanes. */
static void write_narrow(const sink *y, int64_t start, int count, const float *z, int S,
                         float *sums) {
    const int C = y->channels;
    float *out = y->values + start * C;
    for (int c = 0; c < C; c++) {
        const float bias = y->bias ? y->bias[c] : 0;
        float sum = 0, other = 0;
        for (int n = 0; n < count; n++) {
            const float v = RE(n)[c] + bias;
            out[(size_t)n * C + c] = v;
            if (y->mode == SUM_GRADIENT) {
                const float u = y->inputs[(start + n) * C + c];
                const float g = u * y->scale[c] + y->shift[c] > 0 ? v : v * y->slope;
                sum += g;
                other += g * (u - y->mean[c]);
            } else {
                sum += v;
            }
        }
        if (y->mode == SUM_MOMENTS)
            for (int n = 0; n < count; n++) {
                const float d = RE(n)[c] + bias - sum / count;
                other += d * d;
            }
        if (sums) sums[c] = sum, sums[S + c] = other;
    }
}

/* Writes `count` rows from time `start` on, as far as the output goes. */
static void write_rows(const sink *y, int64_t start, int count, const float *z, int S,
                       float *sums) {
    const int C = y->channels;
    const int64_t left = y->length - start;
    if (left <= 0) return;
    if (left < count) count = (int)left;
    if (C < LANES) {
        write_narrow(y, start, count, z, S, sums);
        return;
    }
    for (int s = 0; s < C; s += LANES) {
        /* The last vector ends with the row, so that nothing is written beyond it. */
        const int at = s + LANES <= C ? s : C - LANES;
        float first[LANES], second[LANES];
        vec a, b;
        if (y->mode == SUM_MOMENTS)
            write_columns(y, start, count, z, S, at, SUM_MOMENTS, &a, &b);
        else if (y->mode == SUM_GRADIENT)
            write_columns(y, start, count, z, S, at, SUM_GRADIENT, &a, &b);
        else
            write_columns(y, start, count, z, S, at, SUM_NOTHING, &a, &b);
        if (!sums) continue;
        store(first, a);
        store(second, b);
        memcpy(sums + at, first, sizeof first);
        memcpy(sums + S + at, second, sizeof second);
    }
}

/* --------------------------------------------------------------------------- matrix products */

/* Y[row, out] (+)= sum over in of Z[row, in] W[in, out], complex; conj takes W's conjugate. */
INLINE void product_tile(const float *Z, size_t stride_z, const float *W, float *Y, size_t stride_y,
                         int I, int Si, int So, int o, const int rows, const int cols,
                         const int conjugate) {
    vec re[ROWS][COLS] = {}, im[ROWS][COLS] = {};
    for (int i = 0; i < I; i++) {
        const float *w = W + (size_t)i * 2 * So + o;
#pragma GCC unroll 4
        for (int c = 0; c < cols; c++) {
            vec wr = load(w + c * LANES), wi = load(w + So + c * LANES);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                float zr = Z[r * stride_z + i], zi = Z[r * stride_z + Si + i];
                re[r][c] += wr * zr;
                im[r][c] += wr * zi;
                if (conjugate) {
                    re[r][c] += wi * zi;
                    im[r][c] -= wi * zr;
                } else {
                    re[r][c] -= wi * zi;
                    im[r][c] += wi * zr;
                }
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < cols; c++) {
            store(Y + r * stride_y + o + c * LANES, re[r][c]);
            store(Y + r * stride_y + So + o + c * LANES, im[r][c]);
        }
}

INLINE void product(const float *Z, size_t stride_z, const float *W, float *Y, size_t stride_y,
                    int rows, int I, int Si, int So, const int conjugate) {
    int o = 0;
    for (; o + COLS * LANES <= So; o += COLS * LANES) {
        int r = 0;
        for (; r + ROWS <= rows; r += ROWS)
            product_tile(Z + r * stride_z, stride_z, W, Y + r * stride_y, stride_y, I, Si, So, o,
                         ROWS, COLS, conjugate);
        for (; r < rows; r++)
            product_tile(Z + r * stride_z, stride_z, W, Y + r * stride_y, stride_y, I, Si, So, o, 1,
                         COLS, conjugate);
    }
    for (; o < So; o += LANES) {
        int r = 0;
        for (; r + ROWS <= rows; r += ROWS)
            product_tile(Z + r * stride_z, stride_z, W, Y + r * stride_y, stride_y, I, Si, So, o,
                         ROWS, 1, conjugate);
        for (; r < rows; r++)
            product_tile(Z + r * stride_z, stride_z, W, Y + r * stride_y, stride_y, I, Si, So, o, 1,
                         1, conjugate);
    }
}

/* A[in, out] += sum over rows of X[row, in] conj(G[row, out]), or the conjugate of that. */
INLINE void outer_tile(const float *X, size_t stride_x, const float *G, size_t stride_g, float *A,
                       int rows, int Si, int So, int o, const int ins, const int cols,
                       const int conjugate) {
    vec re[ROWS][COLS], im[ROWS][COLS];
#pragma GCC unroll 4
    for (int i = 0; i < ins; i++)
#pragma GCC unroll 4
        for (int c = 0; c < cols; c++) {
            re[i][c] = load(A + (size_t)i * 2 * So + o + c * LANES);
            im[i][c] = load(A + (size_t)i * 2 * So + So + o + c * LANES);
        }
    for (int r = 0; r < rows; r++) {
        const float *x = X + r * stride_x, *g = G + r * stride_g + o;
#pragma GCC unroll 4
        for (int c = 0; c < cols; c++) {
            vec gr = load(g + c * LANES), gi = load(g + So + c * LANES);
#pragma GCC unroll 4
            for (int i = 0; i < ins; i++) {
                float xr = x[i], xi = x[Si + i];
                re[i][c] += gr * xr;
                re[i][c] += gi * xi;
                if (conjugate) {
                    im[i][c] -= gr * xi;
                    im[i][c] += gi * xr;
                } else {
                    im[i][c] += gr * xi;
                    im[i][c] -= gi * xr;
                }
            }
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < ins; i++)
#pragma GCC unroll 4
        for (int c = 0; c < cols; c++) {
            store(A + (size_t)i * 2 * So + o + c * LANES, re[i][c]);
            store(A + (size_t)i * 2 * So + So + o + c * LANES, im[i][c]);
        }
}

INLINE void outer(const float *X, size_t stride_x, const float *G, size_t stride_g, float *A,
                  int rows, int I, int Si, int So, const int conjugate) {
    for (int o = 0; o < So;) {
        const int wide = o + COLS * LANES <= So;
        int i = 0;
        for (; i + ROWS <= I; i += ROWS)
            if (wide)
                outer_tile(X + i, stride_x, G, stride_g, A + (size_t)i * 2 * So, rows, Si, So, o,
                           ROWS, COLS, conjugate);
            else
                outer_tile(X + i, stride_x, G, stride_g, A + (size_t)i * 2 * So, rows, Si, So, o,
                           ROWS, 1, conjugate);
        for (; i < I; i++)
            if (wide)
                outer_tile(X + i, stride_x, G, stride_g, A + (size_t)i * 2 * So, rows, Si, So, o, 1,
                           COLS, conjugate);
            else
                outer_tile(X + i, stride_x, G, stride_g, A + (size_t)i * 2 * So, rows, Si, So, o, 1,
                           1, conjugate);
        o += wide ? COLS * LANES : LANES;
    }
}

/* -------------------------------------------------------------------------------- public calls */

/* Spectra of kernels [taps, in, out] -> [size/2 + 1, in, 2, padded out], conjugate, over size. */
int kernel_spectra(const plan *p, const float *kernel, int taps, int I, int O, float *spectra,
                   int threads) {
    const int S = padded(O), N = p->size;
    int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : failed)
    for (int i = 0; i < I; i++) {
        float *z = scratch(window_floats(N, S));
        if (!z) {
            failed |= 1;
            continue;
        }
        memset(z, 0, window_floats(N, S) * sizeof(float));
        for (int k = 0; k < taps; k++) memcpy(RE(k), kernel + ((size_t)k * I + i) * O, O * sizeof(float));
        forward(p, z, S);
        for (int f = 0; f <= N / 2; f++) {
            float *w = spectra + ((size_t)f * I + i) * 2 * S;
            const float *r = RE(p->position[f]);
            for (int s = 0; s < S; s++) w[s] = r[s] / N, w[S + s] = -r[S + s] / N;
        }
    }
    return failed;
}

/* y[t] = bias + sum over k of x[t + k - pad] w[k]. */
int convolve(const plan *p, const source *x, const float *spectra, int taps, int pad, const sink *y,
             int threads) {
    const int N = p->size, hop = N - taps + 1, I = x->channels;
    const int Si = padded(I), So = padded(y->channels);
    const int64_t blocks = (y->length + hop - 1) / hop, pairs = (blocks + 1) / 2;
    const int64_t groups = (pairs + GROUP - 1) / GROUP;
    const size_t step_z = window_floats(N, Si), step_y = window_floats(N, So);
    int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : failed)
    for (int64_t group = 0; group < groups; group++) {
        float *Z = scratch(GROUP * (step_z + step_y));
        if (!Z) {
            failed |= 1;
            continue;
        }
        float *Y = Z + GROUP * step_z;
        const int64_t first = group * GROUP;
        const int rows = (int)(pairs - first < GROUP ? pairs - first : GROUP);
        for (int r = 0; r < rows; r++) {
            const int64_t start = 2 * (first + r) * hop - pad;
            float *z = Z + r * step_z;
            read_window(x, start, N, N, z, Si);
            read_window(x, start + hop, N, N, z + Si, Si);
            forward(p, z, Si);
        }
        for (int f = 0; f <= N / 2; f++) {
            const float *W = spectra + (size_t)f * I * 2 * So;
            const size_t at = p->position[f];
            product(Z + at * 2 * Si, step_z, W, Y + at * 2 * So, step_y, rows, I, Si, So, 0);
            if (f == 0 || 2 * f == N) continue;
            const size_t mirror = p->position[N - f];
            product(Z + mirror * 2 * Si, step_z, W, Y + mirror * 2 * So, step_y, rows, I, Si, So, 1);
        }
        for (int r = 0; r < rows; r++) {
            float *z = Y + r * step_y;
            const int64_t block = 2 * (first + r);
            inverse(p, z, So);
            float *sums = y->sums ? y->sums + block * 2 * So : NULL;
            write_rows(y, block * hop, hop, z, So, sums);
            write_rows(y, (block + 1) * hop, hop, z + So, So, sums ? sums + 2 * So : NULL);
        }
    }
    return failed;
}

/* gradient[k, in, out] = sum over t of x[t + k - pad, in] g[t, out].
 * work: threads x (size/2 + 1) x in x 2 x padded out floats. */
int filter_gradient(const plan *p, const source *x, const source *g, int taps, int pad,
                    float *gradient, float *work, int threads) {
    const int N = p->size, hop = N - taps + 1, I = x->channels, O = g->channels;
    const int Si = padded(I), So = padded(O);
    const int64_t blocks = (g->length + hop - 1) / hop, pairs = (blocks + 1) / 2;
    const int64_t groups = (pairs + GROUP - 1) / GROUP;
    const size_t step_x = window_floats(N, Si), step_g = window_floats(N, So);
    const size_t spectrum = (size_t)(N / 2 + 1) * I * 2 * So;
    int failed = 0;
    memset(work, 0, threads * spectrum * sizeof(float));
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : failed)
    for (int64_t group = 0; group < groups; group++) {
        float *X = scratch(GROUP * (step_x + step_g));
        if (!X) {
            failed |= 1;
            continue;
        }
        float *G = X + GROUP * step_x, *sum = work + omp_get_thread_num() * spectrum;
        const int64_t first = group * GROUP;
        const int rows = (int)(pairs - first < GROUP ? pairs - first : GROUP);
        for (int r = 0; r < rows; r++) {
            const int64_t start = 2 * (first + r) * hop;
            read_window(x, start - pad, N, N, X + r * step_x, Si);
            read_window(x, start - pad + hop, N, N, X + r * step_x + Si, Si);
            forward(p, X + r * step_x, Si);
            read_window(g, start, hop, N, G + r * step_g, So);
            read_window(g, start + hop, hop, N, G + r * step_g + So, So);
            forward(p, G + r * step_g, So);
        }
        /* Only the real part of the correlation is wanted: frequency N - f adds its conjugate. */
        for (int f = 0; f <= N / 2; f++) {
            float *A = sum + (size_t)f * I * 2 * So;
            const size_t at = p->position[f];
            outer(X + at * 2 * Si, step_x, G + at * 2 * So, step_g, A, rows, I, Si, So, 0);
            if (f == 0 || 2 * f == N) continue;
            const size_t mirror = p->position[N - f];
            outer(X + mirror * 2 * Si, step_x, G + mirror * 2 * So, step_g, A, rows, I, Si, So, 1);
        }
    }
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : failed)
    for (int i = 0; i < I; i++) {
        const int S = So;
        float *z = scratch(window_floats(N, So));
        if (!z) {
            failed |= 1;
            continue;
        }
        for (int f = 0; f <= N / 2; f++) {
            float *a = RE(p->position[f]), *b = RE(p->position[(N - f) % N]);
            const int edge = f == 0 || 2 * f == N;
            for (int s = 0; s < So; s++) {
                float re = 0, im = 0;
                for (int thread = 0; thread < threads; thread++) {
                    const float *sum = work + thread * spectrum + ((size_t)f * I + i) * 2 * So;
                    re += sum[s], im += sum[So + s];
                }
                /* The mean of a frequency and its mirror; an edge is its own mirror. */
                const float half = edge ? 1.0f : 0.5f;
                a[s] = half * re, a[So + s] = edge ? 0 : half * im;
                b[s] = half * re, b[So + s] = edge ? 0 : -half * im;
            }
        }
        inverse(p, z, So);
        for (int k = 0; k < taps; k++) {
            const float *r = RE(k);
            for (int o = 0; o < O; o++) gradient[((size_t)k * I + i) * O + o] = r[o] / N;
        }
    }
    return failed;
}
