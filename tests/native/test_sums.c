/* Checksums, pattern, ids and groups without an interpreter, for the sanitizers. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "keys.h"
#include "loops.h"
#include "pattern.h"
#include "sums.h"

enum { BLOCK = 3 * 256 * 1024 + 17 };

static void known_values(void)
{
    uint8_t zeros[64] = {0}, root[16];
    uint64_t halves[2];
    assert(mkv_xxh3_64(NULL, 0) == UINT64_C(0x2d06800538d394c2));
    assert(mkv_xxh3_64("a", 1) == UINT64_C(0xe6c632b61e964e1f));
    mkv_xxh3_128(NULL, 0, halves);
    assert(halves[0] == UINT64_C(0x6001c324468d497f) && halves[1] == UINT64_C(0x99aa06d3014798d8));
    assert(mkv_chunk_count(0) == 0 && mkv_chunk_count(1) == 1);
    assert(mkv_chunk_count(MKV_CHUNK_BYTES) == 1 && mkv_chunk_count(MKV_CHUNK_BYTES + 1) == 2);
    assert(mkv_block_root(zeros, zeros, 0, NULL, MKV_CHUNKS_PER_BLOCK_MAX + 1, root) == -1);
}

static void loops_agree(const unsigned char *block)
{
    const struct mkv_loops *fast = mkv_loops(), *slow = &mkv_loops_baseline;
    unsigned char *fast_bytes = malloc(BLOCK), *slow_bytes = malloc(BLOCK);
    for (size_t len = 0; len < BLOCK; len = len * 2 + 1) {
        uint64_t fast_halves[2], slow_halves[2];
        assert(fast->sum(block, len) == slow->sum(block, len));
        fast->sum_128(block, len, fast_halves);
        slow->sum_128(block, len, slow_halves);
        assert(memcmp(fast_halves, slow_halves, sizeof fast_halves) == 0);
    }
    fast->pattern_fill(fast_bytes, BLOCK / 8, 5, 9);
    slow->pattern_fill(slow_bytes, BLOCK / 8, 5, 9);
    assert(memcmp(fast_bytes, slow_bytes, BLOCK / 8 * 8) == 0);
    assert(slow->pattern_match(fast_bytes, BLOCK / 8, 5, 9) == BLOCK / 8);
    free(fast_bytes);
    free(slow_bytes);
}

static void pieces_sum_like_the_whole(const unsigned char *block)
{
    const size_t steps[] = {1, 1000, 65536, MKV_CHUNK_BYTES, MKV_CHUNK_BYTES + 1, BLOCK};
    uint64_t whole[4], copied[4], pieces[4];
    unsigned char *copy = malloc(BLOCK);
    struct mkv_summer summer;
    mkv_chunk_sums(block, BLOCK, whole);
    mkv_copy_and_sum(copy, block, BLOCK, copied);
    assert(memcmp(copy, block, BLOCK) == 0 && memcmp(whole, copied, sizeof whole) == 0);
    for (size_t s = 0; s < sizeof steps / sizeof *steps; s++) {
        mkv_summer_start(&summer, pieces, 4);
        for (size_t at = 0; at < BLOCK; at += steps[s]) {
            size_t len = BLOCK - at < steps[s] ? BLOCK - at : steps[s];
            assert(mkv_summer_feed(&summer, block + at, len) == 0);
        }
        assert(mkv_summer_finish(&summer) == 4);
        assert(memcmp(whole, pieces, sizeof whole) == 0);
    }
    free(copy);
}

static void summer_refuses_more_than_fits(const unsigned char *block)
{
    uint64_t sums[1];
    struct mkv_summer summer;
    mkv_summer_start(&summer, sums, 1);
    assert(mkv_summer_feed(&summer, block, MKV_CHUNK_BYTES + 1) == -1);
    assert(mkv_summer_feed(&summer, block, MKV_CHUNK_BYTES - 1) == 0);
    assert(mkv_summer_feed(&summer, block, 2) == -1);
    assert(mkv_summer_feed(&summer, block, 1) == 0);
    assert(mkv_summer_feed(&summer, block, 1) == -1);
    assert(mkv_summer_feed(&summer, block, 0) == 0);
    assert(mkv_summer_finish(&summer) == 1);
}

static void pattern_finds_the_first_wrong_byte(unsigned char *block)
{
    mkv_pattern_fill(block, BLOCK, 7, 0);
    assert(mkv_pattern_check(block, BLOCK, 7, 0) == BLOCK);
    assert(mkv_pattern_check(block, BLOCK, 8, 0) == 0);
    for (size_t offset = 0; offset < 600; offset++) {
        assert(mkv_pattern_check(block + offset, BLOCK - offset, 7, offset) == BLOCK - offset);
        block[offset] ^= 1;
        assert(mkv_pattern_check(block, BLOCK, 7, 0) == offset);
        block[offset] ^= 1;
    }
    block[BLOCK - 1] ^= 1;
    assert(mkv_pattern_check(block, BLOCK, 7, 0) == BLOCK - 1);
}

static void groups_are_stable(void)
{
    const uint16_t slots[] = {0, 1, 2, 1, 0, 2}, owners[] = {3, 0, 3};
    uint32_t *starts = malloc(65537 * sizeof *starts), positions[6], last;
    const uint32_t expected[] = {1, 3, 0, 2, 4, 5};
    assert(mkv_group_by_owner(slots, 6, owners, 3, starts, positions, &last) == 6);
    assert(last == 3 && memcmp(positions, expected, sizeof expected) == 0);
    assert(starts[0] == 0 && starts[1] == 2 && starts[3] == 2 && starts[4] == 6);
    assert(mkv_group_by_owner(slots, 6, owners, 2, starts, positions, &last) == 2);
    free(starts);
}

static void ids_refuse_bad_keys(void)
{
    char long_key[MKV_USER_KEY_BYTES_MAX + 1];
    memset(long_key, 'k', sizeof long_key);
    const struct mkv_key keys[] = {{"key", 3}, {long_key, 512}, {long_key, 513}, {"", 0}};
    uint8_t ids[4 * 32], salt[64] = {0};
    assert(mkv_block_ids(keys, 4, salt, 0, ids) == 2);
    assert(mkv_block_ids(keys + 3, 1, salt, sizeof salt, ids) == 0);
    assert(mkv_block_ids(keys, 2, salt, sizeof salt, ids) == 2);
}

int main(void)
{
    unsigned char *block = malloc(BLOCK);
    mkv_pattern_fill(block, BLOCK, 1, 0);
    known_values();
    loops_agree(block);
    pieces_sum_like_the_whole(block);
    summer_refuses_more_than_fits(block);
    pattern_finds_the_first_wrong_byte(block);
    groups_are_stable();
    ids_refuse_bad_keys();
    free(block);
    return 0;
}
