/* The hot loops behind sums.h and pattern.h: one table for the baseline, one for AVX2. */
#pragma once
#include <stddef.h>
#include <stdint.h>

/* One set of loops. `state` is the open chunk of a summer; `sum` and friends are as in sums.h. */
struct mkv_loops {
    const char *name;
    uint64_t (*sum)(const void *data, size_t len);
    void (*sum_128)(const void *data, size_t len, uint64_t halves[2]);
    void (*chunk_sums)(const void *data, size_t len, uint64_t *sums);
    void (*copy_and_sum)(void *target, const void *source, size_t len, uint64_t *sums);
    void (*state_reset)(void *state);
    void (*state_update)(void *state, const void *data, size_t len);
    uint64_t (*state_digest)(const void *state);
    void (*pattern_fill)(unsigned char *target, size_t words, uint64_t base, uint64_t first);
    size_t (*pattern_match)(const unsigned char *data, size_t words, uint64_t base, uint64_t first);
};

extern const struct mkv_loops mkv_loops_baseline;
extern const struct mkv_loops mkv_loops_avx2; /* defined on x86-64 only */

/* The loops for this machine. A test of one bit, so it is asked each time rather than kept in a
 * global. */
static inline const struct mkv_loops *mkv_loops(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
        return &mkv_loops_avx2;
#endif
    return &mkv_loops_baseline;
}
