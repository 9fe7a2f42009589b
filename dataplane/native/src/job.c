#define _GNU_SOURCE
#include "job.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine.h"

struct mkv_wave *mkv_wave_new(uint32_t count)
{
    struct mkv_wave *wave = malloc(sizeof *wave);
    if (!wave)
        return NULL;
    *wave = (struct mkv_wave){.pending = count, .references = 1};
    return wave;
}

void mkv_wave_release(struct mkv_wave *wave)
{
    if (__atomic_sub_fetch(&wave->references, 1, __ATOMIC_ACQ_REL) == 0)
        free(wave);
}

void mkv_job_join(struct mkv_job *job, struct mkv_wave *wave)
{
    __atomic_add_fetch(&wave->references, 1, __ATOMIC_RELAXED);
    job->wave = wave;
}

static void destroy(struct mkv_job *job)
{
    if (job->wave)
        mkv_wave_release(job->wave);
    for (uint32_t i = 0; job->items && i < job->item_count; i++)
        free(job->items[i].parts);
    free(job->items);
    free(job->body);
    free(job->reply);
    free(job->hints);
    pthread_cond_destroy(&job->done_changed);
    pthread_mutex_destroy(&job->lock);
    free(job);
}

static const char *parse_gets(struct mkv_job *job)
{
    if (job->body_bytes != job->item_count * sizeof(struct mkv_get_item))
        return "the body of a GET is 48 bytes an item";
    for (uint32_t i = 0; i < job->item_count; i++) {
        struct mkv_get_item item;
        memcpy(&item, job->body + i * sizeof item, sizeof item);
        memcpy(job->items[i].block_id, item.block_id, MKV_BLOCK_ID_BYTES);
        job->items[i].max_length = item.max_length;
    }
    return NULL;
}

static const char *parse_ranges(struct mkv_job *job)
{
    const uint8_t *at = job->body, *end = at + job->body_bytes;
    for (uint32_t i = 0; i < job->item_count; i++) {
        struct mkv_ranges_item item;
        struct mkv_item *target = &job->items[i];
        if ((size_t)(end - at) < sizeof item)
            return "the body of a GET_RANGES is shorter than its items";
        memcpy(&item, at, sizeof item);
        at += sizeof item;
        if (item.range_count < 1 || item.range_count > MKV_RANGES_PER_ITEM_MAX)
            return "an item has 1 to 256 ranges";
        if ((size_t)(end - at) / 16 < item.range_count)
            return "the body of a GET_RANGES is shorter than its ranges";
        memcpy(target->block_id, item.block_id, MKV_BLOCK_ID_BYTES);
        target->range_count = item.range_count;
        target->ranges = at;
        for (uint32_t r = 0; r < item.range_count; r++, at += 16) {
            uint64_t length;
            memcpy(&length, at + 8, 8);
            if (length < 1 || length > MKV_CHUNK_BYTES * MKV_CHUNKS_PER_BLOCK_MAX)
                return "a range has 1 byte to 16 MiB";
            target->max_length += length;
        }
    }
    return at == end ? NULL : "the body of a GET_RANGES is longer than its items";
}

static const char *parse_puts(struct mkv_job *job)
{
    size_t items_bytes = job->item_count * sizeof(struct mkv_put_item);
    size_t parts_bytes = job->body_bytes - items_bytes;
    if (job->body_bytes < items_bytes || (job->kind == MKV_JOB_PUT && parts_bytes))
        return "a PUT is 88 bytes an item";
    if (parts_bytes % sizeof(struct mkv_local_part))
        return "a part is 24 bytes";
    for (uint32_t i = 0; i < job->item_count; i++) {
        struct mkv_put_item item;
        memcpy(&item, job->body + i * sizeof item, sizeof item);
        memcpy(job->items[i].block_id, item.block_id, MKV_BLOCK_ID_BYTES);
        job->items[i].max_length = item.length;
        if (item.length < 1 || item.length > MKV_CHUNK_BYTES * MKV_CHUNKS_PER_BLOCK_MAX)
            return "a block has 1 byte to 16 MiB";
    }
    return NULL;
}

static const char *set_local_parts(struct mkv_item *item, const uint8_t *parts, uint32_t count)
{
    if (count < 1 || count > MKV_LOCAL_PARTS_MAX)
        return "an item has 1 to 256 parts";
    item->local_parts = parts;
    item->local_part_count = count;
    return NULL;
}

