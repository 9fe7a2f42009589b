#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "exchange.h"
#include "lane_inner.h"

/* --- making, adding, closing --- */

static void empty(struct mkv_group *group)
{
    pthread_condattr_t monotonic;
    pthread_mutex_init(&group->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&group->quiet, &monotonic);
    pthread_condattr_destroy(&monotonic);
    for (uint32_t i = 0; i < group->lanes_max; i++) {
        group->lanes[i] = (struct mkv_lane){.group = group};
        pthread_cond_init(&group->lanes[i].wake, NULL);
    }
}

struct mkv_group *mkv_group_new(struct mkv_engine *engine, uint32_t lanes_max, uint32_t queue_max,
                                uint64_t grace_ns)
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
    group->grace_ns = grace_ns;
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
        lane->job = NULL;
        error = mkv_start_thread(&lane->thread, mkv_lane_run, lane);
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

/* With the lock: whether all that lanes still do is to close their fences, which may fail. */
static int only_fences_are_left(const struct mkv_group *group)
{
    int left = 0;
    for (uint32_t i = 0; i < group->lanes_max; i++) {
        const struct mkv_lane *lane = &group->lanes[i];
        if (lane->state == LANE_RESERVED || (lane->is_busy && !lane->unfenced.stream))
            return 0;
        left |= lane->is_busy;
    }
    return left;
}

/* Wait, with the lock, until no job is on a lane and no fence is open; 0 when the grace, or the
 * budget of fences, passed before. Who closes again does not wait again. */
static int wait_until_quiet(struct mkv_group *group, int is_first)
{
    uint64_t until_ns = 0;
    int late = 0;
    while (!is_quiet(group) && !late) {
        int is_bounded = group->grace_ns || only_fences_are_left(group);
        uint64_t budget_ns = group->grace_ns ? group->grace_ns : FENCE_BUDGET_NS;
        if (is_bounded && !until_ns)
            until_ns = mkv_monotonic_ns() + (is_first ? budget_ns : 0);
        struct timespec until = {(time_t)(until_ns / 1000000000u), (long)(until_ns % 1000000000u)};
        if (is_bounded)
            late = pthread_cond_timedwait(&group->quiet, &group->lock, &until) != 0;
        else
            pthread_cond_wait(&group->quiet, &group->lock);
    }
    return is_quiet(group);
}

int mkv_group_close(struct mkv_group *group)
{
    pthread_mutex_lock(&group->lock);
    int is_first = !group->is_closing;
    group->is_closing = 1;
    struct mkv_job *queued = mkv_queue_take_all(&group->queue);
    for (uint32_t i = 0; i < group->lanes_max; i++) {
        struct mkv_lane *lane = &group->lanes[i];
        if (lane->stream)
            mkv_lane_end_stream(lane);
        if (!lane->is_busy)
            mkv_lane_end_idle(lane);
        pthread_cond_signal(&lane->wake);
    }
    pthread_mutex_unlock(&group->lock);
    mkv_queue_complete(queued, MKV_CLOSED);

    pthread_mutex_lock(&group->lock);
    int is_done = wait_until_quiet(group, is_first);
    int is_mine = is_done && !group->is_closed; /* to take down */
    group->is_closed |= is_done;
    pthread_mutex_unlock(&group->lock);
    if (!is_mine)
        return is_done;
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
    return 1;
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
            !mkv_stream_is_idle(lane->stream)) {
            lane->is_busy = 1; /* until it is retired */
            stream = mkv_lane_bury(lane, &orphans);
        }
        pthread_mutex_unlock(&group->lock);
        mkv_queue_complete(orphans, MKV_UNAVAILABLE);
        if (stream) {
            mkv_lane_retire(lane, stream, NULL);
            gone++;
        }
    }
    return gone;
}

int mkv_group_is_quiet(struct mkv_group *group)
{
    pthread_mutex_lock(&group->lock);
    int is_idle = is_quiet(group);
    pthread_mutex_unlock(&group->lock);
    return is_idle;
}

static uint32_t look(struct mkv_group *group, const uint32_t *count)
{
    pthread_mutex_lock(&group->lock);
    uint32_t now = *count;
    pthread_mutex_unlock(&group->lock);
    return now;
}

uint32_t mkv_group_lanes_idle(struct mkv_group *group)
{
    uint32_t idle = 0;
    pthread_mutex_lock(&group->lock);
    for (uint32_t i = 0; i < group->lanes_max; i++)
        idle += mkv_lane_is_idle(&group->lanes[i]);
    pthread_mutex_unlock(&group->lock);
    return idle;
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
