/* Lanes whose peer writes into the callers' memory, for the sanitizers: many callers, answers in
 * time and late, reports of late jobs, peers that die, and a close while one is waited for. */
#define _GNU_SOURCE
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "lane.h"
#include "sums.h"

enum { BLOCK = 300 * 1000, CALLERS = 3, ROUNDS = 40, LANES = 2, SLOTS = 64, GRACE_MS = 20 };

static const uint8_t tag[MKV_TENANT_TAG_BYTES] = "tenant";
static uint8_t *memory[SLOTS]; /* region -> where the peer writes: each has one job at a time */

/* --- the peer --- */

struct placer {
    int fd;
    int is_slow; /* answers some requests after their deadline */
    int gate;    /* >= 0: waits for a byte (or the end) of it before each answer */
};

static int take(int fd, void *target, size_t len)
{
    return recv(fd, target, len, MSG_WAITALL) == (ssize_t)len;
}

static void pause_ms(long milliseconds)
{
    struct timespec time = {0, milliseconds * 1000000};
    nanosleep(&time, NULL);
}

static int answer(int fd, const struct mkv_header *request, const uint8_t *body)
{
    struct {
        struct mkv_header header;
        struct mkv_get_result result;
        uint64_t sums[2];
    } frame = {.header = {.opcode = request->opcode, .request_id = request->request_id}};
    struct mkv_local_part part;
    memcpy(&part, body + sizeof(struct mkv_local_item), sizeof part);
    assert(part.region < SLOTS && part.length == BLOCK);
    memset(memory[part.region], body[0], BLOCK);
    mkv_chunk_sums(memory[part.region], BLOCK, frame.sums);
    frame.result.length = BLOCK;
    frame.result.chunk_count = 2;
    mkv_block_root(body, tag, BLOCK, frame.sums, 2, frame.result.root);
    frame.header.flags = MKV_FLAG_RESPONSE | MKV_FLAG_LAST;
    frame.header.count = 1;
    mkv_header_seal(&frame.header, &frame.result, sizeof frame - sizeof frame.header);
    return send(fd, &frame, sizeof frame, MSG_NOSIGNAL) == (ssize_t)sizeof frame;
}

static void *run_placer(void *argument)
{
    struct placer placer = *(struct placer *)argument;
    struct mkv_header header;
    uint8_t body[sizeof(struct mkv_local_item) + sizeof(struct mkv_local_part)];
    unsigned served = 0;
    char byte;
    free(argument);
    while (take(placer.fd, &header, sizeof header) && take(placer.fd, body, sizeof body)) {
        if (placer.is_slow && ++served % 5 == 0)
            pause_ms(8);
        if (placer.gate >= 0 && read(placer.gate, &byte, 1) <= 0)
            break; /* dies without an answer */
        if (!answer(placer.fd, &header, body))
            break;
    }
    close(placer.fd);
    return NULL;
}

