/* Frames of the data protocol, version 1: the layout that docs/wire-protocol.md gives byte by
 * byte. No I/O, no memory of its own. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "sums.h"

enum {
    MKV_FRAME_HEADER_BYTES = 64,
    MKV_FRAME_VERSION = 1,
    MKV_FRAME_BODY_BYTES_MAX = 1 << 20,
    MKV_ITEMS_PER_FRAME_MAX = 1024,
    MKV_RANGES_PER_ITEM_MAX = 256,
    MKV_HINT_BYTES = 40, /* without the host that follows */
    MKV_LOCAL_PARTS_MAX = 256, /* of one block */
    MKV_REASON_MAX = 255,      /* of WHY; later versions may have more than we know */
};

enum mkv_flag { MKV_FLAG_RESPONSE = 1, MKV_FLAG_LAST = 2, MKV_FLAG_HINTS = 4 };

enum mkv_opcode {
    MKV_OP_HELLO = 1,
    MKV_OP_PUT = 2,
    MKV_OP_GET = 3,
    MKV_OP_GET_RANGES = 4,
    MKV_OP_EXISTS = 5,
    MKV_OP_DELETE = 6,
    MKV_OP_PIN = 7,
    MKV_OP_LOCAL_GET = 14,
    MKV_OP_LOCAL_PUT = 15,
    MKV_OP_RDMA_GET = 19,
    MKV_OP_RDMA_PUT = 20,
    MKV_OP_PREFETCH = 21,
    MKV_OP_WHY = 22,
};

/* The statuses of memkv/status.py that the lanes give or look at. */
enum mkv_status {
    MKV_OK = 0,
    MKV_CORRUPT = -2,
    MKV_TIMEOUT = -3,
    MKV_BUSY = -4,
    MKV_UNAVAILABLE = -5,
    MKV_PROTOCOL = -12,
    MKV_CLOSED = -13,
    MKV_INTERNAL = -14,
};

struct mkv_header {
    uint32_t magic;
    uint8_t version;
    uint8_t opcode;
    uint16_t flags;
    uint64_t request_id;
    int32_t status;
    uint32_t count;
    uint32_t body_bytes;
    uint32_t deadline_ms;
    uint64_t payload_bytes;
    uint64_t map_epoch;
    uint32_t map_term;
    uint32_t body_sum;
    uint64_t header_sum;
};
_Static_assert(sizeof(struct mkv_header) == MKV_FRAME_HEADER_BYTES, "the header is 64 bytes");

struct mkv_get_item {
    uint8_t block_id[MKV_BLOCK_ID_BYTES];
    uint64_t max_length;
    uint32_t flags, reserved;
};
_Static_assert(sizeof(struct mkv_get_item) == 48, "a GET item is 48 bytes");

struct mkv_ranges_item { /* followed by range_count times {offset u64, length u64} */
    uint8_t block_id[MKV_BLOCK_ID_BYTES];
    uint32_t range_count, reserved;
};
_Static_assert(sizeof(struct mkv_ranges_item) == 40, "a GET_RANGES item begins with 40 bytes");

struct mkv_get_result { /* followed by chunk_count sums, then at most one hint record */
    uint32_t index;
    int32_t status;
    uint64_t length;
    uint8_t root[MKV_ROOT_BYTES];
    uint32_t chunk_count, source;
};
_Static_assert(sizeof(struct mkv_get_result) == 40, "a GET result begins with 40 bytes");

struct mkv_put_item { /* followed by chunk_count sums */
    uint8_t block_id[MKV_BLOCK_ID_BYTES];
    uint64_t length;
    uint8_t root[MKV_ROOT_BYTES];
    uint8_t prefix_id[8], session_id[8];
    uint32_t ttl_s, depth, durability, chunk_count;
};
_Static_assert(sizeof(struct mkv_put_item) == 88, "a PUT item begins with 88 bytes");

struct mkv_local_item { /* of a LOCAL_GET, followed by part_count parts */
    uint8_t block_id[MKV_BLOCK_ID_BYTES];
    uint32_t part_count, reserved;
};
_Static_assert(sizeof(struct mkv_local_item) == 40, "a LOCAL_GET item begins with 40 bytes");

struct mkv_local_part { /* of memory that the node was told of: by a descriptor, or a key */
    uint32_t region, key;
    uint64_t offset, length;
};
_Static_assert(sizeof(struct mkv_local_part) == 24, "a part is 24 bytes");

/* Set magic, version, body_bytes and both sums. Call last. */
void mkv_header_seal(struct mkv_header *header, const void *body, size_t body_bytes);

/* As seal for a header whose body (and body_sum) did not change. */
void mkv_header_reseal(struct mkv_header *header);

/* 1 when magic, version and header sum are right, else 0: the byte stream cannot be trusted. */
int mkv_header_is_sound(const struct mkv_header *header);

/* 1 when `body` (header->body_bytes of it) is what the header says. */
int mkv_body_is_sound(const struct mkv_header *header, const void *body);

/* 1 when `bytes` holds whole hint records only, at most `records_max`. */
int mkv_hints_are_sound(const uint8_t *bytes, size_t len, size_t records_max);
