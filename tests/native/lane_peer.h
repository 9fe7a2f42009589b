/* What tests of lanes share: a peer that answers, lanes to it, and jobs. Of one program each. */
#pragma once
#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "lane.h"
#include "sums.h"
#include "tls_pair.h"

enum { ITEMS = 3, BLOCK = 300 * 1000, LANES = 3 };

static const uint8_t tag[MKV_TENANT_TAG_BYTES] = "tenant";

/* --- the peer: answers GETs with a block made of the id's first byte, takes PUTs --- */

struct peer {
    struct mkv_stream *stream;
    int requests_left; /* closes after so many; negative: never */
    int is_silent;     /* reads and never answers */
    pthread_t thread;
    struct peer *next;
};

static struct peer *peers; /* all that were started; only the main thread adds and waits */

/* Peers end by themselves. They are joined, since a thread's end frees what OpenSSL keeps for it,
 * which must be before OpenSSL is cleaned up at exit. */
static inline void wait_for_peers(void)
{
    while (peers) {
        struct peer *ended = peers;
        peers = ended->next;
        pthread_join(ended->thread, NULL);
        free(ended);
    }
}

static int take(struct mkv_stream *stream, void *target, size_t len)
{
    return len == 0 || mkv_stream_receive(stream, target, len, UINT64_MAX) == 0;
}

static int give(struct mkv_stream *stream, const void *source, size_t len)
{
    struct iovec part = {(void *)source, len};
    return mkv_stream_send(stream, &part, 1, UINT64_MAX) == 0;
}

static int respond(struct mkv_stream *stream, const struct mkv_header *request, uint16_t flags,
                   const void *body, size_t body_bytes, uint32_t count, uint64_t payload_bytes)
{
    struct mkv_header header = {.opcode = request->opcode, .request_id = request->request_id};
    header.flags = (uint16_t)(MKV_FLAG_RESPONSE | flags);
    header.count = count;
    header.payload_bytes = payload_bytes;
    mkv_header_seal(&header, body, body_bytes);
    return give(stream, &header, sizeof header) && give(stream, body, body_bytes);
}

static int serve_get(struct mkv_stream *stream, const struct mkv_header *request,
                     const uint8_t *items)
{
    static const struct mkv_get_result miss = {.status = -1};
    uint8_t *block = malloc(BLOCK);
    int alive = block != NULL;
    for (uint32_t i = 0; i < request->count && alive; i++) {
        uint16_t flags = i + 1 == request->count ? MKV_FLAG_LAST : 0;
        struct {
            struct mkv_get_result result;
            uint64_t sums[2];
        } body = {.result = miss};
        body.result.index = i;
        if (items[48 * i] == 0) {
            alive = respond(stream, request, flags, &body, sizeof body.result, 1, 0);
            continue;
        }
        memset(block, items[48 * i], BLOCK);
        mkv_chunk_sums(block, BLOCK, body.sums);
        body.result.status = 0;
        body.result.length = BLOCK;
        body.result.chunk_count = 2;
        mkv_block_root(items + 48 * i, tag, BLOCK, body.sums, 2, body.result.root);
        alive = respond(stream, request, flags, &body, sizeof body, 1, BLOCK) &&
                give(stream, block, BLOCK);
    }
    free(block);
    return alive;
}

static int serve_put(struct mkv_stream *stream, const struct mkv_header *first, const uint8_t *body)
{
    struct mkv_header header = *first;
    uint8_t *block = malloc(BLOCK), next[88 + 16];
    int32_t statuses[ITEMS] = {0};
    uint32_t count = 0;
    int alive = block != NULL;
    while (alive) {
        uint64_t sums[2];
        alive = take(stream, block, header.payload_bytes);
        mkv_chunk_sums(block, BLOCK, sums);
        assert(!alive || memcmp(sums, body + 88, sizeof sums) == 0);
        count++;
        if (!alive || header.flags & MKV_FLAG_LAST)
            break;
        alive = take(stream, &header, sizeof header) && take(stream, next, header.body_bytes);
        body = next;
    }
    free(block);
    return alive && respond(stream, first, MKV_FLAG_LAST, statuses, 4 * count, count, 0);
}

