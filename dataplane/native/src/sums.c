#include "sums.h"

#include "loops_body.h"

const struct mkv_loops mkv_loops_baseline = MKV_LOOPS_TABLE("baseline");

const char *mkv_sums_engine(void)
{
    return mkv_loops()->name;
}

uint64_t mkv_xxh3_64(const void *data, size_t len)
{
    return mkv_loops()->sum(data, len);
}

void mkv_xxh3_128(const void *data, size_t len, uint64_t halves[2])
{
    mkv_loops()->sum_128(data, len, halves);
}

void mkv_chunk_sums(const void *data, size_t len, uint64_t *sums)
{
    mkv_loops()->chunk_sums(data, len, sums);
}

void mkv_copy_and_sum(void *target, const void *source, size_t len, uint64_t *sums)
{
    mkv_loops()->copy_and_sum(target, source, len, sums);
}

int mkv_block_root(const uint8_t id[MKV_BLOCK_ID_BYTES], const uint8_t tag[MKV_TENANT_TAG_BYTES],
                   uint64_t length, const uint64_t *sums, size_t count,
                   uint8_t out[MKV_ROOT_BYTES])
{
    /* 568 bytes at most: gathering them and hashing once is faster than a streaming state. */
    unsigned char bound[MKV_BLOCK_ID_BYTES + MKV_TENANT_TAG_BYTES + 8 +
                        8 * MKV_CHUNKS_PER_BLOCK_MAX];
    unsigned char *at = bound;
    if (count > MKV_CHUNKS_PER_BLOCK_MAX)
        return -1;
    memcpy(at, id, MKV_BLOCK_ID_BYTES);
    at += MKV_BLOCK_ID_BYTES;
    memcpy(at, tag, MKV_TENANT_TAG_BYTES);
    at += MKV_TENANT_TAG_BYTES;
    memcpy(at, &length, 8);
    at += 8;
    if (count)
        memcpy(at, sums, 8 * count);
    at += 8 * count;
    XXH128_hash_t root = XXH3_128bits(bound, (size_t)(at - bound));
    memcpy(out, &root.low64, 8);
    memcpy(out + 8, &root.high64, 8);
    return 0;
}

void mkv_summer_start(struct mkv_summer *summer, uint64_t *sums, size_t capacity)
{
    /* The state is reset when a chunk opens, so that whole chunks never touch it. */
    summer->sums = sums;
    summer->capacity = capacity;
    summer->count = 0;
    summer->filled = 0;
}

static void feed_part(struct mkv_summer *summer, const struct mkv_loops *loops,
                      const unsigned char *data, size_t len)
{
    if (summer->filled == 0 && len == MKV_CHUNK_BYTES) {
        summer->sums[summer->count++] = loops->sum(data, len);
        return;
    }
    if (summer->filled == 0)
        loops->state_reset(summer->state);
    loops->state_update(summer->state, data, len);
    summer->filled += len;
    if (summer->filled == MKV_CHUNK_BYTES)
        mkv_summer_finish(summer);
}

int mkv_summer_feed(struct mkv_summer *summer, const void *data, size_t len)
{
    const struct mkv_loops *loops = mkv_loops();
    const unsigned char *at = data;
    size_t room = (summer->capacity - summer->count) * MKV_CHUNK_BYTES - summer->filled;
    if (len > room)
        return -1;
    while (len) {
        size_t part = MKV_CHUNK_BYTES - summer->filled;
        if (part > len)
            part = len;
        feed_part(summer, loops, at, part);
        at += part;
        len -= part;
    }
    return 0;
}

size_t mkv_summer_finish(struct mkv_summer *summer)
{
    if (summer->filled) {
        summer->sums[summer->count++] = mkv_loops()->state_digest(summer->state);
        summer->filled = 0;
    }
    return summer->count;
}
