/* What the kernels share: vectors, the transform, working memory.
 *
 * Vectors are GCC/Clang vector extensions: AVX-512, AVX2 and NEON come from the same source.
 * Spectra lie in digit-reversed order, which both transforms share, so nothing is reordered.
 */
#ifndef TRANSFORM_H
#define TRANSFORM_H
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_thread_num(void) { return 0; }
static inline int omp_get_num_threads(void) { return 1; }
#endif

#define LANES 16
typedef float vec __attribute__((vector_size(64)));
typedef float uvec __attribute__((vector_size(64), aligned(4)));  /* at any float's address */
typedef int32_t mask __attribute__((vector_size(64)));
#define INLINE static inline __attribute__((always_inline))

typedef struct {
    int size;             /* N, a power of two from 16 on */
    int leaf;             /* size of the smallest blocks: 8 or 4, N over a power of four */
    const float *twiddle; /* per stage m > leaf and k < m/4: w^k, w^2k, w^3k as (re, im) */
    const int *position;  /* position[f]: where frequency f lies */
} plan;

INLINE int padded(int channels) { return (channels + LANES - 1) / LANES * LANES; }
INLINE vec load(const float *p) { return *(const uvec *)p; }
INLINE void store(float *p, vec v) { *(uvec *)p = v; }
INLINE vec select_positive(vec z, vec yes, vec no) {
    mask m = z > (vec){};
    return (vec)((m & (mask)yes) | (~m & (mask)no));
}
INLINE vec leaky(vec a, float slope) { return select_positive(a, a, a * slope); }

/* ---------------------------------------------------------------- transforms, rows of S floats
 *
 * In place, decimation in frequency one way and in time the other: radix 4 down to blocks of 8 or
 * 4, which one butterfly does without a multiplication but by the root of one half. A stage's
 * twiddles are w^k, w^2k and w^3k for each k < m/4; k = 0 needs none. */

#define RE(n) (z + (size_t)(n) * 2 * S)
#define ROOT_HALF 0.70710678118654752440f

typedef struct {
    vec re, im;
} complex_vec;

INLINE complex_vec take(const float *row, int S) { return (complex_vec){load(row), load(row + S)}; }
INLINE void put(float *row, int S, complex_vec a) {
    store(row, a.re);
    store(row + S, a.im);
}
INLINE complex_vec plus(complex_vec a, complex_vec b) {
    return (complex_vec){a.re + b.re, a.im + b.im};
}
INLINE complex_vec minus(complex_vec a, complex_vec b) {
    return (complex_vec){a.re - b.re, a.im - b.im};
}
/* a times i, or -i if `conjugate` */
INLINE complex_vec turned(complex_vec a, const int conjugate) {
    return conjugate ? (complex_vec){a.im, -a.re} : (complex_vec){-a.im, a.re};
}
/* a times the twiddle t, or its conjugate */
INLINE complex_vec twiddled(complex_vec a, const float *t, const int conjugate) {
    if (conjugate) return (complex_vec){a.re * t[0] + a.im * t[1], a.im * t[0] - a.re * t[1]};
    return (complex_vec){a.re * t[0] - a.im * t[1], a.im * t[0] + a.re * t[1]};
}
/* Four-point transform of a, b, c, d in place: forward takes powers of -i, inverse of i. */
INLINE void four_points(complex_vec x[4], const int forward) {
    complex_vec s0 = plus(x[0], x[2]), s1 = minus(x[0], x[2]);
    complex_vec s2 = plus(x[1], x[3]), s3 = turned(minus(x[1], x[3]), forward);
    x[0] = plus(s0, s2);
    x[1] = plus(s1, s3);
    x[2] = minus(s0, s2);
    x[3] = minus(s1, s3);
}
/* One butterfly of a forward stage: transform, then twiddles (none for k = 0). */
INLINE void forward_four(complex_vec x[4], const float *t, const int k) {
    four_points(x, 1);
    if (k)
        for (int r = 1; r < 4; r++) x[r] = twiddled(x[r], t + 2 * (r - 1), 0);
}
INLINE void inverse_four(complex_vec x[4], const float *t, const int k) {
    if (k)
        for (int r = 1; r < 4; r++) x[r] = twiddled(x[r], t + 2 * (r - 1), 1);
    four_points(x, 0);
}

INLINE void stage(float *z, const int S, int size, int m, const float *twiddle,
                  const int forward) {
    const int q = m / 4;
    for (int j = 0; j < size; j += m)
        for (int k = 0; k < q; k++)
            for (int s = 0; s < S; s += LANES) {
                complex_vec x[4];
                for (int r = 0; r < 4; r++) x[r] = take(RE(j + k + r * q) + s, S);
                if (forward)
                    forward_four(x, twiddle + 6 * k, k);
                else
                    inverse_four(x, twiddle + 6 * k, k);
                for (int r = 0; r < 4; r++) put(RE(j + k + r * q) + s, S, x[r]);
            }
}

