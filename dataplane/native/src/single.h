/* A GET of one block and its answer: the two frames that a latency-bound caller waits for.
 *
 * Whatever is not exactly such a frame is left to the general codec, which also finds the words for
 * what is wrong with it. No I/O, no memory of its own. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "frame.h"

enum {
    MKV_SINGLE_GET_BYTES = MKV_FRAME_HEADER_BYTES + (int)sizeof(struct mkv_get_item),
    MKV_SINGLE_HIT_BYTES_MAX = MKV_FRAME_HEADER_BYTES + (int)sizeof(struct mkv_get_result) +
                               8 * MKV_CHUNKS_PER_BLOCK_MAX,
};

/* 1 when the bytes are one sound GET frame of one item without flags, and nothing else. */
int mkv_single_get_parse(const uint8_t *bytes, size_t len, struct mkv_header *header,
                         struct mkv_get_item *item);

/* Write the request frame of such a get: MKV_SINGLE_GET_BYTES. */
void mkv_single_get_frame(uint8_t *frame, const uint8_t *block_id, uint64_t max_length,
                          uint64_t map_epoch, uint32_t map_term);

/* Write the frame that precedes the payload of the only block of a GET. `sums` are chunk_count
 * times 8 bytes, chunk_count at most MKV_CHUNKS_PER_BLOCK_MAX. Returns its length. */
size_t mkv_single_hit_frame(uint8_t *frame, uint64_t request_id, uint64_t length,
                            const uint8_t *root, const uint8_t *sums, uint32_t chunk_count,
                            uint32_t source);
