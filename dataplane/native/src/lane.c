#define _GNU_SOURCE
#include "lane.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "exchange.h"
#include "queue.h"

/* EMPTY -> RESERVED -> OPEN -> DEAD -> RESERVED ... ; the thread of a DEAD lane ends by itself and
 * is joined by whoever reuses the place. */
enum lane_state { LANE_EMPTY, LANE_RESERVED, LANE_OPEN, LANE_DEAD };

struct mkv_lane {
    struct mkv_group *group;
    enum lane_state state;
    int is_busy;  /* a job is on it, run by its thread or by a caller */
    int is_woken; /* its thread was told of a job and has not looked yet */
    struct mkv_stream *stream; /* NULL unless OPEN */
    struct mkv_inbox inbox;
    uint64_t request_id; /* of the last request */
    uint64_t round_trip_ns; /* of small gets in callers' threads, of late */
    pthread_t thread;
    pthread_cond_t wake;
};

struct mkv_group {
    struct mkv_engine *engine;
    struct mkv_group *next; /* of the engine's list */
    pthread_mutex_t lock;   /* of everything below, and of what lanes say above */
    pthread_cond_t quiet;   /* a lane became idle while closing */
    struct mkv_queue queue;
    uint32_t queue_max;
    int is_closing;
    uint32_t lanes_open, lanes_max;
    struct mkv_lane *lanes;
    struct mkv_group_statistics statistics;
};

/* --- lanes; all under the lock --- */

static struct mkv_lane *idle_lane(struct mkv_group *group)
{
    for (uint32_t i = 0; i < group->lanes_max; i++) {
        struct mkv_lane *lane = &group->lanes[i];
        if (lane->state == LANE_OPEN && !lane->is_busy && !lane->is_woken)
            return lane;
    }
    return NULL;
}

static void wake(struct mkv_lane *lane)
{
    lane->is_woken = 1;
    pthread_cond_signal(&lane->wake);
}

static void wake_one(struct mkv_group *group)
{
    struct mkv_lane *lane = idle_lane(group);
    if (lane)
        wake(lane); /* else a busy lane looks at the queue when it is done */
}

/* Take an open lane out of service; the caller frees the stream, and `orphans` when it was the last
 * lane, without the lock. */
static struct mkv_stream *bury(struct mkv_lane *lane, struct mkv_job **orphans)
{
    struct mkv_group *group = lane->group;
    struct mkv_stream *stream = lane->stream;
    lane->stream = NULL;
    lane->state = LANE_DEAD;
    group->lanes_open--;
    group->statistics.lanes_lost++;
    pthread_cond_signal(&lane->wake);
    *orphans = group->lanes_open == 0 ? mkv_queue_take_all(&group->queue) : NULL;
    if (group->queue.first)
        wake_one(group); /* this one may have been woken for the queue */
    return stream;
}

static void let_go(struct mkv_lane *lane)
{
    lane->is_busy = 0;
    if (lane->group->is_closing)
        pthread_cond_broadcast(&lane->group->quiet);
    else if (lane->group->queue.first)
        wake_one(lane->group);
}

/* --- running a job on a lane that was claimed (is_busy) for it --- */

static void count_job(struct mkv_group *group, const struct mkv_job *job)
{
    struct mkv_group_statistics *counts = &group->statistics;
    counts->jobs_run++;
    counts->bytes_received += job->bytes_received;
    counts->bytes_sent += job->bytes_sent;
    for (uint32_t i = 0; i < job->item_count; i++)
        counts->items_corrupt += job->items[i].status == MKV_CORRUPT;
}

static void claim(struct mkv_lane *lane, struct mkv_job *job)
{
    lane->is_busy = 1;
    job->lane = lane;
}

/* Finish with `status` (0: the job has all its answers). A spent lane's socket is closed before the
 * job is completed: from then on nobody can write into its buffers. */
static void finish(struct mkv_lane *lane, struct mkv_job *job, int status, int is_spent)
{
    struct mkv_group *group = lane->group;
    struct mkv_job *orphans = NULL;
    struct mkv_stream *stream = NULL;
    if (status < 0)
        mkv_job_fail(job, status);
    pthread_mutex_lock(&group->lock);
    job->lane = NULL;
    count_job(group, job);
    group->statistics.jobs_timed_out += status == MKV_TIMEOUT;
    group->statistics.protocol_faults += status == MKV_PROTOCOL;
    if (is_spent)
        stream = bury(lane, &orphans);
    else
        let_go(lane);
    pthread_mutex_unlock(&group->lock);
    if (stream)
        mkv_stream_hang_up(stream);
    mkv_job_complete(job);
    mkv_queue_complete(orphans, MKV_UNAVAILABLE);
    if (is_spent) { /* busy until now, so that closing the group waits for the completion */
        pthread_mutex_lock(&group->lock);
        let_go(lane);
        pthread_mutex_unlock(&group->lock);
    }
}