static const float ROOTS[4] = {ROOT_HALF, -ROOT_HALF, -ROOT_HALF, -ROOT_HALF}; /* w, w^3 of 8 */

/* The smallest blocks, of 8 or 4 rows, whole in registers. */
INLINE void forward_leaf(float *z, const int S, int size, const int leaf) {
    for (int j = 0; j < size; j += leaf)
        for (int s = 0; s < S; s += LANES) {
            complex_vec a[4], b[4];
            for (int r = 0; r < 4; r++) a[r] = take(RE(j + r * leaf / 4) + s, S);
            four_points(a, 1);
            if (leaf == 4) {
                for (int r = 0; r < 4; r++) put(RE(j + r) + s, S, a[r]);
                continue;
            }
            for (int r = 0; r < 4; r++) b[r] = take(RE(j + 2 * r + 1) + s, S);
            four_points(b, 1);
            b[1] = twiddled(b[1], ROOTS, 0);
            b[2] = turned(b[2], 1);
            b[3] = twiddled(b[3], ROOTS + 2, 0);
            for (int r = 0; r < 4; r++) {
                put(RE(j + 2 * r) + s, S, plus(a[r], b[r]));
                put(RE(j + 2 * r + 1) + s, S, minus(a[r], b[r]));
            }
        }
}
INLINE void inverse_leaf(float *z, const int S, int size, const int leaf) {
    for (int j = 0; j < size; j += leaf)
        for (int s = 0; s < S; s += LANES) {
            complex_vec a[4], b[4];
            if (leaf == 4) {
                for (int r = 0; r < 4; r++) a[r] = take(RE(j + r) + s, S);
            } else {
                for (int r = 0; r < 4; r++) {
                    const complex_vec x = take(RE(j + 2 * r) + s, S);
                    const complex_vec y = take(RE(j + 2 * r + 1) + s, S);
                    a[r] = plus(x, y);
                    b[r] = minus(x, y);
                }
                b[1] = twiddled(b[1], ROOTS, 1);
                b[2] = turned(b[2], 0);
                b[3] = twiddled(b[3], ROOTS + 2, 1);
                four_points(b, 0);
                for (int r = 0; r < 4; r++) put(RE(j + 2 * r + 1) + s, S, b[r]);
            }
            four_points(a, 0);
            for (int r = 0; r < 4; r++) put(RE(j + r * leaf / 4) + s, S, a[r]);
        }
}

/* The transforms. The stage over whole windows, which callers may merge with reading or writing,
 * is done if `whole`. */
INLINE void forward_rows(const plan *p, float *z, const int S, const int whole) {
    const float *twiddle = p->twiddle;
    for (int m = p->size; m > p->leaf; m /= 4) {
        if (whole || m < p->size) stage(z, S, p->size, m, twiddle, 1);
        twiddle += 6 * (m / 4);
    }
    if (p->leaf == 8)
        forward_leaf(z, S, p->size, 8);
    else
        forward_leaf(z, S, p->size, 4);
}
INLINE void inverse_rows(const plan *p, float *z, const int S, const int whole) {
    const float *twiddle = p->twiddle;
    if (p->leaf == 8)
        inverse_leaf(z, S, p->size, 8);
    else
        inverse_leaf(z, S, p->size, 4);
    for (int m = p->size; m > p->leaf; m /= 4) twiddle += 6 * (m / 4);
    for (int m = 4 * p->leaf; m <= p->size; m *= 4) {
        twiddle -= 6 * (m / 4);
        if (whole || m < p->size) stage(z, S, p->size, m, twiddle, 0);
    }
}

static inline void forward(const plan *p, float *z, int S) {
    if (S == 16) forward_rows(p, z, 16, 1);
    else if (S == 32) forward_rows(p, z, 32, 1);
    else forward_rows(p, z, S, 1);
}

static inline void inverse(const plan *p, float *z, int S) {
    if (S == 16) inverse_rows(p, z, 16, 1);
    else if (S == 32) inverse_rows(p, z, 32, 1);
    else inverse_rows(p, z, S, 1);
}

/* ----------------------------------------------------------------------------------- scratch */

static inline float *scratch(size_t floats) {
    static __thread float *memory = NULL;
    static __thread size_t capacity = 0;
    if (floats > capacity) {
        free(memory);
        memory = NULL;
        capacity = 0;
        if (posix_memalign((void **)&memory, 64, floats * sizeof(float))) return NULL;
        capacity = floats;
    }
    return memory;
}

/* Windows lie one row apart more than their length, so that they do not share cache sets. */
INLINE size_t window_floats(int size, int S) { return (size_t)(size + 1) * 2 * S; }

#endif