static pthread_t add_placer(struct mkv_group *group, int is_slow, int gate)
{
    int pair[2];
    pthread_t thread;
    struct placer *placer = malloc(sizeof *placer);
    assert(placer && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    *placer = (struct placer){pair[1], is_slow, gate};
    assert(pthread_create(&thread, NULL, run_placer, placer) == 0);
    struct mkv_stream *stream = mkv_stream_plain(pair[0]);
    assert(stream && mkv_group_add_lane(group, stream) == 0);
    return thread;
}

/* --- jobs --- */

static uint64_t after_ms(uint64_t milliseconds)
{
    return mkv_monotonic_ns() + milliseconds * 1000000;
}

static struct mkv_job *make(uint32_t region, uint8_t first, uint64_t deadline_ns)
{
    struct {
        struct mkv_header header;
        struct mkv_local_item item;
        struct mkv_local_part part;
    } frame = {.header = {.opcode = MKV_OP_LOCAL_GET, .count = 1}};
    const char *error;
    frame.item.block_id[0] = first;
    frame.item.part_count = 1;
    frame.part = (struct mkv_local_part){region, 0, 0, BLOCK};
    mkv_header_seal(&frame.header, &frame.item, sizeof frame - sizeof frame.header);
    struct mkv_job *job = mkv_job_new(MKV_JOB_LOCAL_GET, (uint8_t *)&frame, sizeof frame,
                                      deadline_ns, &error);
    assert(job);
    memcpy(job->tenant_tag, tag, sizeof tag);
    struct iovec part = {memory[region], BLOCK};
    assert(mkv_job_scatter(job, 0, &part, 1) == NULL);
    return job;
}

struct caller {
    struct mkv_group *group;
    uint32_t region;
    unsigned hits, late;
};

static void *run_caller(void *argument)
{
    struct caller *caller = argument;
    uint8_t *bytes = memory[caller->region];
    for (unsigned round = 0; round < ROUNDS; round++) {
        uint8_t first = (uint8_t)(1 + (round + caller->region) % 200);
        struct mkv_job *job = make(caller->region, first, after_ms(round % 3 ? 10000 : 5));
        mkv_group_run(caller->group, job);
        while (!mkv_job_wait(job, after_ms(1000), 0))
            ;
        int64_t status = job->items[0].status;
        assert(status == BLOCK || status == MKV_TIMEOUT);
        if (status == BLOCK) /* and nobody writes it any more: the sanitizer sees who does */
            assert(bytes[0] == first && bytes[BLOCK - 1] == first);
        memset(bytes, 0, BLOCK);
        caller->hits += status == BLOCK;
        caller->late += status == MKV_TIMEOUT;
        mkv_job_release(job);
    }
    return NULL;
}

static void many_callers_share_a_slow_peer(void)
{
    struct mkv_engine *engine = mkv_engine_new();
    struct mkv_group *group = mkv_group_new(engine, LANES, 1000, GRACE_MS * 1000000ull);
    pthread_t placers[LANES], threads[CALLERS];
    struct caller callers[CALLERS];
    for (int i = 0; i < LANES; i++)
        placers[i] = add_placer(group, 1, -1);
    for (uint32_t i = 0; i < CALLERS; i++) {
        callers[i] = (struct caller){group, i, 0, 0};
        assert(pthread_create(&threads[i], NULL, run_caller, &callers[i]) == 0);
    }
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(threads[i], NULL);
        assert(callers[i].hits + callers[i].late == ROUNDS && callers[i].hits > 0);
    }
    assert(mkv_group_lanes_open(group) == LANES); /* late answers cost no lane */
    assert(mkv_group_close(group) == 1);
    for (int i = 0; i < LANES; i++)
        pthread_join(placers[i], NULL);
    mkv_group_free(group);
    mkv_engine_free(engine);
}

/* Wait for one report. */
static struct mkv_completion next(struct mkv_engine *engine)
{
    struct mkv_completion completion;
    struct pollfd entry = {.fd = mkv_engine_event_fd(engine), .events = POLLIN};
    assert(poll(&entry, 1, 20000) == 1);
    assert(mkv_engine_take(engine, &completion, 1) == 1);
    return completion;
}

/* `is_killed`: the peers die instead of answering. */
static void late_jobs_are_reported_twice(int is_killed)
{
    enum { JOBS = 6 };
    struct mkv_engine *engine = mkv_engine_new();
    struct mkv_group *group = mkv_group_new(engine, LANES, 1000, GRACE_MS * 1000000ull);
    struct mkv_job *jobs[JOBS];
    pthread_t placers[LANES];
    int gate[2], late = 0, done = 0;
    assert(pipe(gate) == 0);
    for (int i = 0; i < LANES; i++)
        placers[i] = add_placer(group, 0, gate[0]);
    for (uint32_t i = 0; i < JOBS; i++) {
        jobs[i] = make(i, 7, after_ms(300)); /* time for the lanes to take theirs */
        mkv_group_submit(group, jobs[i], 1);
    }
    while (done < JOBS) {
        struct mkv_completion completion = next(engine);
        late += !completion.is_done;
        done += completion.is_done;
        mkv_job_release(completion.job);
        if (late == LANES && done == JOBS - LANES) { /* only now: both are still awaited */
            if (is_killed)
                close(gate[1]);
            else
                assert(write(gate[1], "..", LANES) == LANES);
        }
    }
    assert(late == LANES);
    for (int i = 0; i < JOBS; i++) {
        int64_t status = jobs[i]->items[0].status;
        assert(status == MKV_TIMEOUT || (is_killed && status == MKV_UNAVAILABLE));
        mkv_job_release(jobs[i]);
    }
    assert(mkv_group_close(group) == 1);
    if (!is_killed)
        close(gate[1]);
    for (int i = 0; i < LANES; i++)
        pthread_join(placers[i], NULL);
    close(gate[0]);
    mkv_group_free(group);
    mkv_engine_free(engine);
}

