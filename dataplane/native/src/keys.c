#include "keys.h"

#include <blake2.h>
#include <string.h>

#include "sums.h"

size_t mkv_block_ids(const struct mkv_key *keys, size_t count, const uint8_t *salt, size_t salt_len,
                     uint8_t *ids)
{
    uint8_t canonical[4 + MKV_USER_KEY_BYTES_MAX];
    for (size_t i = 0; i < count; i++) {
        uint32_t len = (uint32_t)keys[i].len;
        if (keys[i].len == 0 || keys[i].len > MKV_USER_KEY_BYTES_MAX)
            return i;
        memcpy(canonical, &len, 4);
        memcpy(canonical + 4, keys[i].data, len);
        if (blake2b(ids + i * MKV_BLOCK_ID_BYTES, canonical, salt_len ? salt : NULL,
                    MKV_BLOCK_ID_BYTES, 4 + (size_t)len, salt_len) != 0)
            return i;
    }
    return count;
}

void mkv_slots_of(const uint8_t *ids, size_t count, uint32_t slots, uint16_t *out)
{
    for (size_t i = 0; i < count; i++)
        out[i] = (uint16_t)(mkv_xxh3_64(ids + i * MKV_BLOCK_ID_BYTES, MKV_BLOCK_ID_BYTES) % slots);
}

/* Return the first position whose slot is out of range; else `count` and the largest owner. */
static size_t check_slots(const uint16_t *slots, size_t count, const uint16_t *owners,
                          size_t slots_count, uint32_t *owner_last)
{
    uint32_t last = 0;
    for (size_t p = 0; p < count; p++) {
        if (slots[p] >= slots_count)
            return p;
        if (owners[slots[p]] > last)
            last = owners[slots[p]];
    }
    *owner_last = last;
    return count;
}

size_t mkv_group_by_owner(const uint16_t *slots, size_t count, const uint16_t *owners,
                          size_t slots_count, uint32_t *starts, uint32_t *positions,
                          uint32_t *owner_last)
{
    size_t checked = check_slots(slots, count, owners, slots_count, owner_last);
    if (checked < count)
        return checked;
    memset(starts, 0, (*owner_last + (size_t)2) * sizeof *starts);
    for (size_t p = 0; p < count; p++)
        starts[owners[slots[p]]]++;
    uint32_t end = 0;
    for (uint32_t o = 0; o <= *owner_last; o++) {
        end += starts[o];
        starts[o] = end;
    }
    starts[*owner_last + 1] = end;
    /* Backwards, each owner's end moves down to its start: stable without a second table. */
    for (size_t p = count; p-- > 0;)
        positions[--starts[owners[slots[p]]]] = (uint32_t)p;
    return count;
}

size_t mkv_gather(const uint8_t *records, size_t records_count, size_t width,
                  const uint32_t *positions, size_t count, uint8_t *out)
{
    for (size_t i = 0; i < count; i++) {
        if (positions[i] >= records_count)
            return i;
        memcpy(out + i * width, records + positions[i] * width, width);
    }
    return count;
}