static const char *parse_local_gets(struct mkv_job *job)
{
    const uint8_t *at = job->body, *end = at + job->body_bytes;
    for (uint32_t i = 0; i < job->item_count; i++) {
        struct mkv_local_item item;
        struct mkv_item *target = &job->items[i];
        if ((size_t)(end - at) < sizeof item)
            return "the body of such a GET is shorter than its items";
        memcpy(&item, at, sizeof item);
        at += sizeof item;
        if ((size_t)(end - at) / sizeof(struct mkv_local_part) < item.part_count)
            return "the body of such a GET is shorter than its parts";
        memcpy(target->block_id, item.block_id, MKV_BLOCK_ID_BYTES);
        const char *error = set_local_parts(target, at, item.part_count);
        if (error)
            return error;
        for (uint32_t p = 0; p < item.part_count; p++, at += sizeof(struct mkv_local_part)) {
            struct mkv_local_part part;
            memcpy(&part, at, sizeof part);
            if (part.length < 1 || part.length > MKV_CHUNK_BYTES * MKV_CHUNKS_PER_BLOCK_MAX)
                return "a part has 1 byte to 16 MiB";
            target->max_length += part.length;
        }
    }
    return at == end ? NULL : "the body of such a GET is longer than its items";
}

static const char *parse(struct mkv_job *job)
{
    static const uint8_t opcodes[] = {[MKV_JOB_GET] = MKV_OP_GET,
                                      [MKV_JOB_GET_RANGES] = MKV_OP_GET_RANGES,
                                      [MKV_JOB_PUT] = MKV_OP_PUT,
                                      [MKV_JOB_LOCAL_GET] = MKV_OP_LOCAL_GET,
                                      [MKV_JOB_LOCAL_PUT] = MKV_OP_LOCAL_PUT,
                                      [MKV_JOB_RDMA_GET] = MKV_OP_RDMA_GET,
                                      [MKV_JOB_RDMA_PUT] = MKV_OP_RDMA_PUT};
    uint8_t opcode = job->header.opcode;
    if (job->kind == MKV_JOB_EXCHANGE) {
        int answers_keys = opcode == MKV_OP_EXISTS || opcode == MKV_OP_DELETE ||
                           opcode == MKV_OP_PIN || opcode == MKV_OP_PREFETCH ||
                           opcode == MKV_OP_WHY;
        job->item_count = answers_keys ? job->header.count : 0;
    } else {
        if (opcode != opcodes[job->kind])
            return "the opcode is another operation's";
        job->item_count = job->header.count;
        if (job->item_count < 1)
            return "a batch has at least one item";
    }
    if (job->item_count > MKV_ITEMS_PER_FRAME_MAX)
        return "a batch has at most 1024 items";
    job->items = calloc(job->item_count + 1, sizeof *job->items);
    if (!job->items)
        return "no memory";
    for (uint32_t i = 0; i < job->item_count; i++)
        job->items[i].status = MKV_UNANSWERED;
    switch (job->kind) {
    case MKV_JOB_GET:
        return parse_gets(job);
    case MKV_JOB_GET_RANGES:
        return parse_ranges(job);
    case MKV_JOB_PUT:
    case MKV_JOB_LOCAL_PUT:
    case MKV_JOB_RDMA_PUT:
        return parse_puts(job);
    case MKV_JOB_LOCAL_GET:
    case MKV_JOB_RDMA_GET:
        return parse_local_gets(job);
    case MKV_JOB_EXCHANGE:
        break;
    }
    return NULL;
}

