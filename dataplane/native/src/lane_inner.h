/* What a lane group is, for lane.c, which runs jobs, and group.c, which makes, closes and looks at
 * groups. */
#pragma once
#include <pthread.h>
#include <stdint.h>

#include "lane.h"
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
    struct mkv_job *job; /* that is on it, NULL when it is idle */
    struct unfenced {
        struct mkv_stream *stream; /* ended, but its fence is open; NULL: none */
        struct mkv_job *job;       /* whose memory is not free yet, or NULL */
    } unfenced; /* its thread closes it; the lane is DEAD and busy meanwhile */
    uint64_t request_id; /* of the last request */
    uint64_t round_trip_ns; /* of small gets in callers' threads, of late */
    pthread_t thread;
    pthread_cond_t wake;
};

/* Under the lock: whether its thread waits for a job, and was told of none. */
static inline int mkv_lane_is_idle(const struct mkv_lane *lane)
{
    return lane->state == LANE_OPEN && !lane->is_busy && !lane->is_woken;
}

struct mkv_group {
    struct mkv_engine *engine;
    struct mkv_group *next; /* of the engine's list */
    pthread_mutex_t lock;   /* of everything below, and of what lanes say above */
    pthread_cond_t quiet;   /* a lane became idle while closing */
    struct mkv_queue queue;
    uint32_t queue_max;
    int is_closing, is_closed;
    uint64_t grace_ns; /* 0: lanes close at a deadline */
    uint32_t lanes_open, lanes_max;
    struct mkv_lane *lanes;
    struct mkv_group_statistics statistics;
};

/* Thread of an open lane; the argument is the lane. */
void *mkv_lane_run(void *lane);

/* Under the lock: take an open lane out of service; the caller retires it, and completes `orphans`
 * when it was the last lane, without the lock. */
struct mkv_stream *mkv_lane_bury(struct mkv_lane *lane, struct mkv_job **orphans);

/* Without the lock, of a lane that was buried while it was busy: end its stream, close its fence,
 * complete `job` (or NULL) and let the lane go. */
void mkv_lane_retire(struct mkv_lane *lane, struct mkv_stream *stream, struct mkv_job *job);

/* Under the lock, while the group closes: have an idle lane's thread close its fence; the lane is
 * busy then. Returns 0 where there is no fence. */
int mkv_lane_end_idle(struct mkv_lane *lane);

/* Under the lock: end a lane's stream, or with a grace its sending side. */
void mkv_lane_end_stream(const struct mkv_lane *lane);