static void *run_peer(void *argument)
{
    struct peer *peer = argument;
    struct mkv_header header;
    char dropped[4096];
    int alive = !peer->is_silent;
    while (peer->is_silent &&
           mkv_stream_receive_some(peer->stream, dropped, sizeof dropped, UINT64_MAX) > 0)
        ;
    while (alive && peer->requests_left-- && take(peer->stream, &header, sizeof header)) {
        assert(mkv_header_is_sound(&header));
        uint8_t *body = malloc(header.body_bytes + 1);
        assert(body);
        alive = take(peer->stream, body, header.body_bytes);
        if (alive)
            alive = header.opcode == MKV_OP_GET ? serve_get(peer->stream, &header, body)
                                                : serve_put(peer->stream, &header, body);
        free(body);
    }
    mkv_stream_free(peer->stream);
    return NULL;
}

static struct tls_pair tls; /* of both ends; NULL: they are plain */

static struct mkv_stream *open_end(int fd, const struct mkv_tls *context)
{
    struct mkv_stream *stream = context ? mkv_stream_tls(fd, context) : mkv_stream_plain(fd);
    assert(stream);
    return stream;
}

/* `fence` without a `close`: none. */
static inline int add_fenced(struct mkv_group *group, int requests_left, int is_silent,
                      struct mkv_fence fence)
{
    int pair[2];
    struct peer *peer = malloc(sizeof *peer);
    assert(peer && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    *peer = (struct peer){.stream = open_end(pair[1], tls.server),
                          .requests_left = requests_left, .is_silent = is_silent, .next = peers};
    assert(pthread_create(&peer->thread, NULL, run_peer, peer) == 0);
    peers = peer;
    struct mkv_stream *stream = open_end(pair[0], tls.client);
    mkv_stream_set_fence(stream, fence);
    return mkv_group_add_lane(group, stream);
}

/* --- jobs --- */

struct work {
    struct mkv_job *job;
    uint8_t *memory;
};

static inline uint64_t after_ms(uint64_t ms)
{
    return mkv_monotonic_ns() + ms * 1000000u;
}

/* A GET of ids 0, 1, 2 (0 is a miss), or a PUT of 1, 2, 3. */
static inline struct work make(int is_put, uint64_t deadline_ns)
{
    uint8_t frame[64 + ITEMS * 88] = {0};
    size_t item_bytes = is_put ? 88 : 48;
    uint64_t length = BLOCK;
    const char *error;
    struct mkv_header header = {.opcode = is_put ? MKV_OP_PUT : MKV_OP_GET, .count = ITEMS};
    struct work work = {NULL, calloc(ITEMS, BLOCK)};
    assert(work.memory);
    memcpy(frame, &header, sizeof header);
    for (int i = 0; i < ITEMS; i++) {
        frame[64 + i * item_bytes] = (uint8_t)(i + is_put);
        memcpy(frame + 64 + i * item_bytes + 32, &length, 8);
    }
    work.job = mkv_job_new(is_put ? MKV_JOB_PUT : MKV_JOB_GET, frame, 64 + ITEMS * item_bytes,
                           deadline_ns, &error);
    assert(work.job);
    memcpy(work.job->tenant_tag, tag, sizeof tag);
    for (int i = 0; i < ITEMS; i++) {
        uint8_t *at = work.memory + (size_t)i * BLOCK;
        struct iovec parts[2] = {{at, 1000}, {at + 1000, BLOCK - 1000}};
        assert(mkv_job_scatter(work.job, (uint32_t)i, parts, 2) == NULL);
    }
    return work;
}

/* A done job has a status for each item, and a hit's bytes are the block's. */
static inline void check_and_free(struct work work)
{
    assert(mkv_job_is_done(work.job));
    for (uint32_t i = 0; i < ITEMS; i++) {
        int64_t status = work.job->items[i].status;
        assert(status != MKV_UNANSWERED && status != MKV_PROTOCOL && status != MKV_CORRUPT);
        if (work.job->kind == MKV_JOB_GET && status > 0) {
            assert(status == BLOCK);
            for (size_t at = 0; at < BLOCK; at += 997)
                assert(work.memory[(size_t)i * BLOCK + at] == i);
        }
    }
    mkv_job_release(work.job);
    free(work.memory);
}