/* The peer closed while the lane was idle, and nothing of this job was sent: another lane may try
 * it, if there is one. */
static void pass_on(struct mkv_lane *lane, struct mkv_job *job)
{
    struct mkv_group *group = lane->group;
    struct mkv_job *orphans;
    uint64_t deadline_ns = job->deadline_ns;
    pthread_mutex_lock(&group->lock);
    job->lane = NULL;
    struct mkv_stream *stream = bury(lane, &orphans);
    int status = group->is_closing ? MKV_CLOSED : group->lanes_open ? MKV_OK : MKV_UNAVAILABLE;
    if (status == MKV_OK) {
        mkv_queue_push_front(&group->queue, job);
        wake_one(group);
    }
    pthread_mutex_unlock(&group->lock);
    mkv_stream_hang_up(stream);
    if (status == MKV_OK) {
        mkv_engine_watch_deadline(group->engine, deadline_ns);
    } else {
        mkv_job_fail(job, status);
        mkv_job_complete(job);
    }
    mkv_queue_complete(orphans, MKV_UNAVAILABLE);
    pthread_mutex_lock(&group->lock);
    let_go(lane);
    pthread_mutex_unlock(&group->lock);
}

static void execute(struct mkv_lane *lane, struct mkv_job *job, int may_poll)
{
    if (mkv_monotonic_ns() >= job->deadline_ns) {
        finish(lane, job, MKV_TIMEOUT, 0);
    } else if (!mkv_stream_is_idle(lane->stream)) {
        pass_on(lane, job);
    } else {
        int status = mkv_exchange(lane->stream, &lane->inbox, ++lane->request_id, job,
                                  may_poll ? &lane->round_trip_ns : NULL);
        finish(lane, job, status < 0 ? status : MKV_OK, status != MKV_OK);
    }
}

static void *run_lane(void *argument)
{
    struct mkv_lane *lane = argument;
    struct mkv_group *group = lane->group;
    pthread_setname_np(pthread_self(), "memkv-lane");
    pthread_mutex_lock(&group->lock);
    while (lane->state == LANE_OPEN && !group->is_closing) {
        lane->is_woken = 0;
        struct mkv_job *job = group->queue.first;
        if (lane->is_busy || !job) {
            pthread_cond_wait(&lane->wake, &group->lock);
            continue;
        }
        mkv_queue_remove(&group->queue, job);
        claim(lane, job);
        pthread_mutex_unlock(&group->lock);
        execute(lane, job, 0);
        pthread_mutex_lock(&group->lock);
    }
    pthread_mutex_unlock(&group->lock);
    return NULL;
}

/* --- giving jobs --- */

static void prepare(struct mkv_group *group, struct mkv_job *job, int notify)
{
    job->engine = group->engine;
    job->wants_notify = notify;
    mkv_job_reference(job);
}

/* Under the lock: why this job cannot be taken, or 0. */
static int refusal(const struct mkv_group *group)
{
    if (group->is_closing)
        return MKV_CLOSED;
    if (group->lanes_open == 0)
        return MKV_UNAVAILABLE;
    return group->queue.count >= group->queue_max ? MKV_BUSY : 0;
}

/* Queue or refuse; called with the lock, returns without. */
static void enqueue(struct mkv_group *group, struct mkv_job *job)
{
    int status = refusal(group);
    uint64_t deadline_ns = job->deadline_ns;
    if (status) {
        group->statistics.jobs_refused++;
        pthread_mutex_unlock(&group->lock);
        mkv_job_fail(job, status);
        mkv_job_complete(job);
        return;
    }
    mkv_queue_push_back(&group->queue, job);
    wake_one(group);
    pthread_mutex_unlock(&group->lock);
    mkv_engine_watch_deadline(group->engine, deadline_ns);
}

void mkv_group_submit(struct mkv_group *group, struct mkv_job *job, int notify)
{
    prepare(group, job, notify);
    pthread_mutex_lock(&group->lock);
    enqueue(group, job);
}

