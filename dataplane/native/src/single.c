#include "single.h"

#include <string.h>

int mkv_single_get_parse(const uint8_t *bytes, size_t len, struct mkv_header *header,
                         struct mkv_get_item *item)
{
    const uint8_t *body = bytes + MKV_FRAME_HEADER_BYTES;
    if (len != MKV_SINGLE_GET_BYTES)
        return 0;
    memcpy(header, bytes, sizeof *header);
    memcpy(item, body, sizeof *item);
    return header->opcode == MKV_OP_GET && header->flags == 0 && header->count == 1 &&
           header->body_bytes == sizeof *item && header->payload_bytes == 0 &&
           mkv_header_is_sound(header) && mkv_body_is_sound(header, body);
}

void mkv_single_get_frame(uint8_t *frame, const uint8_t *block_id, uint64_t max_length,
                          uint64_t map_epoch, uint32_t map_term)
{
    struct mkv_header header = {
        .opcode = MKV_OP_GET, .count = 1, .map_epoch = map_epoch, .map_term = map_term};
    struct mkv_get_item item = {.max_length = max_length};
    memcpy(item.block_id, block_id, sizeof item.block_id);
    mkv_header_seal(&header, &item, sizeof item);
    memcpy(frame, &header, sizeof header);
    memcpy(frame + sizeof header, &item, sizeof item);
}

size_t mkv_single_hit_frame(uint8_t *frame, uint64_t request_id, uint64_t length,
                            const uint8_t *root, const uint8_t *sums, uint32_t chunk_count,
                            uint32_t source)
{
    struct mkv_header header = {.opcode = MKV_OP_GET,
                                .flags = MKV_FLAG_RESPONSE | MKV_FLAG_LAST,
                                .request_id = request_id,
                                .count = 1,
                                .payload_bytes = length};
    struct mkv_get_result result = {
        .length = length, .chunk_count = chunk_count, .source = source};
    uint8_t *body = frame + sizeof header;
    size_t body_bytes = sizeof result + 8 * (size_t)chunk_count;
    memcpy(result.root, root, sizeof result.root);
    memcpy(body, &result, sizeof result);
    memcpy(body + sizeof result, sums, 8 * (size_t)chunk_count);
    mkv_header_seal(&header, body, body_bytes);
    memcpy(frame, &header, sizeof header);
    return sizeof header + body_bytes;
}