struct mkv_job *mkv_job_new(enum mkv_job_kind kind, const uint8_t *frame, size_t frame_bytes,
                            uint64_t deadline_ns, const char **error)
{
    pthread_condattr_t monotonic;
    *error = "a request frame is 64 bytes of header and at most 1 MiB of body";
    if (frame_bytes < MKV_FRAME_HEADER_BYTES ||
        frame_bytes > MKV_FRAME_HEADER_BYTES + MKV_FRAME_BODY_BYTES_MAX)
        return NULL;
    struct mkv_job *job = calloc(1, sizeof *job);
    *error = "no memory";
    if (!job)
        return NULL;
    job->kind = kind;
    job->deadline_ns = deadline_ns;
    job->references = 1;
    job->status = MKV_INTERNAL; /* until it was run */
    pthread_mutex_init(&job->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&job->done_changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    memcpy(&job->header, frame, sizeof job->header);
    job->body_bytes = frame_bytes - MKV_FRAME_HEADER_BYTES;
    job->body = malloc(job->body_bytes + 1);
    if (!job->body) {
        destroy(job);
        return NULL;
    }
    memcpy(job->body, frame + MKV_FRAME_HEADER_BYTES, job->body_bytes);
    *error = parse(job);
    if (*error) {
        destroy(job);
        return NULL;
    }
    return job;
}

/* The node is told offsets, the lane has addresses: their lengths at least must agree. */
static const char *match_local_parts(struct mkv_job *job, struct mkv_item *item,
                                     const struct iovec *parts, uint32_t count)
{
    if (mkv_job_is_put(job)) {
        size_t start = job->item_count * sizeof(struct mkv_put_item);
        size_t have = (job->body_bytes - start) / sizeof(struct mkv_local_part);
        if (count > have - job->local_parts_set)
            return "the frame has fewer parts than there are pieces of memory";
        start += job->local_parts_set * sizeof(struct mkv_local_part);
        const char *error = set_local_parts(item, job->body + start, count);
        if (error)
            return error;
        job->local_parts_set += count;
    }
    if (count != item->local_part_count)
        return "there are not as many pieces of memory as parts in the frame";
    for (uint32_t i = 0; i < count; i++) {
        struct mkv_local_part part;
        memcpy(&part, item->local_parts + i * sizeof part, sizeof part);
        if (part.length != parts[i].iov_len)
            return "a piece of memory does not have the length of its part";
    }
    return NULL;
}

const char *mkv_job_scatter(struct mkv_job *job, uint32_t index, const struct iovec *parts,
                            uint32_t count)
{
    struct mkv_item *item = &job->items[index];
    if (job->kind == MKV_JOB_EXCHANGE || index >= job->item_count || item->parts)
        return "there is no such item, or it has its memory already";
    for (uint32_t i = 0; i < count; i++) {
        if (!parts[i].iov_base && parts[i].iov_len)
            return "an address is null";
        item->capacity += parts[i].iov_len;
    }
    if (mkv_job_names_memory(job)) {
        const char *error = match_local_parts(job, item, parts, count);
        if (error)
            return error;
    }
    if (mkv_job_is_put(job) ? item->capacity != item->max_length
                            : item->capacity < item->max_length)
        return "the pieces of memory do not have the length that the frame says";
    item->parts = malloc((count + 1) * sizeof *parts);
    if (!item->parts)
        return "no memory";
    if (count)
        memcpy(item->parts, parts, count * sizeof *parts);
    item->part_count = count;
    return NULL;
}

void mkv_job_reference(struct mkv_job *job)
{
    __atomic_add_fetch(&job->references, 1, __ATOMIC_RELAXED);
}

void mkv_job_release(struct mkv_job *job)
{
    if (__atomic_sub_fetch(&job->references, 1, __ATOMIC_ACQ_REL) == 0)
        destroy(job);
}

int mkv_job_keep_hints(struct mkv_job *job, const uint8_t *records, size_t len)
{
    uint8_t *grown = realloc(job->hints, job->hints_bytes + len);
    if (!grown)
        return -1;
    memcpy(grown + job->hints_bytes, records, len);
    job->hints = grown;
    job->hints_bytes += len;
    return 0;
}

void mkv_job_fail(struct mkv_job *job, int32_t status)
{
    job->status = status;
    for (uint32_t i = 0; i < job->item_count; i++)
        if (job->items[i].status == MKV_UNANSWERED)
            job->items[i].status = status;
}

void mkv_job_complete(struct mkv_job *job)
{
    pthread_mutex_lock(&job->lock);
    int notify = job->wants_notify;
    job->is_done = 1;
    pthread_cond_broadcast(&job->done_changed);
    pthread_mutex_unlock(&job->lock);
    if (notify)
        mkv_engine_report(job->engine, job, MKV_REPORT_DONE); /* takes over the reference */
    else
        mkv_job_release(job);
}

int mkv_job_wait(struct mkv_job *job, uint64_t deadline_ns, int hand_over)
{
    struct timespec until = {(time_t)(deadline_ns / 1000000000u),
                             (long)(deadline_ns % 1000000000u)};
    int late = 0;
    pthread_mutex_lock(&job->lock);
    while (!job->is_done && !late)
        late = pthread_cond_timedwait(&job->done_changed, &job->lock, &until) != 0;
    int done = job->is_done;
    if (!done && hand_over)
        job->wants_notify = job->is_overdue = 1;
    pthread_mutex_unlock(&job->lock);
    return done;
}

int mkv_job_is_done(struct mkv_job *job)
{
    pthread_mutex_lock(&job->lock);
    int done = job->is_done;
    pthread_mutex_unlock(&job->lock);
    return done;
}

static int may_be_overdue(const struct mkv_job *job)
{
    return !job->is_done && job->wants_notify && !job->is_overdue;
}

int mkv_job_may_be_overdue(struct mkv_job *job)
{
    pthread_mutex_lock(&job->lock);
    int may = may_be_overdue(job);
    pthread_mutex_unlock(&job->lock);
    return may;
}

void mkv_job_report_overdue(struct mkv_job *job)
{
    pthread_mutex_lock(&job->lock);
    if (may_be_overdue(job)) {
        job->is_overdue = 1;
        mkv_job_reference(job);
        mkv_engine_report(job->engine, job, MKV_REPORT_OVERDUE); /* before it can be done */
    }
    pthread_mutex_unlock(&job->lock);
}