void mkv_group_run(struct mkv_group *group, struct mkv_job *job)
{
    prepare(group, job, 0);
    pthread_mutex_lock(&group->lock);
    struct mkv_lane *lane = group->queue.first || group->is_closing ? NULL : idle_lane(group);
    if (lane) {
        claim(lane, job);
        pthread_mutex_unlock(&group->lock);
        execute(lane, job, 1);
    } else {
        enqueue(group, job);
    }
    mkv_job_wait(job, job->deadline_ns, 0);
}

void mkv_group_cancel(struct mkv_group *group, struct mkv_job *job)
{
    pthread_mutex_lock(&group->lock);
    int was_queued = job->is_queued;
    if (was_queued)
        mkv_queue_remove(&group->queue, job);
    else if (job->lane && job->lane->stream)
        mkv_stream_shutdown(job->lane->stream);
    pthread_mutex_unlock(&group->lock);
    if (was_queued) {
        mkv_job_fail(job, MKV_CLOSED);
        mkv_job_complete(job);
    }
}

uint64_t mkv_group_expire(struct mkv_group *group, uint64_t now_ns)
{
    struct mkv_job *expired;
    pthread_mutex_lock(&group->lock);
    uint64_t earliest_ns = mkv_queue_take_expired(&group->queue, now_ns, &expired);
    for (struct mkv_job *job = expired; job; job = job->next)
        group->statistics.jobs_expired++;
    pthread_mutex_unlock(&group->lock);
    mkv_queue_complete(expired, MKV_TIMEOUT);
    return earliest_ns;
}

/* --- making, adding, closing --- */

static void empty(struct mkv_group *group)
{
    pthread_mutex_init(&group->lock, NULL);
    pthread_cond_init(&group->quiet, NULL);
    for (uint32_t i = 0; i < group->lanes_max; i++) {
        group->lanes[i] = (struct mkv_lane){.group = group};
        pthread_cond_init(&group->lanes[i].wake, NULL);
    }
}

struct mkv_group *mkv_group_new(struct mkv_engine *engine, uint32_t lanes_max, uint32_t queue_max)
{
    struct mkv_group *group = calloc(1, sizeof *group);
    if (!group)
        return NULL;
    group->lanes = calloc(lanes_max, sizeof *group->lanes);
    if (!group->lanes) {
        free(group);
        return NULL;
    }
    group->engine = engine;
    group->lanes_max = lanes_max;
    group->queue_max = queue_max;
    empty(group);
    mkv_engine_add_group(engine, group);
    return group;
}

/* Find a place for a lane, or NULL; the thread that had it before has ended. */
static struct mkv_lane *reserve(struct mkv_group *group, int *error)
{
    struct mkv_lane *lane = NULL;
    enum lane_state before = LANE_EMPTY;
    pthread_mutex_lock(&group->lock);
    *error = group->is_closing ? -ESHUTDOWN : -ENOSPC;
    for (uint32_t i = 0; i < group->lanes_max && !lane && !group->is_closing; i++)
        if (group->lanes[i].state == LANE_EMPTY ||
            (group->lanes[i].state == LANE_DEAD && !group->lanes[i].is_busy))
            lane = &group->lanes[i];
    if (lane) {
        before = lane->state;
        lane->state = LANE_RESERVED;
    }
    pthread_mutex_unlock(&group->lock);
    if (before == LANE_DEAD)
        pthread_join(lane->thread, NULL);
    return lane;
}

static int open_lane(struct mkv_group *group, struct mkv_lane *lane, struct mkv_stream *stream)
{
    if (!lane->inbox.bytes)
        lane->inbox.bytes = malloc(MKV_INBOX_BYTES);
    lane->inbox.capacity = MKV_INBOX_BYTES;
    pthread_mutex_lock(&group->lock);
    lane->state = LANE_EMPTY;
    int error = !lane->inbox.bytes ? ENOMEM : group->is_closing ? ESHUTDOWN : 0;
    if (!error) {
        lane->stream = stream;
        lane->state = LANE_OPEN; /* before the thread looks; it waits for the lock */
        lane->is_woken = lane->is_busy = 0;
        error = mkv_start_thread(&lane->thread, run_lane, lane);
    }
    if (error) {
        lane->state = LANE_EMPTY;
        lane->stream = NULL;
    } else {
        group->lanes_open++;
        group->statistics.lanes_added++;
    }
    pthread_cond_broadcast(&group->quiet);
    pthread_mutex_unlock(&group->lock);
    return -error;
}

