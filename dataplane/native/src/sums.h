/* Checksums of blocks: see the functions for ownership; nothing here allocates or keeps state
 * outside what the caller passes.
 *
 * A block's bytes are cut into chunks of 256 KiB; each has an xxh3_64 sum (seed 0), the last may be
 * short. All integers are little-endian in memory, which is what the wire and the records hold. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "MemKV's formats are little-endian and written without swapping"
#endif

#define MKV_CHUNK_BYTES ((size_t)256 * 1024)
#define MKV_CHUNKS_PER_BLOCK_MAX 64
#define MKV_BLOCK_ID_BYTES 32
#define MKV_TENANT_TAG_BYTES 16
#define MKV_ROOT_BYTES 16
#define MKV_SUMMER_STATE_BYTES 576 /* an XXH3_state_t; checked where it is used */

/* Return xxh3_64 of `len` bytes, seed 0. `data` may be NULL when len is 0. */
uint64_t mkv_xxh3_64(const void *data, size_t len);

/* Write xxh3_128 of `len` bytes, seed 0, low half first. `data` may be NULL when len is 0. */
void mkv_xxh3_128(const void *data, size_t len, uint64_t halves[2]);

/* Return how many sums `len` bytes have: 0 for an empty block. */
static inline size_t mkv_chunk_count(size_t len)
{
    return len / MKV_CHUNK_BYTES + (len % MKV_CHUNK_BYTES != 0);
}

/* Write mkv_chunk_count(len) sums to `sums`. */
void mkv_chunk_sums(const void *data, size_t len, uint64_t *sums);

/* Copy `len` bytes and write the chunk sums of what now lies in `target`: what a reader of the
 * target gets is what was summed, even if the source changed meanwhile. No overlap. */
void mkv_copy_and_sum(void *target, const void *source, size_t len, uint64_t *sums);

/* Write the 16-byte root that binds id, tenant, length and sums:
 * xxh3_128(id || tag || length u64 || sums), low half first. At most MKV_CHUNKS_PER_BLOCK_MAX sums;
 * returns 0, or -1 when there are more. */
int mkv_block_root(const uint8_t id[MKV_BLOCK_ID_BYTES], const uint8_t tag[MKV_TENANT_TAG_BYTES],
                   uint64_t length, const uint64_t *sums, size_t count,
                   uint8_t out[MKV_ROOT_BYTES]);

/* Chunk sums of bytes that arrive in pieces of any size, from any number of buffers.
 *
 * The summer lives where the caller puts it, holds no resources and needs no clean-up; `sums` stays
 * the caller's. Used by one thread at a time. */
struct mkv_summer {
    _Alignas(64) unsigned char state[MKV_SUMMER_STATE_BYTES];
    uint64_t *sums;
    size_t capacity; /* sums that fit */
    size_t count;    /* sums written */
    size_t filled;   /* bytes in the open chunk */
};

/* Start over. `sums` has room for `capacity` sums. */
void mkv_summer_start(struct mkv_summer *summer, uint64_t *sums, size_t capacity);

/* Add bytes; a sum is written whenever 256 KiB are full. Returns 0, or -1 without reading anything
 * when the bytes would need more sums than fit. */
int mkv_summer_feed(struct mkv_summer *summer, const void *data, size_t len);

/* Close the open chunk, if any, and return how many sums there are. Feeding after this starts a new
 * chunk. */
size_t mkv_summer_finish(struct mkv_summer *summer);

/* Name of the loops in use on this machine: "avx2" or "baseline". */
const char *mkv_sums_engine(void);
