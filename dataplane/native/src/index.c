#include "index.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define IN_USE (UINT64_C(1) << 63)
#define BUCKETS_PER_ENTRY 2 /* a miss looks at half an entry on average */
#define ID_BYTES 32
#define FIND_GROUP 16 /* ids whose cache misses overlap: about what a core keeps in flight */

static inline uint64_t rotate(uint64_t word, int bits)
{
    return word << bits | word >> (64 - bits);
}

struct sip {
    uint64_t a, b, c, d;
};

static inline void sip_round(struct sip *s)
{
    s->a += s->b, s->b = rotate(s->b, 13) ^ s->a, s->a = rotate(s->a, 32);
    s->c += s->d, s->d = rotate(s->d, 16) ^ s->c;
    s->a += s->d, s->d = rotate(s->d, 21) ^ s->a;
    s->c += s->b, s->b = rotate(s->b, 17) ^ s->c, s->c = rotate(s->c, 32);
}

static inline void sip_word(struct sip *s, uint64_t word)
{
    s->d ^= word;
    sip_round(s);
    s->a ^= word;
}

/* SipHash-1-3 of tag and tenant: tenants choose their ids, so the buckets need a keyed hash. */
static inline uint32_t bucket_of(const struct mkv_index *index, uint16_t tenant, struct mkv_tag tag)
{
    struct sip s = {
        index->hash_key[0] ^ UINT64_C(0x736f6d6570736575),
        index->hash_key[1] ^ UINT64_C(0x646f72616e646f6d),
        index->hash_key[0] ^ UINT64_C(0x6c7967656e657261),
        index->hash_key[1] ^ UINT64_C(0x7465646279746573),
    };
    sip_word(&s, tag.low);
    sip_word(&s, tag.high);
    sip_word(&s, UINT64_C(18) << 56 | (index->check_tenant ? tenant : 0)); /* 18 bytes in all */
    s.c ^= 0xff;
    sip_round(&s);
    sip_round(&s);
    sip_round(&s);
    uint64_t hash = s.a ^ s.b ^ s.c ^ s.d;
    return (uint32_t)((hash >> 32) * index->bucket_count >> 32); /* scaled: any count of buckets */
}

static inline struct mkv_tag tag_of(const struct mkv_index *index, const uint8_t *id)
{
    struct mkv_tag tag;
    memcpy(&tag, id, sizeof tag);
    tag.low &= index->tag_mask.low;
    tag.high &= index->tag_mask.high;
    return tag;
}

static inline bool same(const struct mkv_index *index, const struct mkv_entry *entry,
                        uint16_t tenant, struct mkv_tag tag)
{
    return entry->tag.low == tag.low && entry->tag.high == tag.high &&
           (entry->tenant == tenant || !index->check_tenant);
}

static uint64_t low_bits(unsigned bits)
{
    return bits >= 64 ? UINT64_MAX : (UINT64_C(1) << bits) - 1;
}

