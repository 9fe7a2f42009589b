/* Block ids and what follows from them: slots, owners, groups.
 *
 * Nothing here allocates except mkv_group_by_owner's caller-given scratch; all outputs belong to
 * the caller. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define MKV_USER_KEY_BYTES_MAX 512
#define MKV_TENANT_SALT_BYTES_MAX 64

/* A user key: bytes the caller keeps alive. */
struct mkv_key {
    const char *data;
    size_t len;
};

/* Write 32 bytes a key to `ids`: BLAKE2b-256 of (u32 length || key), keyed with the salt (0..64
 * bytes; none means unkeyed). Returns `count`, or the index of the first key that is empty or
 * longer than MKV_USER_KEY_BYTES_MAX (ids before it are written). */
size_t mkv_block_ids(const struct mkv_key *keys, size_t count, const uint8_t *salt, size_t salt_len,
                     uint8_t *ids);

/* Write xxh3_64(id) mod `slots` for each id; slots in 1..65536. */
void mkv_slots_of(const uint8_t *ids, size_t count, uint32_t slots, uint16_t *out);

/* Group positions 0..count-1 by owners[slots[p]], a stable counting sort.
 *
 * `starts` has room for 65537 numbers; `positions` for `count`. On return the positions of owner o
 * are positions[starts[o] .. starts[o + 1]) for o <= *owner_last. Returns `count`, or the first
 * position whose slot is not below `slots_count`. */
size_t mkv_group_by_owner(const uint16_t *slots, size_t count, const uint16_t *owners,
                          size_t slots_count, uint32_t *starts, uint32_t *positions,
                          uint32_t *owner_last);

/* Copy records of `width` bytes at `positions` to `out`. Returns `count`, or the index of the first
 * position not below `records_count`. */
size_t mkv_gather(const uint8_t *records, size_t records_count, size_t width,
                  const uint32_t *positions, size_t count, uint8_t *out);
