#define _GNU_SOURCE
#include "payload.h"

#include <string.h>

#include "loops.h"

enum { SMALL_PIECE_BYTES = 8 * 1024 }; /* copied from the inbox: cheaper than a receive for each */

int mkv_talk_status(int stream_error)
{
    switch (stream_error) {
    case 0:
        return MKV_OK;
    case MKV_STREAM_TIMEOUT:
        return MKV_TIMEOUT;
    case MKV_STREAM_SHUT:
        return MKV_CLOSED;
    default:
        return MKV_UNAVAILABLE;
    }
}

static size_t held(const struct mkv_inbox *inbox)
{
    return inbox->end - inbox->start;
}

static int fill(struct mkv_talk *talk)
{
    struct mkv_inbox *inbox = talk->inbox;
    ssize_t done = mkv_stream_receive_some(talk->stream, inbox->bytes + inbox->end,
                                           inbox->capacity - inbox->end, talk->deadline_ns);
    if (done <= 0)
        return mkv_talk_status(done ? (int)done : MKV_STREAM_CLOSED);
    inbox->end += (size_t)done;
    return MKV_OK;
}

int mkv_talk_need(struct mkv_talk *talk, size_t len)
{
    struct mkv_inbox *inbox = talk->inbox;
    if (held(inbox) >= len)
        return MKV_OK;
    if (inbox->capacity - inbox->start < len || held(inbox) == 0) {
        memmove(inbox->bytes, inbox->bytes + inbox->start, held(inbox));
        inbox->end -= inbox->start;
        inbox->start = 0;
    }
    while (held(inbox) < len) {
        int error = fill(talk);
        if (error)
            return error;
    }
    return MKV_OK;
}

const uint8_t *mkv_talk_skip(struct mkv_talk *talk, size_t len)
{
    const uint8_t *at = talk->inbox->bytes + talk->inbox->start;
    talk->inbox->start += len;
    return at;
}

void mkv_talk_copy(struct mkv_talk *talk, void *target, size_t len)
{
    memcpy(target, mkv_talk_skip(talk, len), len);
}

int mkv_talk_receive(struct mkv_talk *talk, void *target, size_t len)
{
    size_t early = held(talk->inbox) < len ? held(talk->inbox) : len;
    mkv_talk_copy(talk, target, early);
    return mkv_talk_status(mkv_stream_receive(talk->stream, (uint8_t *)target + early, len - early,
                                              talk->deadline_ns));
}

int mkv_talk_discard(struct mkv_talk *talk, uint64_t len)
{
    size_t early = held(talk->inbox) < len ? held(talk->inbox) : (size_t)len;
    mkv_talk_skip(talk, early);
    return mkv_talk_status(mkv_stream_discard(talk->stream, len - early, talk->deadline_ns));
}

/* --- payload --- */

/* Sums of consecutive spans: chunks of 256 KiB, or the ranges of an item. */
struct spans {
    _Alignas(64) unsigned char state[MKV_SUMMER_STATE_BYTES];
    const struct mkv_loops *loops;
    const struct mkv_item *item;
    const uint64_t *sums; /* expected */
    uint32_t index;       /* of the open span */
    uint64_t left;        /* bytes until the open span ends */
    uint64_t unopened;    /* bytes of the payload after the open span */
    int is_begun, matches;
};

static void open_span(struct spans *spans)
{
    uint64_t length = MKV_CHUNK_BYTES;
    if (spans->item->range_count && spans->unopened)
        memcpy(&length, spans->item->ranges + 16 * (size_t)spans->index + 8, 8);
    spans->left = length < spans->unopened ? length : spans->unopened;
    spans->unopened -= spans->left;
    spans->is_begun = 0;
}

/* `len` is at most what is left of the open span. */
static void feed_span(struct spans *spans, const void *data, size_t len)
{
    uint64_t sum;
    int ends = len == spans->left;
    spans->left -= len;
    if (ends && !spans->is_begun) {
        sum = spans->loops->sum(data, len);
    } else {
        if (!spans->is_begun)
            spans->loops->state_reset(spans->state);
        spans->is_begun = 1;
        spans->loops->state_update(spans->state, data, len);
        if (!ends)
            return;
        sum = spans->loops->state_digest(spans->state);
    }
    spans->matches &= sum == spans->sums[spans->index++];
    open_span(spans);
}

/* Receive 1..len bytes into `target`; returns how many or a negative status. */
static ssize_t receive_piece(struct mkv_talk *talk, uint8_t *target, size_t len)
{
    struct mkv_inbox *inbox = talk->inbox;
    if (held(inbox) == 0 && len < SMALL_PIECE_BYTES) {
        int error = mkv_talk_need(talk, 1);
        if (error)
            return error;
    }
    if (held(inbox)) {
        size_t early = held(inbox) < len ? held(inbox) : len;
        mkv_talk_copy(talk, target, early);
        return (ssize_t)early;
    }
    ssize_t done = mkv_stream_receive_some(talk->stream, target, len, talk->deadline_ns);
    return done > 0 ? done : mkv_talk_status(done ? (int)done : MKV_STREAM_CLOSED);
}

int mkv_talk_payload(struct mkv_talk *talk, const struct mkv_item *item, uint64_t length,
                     const uint64_t *sums, int *matches)
{
    struct spans spans = {.loops = mkv_loops(), .item = item, .sums = sums, .matches = 1};
    const struct iovec *part = item->parts;
    size_t offset = 0;
    spans.unopened = length;
    open_span(&spans);
    while (length) {
        if (offset == part->iov_len) {
            part++;
            offset = 0;
            continue;
        }
        /* Never beyond the span, never more than the cache holds: what one receive brings is
         * summed before the next one. */
        uint64_t want = spans.left < MKV_CHUNK_BYTES ? spans.left : MKV_CHUNK_BYTES;
        if (want > part->iov_len - offset)
            want = part->iov_len - offset;
        uint8_t *target = (uint8_t *)part->iov_base + offset;
        ssize_t done = receive_piece(talk, target, (size_t)want);
        if (done < 0)
            return (int)done;
        feed_span(&spans, target, (size_t)done);
        offset += (size_t)done;
        length -= (uint64_t)done;
    }
    *matches = spans.matches;
    return MKV_OK;
}

int mkv_item_matches(const struct mkv_item *item, uint64_t length, const uint64_t *sums)
{
    struct spans spans = {.loops = mkv_loops(), .item = item, .sums = sums, .matches = 1};
    const struct iovec *part = item->parts;
    size_t offset = 0;
    spans.unopened = length;
    open_span(&spans);
    while (length && spans.matches) {
        if (offset == part->iov_len) {
            part++;
            offset = 0;
            continue;
        }
        uint64_t step = spans.left < length ? spans.left : length;
        if (step > part->iov_len - offset)
            step = part->iov_len - offset;
        feed_span(&spans, (const uint8_t *)part->iov_base + offset, (size_t)step);
        offset += (size_t)step;
        length -= step;
    }
    return spans.matches;
}