static void *map_zeroed(size_t size)
{
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                    -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

static size_t entries_bytes(const struct mkv_index *index)
{
    return (size_t)index->capacity * sizeof(struct mkv_entry);
}

static size_t buckets_bytes(const struct mkv_index *index)
{
    return (size_t)index->bucket_count * sizeof(uint32_t);
}

int mkv_index_open(struct mkv_index *index, uint32_t capacity, unsigned tag_bits, bool check_tenant,
                   const uint8_t hash_key[MKV_INDEX_KEY_BYTES])
{
    memset(index, 0, sizeof *index);
    index->capacity = capacity;
    index->bucket_count = capacity * (uint32_t)BUCKETS_PER_ENTRY;
    index->tag_mask.low = low_bits(tag_bits);
    index->tag_mask.high = tag_bits > 64 ? low_bits(tag_bits - 64) : 0;
    index->check_tenant = check_tenant;
    memcpy(index->hash_key, hash_key, sizeof index->hash_key);
    index->entries = map_zeroed(entries_bytes(index));
    if (index->entries)
        index->buckets = map_zeroed(buckets_bytes(index));
    if (!index->buckets) {
        int error = errno;
        mkv_index_close(index);
        return error;
    }
    return 0;
}

void mkv_index_close(struct mkv_index *index)
{
    if (index->entries)
        munmap(index->entries, entries_bytes(index));
    if (index->buckets)
        munmap(index->buckets, buckets_bytes(index));
    memset(index, 0, sizeof *index);
}

void mkv_index_clear(struct mkv_index *index)
{
    /* Private anonymous pages read as zeros afterwards: no entries, empty buckets. */
    madvise(index->entries, entries_bytes(index), MADV_DONTNEED);
    madvise(index->buckets, buckets_bytes(index), MADV_DONTNEED);
    index->used = index->free_first = index->count = 0;
}

size_t mkv_index_memory_bytes(const struct mkv_index *index)
{
    return entries_bytes(index) + buckets_bytes(index);
}

struct mkv_entry *mkv_index_entry(struct mkv_index *index, uint32_t handle)
{
    if (handle >= index->used || !mkv_entry_live(&index->entries[handle]))
        return NULL;
    return &index->entries[handle];
}

void mkv_entry_move(struct mkv_entry *entry, uint64_t sector, uint16_t sectors)
{
    entry->location = IN_USE | (uint64_t)sectors << 40 | sector;
}

/* Walk one chain from its head. */
static inline int32_t find_in(const struct mkv_index *index, uint32_t head, uint16_t tenant,
                              struct mkv_tag tag)
{
    for (uint32_t link = head; link; link = index->entries[link - 1].next)
        if (same(index, &index->entries[link - 1], tenant, tag))
            return (int32_t)(link - 1);
    return MKV_INDEX_ABSENT;
}

int32_t mkv_index_find(const struct mkv_index *index, uint16_t tenant, const uint8_t *id)
{
    struct mkv_tag tag = tag_of(index, id);
    return find_in(index, index->buckets[bucket_of(index, tenant, tag)], tenant, tag);
}

static void find_group(const struct mkv_index *index, uint16_t tenant, const uint8_t *ids,
                       size_t count, uint32_t now_s, int32_t *handles)
{
    struct mkv_tag tags[FIND_GROUP];
    uint32_t buckets[FIND_GROUP], heads[FIND_GROUP];
    for (size_t i = 0; i < count; i++) {
        tags[i] = tag_of(index, ids + i * ID_BYTES);
        buckets[i] = bucket_of(index, tenant, tags[i]);
        __builtin_prefetch(&index->buckets[buckets[i]]);
    }
    for (size_t i = 0; i < count; i++) {
        heads[i] = index->buckets[buckets[i]];
        if (heads[i])
            __builtin_prefetch(&index->entries[heads[i] - 1]);
    }
    for (size_t i = 0; i < count; i++) {
        int32_t handle = find_in(index, heads[i], tenant, tags[i]);
        if (handle >= 0 && mkv_entry_expired(&index->entries[handle], now_s))
            handle = MKV_INDEX_ABSENT;
        handles[i] = handle;
    }
}

void mkv_index_find_many(const struct mkv_index *index, uint16_t tenant, const uint8_t *ids,
                         size_t count, uint32_t now_s, int32_t *handles)
{
    for (size_t done = 0; done < count; done += FIND_GROUP) {
        size_t part = count - done < FIND_GROUP ? count - done : FIND_GROUP;
        find_group(index, tenant, ids + done * ID_BYTES, part, now_s, handles + done);
    }
}

/* Take an entry from the free list, or one that was never used; 0 when there is none. */
static uint32_t take_entry(struct mkv_index *index)
{
    uint32_t link = index->free_first;
    if (link)
        index->free_first = index->entries[link - 1].next;
    else if (index->used < index->capacity)
        link = ++index->used;
    return link;
}

int32_t mkv_index_insert(struct mkv_index *index, const struct mkv_record *record)
{
    struct mkv_tag tag = tag_of(index, record->id);
    uint32_t *head = &index->buckets[bucket_of(index, record->tenant, tag)];
    if (find_in(index, *head, record->tenant, tag) >= 0)
        return MKV_INDEX_PRESENT;
    uint32_t link = take_entry(index);
    if (!link)
        return MKV_INDEX_FULL;
    struct mkv_entry *entry = &index->entries[link - 1];
    *entry = (struct mkv_entry){
        .tag = tag, .next = *head, .stamp = record->stamp, .expiry_s = record->expiry_s,
        .buffer = MKV_INDEX_NO_BUFFER, .tenant = record->tenant, .slot = record->slot,
        .depth = record->depth,
    };
    mkv_entry_move(entry, record->sector, record->sectors);
    *head = link;
    index->count++;
    return (int32_t)(link - 1);
}

void mkv_index_remove(struct mkv_index *index, uint32_t handle)
{
    struct mkv_entry *entry = &index->entries[handle];
    uint32_t *link = &index->buckets[bucket_of(index, entry->tenant, entry->tag)];
    while (*link != handle + 1)
        link = &index->entries[*link - 1].next;
    *link = entry->next;
    entry->location = 0;
    entry->next = index->free_first;
    index->free_first = handle + 1;
    index->count--;
}

void mkv_index_touch_many(struct mkv_index *index, const uint32_t *handles, size_t count,
                          uint32_t stamp)
{
    for (size_t i = 0; i < count; i++) {
        struct mkv_entry *entry = mkv_index_entry(index, handles[i]);
        if (entry)
            entry->stamp = stamp + (uint32_t)(count - 1 - i);
    }
}

size_t mkv_index_slot_handles(const struct mkv_index *index, uint16_t slot, uint32_t first,
                              uint32_t end, uint32_t *handles, size_t room)
{
    size_t found = 0;
    if (end > index->used)
        end = index->used;
    for (uint32_t handle = first; handle < end && found < room; handle++) {
        const struct mkv_entry *entry = &index->entries[handle];
        if (entry->slot == slot && mkv_entry_live(entry))
            handles[found++] = handle;
    }
    return found;
}

size_t mkv_index_tenant_blocks(const struct mkv_index *index, uint16_t tenant, uint32_t first,
                               uint32_t end, uint32_t now_s, uint8_t *listed)
{
    size_t found = 0;
    if (end > index->used)
        end = index->used;
    for (uint32_t handle = first; handle < end; handle++) {
        const struct mkv_entry *entry = &index->entries[handle];
        if (entry->tenant != tenant || !mkv_entry_live(entry) || mkv_entry_expired(entry, now_s))
            continue;
        uint8_t *target = listed + MKV_INDEX_LISTED_BYTES * found++;
        uint32_t depth = entry->depth;
        memcpy(target, &entry->tag, sizeof entry->tag);
        memcpy(target + sizeof entry->tag, &depth, sizeof depth);
    }
    return found;
}

uint32_t mkv_index_remove_sectors(struct mkv_index *index, uint64_t first, uint64_t end)
{
    uint32_t removed = 0;
    for (uint32_t handle = 0; handle < index->used; handle++) {
        const struct mkv_entry *entry = &index->entries[handle];
        uint64_t sector = mkv_entry_sector(entry);
        if (mkv_entry_live(entry) && sector >= first && sector < end) {
            mkv_index_remove(index, handle);
            removed++;
        }
    }
    return removed;
}
