#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "exchange.h"
#include "lane_inner.h"

enum { FENCE_PAUSE_NS = 10 * 1000 * 1000 };

/* --- lanes; all under the lock --- */

static struct mkv_lane *idle_lane(struct mkv_group *group)
{
    for (uint32_t i = 0; i < group->lanes_max; i++) {
        struct mkv_lane *lane = &group->lanes[i];
        if (mkv_lane_is_idle(lane))
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

struct mkv_stream *mkv_lane_bury(struct mkv_lane *lane, struct mkv_job **orphans)
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
    if (mkv_lane_end_idle(lane))
        return; /* of a group that closes: busy again, with its fence */
    lane->is_busy = 0;
    if (lane->state == LANE_DEAD || lane->group->is_closing)
        pthread_cond_signal(&lane->wake); /* its thread may end now */
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
    lane->job = job;
    job->lane = lane;
}

/* Without the lock: free what a buried lane had, and complete its last job, if there is one: nobody
 * can write into its buffers any more. The lane is busy until then, so that closing the group waits
 * for the completion. */
static void conclude(struct mkv_lane *lane, struct mkv_stream *stream, struct mkv_job *job)
{
    mkv_stream_hang_up(stream);
    if (job)
        mkv_job_complete(job);
    pthread_mutex_lock(&lane->group->lock);
    let_go(lane);
    pthread_mutex_unlock(&lane->group->lock);
}

/* Under the lock: for the thread of a dead lane. Closing a fence may take long, and fail at first;
 * whoever waits for the job has no time for either. */
static void conclude_late(struct mkv_lane *lane)
{
    const struct timespec pause = {.tv_nsec = FENCE_PAUSE_NS};
    while (lane->is_busy && !lane->unfenced.stream)
        pthread_cond_wait(&lane->wake, &lane->group->lock);
    struct unfenced last = lane->unfenced;
    if (!last.stream)
        return;
    pthread_mutex_unlock(&lane->group->lock);
    while (mkv_stream_close_fence(last.stream))
        nanosleep(&pause, NULL);
    pthread_mutex_lock(&lane->group->lock);
    lane->unfenced = (struct unfenced){0}; /* it is not late any more */
    pthread_mutex_unlock(&lane->group->lock);
    conclude(lane, last.stream, last.job);
    pthread_mutex_lock(&lane->group->lock);
}

void mkv_lane_retire(struct mkv_lane *lane, struct mkv_stream *stream, struct mkv_job *job)
{
    struct mkv_group *group = lane->group;
    if (!mkv_stream_has_fence(stream)) {
        conclude(lane, stream, job);
        return;
    }
    uint64_t due_ns = job ? job->deadline_ns + FENCE_BUDGET_NS : UINT64_MAX;
    mkv_stream_shutdown(stream);
    pthread_mutex_lock(&group->lock);
    lane->unfenced = (struct unfenced){stream, job};
    pthread_cond_signal(&lane->wake);
    pthread_mutex_unlock(&group->lock);
    mkv_engine_watch_deadline(group->engine, due_ns);
}

int mkv_lane_end_idle(struct mkv_lane *lane)
{
    if (lane->state != LANE_OPEN || !lane->group->is_closing || !mkv_stream_has_fence(lane->stream))
        return 0;
    lane->unfenced = (struct unfenced){lane->stream, NULL};
    lane->stream = NULL;
    lane->state = LANE_DEAD;
    lane->group->lanes_open--;
    lane->is_busy = 1;
    pthread_cond_signal(&lane->wake);
    return 1;
}

/* Finish with `status` (0: the job has all its answers). A spent lane's socket and fence are closed
 * before the job is completed: from then on nobody can write into its buffers. */
static void finish(struct mkv_lane *lane, struct mkv_job *job, int status, int is_spent)
{
    struct mkv_group *group = lane->group;
    struct mkv_job *orphans = NULL;
    struct mkv_stream *stream = NULL;
    if (status < 0)
        mkv_job_fail(job, status);
    pthread_mutex_lock(&group->lock);
    job->lane = NULL;
    lane->job = NULL;
    count_job(group, job);
    group->statistics.jobs_timed_out += status == MKV_TIMEOUT;
    group->statistics.protocol_faults += status == MKV_PROTOCOL;
    if (is_spent)
        stream = mkv_lane_bury(lane, &orphans);
    else
        let_go(lane);
    pthread_mutex_unlock(&group->lock);
    if (stream)
        mkv_lane_retire(lane, stream, job);
    else
        mkv_job_complete(job);
    mkv_queue_complete(orphans, MKV_UNAVAILABLE);
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
    lane->job = NULL;
    struct mkv_stream *stream = mkv_lane_bury(lane, &orphans);
    int status = group->is_closing ? MKV_CLOSED : group->lanes_open ? MKV_OK : MKV_UNAVAILABLE;
    if (status == MKV_OK) {
        mkv_queue_push_front(&group->queue, job);
        wake_one(group);
    }
    pthread_mutex_unlock(&group->lock);
    if (status == MKV_OK) {
        mkv_engine_watch_deadline(group->engine, deadline_ns);
    } else {
        mkv_job_fail(job, status);
        mkv_job_complete(job);
    }
    mkv_queue_complete(orphans, MKV_UNAVAILABLE);
    mkv_lane_retire(lane, stream, NULL);
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

void *mkv_lane_run(void *argument)
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
    conclude_late(lane);
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
    mkv_engine_watch_deadline(group->engine, deadline_ns); /* also when it is on a lane then */
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
    int may_run_here = !group->queue.first && !group->is_closing && !group->grace_ns;
    struct mkv_lane *lane = may_run_here ? idle_lane(group) : NULL;
    if (lane) {
        claim(lane, job);
        pthread_mutex_unlock(&group->lock);
        execute(lane, job, 1);
    } else {
        enqueue(group, job);
    }
    mkv_job_wait(job, job->deadline_ns, 0);
}

void mkv_lane_end_stream(const struct mkv_lane *lane)
{
    if (lane->group->grace_ns)
        mkv_stream_half_close(lane->stream);
    else
        mkv_stream_shutdown(lane->stream);
}

void mkv_group_cancel(struct mkv_group *group, struct mkv_job *job)
{
    pthread_mutex_lock(&group->lock);
    int was_queued = job->is_queued;
    if (was_queued)
        mkv_queue_remove(&group->queue, job);
    else if (job->lane && job->lane->stream)
        mkv_lane_end_stream(job->lane);
    pthread_mutex_unlock(&group->lock);
    if (was_queued) {
        mkv_job_fail(job, MKV_CLOSED);
        mkv_job_complete(job);
    }
}

/* Under the lock: the job of a lane that may outlast its deadline, and by how much before that is
 * reported: one that awaits the node, or one whose lane ended and whose fence does not close. */
static struct mkv_job *late_job(const struct mkv_lane *lane, uint64_t *grace_ns)
{
    struct mkv_job *job = lane->group->grace_ns ? lane->job : lane->unfenced.job;
    *grace_ns = lane->group->grace_ns ? lane->group->grace_ns : FENCE_BUDGET_NS;
    if (job && lane->group->grace_ns && !mkv_job_awaits_node(job))
        return NULL;
    return job && mkv_job_may_be_overdue(job) ? job : NULL;
}

/* Under the lock: report late jobs; return when the next one is. */
static uint64_t report_overdue(struct mkv_group *group, uint64_t now_ns)
{
    uint64_t earliest_ns = UINT64_MAX, grace_ns;
    for (uint32_t i = 0; i < group->lanes_max; i++) {
        struct mkv_job *job = late_job(&group->lanes[i], &grace_ns);
        if (!job)
            continue;
        uint64_t due_ns = job->deadline_ns + grace_ns;
        if (due_ns <= now_ns)
            mkv_job_report_overdue(job);
        else if (due_ns < earliest_ns)
            earliest_ns = due_ns;
    }
    return earliest_ns;
}

uint64_t mkv_group_expire(struct mkv_group *group, uint64_t now_ns)
{
    struct mkv_job *expired;
    pthread_mutex_lock(&group->lock);
    uint64_t earliest_ns = mkv_queue_take_expired(&group->queue, now_ns, &expired);
    for (struct mkv_job *job = expired; job; job = job->next)
        group->statistics.jobs_expired++;
    uint64_t late_ns = report_overdue(group, now_ns);
    pthread_mutex_unlock(&group->lock);
    mkv_queue_complete(expired, MKV_TIMEOUT);
    return late_ns < earliest_ns ? late_ns : earliest_ns;
}
