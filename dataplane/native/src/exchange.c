#define _GNU_SOURCE
#include "exchange.h"

#include <stdlib.h>
#include <string.h>

#include "loops.h"
#include "payload.h"

enum {
    FLAGS_OF_RESPONSES = MKV_FLAG_RESPONSE | MKV_FLAG_LAST | MKV_FLAG_HINTS,
    HINT_BYTES_MAX = MKV_HINT_BYTES + 255,
    GET_BODY_BYTES_MAX =
        (int)sizeof(struct mkv_get_result) + 8 * MKV_RANGES_PER_ITEM_MAX + HINT_BYTES_MAX,
    PUT_BODY_BYTES_MAX = (int)sizeof(struct mkv_put_item) + 8 * MKV_CHUNKS_PER_BLOCK_MAX +
                         MKV_LOCAL_PARTS_MAX * (int)sizeof(struct mkv_local_part),
    FEW_PARTS = 64,
    POLL_NS = 60 * 1000,
    POLLED_ROUND_TRIP_NS_MAX = 200 * 1000,
    POLLED_BYTES_MAX = 64 * 1024,
};
_Static_assert(GET_BODY_BYTES_MAX + MKV_FRAME_HEADER_BYTES < MKV_INBOX_BYTES, "see need()");

/* --- requests --- */

static struct mkv_header request_header(const struct mkv_job *job, uint64_t request_id)
{
    struct mkv_header header = job->header;
    uint64_t now = mkv_monotonic_ns();
    uint64_t left_ms = job->deadline_ns > now ? (job->deadline_ns - now + 999999) / 1000000 : 1;
    header.request_id = request_id;
    header.deadline_ms = left_ms < UINT32_MAX ? (uint32_t)left_ms : UINT32_MAX;
    return header;
}

static int send_frame(struct mkv_talk *talk, const struct mkv_job *job)
{
    struct mkv_header header = request_header(job, talk->request_id);
    struct iovec parts[2] = {{&header, sizeof header}, {job->body, job->body_bytes}};
    mkv_header_seal(&header, job->body, job->body_bytes);
    return mkv_stream_send_watching(talk->stream, parts, 2, talk->inbox, talk->deadline_ns);
}

static int send_put(struct mkv_talk *talk, struct mkv_job *job, uint32_t index)
{
    struct {
        struct mkv_header header;
        uint8_t body[PUT_BODY_BYTES_MAX];
    } frame;
    struct mkv_item *item = &job->items[index];
    uint64_t sums[MKV_CHUNKS_PER_BLOCK_MAX];
    struct mkv_put_item put;
    struct mkv_summer summer;
    struct iovec few[FEW_PARTS + 1], *parts = few;

    mkv_summer_start(&summer, sums, MKV_CHUNKS_PER_BLOCK_MAX);
    for (uint32_t i = 0; i < item->part_count; i++)
        if (mkv_summer_feed(&summer, item->parts[i].iov_base, item->parts[i].iov_len))
            return MKV_STREAM_CLOSED; /* lengths were checked when the memory was set */
    memcpy(&put, job->body + index * sizeof put, sizeof put);
    put.chunk_count = (uint32_t)mkv_summer_finish(&summer);
    mkv_block_root(put.block_id, job->tenant_tag, put.length, sums, put.chunk_count, put.root);
    memcpy(frame.body, &put, sizeof put);
    memcpy(frame.body + sizeof put, sums, 8 * put.chunk_count);

    frame.header = request_header(job, talk->request_id);
    frame.header.count = 1;
    size_t body_bytes = sizeof put + 8 * put.chunk_count, part_count = item->part_count;
    if (mkv_job_names_memory(job)) { /* the node takes the payload itself */
        size_t parts_bytes = item->local_part_count * sizeof(struct mkv_local_part);
        memcpy(frame.body + body_bytes, item->local_parts, parts_bytes);
        body_bytes += parts_bytes;
        part_count = 0;
    } else {
        frame.header.payload_bytes = put.length;
    }
    frame.header.flags &= (uint16_t)~MKV_FLAG_LAST;
    if (index + 1 == job->item_count)
        frame.header.flags |= MKV_FLAG_LAST;
    mkv_header_seal(&frame.header, frame.body, body_bytes);

    if (part_count > FEW_PARTS) {
        parts = malloc((part_count + 1) * sizeof *parts);
        if (!parts)
            return MKV_STREAM_CLOSED;
    }
    parts[0].iov_base = &frame;
    parts[0].iov_len = sizeof frame.header + frame.header.body_bytes;
    memcpy(parts + 1, item->parts, part_count * sizeof *parts);
    int error = mkv_stream_send_watching(talk->stream, parts, (unsigned)part_count + 1, talk->inbox,
                                         talk->deadline_ns);
    if (parts != few)
        free(parts);
    job->bytes_sent += put.length;
    return error;
}

