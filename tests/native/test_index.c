/* The block index against a plain array, for the sanitizers. */
#include "index.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { CAPACITY = 200, IDS = 300, STEPS = 200000 };

static const uint8_t hash_key[MKV_INDEX_KEY_BYTES] = "0123456789abcde";

static uint32_t next_random(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + 1442695040888963407;
    return (uint32_t)(*state >> 33);
}

static void id_of(uint32_t number, uint8_t id[32])
{
    memset(id, 0, 32);
    memcpy(id, &number, sizeof number);
}

static struct mkv_record record_of(const uint8_t *id, uint16_t tenant, uint64_t sector)
{
    return (struct mkv_record){.id = id, .sector = sector, .sectors = 3, .tenant = tenant,
                               .slot = 7, .depth = 2, .expiry_s = 100, .stamp = 1};
}

static void fields_come_back(void)
{
    struct mkv_index index;
    uint8_t id[32];
    id_of(1, id);
    assert(mkv_index_open(&index, 2, 128, true, hash_key) == 0);
    struct mkv_record record = record_of(id, 65535, MKV_INDEX_SECTOR_MAX);
    record.sectors = 65535;
    int32_t handle = mkv_index_insert(&index, &record);
    struct mkv_entry *entry = mkv_index_entry(&index, (uint32_t)handle);
    assert(entry && mkv_entry_sector(entry) == MKV_INDEX_SECTOR_MAX);
    assert(mkv_entry_sectors(entry) == 65535 && entry->buffer == MKV_INDEX_NO_BUFFER);
    assert(entry->tenant == 65535 && entry->slot == 7 && entry->depth == 2 && entry->flags == 0);
    assert(mkv_entry_expired(entry, 100) && !mkv_entry_expired(entry, 99));
    assert(mkv_index_entry(&index, 1) == NULL && mkv_index_entry(&index, UINT32_MAX) == NULL);
    assert(mkv_index_insert(&index, &record) == MKV_INDEX_PRESENT);
    mkv_index_close(&index);
    mkv_index_close(&index);
}

static void tenants_are_apart_unless_the_check_is_off(bool check)
{
    struct mkv_index index;
    uint8_t id[32];
    id_of(1, id);
    assert(mkv_index_open(&index, 1, 128, check, hash_key) == 0);
    struct mkv_record record = record_of(id, 1, 5);
    assert(mkv_index_insert(&index, &record) == 0);
    assert(mkv_index_find(&index, 2, id) == (check ? MKV_INDEX_ABSENT : 0));
    record.tenant = 2;
    assert(mkv_index_insert(&index, &record) == (check ? MKV_INDEX_FULL : MKV_INDEX_PRESENT));
    mkv_index_close(&index);
}

/* Each step of a random walk keeps the index equal to an array of sectors by id. */
static void random_steps_match_an_array(unsigned tag_bits, uint64_t seed)
{
    struct mkv_index index;
    uint64_t sectors[IDS] = {0};
    uint32_t ids = tag_bits < 8 ? 1u << tag_bits : IDS, count = 0;
    uint8_t id[32];
    assert(mkv_index_open(&index, CAPACITY, tag_bits, true, hash_key) == 0);
    for (int step = 0; step < STEPS; step++) {
        uint32_t number = next_random(&seed) % ids;
        id_of(number, id);
        int32_t handle = mkv_index_find(&index, 3, id);
        assert((handle >= 0) == (sectors[number] != 0));
        if (handle >= 0) {
            struct mkv_entry *entry = mkv_index_entry(&index, (uint32_t)handle);
            assert(mkv_entry_sector(entry) == sectors[number]);
            mkv_index_remove(&index, (uint32_t)handle);
            assert(mkv_index_entry(&index, (uint32_t)handle) == NULL);
            sectors[number] = 0;
            count--;
        } else {
            struct mkv_record record = record_of(id, 3, 1 + next_random(&seed) % 1000);
            handle = mkv_index_insert(&index, &record);
            assert((handle >= 0) == (count < CAPACITY));
            if (handle >= 0) {
                sectors[number] = record.sector;
                count++;
            }
        }
        assert(index.count == count);
    }
    uint32_t expected = 0;
    for (uint32_t number = 0; number < ids; number++)
        expected += sectors[number] >= 100 && sectors[number] < 500;
    assert(mkv_index_remove_sectors(&index, 100, 500) == expected);
    assert(index.count == count - expected);
    mkv_index_close(&index);
}

static void batches_match_single_calls(void)
{
    struct mkv_index index;
    uint8_t ids[100 * 32];
    int32_t handles[100];
    uint32_t scanned[100];
    assert(mkv_index_open(&index, CAPACITY, 128, true, hash_key) == 0);
    for (uint32_t number = 0; number < 100; number++) {
        id_of(number, ids + number * 32);
        struct mkv_record record = record_of(ids + number * 32, 1, number);
        record.expiry_s = number % 2 ? 50 : 0;
        record.slot = (uint16_t)(number % 3);
        if (number % 5)
            assert(mkv_index_insert(&index, &record) >= 0);
    }
    mkv_index_find_many(&index, 1, ids, 100, 50, handles);
    for (uint32_t number = 0; number < 100; number++) {
        int32_t single = mkv_index_find(&index, 1, ids + number * 32);
        assert(handles[number] == (number % 2 ? MKV_INDEX_ABSENT : single));
    }
    mkv_index_touch_many(&index, (const uint32_t *)handles, 100, UINT32_MAX);
    assert(mkv_index_entry(&index, (uint32_t)handles[98])->stamp == 0);
    assert(mkv_index_entry(&index, (uint32_t)handles[2])->stamp == 96);
    assert(mkv_index_slot_handles(&index, 1, 0, UINT32_MAX, scanned, 100) == 27);
    assert(mkv_index_slot_handles(&index, 1, 0, UINT32_MAX, scanned, 5) == 5);
    uint8_t listed[100 * MKV_INDEX_LISTED_BYTES];
    size_t all = mkv_index_tenant_blocks(&index, 1, 0, UINT32_MAX, 0, listed);
    assert(all > 0 && all <= 100 && memcmp(listed, ids + 32, 16) == 0);
    assert(mkv_index_tenant_blocks(&index, 1, 0, UINT32_MAX, 50, listed) < all);
    assert(mkv_index_tenant_blocks(&index, 2, 0, UINT32_MAX, 0, listed) == 0);
    mkv_index_clear(&index);
    assert(index.count == 0 && mkv_index_find(&index, 1, ids + 32) == MKV_INDEX_ABSENT);
    assert(mkv_index_slot_handles(&index, 1, 0, UINT32_MAX, scanned, 100) == 0);
    mkv_index_close(&index);
}

int main(void)
{
    fields_come_back();
    tenants_are_apart_unless_the_check_is_off(true);
    tenants_are_apart_unless_the_check_is_off(false);
    random_steps_match_an_array(128, 1);
    random_steps_match_an_array(9, 2);
    random_steps_match_an_array(4, 3);
    batches_match_single_calls();
    return 0;
}
