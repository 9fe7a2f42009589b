/* The receiving side of a talk: bytes through the inbox, payload straight into its place. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "job.h"
#include "stream.h"

struct mkv_talk {
    struct mkv_stream *stream;
    struct mkv_inbox *inbox;
    uint64_t request_id, deadline_ns;
};

/* The functions below return MKV_OK or a negative status, after which the stream must be closed. */

/* The status that an error of a stream means for the job. */
int mkv_talk_status(int stream_error);

/* Have at least `len` bytes (at most the inbox's capacity) in the inbox, in one piece. */
int mkv_talk_need(struct mkv_talk *talk, size_t len);

/* Take bytes that are in the inbox: as a view that is valid until the next call, or as a copy. */
const uint8_t *mkv_talk_skip(struct mkv_talk *talk, size_t len);
void mkv_talk_copy(struct mkv_talk *talk, void *target, size_t len);

/* Take `len` bytes, from the inbox first. */
int mkv_talk_receive(struct mkv_talk *talk, void *target, size_t len);

/* Drop `len` bytes. */
int mkv_talk_discard(struct mkv_talk *talk, uint64_t len);

/* Whether the first `length` bytes in the item's memory have these chunk sums. */
int mkv_item_matches(const struct mkv_item *item, uint64_t length, const uint64_t *sums);

/* Take `length` bytes into the item's memory and compare the sums of its chunks (its ranges, when
 * it has any) while they are hot. `matches` is written when all bytes were taken; when it is 0 the
 * memory holds bytes of no value. */
int mkv_talk_payload(struct mkv_talk *talk, const struct mkv_item *item, uint64_t length,
                     const uint64_t *sums, int *matches);