static void closing_does_not_claim_what_is_awaited(void)
{
    struct mkv_engine *engine = mkv_engine_new();
    struct mkv_group *group = mkv_group_new(engine, 1, 10, GRACE_MS * 1000000ull);
    /* Time enough for the lane to take the job, also under a sanitizer. */
    struct mkv_job *job = make(0, 9, after_ms(500)), *refused = make(1, 9, after_ms(10000));
    int gate[2];
    assert(pipe(gate) == 0);
    pthread_t placer = add_placer(group, 0, gate[0]);
    mkv_group_submit(group, job, 0);
    assert(!mkv_job_wait(job, after_ms(600), 1));
    mkv_group_cancel(group, job);
    assert(mkv_group_close(group) == 0 && mkv_group_close(group) == 0);
    assert(!mkv_job_is_done(job) && !mkv_group_is_quiet(group));
    mkv_group_submit(group, refused, 0);
    assert(mkv_job_is_done(refused) && refused->items[0].status == MKV_CLOSED);
    assert(write(gate[1], ".", 1) == 1);
    struct mkv_completion completion = next(engine);
    assert(completion.is_done && completion.job == job);
    while (!mkv_group_close(group))
        pause_ms(1);
    assert(job->items[0].status == MKV_TIMEOUT);
    mkv_job_release(completion.job);
    mkv_job_release(job);
    mkv_job_release(refused);
    close(gate[1]);
    pthread_join(placer, NULL);
    close(gate[0]);
    mkv_group_free(group);
    mkv_engine_free(engine);
}

static void descriptors_are_kept_or_closed(void)
{
    int pair[2], passed[MKV_PASSED_FDS_MAX], kept[6], target[MKV_PASSED_FDS_MAX];
    char control[CMSG_SPACE(sizeof kept)] = {0}, bytes[8] = "frame";
    assert(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    struct mkv_stream *stream = mkv_stream_local(pair[0]);
    assert(stream && mkv_stream_take_fds(stream, target) == 0);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 6; i++)
            kept[i] = dup(1);
        struct iovec part = {bytes, sizeof bytes};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
                                 .msg_controllen = sizeof control};
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof kept);
        memcpy(CMSG_DATA(rights), kept, sizeof kept);
        assert(sendmsg(pair[1], &message, 0) == (ssize_t)sizeof bytes);
        assert(mkv_stream_receive(stream, bytes, sizeof bytes, after_ms(1000)) == 0);
        for (int i = 0; i < 6; i++)
            close(kept[i]);
        if (round == 1)
            continue; /* those of the next round find no place */
        assert(mkv_stream_take_fds(stream, passed) == MKV_PASSED_FDS_MAX);
        for (int i = 0; i < MKV_PASSED_FDS_MAX; i++)
            assert(close(passed[i]) == 0);
    }
    assert(mkv_stream_is_idle(stream));
    close(pair[1]);
    mkv_stream_free(stream);
}

int main(void)
{
    for (int i = 0; i < SLOTS; i++) {
        memory[i] = malloc(BLOCK);
        assert(memory[i]);
        memset(memory[i], 0, BLOCK);
    }
    many_callers_share_a_slow_peer();
    late_jobs_are_reported_twice(0);
    late_jobs_are_reported_twice(1);
    closing_does_not_claim_what_is_awaited();
    descriptors_are_kept_or_closed();
    for (int i = 0; i < SLOTS; i++)
        free(memory[i]);
    return 0;
}
