/* Payload lanes: a group is the connections of one class to one worker, with one queue of jobs.
 *
 * Each lane has a thread, asleep while its lane is idle; a caller who waits for a job anyway runs
 * it on an idle lane itself (mkv_group_run), which saves two thread switches. A lane that misses a
 * deadline, loses its peer or sees the protocol broken closes its socket first and completes its
 * job after that, so a completed job's buffers are free. A dead lane is never revived; add
 * another. When the last one dies, queued jobs complete as UNAVAILABLE.
 *
 * A group with a grace is for jobs that await the node (see job.h): closing a lane would free
 * nothing there. Its lanes go on waiting beyond the deadline, only its threads run jobs, and what
 * is not done after deadline and grace is reported as late.
 *
 * A stream may have a fence (see stream.h). The thread of its lane closes it when the lane ends,
 * tries again while that fails, and completes the lane's last job after that. A job whose fence is
 * still open when deadline and FENCE_BUDGET_NS are over is reported as late, too.
 *
 * Thread-safe. Locks: a group's lock is taken inside the engine's timer lock and never held over
 * I/O or over a job's completion. */
#pragma once
#include <stdint.h>

#include "engine.h"
#include "job.h"
#include "stream.h"

struct mkv_group;

/* As FENCE_BUDGET_MS of limits.py: how long after its deadline a job may wait for the fence of its
 * lane before that is reported, and a closing group for what is left of it. */
enum { FENCE_BUDGET_NS = 250 * 1000 * 1000 };

struct mkv_group_statistics {
    uint64_t jobs_run;      /* on a lane, by its thread or a caller */
    uint64_t jobs_refused;  /* BUSY, UNAVAILABLE or CLOSED when given */
    uint64_t jobs_expired;  /* deadline passed in the queue */
    uint64_t jobs_timed_out; /* deadline passed on a lane */
    uint64_t bytes_received, bytes_sent; /* payload */
    uint64_t items_corrupt;
    uint64_t protocol_faults; /* lanes closed because the peer broke the protocol */
    uint64_t lanes_added, lanes_lost;
};

/* `lanes_max` at least 1; `grace_ns` 0: lanes close at a deadline. Returns NULL when memory is
 * short. The engine must outlive the group. */
struct mkv_group *mkv_group_new(struct mkv_engine *engine, uint32_t lanes_max, uint32_t queue_max,
                                uint64_t grace_ns);

/* Refuse new jobs, complete queued ones as CLOSED, close all lanes and wait for the jobs on them
 * (CLOSED too). Safe to call again. Returns 1.
 *
 * With a grace: end only the sending side and wait so long at most, the first time. Where only
 * fences are left that do not close: wait for the budget of fences. Returns 0 when a job is still
 * on a lane, or a fence open: the group lives on until a later call returns 1. */
int mkv_group_close(struct mkv_group *group);

/* For mkv_engine_abandon: drop this process's copies of the sockets, and be closed. */
void mkv_group_abandon(struct mkv_group *group);

/* After mkv_group_close returned 1 and when no other thread is inside. */
void mkv_group_free(struct mkv_group *group);

/* Take over a connected stream and start its thread. Returns 0; or -ENOSPC (lanes_max are open),
 * -ESHUTDOWN (closed) or another -errno, and then the stream is freed. */
int mkv_group_add_lane(struct mkv_group *group, struct mkv_stream *stream);

/* Queue a job for the lane threads. It completes in any case, perhaps before this returns. With
 * `notify` the engine reports it. */
void mkv_group_submit(struct mkv_group *group, struct mkv_job *job, int notify);

/* Run a job in the calling thread when a lane is idle, else queue it and wait until its deadline:
 * it may then still be on a lane that is closing. */
void mkv_group_run(struct mkv_group *group, struct mkv_job *job);

/* Take a queued job off, or close the lane that runs it; it completes as CLOSED, soon. With a grace
 * only the sending side ends, and the job is done when the node is. Nothing happens to a job that
 * is done. */
void mkv_group_cancel(struct mkv_group *group, struct mkv_job *job);

/* Close idle lanes whose peer has gone. Returns how many. */
uint32_t mkv_group_reap(struct mkv_group *group);

/* Whether no job is on a lane. */
int mkv_group_is_quiet(struct mkv_group *group);

uint32_t mkv_group_lanes_open(struct mkv_group *group);

/* Open lanes that would take a job at once. */
uint32_t mkv_group_lanes_idle(struct mkv_group *group);
uint32_t mkv_group_jobs_queued(struct mkv_group *group);
void mkv_group_get_statistics(struct mkv_group *group, struct mkv_group_statistics *statistics);

/* For the engine's timer: complete queued jobs whose deadline is not after `now_ns` as TIMEOUT,
 * report late ones, and return the earliest deadline left (UINT64_MAX: none); the link of the
 * engine's list. */
uint64_t mkv_group_expire(struct mkv_group *group, uint64_t now_ns);
struct mkv_group **mkv_group_next(struct mkv_group *group);