static int send_request(struct mkv_talk *talk, struct mkv_job *job)
{
    int error = 0;
    if (!mkv_job_is_put(job))
        return send_frame(talk, job);
    for (uint32_t i = 0; i < job->item_count && !error; i++)
        error = send_put(talk, job, i);
    return error;
}

/* --- answers --- */

static int receive_header(struct mkv_talk *talk, const struct mkv_job *job,
                          struct mkv_header *header)
{
    int has_payload = job->kind == MKV_JOB_GET || job->kind == MKV_JOB_GET_RANGES;
    int error = mkv_talk_need(talk, sizeof *header);
    if (error)
        return error;
    mkv_talk_copy(talk, header, sizeof *header);
    if (!mkv_header_is_sound(header) || !(header->flags & MKV_FLAG_RESPONSE) ||
        header->flags & ~FLAGS_OF_RESPONSES || header->opcode != job->header.opcode ||
        header->request_id != talk->request_id || (header->payload_bytes && !has_payload))
        return MKV_PROTOCOL;
    return MKV_OK;
}

/* Take a body of any allowed size into memory of the job, as its reply. */
static int receive_reply(struct mkv_talk *talk, struct mkv_job *job,
                         const struct mkv_header *header, size_t body_bytes_max)
{
    if (header->body_bytes > body_bytes_max)
        return MKV_PROTOCOL;
    job->reply = malloc(header->body_bytes + 1);
    if (!job->reply)
        return MKV_INTERNAL;
    int error = mkv_talk_receive(talk, job->reply, header->body_bytes);
    if (error)
        return error;
    job->reply_bytes = header->body_bytes;
    return mkv_body_is_sound(header, job->reply) ? MKV_OK : MKV_PROTOCOL;
}

/* The frame that fails a whole request: its text is kept, items without an answer get its status.
 * After PROTOCOL the peer closes. */
static int take_failure(struct mkv_talk *talk, struct mkv_job *job, const struct mkv_header *header)
{
    if (header->count || header->payload_bytes || !(header->flags & MKV_FLAG_LAST))
        return MKV_PROTOCOL;
    int error = receive_reply(talk, job, header, GET_BODY_BYTES_MAX);
    if (error)
        return error;
    mkv_job_fail(job, header->status);
    return header->status == MKV_PROTOCOL ? MKV_EXCHANGE_SPENT : MKV_OK;
}

/* The largest status that an item may have in an answer. */
static int32_t status_max_of(uint8_t opcode)
{
    switch (opcode) {
    case MKV_OP_EXISTS:
        return 1;
    case MKV_OP_PREFETCH:
        return 2;
    case MKV_OP_WHY:
        return MKV_REASON_MAX;
    default:
        return MKV_OK;
    }
}

/* Split a reply of statuses and hints (PUT and the operations on keys) into the items. */
static int take_statuses(struct mkv_job *job, const struct mkv_header *header)
{
    size_t statuses_bytes = (size_t)job->item_count * 4;
    if (header->count != job->item_count || job->reply_bytes < statuses_bytes)
        return MKV_PROTOCOL;
    const uint8_t *hints = job->reply + statuses_bytes;
    size_t hints_bytes = job->reply_bytes - statuses_bytes;
    if (!(header->flags & MKV_FLAG_HINTS) && hints_bytes)
        return MKV_PROTOCOL;
    if (!mkv_hints_are_sound(hints, hints_bytes, job->item_count))
        return MKV_PROTOCOL;
    int32_t statuses[MKV_ITEMS_PER_FRAME_MAX], status_max = status_max_of(job->header.opcode);
    memcpy(statuses, job->reply, statuses_bytes);
    for (uint32_t i = 0; i < job->item_count; i++)
        if (statuses[i] > status_max)
            return MKV_PROTOCOL;
    for (uint32_t i = 0; i < job->item_count; i++)
        job->items[i].status = statuses[i];
    return hints_bytes && mkv_job_keep_hints(job, hints, hints_bytes) ? MKV_INTERNAL : MKV_OK;
}

