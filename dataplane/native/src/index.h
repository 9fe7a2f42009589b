/* The block index: (tenant, tag) -> where the record lies, and what eviction needs to know.
 *
 * Two anonymous mappings made at once and never grown or rehashed: a pool of 48-byte entries and
 * two u32 bucket heads for each, 56 bytes a block. Pages are touched as entries are used. Entries
 * are chained by number, so a handle (the entry's number) stays valid until the entry is removed;
 * the number is used again after that.
 *
 * A tag is the first `tag_bits` bits (low bits of the first bytes) of a block id. Two ids with the
 * same tag are the same entry: whoever reads the record checks the full id.
 *
 * One owner, one thread at a time; nothing here locks or blocks. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MKV_INDEX_CAPACITY_MAX INT32_MAX /* handles travel as i32 with negative meanings */
#define MKV_INDEX_SECTOR_MAX ((UINT64_C(1) << 40) - 1)
#define MKV_INDEX_KEY_BYTES 16
#define MKV_INDEX_NO_BUFFER UINT32_MAX

enum { MKV_INDEX_ABSENT = -1, MKV_INDEX_FULL = -1, MKV_INDEX_PRESENT = -2 };

struct mkv_tag {
    uint64_t low, high;
};

struct mkv_entry {
    struct mkv_tag tag;
    uint64_t location; /* first sector 40 bits | sectors 16 bits | bit 63: in use */
    uint32_t next;     /* number of the next entry in the chain or free list, plus 1; 0 ends it */
    uint32_t stamp;
    uint32_t expiry_s; /* 0: never */
    uint32_t buffer;   /* MKV_INDEX_NO_BUFFER: none */
    uint16_t tenant, slot, depth, flags;
};
_Static_assert(sizeof(struct mkv_entry) == 48, "an entry is 48 bytes: 56 a block with its buckets");

/* What a new entry holds; `id` is read for its first 16 bytes only during the call. */
struct mkv_record {
    const uint8_t *id;
    uint64_t sector; /* at most MKV_INDEX_SECTOR_MAX */
    uint32_t expiry_s, stamp;
    uint16_t sectors, tenant, slot, depth;
};

struct mkv_index {
    struct mkv_entry *entries;
    uint32_t *buckets;     /* entry number plus 1; 0: empty */
    struct mkv_tag tag_mask;
    uint64_t hash_key[2];  /* secret, or a tenant could fill one bucket with ids of its choice */
    uint32_t capacity, bucket_count;
    uint32_t used;         /* entries [used, capacity) were never touched */
    uint32_t free_first;   /* free list, plus 1 */
    uint32_t count;
    bool check_tenant;
};

/* Map the tables. capacity 1..MKV_INDEX_CAPACITY_MAX, tag_bits 1..128. Without `check_tenant`
 * entries of one tag are one entry whatever their tenant (a negative control of tests). Returns 0,
 * or the errno of mmap with nothing left mapped. */
int mkv_index_open(struct mkv_index *index, uint32_t capacity, unsigned tag_bits, bool check_tenant,
                   const uint8_t hash_key[MKV_INDEX_KEY_BYTES]);

/* Unmap the tables. Safe to call twice, or on a zeroed index. */
void mkv_index_close(struct mkv_index *index);

/* Forget all entries and give their pages back. */
void mkv_index_clear(struct mkv_index *index);

/* Bytes mapped, touched or not. */
size_t mkv_index_memory_bytes(const struct mkv_index *index);

static inline bool mkv_entry_live(const struct mkv_entry *entry)
{
    return entry->location >> 63;
}

static inline uint64_t mkv_entry_sector(const struct mkv_entry *entry)
{
    return entry->location & MKV_INDEX_SECTOR_MAX;
}

static inline uint16_t mkv_entry_sectors(const struct mkv_entry *entry)
{
    return (uint16_t)(entry->location >> 40);
}

static inline bool mkv_entry_expired(const struct mkv_entry *entry, uint32_t now_s)
{
    return entry->expiry_s != 0 && entry->expiry_s <= now_s;
}

/* Return the live entry, or NULL when `handle` names none. Valid until the entry is removed. */
struct mkv_entry *mkv_index_entry(struct mkv_index *index, uint32_t handle);

/* Point the entry at another place; `sector` at most MKV_INDEX_SECTOR_MAX. */
void mkv_entry_move(struct mkv_entry *entry, uint64_t sector, uint16_t sectors);

/* Return the handle, or MKV_INDEX_ABSENT. Reads 16 bytes of `id`; does not look at expiry. */
int32_t mkv_index_find(const struct mkv_index *index, uint16_t tenant, const uint8_t *id);

/* Find `count` ids of 32 bytes; expired entries are absent. Overlaps the cache misses of many ids,
 * which a loop over mkv_index_find does not. */
void mkv_index_find_many(const struct mkv_index *index, uint16_t tenant, const uint8_t *ids,
                         size_t count, uint32_t now_s, int32_t *handles);

/* Add an entry without a buffer and with flags 0. Returns its handle, MKV_INDEX_FULL, or
 * MKV_INDEX_PRESENT with nothing changed. */
int32_t mkv_index_insert(struct mkv_index *index, const struct mkv_record *record);

/* Remove a live entry. */
void mkv_index_remove(struct mkv_index *index, uint32_t handle);

/* Stamp handle i with stamp + count - 1 - i (mod 2^32), so that the head of a prefix is the
 * youngest and tails are evicted first. Handles that name no entry (such as MKV_INDEX_ABSENT) are
 * skipped. */
void mkv_index_touch_many(struct mkv_index *index, const uint32_t *handles, size_t count,
                          uint32_t stamp);

/* Write the handles of entries first..end-1 that have `slot`, in order; return how many.
 * `handles` has room for `room`; stops when it is full. */
size_t mkv_index_slot_handles(const struct mkv_index *index, uint16_t slot, uint32_t first,
                              uint32_t end, uint32_t *handles, size_t room);

#define MKV_INDEX_LISTED_BYTES 20

/* Write tag (16 bytes) and depth (u32, little-endian) of a tenant's entries among first..end-1 that
 * have not expired, in order; return how many. `listed` has room for end - first of them. */
size_t mkv_index_tenant_blocks(const struct mkv_index *index, uint16_t tenant, uint32_t first,
                               uint32_t end, uint32_t now_s, uint8_t *listed);

/* Remove every entry whose first sector is in [first, end); return how many. A scan. */
uint32_t mkv_index_remove_sectors(struct mkv_index *index, uint64_t first, uint64_t end);
