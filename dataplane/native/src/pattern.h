/* The content that demo, benchmarks and tests store: word i of a block is a function of the block's
 * seed and i, so any byte can be checked without keeping the block.
 *
 * For one seed all words differ, and at one position the words of two seeds always differ (both
 * steps are bijections): a block that is foreign, shifted or mixed shows at once. */
#pragma once
#include <stddef.h>
#include <stdint.h>

static inline uint64_t mkv_pattern_mix(uint64_t word)
{
    word ^= word >> 30;
    word *= UINT64_C(0xbf58476d1ce4e5b9);
    word ^= word >> 27;
    word *= UINT64_C(0x94d049bb133111eb);
    return word ^ (word >> 31);
}

/* Seeds are mixed first: else seed + 0x9e37... would be the same stream, one word on. */
static inline uint64_t mkv_pattern_base(uint64_t seed)
{
    return mkv_pattern_mix(seed + UINT64_C(0x9e3779b97f4a7c15));
}

static inline uint64_t mkv_pattern_word(uint64_t base, uint64_t index)
{
    return mkv_pattern_mix(base + index * UINT64_C(0x9e3779b97f4a7c15));
}

/* Fill with the bytes [offset, offset + len) of the pattern of `seed`. */
void mkv_pattern_fill(void *target, size_t len, uint64_t seed, uint64_t offset);

/* Compare with the bytes [offset, offset + len) of the pattern of `seed`: return how many leading
 * bytes are right, `len` when all are. */
size_t mkv_pattern_check(const void *data, size_t len, uint64_t seed, uint64_t offset);