static int receive_one_frame(struct mkv_talk *talk, struct mkv_job *job)
{
    struct mkv_header header;
    int error = receive_header(talk, job, &header);
    if (error)
        return error;
    if (header.status < 0 && header.count == 0)
        return take_failure(talk, job, &header);
    if (header.status || !(header.flags & MKV_FLAG_LAST))
        return MKV_PROTOCOL;
    size_t body_bytes_max = (size_t)job->item_count * (4 + HINT_BYTES_MAX);
    if (job->kind == MKV_JOB_EXCHANGE && job->item_count == 0)
        body_bytes_max = job->reply_bytes_max;
    error = receive_reply(talk, job, &header, body_bytes_max);
    if (!error && job->item_count)
        error = take_statuses(job, &header);
    return error;
}

/* What the body of one GET or GET_RANGES frame says, checked against the request. */
struct answer {
    struct mkv_get_result result;
    uint64_t sums[MKV_RANGES_PER_ITEM_MAX];
    struct mkv_item *item;
};

static int parse_answer(struct mkv_job *job, const struct mkv_header *header, const uint8_t *body,
                        struct answer *answer)
{
    struct mkv_get_result *result = &answer->result;
    if (header->body_bytes < sizeof *result)
        return MKV_PROTOCOL;
    memcpy(result, body, sizeof *result);
    size_t left = header->body_bytes - sizeof *result;
    if (result->index >= job->item_count || result->status > 0 || result->source > 1 ||
        result->chunk_count > left / 8 || result->chunk_count > MKV_RANGES_PER_ITEM_MAX)
        return MKV_PROTOCOL;
    struct mkv_item *item = answer->item = &job->items[result->index];
    if (item->status != MKV_UNANSWERED)
        return MKV_PROTOCOL;
    left -= 8 * (size_t)result->chunk_count;
    if (header->flags & MKV_FLAG_HINTS ? left == 0 : left != 0)
        return MKV_PROTOCOL;
    const uint8_t *hint = body + header->body_bytes - left;
    if (!mkv_hints_are_sound(hint, left, 1))
        return MKV_PROTOCOL;
    memcpy(answer->sums, body + sizeof *result, 8 * (size_t)result->chunk_count);
    if (result->status < 0)
        return result->chunk_count || header->payload_bytes ? MKV_PROTOCOL
               : left && mkv_job_keep_hints(job, hint, left) ? MKV_INTERNAL
                                                             : MKV_OK;
    uint64_t payload_bytes = mkv_job_is_placed(job) ? 0 : result->length;
    if (header->payload_bytes != payload_bytes || result->length > item->max_length)
        return MKV_PROTOCOL;
    if (job->kind == MKV_JOB_GET_RANGES)
        return result->length == item->max_length && result->chunk_count == item->range_count
                   ? MKV_OK
                   : MKV_PROTOCOL;
    return result->length >= 1 && result->chunk_count <= MKV_CHUNKS_PER_BLOCK_MAX &&
                   result->chunk_count == mkv_chunk_count(result->length)
               ? MKV_OK
               : MKV_PROTOCOL;
}

/* The sums must be those of a put under this id, by this tenant, before a byte is taken. */
static int sums_are_bound(const struct mkv_job *job, const struct answer *answer)
{
    uint8_t root[MKV_ROOT_BYTES];
    if (job->kind == MKV_JOB_GET_RANGES)
        return 1;
    mkv_block_root(answer->item->block_id, job->tenant_tag, answer->result.length, answer->sums,
                   answer->result.chunk_count, root);
    return memcmp(root, answer->result.root, sizeof root) == 0;
}

/* The node says that the block lies in the item's memory. What comes after the deadline is nobody's
 * result any more. */
static int64_t judge_placed(const struct mkv_job *job, const struct answer *answer)
{
    uint64_t length = answer->result.length;
    if (mkv_monotonic_ns() >= job->deadline_ns)
        return MKV_TIMEOUT;
    if (!sums_are_bound(job, answer))
        return MKV_CORRUPT;
    return job->is_unread || mkv_item_matches(answer->item, length, answer->sums)
               ? (int64_t)length
               : MKV_CORRUPT;
}

