/* Bodies of the hot loops, compiled once for the baseline (sums.c) and once with -mavx2
 * (sums_avx2.c).
 *
 * Everything here is static, so each object holds its own copy compiled with its own flags and the
 * linker cannot mix them. Include it once in an object, then define a table by MKV_LOOPS_TABLE. */
#pragma once
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <string.h>

#include "loops.h"
#include "pattern.h"
#include "sums.h"

_Static_assert(sizeof(XXH3_state_t) <= MKV_SUMMER_STATE_BYTES, "summer state holds an XXH3 state");
_Static_assert(_Alignof(XXH3_state_t) <= 64, "summer state is aligned to 64 bytes");

static uint64_t loop_sum(const void *data, size_t len)
{
    return XXH3_64bits(data, len);
}

static void loop_sum_128(const void *data, size_t len, uint64_t halves[2])
{
    XXH128_hash_t sum = XXH3_128bits(data, len);
    halves[0] = sum.low64;
    halves[1] = sum.high64;
}

static void loop_chunk_sums(const void *data, size_t len, uint64_t *sums)
{
    const unsigned char *at = data;
    for (; len > MKV_CHUNK_BYTES; len -= MKV_CHUNK_BYTES, at += MKV_CHUNK_BYTES)
        *sums++ = XXH3_64bits(at, MKV_CHUNK_BYTES);
    if (len)
        *sums = XXH3_64bits(at, len);
}

static void loop_copy_and_sum(void *target, const void *source, size_t len, uint64_t *sums)
{
    unsigned char *to = target;
    const unsigned char *from = source;
    while (len) {
        size_t part = len < MKV_CHUNK_BYTES ? len : MKV_CHUNK_BYTES;
        memcpy(to, from, part);
        *sums++ = XXH3_64bits(to, part);
        to += part, from += part, len -= part;
    }
}

static void loop_state_reset(void *state)
{
    XXH3_64bits_reset(state);
}

static void loop_state_update(void *state, const void *data, size_t len)
{
    XXH3_64bits_update(state, data, len);
}

static uint64_t loop_state_digest(const void *state)
{
    return XXH3_64bits_digest(state);
}

static void loop_pattern_fill(unsigned char *target, size_t words, uint64_t base, uint64_t first)
{
    for (size_t i = 0; i < words; i++) {
        uint64_t word = mkv_pattern_word(base, first + i);
        memcpy(target + i * 8, &word, 8); /* the target need not be aligned */
    }
}

/* Return how many leading words equal the pattern. Compares a run of words before it branches, so
 * that the compiler can use vectors for the run. */
static size_t loop_pattern_match(const unsigned char *data, size_t words, uint64_t base,
                                 uint64_t first)
{
    enum { RUN = 32 };
    size_t done = 0;
    for (; words - done >= RUN; done += RUN) {
        uint64_t found[RUN], wrong = 0;
        memcpy(found, data + done * 8, sizeof found);
        for (size_t i = 0; i < RUN; i++)
            wrong |= found[i] ^ mkv_pattern_word(base, first + done + i);
        if (wrong)
            break;
    }
    for (; done < words; done++) {
        uint64_t found;
        memcpy(&found, data + done * 8, sizeof found);
        if (found != mkv_pattern_word(base, first + done))
            break;
    }
    return done;
}

#define MKV_LOOPS_TABLE(label)                                                                     \
    {                                                                                              \
        .name = label, .sum = loop_sum, .sum_128 = loop_sum_128, .chunk_sums = loop_chunk_sums,    \
        .copy_and_sum = loop_copy_and_sum, .state_reset = loop_state_reset,                        \
        .state_update = loop_state_update, .state_digest = loop_state_digest,                      \
        .pattern_fill = loop_pattern_fill, .pattern_match = loop_pattern_match,                    \
    }
