/* Raw PCM at 16 kHz, one channel, from standard input to standard output, as many samples as came.
 *
 *     denoise < noisy.s16 > clean.s16            16 bits, the machine's byte order
 *     denoise -f < noisy.f32 > clean.f32         floats, full scale at 1
 */

#include "denoise.h"
#include "weights.h"

#include <stdio.h>
#include <string.h>

static float memory[DENOISE_MEMORY_FLOATS];
static denoise_state state;
static float block[DENOISE_HOP];
static int16_t samples[DENOISE_HOP];

static size_t read_block(int as_floats)
{
    if (as_floats) return fread(block, sizeof *block, DENOISE_HOP, stdin);
    size_t count = fread(samples, sizeof *samples, DENOISE_HOP, stdin);
    for (size_t i = 0; i < count; i++) block[i] = samples[i] / 32768.0f;
    return count;
}

static int write_block(int as_floats, size_t from, size_t count)
{
    if (as_floats) return fwrite(block + from, sizeof *block, count, stdout) == count;
    for (size_t i = from; i < from + count; i++) {
        float x = block[i] * 32768.0f;
        x = x < 32767.0f ? x : 32767.0f;
        x = x > -32768.0f ? x : -32768.0f;
        samples[i] = (int16_t)(x + (x < 0 ? -0.5f : 0.5f));
    }
    return fwrite(samples + from, sizeof *samples, count, stdout) == count;
}

int main(int argc, char **argv)
{
    int as_floats = argc == 2 && !strcmp(argv[1], "-f");
    if (argc > 2 || (argc == 2 && !as_floats)) {
        fprintf(stderr, "usage: denoise [-f] < noisy > clean\n");
        return 2;
    }
    if (denoise_start(&state, &denoise_weights, memory, DENOISE_MEMORY_FLOATS)) return 1;
    /* The first output is of what came before the signal; zeros at the end fetch its last. */
    size_t early = DENOISE_FRAME - DENOISE_HOP, came = 0, gone = 0, count;
    do {
        count = read_block(as_floats);
        came += count;
        for (size_t i = count; i < DENOISE_HOP; i++) block[i] = 0;
        denoise_hop(&state, block, block);
        size_t skip = early < DENOISE_HOP ? early : DENOISE_HOP;
        early -= skip;
        size_t left = came - gone, most = DENOISE_HOP - skip;
        size_t now = left < most ? left : most;
        if (!write_block(as_floats, skip, now)) {
            fprintf(stderr, "error: the output cannot be written\n");
            return 1;
        }
        gone += now;
    } while (count || gone < came);
    if (fflush(stdout)) {
        fprintf(stderr, "error: the output cannot be written\n");
        return 1;
    }
    if (state.silenced)
        fprintf(stderr, "%lu hops held no number and were taken for silence\n",
                (unsigned long)state.silenced);
    return 0;
}
