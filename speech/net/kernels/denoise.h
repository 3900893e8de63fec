/* Speech enhancement hop by hop: noisy samples in, clean samples out, in plain C99.
 *
 *     static float memory[DENOISE_MEMORY_FLOATS];             both names are in weights.h
 *     static denoise_state state;
 *     denoise_start(&state, &denoise_weights, memory, DENOISE_MEMORY_FLOATS);
 *     for (;;) denoise_hop(&state, in, out);                  model->hop samples each
 *
 * A hop of output belongs to the input that came frame - hop samples earlier, so a sample leaves
 * model->frame samples after it came. Nothing is allocated, and nothing but sin, cos, pow and sqrt
 * is asked of a library. What runs is a table of layers: see denoise.c.
 */

#ifndef DENOISE_H
#define DENOISE_H

#include <stddef.h>
#include <stdint.h>

/* Tensors that are kept for later frames. */
#define DENOISE_MOST_RINGS 64

enum { DENOISE_CONVOLUTION, DENOISE_OVER_BANDS, DENOISE_POINTWISE };
enum { DENOISE_LINEAR, DENOISE_SILU };
/* Values as they are; indices into a codebook, of as few bits as it needs; the same indices coded,
 * which denoise_start decodes into a byte each. */
enum {
    DENOISE_FLOATS,
    DENOISE_HALVES,
    DENOISE_INDICES_TO_FLOATS,
    DENOISE_INDICES_TO_HALVES,
    DENOISE_CODED_TO_FLOATS,
    DENOISE_CODED_TO_HALVES
};
enum { DENOISE_HANN, DENOISE_ROOT_HANN };

/* float [frames][before + bands + after][channels], zero in the bands before and after. */
typedef struct {
    int32_t place;          /* floats from the start of the tensors' memory */
    int16_t bands, channels; /* channels: a multiple of 8, or those of the features */
    int16_t before, after;
    int16_t frames; /* 1, or the frame at hand and all before it that a convolution looks back to */
    int16_t ring;   /* its number among those of several frames */
} denoise_tensor;

/* target = activation(kernel * source + bias) + residual. Kernels are
 *   convolution  [taps][width][in][out]; tap k reads (taps - 1 - k) * dilation frames back, band f
 *                from band first + f * stride on, counted with the zeros before
 *   over bands   [in][out], for every channel
 *   pointwise    there is none
 */
typedef struct {
    uint8_t kind, activation, kernel_format, bias_format;
    int16_t source, target, residual; /* numbers of tensors; -1: none */
    int16_t first, taps, dilation, width, stride, in, out;
    uint16_t book_size; /* values of the codebook */
    uint16_t mask_rows; /* rows of the mask: 1 for all rows of the kernel, or as many as it has */
    int32_t indices;    /* decoded ones: bytes from the start of the tensors' memory */
    const void *kernel; /* in its format */
    const void *book;   /* the codebook, NULL: none */
    const uint8_t *mask; /* a bit for each [mask_rows][in][out]: stored, or zero; NULL: all stored */
    const void *bias;   /* NULL: none */
} denoise_layer;

typedef struct {
    int32_t rate_hz, frame, hop; /* frame: a power of two */
    int32_t window;
    float power; /* of the compressed spectrum */
    int16_t num_tensors, num_layers;
    int16_t features, masks; /* numbers of tensors: what the network takes, and gives */
    int16_t split;           /* bins in a band of the masks */
    int32_t scratch;         /* floats from the start of the tensors' memory to room for a kernel */
    int32_t num_floats;      /* memory to give to denoise_start */
    const denoise_tensor *tensors;
    const denoise_layer *layers;
} denoise_model;

typedef struct {
    const denoise_model *model;
    float *memory;
    uint32_t silenced; /* hops taken for silence: a NaN, an infinity, or a level without measure */
    uint16_t slot[DENOISE_MOST_RINGS];
} denoise_state;

/* Makes a state ready, with `num_floats` floats of memory; returns 0, or -1 if that is too little.
 * Kernels that are coded are decoded here. */
int denoise_start(denoise_state *state, const denoise_model *model, float *memory,
                  size_t num_floats);

/* Forgets all that came before. */
void denoise_reset(denoise_state *state);

/* Takes and gives model->hop samples, full scale at 1; `in` and `out` may be the same. */
void denoise_hop(denoise_state *state, const float *in, float *out);

/* The same for many hops that follow each other. */
void denoise_hops(denoise_state *state, const float *in, float *out, size_t num_hops);

#endif