int mkv_group_add_lane(struct mkv_group *group, struct mkv_stream *stream)
{
    int error;
    struct mkv_lane *lane = reserve(group, &error);
    if (lane)
        error = open_lane(group, lane, stream);
    if (error)
        mkv_stream_hang_up(stream);
    return error;
}

static int is_quiet(const struct mkv_group *group)
{
    for (uint32_t i = 0; i < group->lanes_max; i++)
        if (group->lanes[i].is_busy || group->lanes[i].state == LANE_RESERVED)
            return 0;
    return 1;
}

void mkv_group_close(struct mkv_group *group)
{
    pthread_mutex_lock(&group->lock);
    int is_first = !group->is_closing;
    group->is_closing = 1;
    struct mkv_job *queued = mkv_queue_take_all(&group->queue);
    for (uint32_t i = 0; i < group->lanes_max; i++) {
        if (group->lanes[i].stream)
            mkv_stream_shutdown(group->lanes[i].stream);
        pthread_cond_signal(&group->lanes[i].wake);
    }
    pthread_mutex_unlock(&group->lock);
    mkv_queue_complete(queued, MKV_CLOSED);

    pthread_mutex_lock(&group->lock);
    while (!is_quiet(group))
        pthread_cond_wait(&group->quiet, &group->lock);
    pthread_mutex_unlock(&group->lock);
    if (!is_first)
        return;
    /* Nobody changes the lanes any more: no job starts and no lane is added while closing. */
    for (uint32_t i = 0; i < group->lanes_max; i++) {
        struct mkv_lane *lane = &group->lanes[i];
        if (lane->state != LANE_EMPTY)
            pthread_join(lane->thread, NULL);
        pthread_mutex_lock(&group->lock);
        struct mkv_stream *stream = lane->stream;
        group->lanes_open -= lane->state == LANE_OPEN;
        lane->stream = NULL;
        lane->state = LANE_EMPTY;
        pthread_mutex_unlock(&group->lock);
        if (stream)
            mkv_stream_hang_up(stream);
    }
}

void mkv_group_abandon(struct mkv_group *group)
{
    for (uint32_t i = 0; i < group->lanes_max; i++)
        if (group->lanes[i].stream) /* the memory is left: a TLS stream would say good-bye */
            close(group->lanes[i].stream->fd);
    mkv_queue_take_all(&group->queue);
    group->lanes_open = 0;
    group->is_closing = 1;
    empty(group);
}

void mkv_group_free(struct mkv_group *group)
{
    mkv_engine_remove_group(group->engine, group);
    for (uint32_t i = 0; i < group->lanes_max; i++) {
        pthread_cond_destroy(&group->lanes[i].wake);
        free(group->lanes[i].inbox.bytes);
    }
    pthread_cond_destroy(&group->quiet);
    pthread_mutex_destroy(&group->lock);
    free(group->lanes);
    free(group);
}

/* --- looking --- */

uint32_t mkv_group_reap(struct mkv_group *group)
{
    uint32_t gone = 0;
    for (uint32_t i = 0; i < group->lanes_max; i++) {
        struct mkv_lane *lane = &group->lanes[i];
        struct mkv_stream *stream = NULL;
        struct mkv_job *orphans = NULL;
        pthread_mutex_lock(&group->lock);
        if (lane->state == LANE_OPEN && !lane->is_busy && !group->is_closing &&
            !mkv_stream_is_idle(lane->stream))
            stream = bury(lane, &orphans);
        pthread_mutex_unlock(&group->lock);
        if (stream) {
            mkv_stream_hang_up(stream);
            gone++;
        }
        mkv_queue_complete(orphans, MKV_UNAVAILABLE);
    }
    return gone;
}

static uint32_t look(struct mkv_group *group, const uint32_t *count)
{
    pthread_mutex_lock(&group->lock);
    uint32_t now = *count;
    pthread_mutex_unlock(&group->lock);
    return now;
}

uint32_t mkv_group_lanes_open(struct mkv_group *group)
{
    return look(group, &group->lanes_open);
}

uint32_t mkv_group_jobs_queued(struct mkv_group *group)
{
    return look(group, &group->queue.count);
}

void mkv_group_get_statistics(struct mkv_group *group, struct mkv_group_statistics *statistics)
{
    pthread_mutex_lock(&group->lock);
    *statistics = group->statistics;
    pthread_mutex_unlock(&group->lock);
}

struct mkv_group **mkv_group_next(struct mkv_group *group)
{
    return &group->next;
}
