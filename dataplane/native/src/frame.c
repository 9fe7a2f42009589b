#include "frame.h"

#include <string.h>

#define MAGIC UINT32_C(0x31564b4d) /* "MKV1" in memory */
#define SUMMED_BYTES offsetof(struct mkv_header, header_sum)

void mkv_header_reseal(struct mkv_header *header)
{
    header->header_sum = mkv_xxh3_64(header, SUMMED_BYTES);
}

void mkv_header_seal(struct mkv_header *header, const void *body, size_t body_bytes)
{
    header->magic = MAGIC;
    header->version = MKV_FRAME_VERSION;
    header->body_bytes = (uint32_t)body_bytes;
    header->body_sum = (uint32_t)mkv_xxh3_64(body, body_bytes);
    mkv_header_reseal(header);
}

int mkv_header_is_sound(const struct mkv_header *header)
{
    return header->magic == MAGIC && header->version == MKV_FRAME_VERSION &&
           header->header_sum == mkv_xxh3_64(header, SUMMED_BYTES);
}

int mkv_body_is_sound(const struct mkv_header *header, const void *body)
{
    return header->body_sum == (uint32_t)mkv_xxh3_64(body, header->body_bytes);
}

int mkv_hints_are_sound(const uint8_t *bytes, size_t len, size_t records_max)
{
    enum { HOST_LENGTH_AT = 22 };
    size_t at = 0, records = 0;
    while (at < len) {
        if (records++ == records_max || len - at < MKV_HINT_BYTES ||
            len - at - MKV_HINT_BYTES < bytes[at + HOST_LENGTH_AT])
            return 0;
        at += MKV_HINT_BYTES + (size_t)bytes[at + HOST_LENGTH_AT];
    }
    return 1;
}