static int receive_item(struct mkv_talk *talk, struct mkv_job *job,
                        const struct mkv_header *header)
{
    struct answer answer;
    if (header->status || header->count != 1 || header->body_bytes > GET_BODY_BYTES_MAX)
        return MKV_PROTOCOL;
    int error = mkv_talk_need(talk, header->body_bytes);
    if (error)
        return error;
    const uint8_t *body = mkv_talk_skip(talk, header->body_bytes);
    if (!mkv_body_is_sound(header, body))
        return MKV_PROTOCOL;
    error = parse_answer(job, header, body, &answer);
    if (error)
        return error;
    struct mkv_item *item = answer.item;
    int64_t status = answer.result.status;
    if (mkv_job_is_placed(job)) {
        status = status == MKV_OK ? judge_placed(job, &answer) : status;
    } else if (status == MKV_OK && !sums_are_bound(job, &answer)) {
        status = MKV_CORRUPT;
        error = mkv_talk_discard(talk, header->payload_bytes);
    } else if (status == MKV_OK) {
        int matches = 0;
        error = mkv_talk_payload(talk, item, answer.result.length, answer.sums, &matches);
        status = matches ? (int64_t)answer.result.length : MKV_CORRUPT;
    }
    if (error)
        return error;
    job->bytes_received += status > 0 ? (uint64_t)status : header->payload_bytes;
    item->length = answer.result.length;
    item->source = answer.result.source;
    item->status = status;
    return MKV_OK;
}

static int receive_items(struct mkv_talk *talk, struct mkv_job *job)
{
    struct mkv_header header;
    for (uint32_t answered = 0; answered < job->item_count; answered++) {
        int error = receive_header(talk, job, &header);
        if (error)
            return error;
        if (header.status < 0 && header.count == 0)
            return take_failure(talk, job, &header);
        int is_last = answered + 1 == job->item_count;
        if (!!(header.flags & MKV_FLAG_LAST) != is_last)
            return MKV_PROTOCOL;
        error = receive_item(talk, job, &header);
        if (error)
            return error;
    }
    return MKV_OK;
}

/* The peer answered before the request was out: that can only be a refusal, and nobody knows how
 * much of the request it will still read. */
static int receive_refusal(struct mkv_talk *talk, struct mkv_job *job)
{
    struct mkv_header header;
    int error = receive_header(talk, job, &header);
    if (error)
        return error;
    if (header.status >= 0)
        return MKV_PROTOCOL;
    error = take_failure(talk, job, &header);
    return error < 0 ? error : MKV_EXCHANGE_SPENT;
}

/* After a fault in the answer the node may still be writing into the job's memory. It stops when it
 * reads our end and has finished; then it closes. */
static void await_end(struct mkv_talk *talk)
{
    uint8_t dropped[4096];
    mkv_stream_half_close(talk->stream);
    while (mkv_stream_receive_some(talk->stream, dropped, sizeof dropped, talk->deadline_ns) > 0)
        ;
}

static int receive_placed(struct mkv_talk *talk, struct mkv_job *job)
{
    talk->deadline_ns = UINT64_MAX;
    int error = receive_items(talk, job);
    if (error < 0 && error != MKV_UNAVAILABLE)
        await_end(talk);
    return error;
}

static int talk_over(struct mkv_stream *stream, struct mkv_inbox *inbox, uint64_t request_id,
                     struct mkv_job *job)
{
    struct mkv_talk talk = {stream, inbox, request_id, job->deadline_ns};
    inbox->start = inbox->end = 0;
    int error = send_request(&talk, job);
    if (error == MKV_STREAM_ANSWERED)
        return receive_refusal(&talk, job);
    if (error)
        return mkv_talk_status(error);
    job->status = MKV_OK;
    if (mkv_job_awaits_node(job))
        error = receive_placed(&talk, job);
    else if (job->kind == MKV_JOB_GET || job->kind == MKV_JOB_GET_RANGES ||
             job->kind == MKV_JOB_RDMA_GET)
        error = receive_items(&talk, job);
    else
        error = receive_one_frame(&talk, job);
    if (error == MKV_OK && inbox->start != inbox->end)
        return MKV_EXCHANGE_SPENT; /* more than was asked for: the streams are out of step */
    return error;
}

int mkv_exchange(struct mkv_stream *stream, struct mkv_inbox *inbox, uint64_t request_id,
                 struct mkv_job *job, uint64_t *round_trip_ns)
{
    stream->poll_ns = 0;
    if (!round_trip_ns || (job->kind != MKV_JOB_GET && job->kind != MKV_JOB_RDMA_GET) ||
        job->item_count != 1 ||
        job->items[0].max_length > POLLED_BYTES_MAX)
        return talk_over(stream, inbox, request_id, job);
    uint64_t begin_ns = mkv_monotonic_ns();
    if (*round_trip_ns <= POLLED_ROUND_TRIP_NS_MAX)
        stream->poll_ns = POLL_NS;
    int status = talk_over(stream, inbox, request_id, job);
    *round_trip_ns = (7 * *round_trip_ns + mkv_monotonic_ns() - begin_ns) / 8;
    return status;
}
