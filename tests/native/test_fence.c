/* Fences of lanes, which fail at first, take long, or are closed by a group that closes: for the
 * sanitizers; plain and under TLS. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>

#include "lane_peer.h"

/* Fails so often, then takes its time; a job is not done before. */
struct fence {
    int failures_left, closes, is_closed, is_dropped, took_ms;
};

static int close_fence(void *context)
{
    struct fence *fence = context;
    __atomic_add_fetch(&fence->closes, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&fence->failures_left, __ATOMIC_SEQ_CST) > 0) {
        __atomic_sub_fetch(&fence->failures_left, 1, __ATOMIC_SEQ_CST);
        return -1;
    }
    poll(NULL, 0, fence->took_ms);
    __atomic_store_n(&fence->is_closed, 1, __ATOMIC_SEQ_CST);
    return 0;
}

static void drop_fence(void *context)
{
    struct fence *fence = context;
    assert(__atomic_add_fetch(&fence->is_dropped, 1, __ATOMIC_SEQ_CST) == 1);
}

static int is_set(const int *flag)
{
    return __atomic_load_n(flag, __ATOMIC_SEQ_CST);
}

static void wait_until_set(const int *flag)
{
    for (int i = 0; i < 20000 && !is_set(flag); i++)
        poll(NULL, 0, 1);
    assert(is_set(flag));
}

static struct mkv_fence fenced_by(struct fence *fence)
{
    return (struct mkv_fence){close_fence, drop_fence, fence};
}

static void fences_are_closed_before_jobs_are_done(int failures, int took_ms)
{
    struct mkv_engine *engine = mkv_engine_new();
    struct mkv_group *group = mkv_group_new(engine, 2, 10, 0);
    struct fence fences[2] = {{.failures_left = failures, .took_ms = took_ms},
                              {.failures_left = failures, .took_ms = took_ms}};
    struct work works[3];
    for (int i = 0; i < 2; i++)
        assert(add_fenced(group, -1, 1, fenced_by(&fences[i])) == 0);
    uint64_t deadline_ns = after_ms(200); /* both are on a lane by then */
    for (int i = 0; i < 3; i++) /* one in this thread, one in a lane's, one in the queue */
        works[i] = make(0, i < 2 ? deadline_ns : after_ms(20000));
    mkv_group_submit(group, works[1].job, 0);
    mkv_group_run(group, works[0].job);
    mkv_group_submit(group, works[2].job, 0); /* the last lane may be dead already */
    for (int i = 0; i < 2; i++) {
        assert(mkv_job_wait(works[i].job, after_ms(20000), 0));
        assert(works[i].job->status == MKV_TIMEOUT);
    }
    /* Jobs and lanes were paired by chance: both fences closed means that each was before its. */
    assert(is_set(&fences[0].is_closed) && is_set(&fences[1].is_closed));
    assert(fences[0].closes == failures + 1 && fences[1].closes == failures + 1);
    assert(mkv_job_wait(works[2].job, after_ms(20000), 0));
    assert(works[2].job->status == MKV_UNAVAILABLE);
    for (int i = 0; i < 3; i++)
        check_and_free(works[i]);
    assert(mkv_group_close(group) == 1);
    assert(is_set(&fences[0].is_dropped) && is_set(&fences[1].is_dropped));
    mkv_group_free(group);
    mkv_engine_free(engine);
}

static void a_fence_that_does_not_close_is_reported_and_bounds_the_close(void)
{
    struct mkv_engine *engine = mkv_engine_new();
    struct mkv_group *group = mkv_group_new(engine, 1, 10, 0);
    struct fence fence = {.failures_left = 1 << 30};
    struct work work = make(0, after_ms(20));
    struct mkv_completion seen;
    struct pollfd entry = {.fd = mkv_engine_event_fd(engine), .events = POLLIN};
    assert(add_fenced(group, -1, 1, fenced_by(&fence)) == 0);
    mkv_group_submit(group, work.job, 1);
    assert(poll(&entry, 1, 20000) == 1 && mkv_engine_take(engine, &seen, 1) == 1);
    assert(!seen.is_done && !mkv_job_is_done(work.job));
    mkv_job_release(seen.job);
    assert(mkv_group_close(group) == 0 && mkv_group_close(group) == 0);
    assert(!mkv_job_is_done(work.job));
    __atomic_store_n(&fence.failures_left, 0, __ATOMIC_SEQ_CST);
    assert(poll(&entry, 1, 20000) == 1 && mkv_engine_take(engine, &seen, 1) == 1);
    assert(seen.is_done && is_set(&fence.is_closed));
    mkv_job_release(seen.job);
    check_and_free(work);
    for (int i = 0; i < 20000 && !mkv_group_close(group); i++)
        poll(NULL, 0, 1);
    assert(mkv_group_close(group) == 1);
    mkv_group_free(group);
    mkv_engine_free(engine);
}

static void idle_lanes_close_their_fences(int is_reaped)
{
    struct mkv_engine *engine = mkv_engine_new();
    struct mkv_group *group = mkv_group_new(engine, 1, 10, 0);
    struct fence fence = {.failures_left = 3}, next = {0};
    assert(add_fenced(group, is_reaped ? 0 : -1, 0, fenced_by(&fence)) == 0);
    if (is_reaped) {
        while (!mkv_group_reap(group))
            poll(NULL, 0, 1);
        assert(mkv_group_lanes_open(group) == 0);
        wait_until_set(&fence.is_dropped);
        while (add_fenced(group, -1, 0, fenced_by(&next)) == -ENOSPC) /* its thread ends just now */
            poll(NULL, 0, 1), next = (struct fence){0};
    }
    while (!mkv_group_close(group))
        poll(NULL, 0, 1);
    assert(is_set(&fence.is_closed) && fence.closes == 4 && fence.is_dropped == 1);
    assert(next.is_closed == is_reaped);
    mkv_group_free(group);
    mkv_engine_free(engine);
}

static void groups_close_with_fences_in_every_state(void)
{
    for (int round = 0; round < 20; round++) {
        struct mkv_engine *engine = mkv_engine_new();
        struct mkv_group *group = mkv_group_new(engine, LANES, 20, 0);
        struct fence fences[LANES];
        struct work works[6];
        for (int i = 0; i < LANES; i++) {
            fences[i] = (struct fence){.failures_left = (round + i) % 3};
            assert(add_fenced(group, 1 + i, i == 0, fenced_by(&fences[i])) == 0);
        }
        for (int i = 0; i < 6; i++) {
            works[i] = make(i % 2, after_ms(20000));
            mkv_group_submit(group, works[i].job, i % 2);
        }
        poll(NULL, 0, round % 4);
        mkv_group_reap(group);
        while (!mkv_group_close(group))
            poll(NULL, 0, 1);
        for (int i = 0; i < 6; i++)
            check_and_free(works[i]);
        for (int i = 0; i < LANES; i++)
            assert(is_set(&fences[i].is_closed) && fences[i].is_dropped == 1);
        mkv_group_free(group);
        mkv_engine_free(engine);
    }
}

static void run_all(void)
{
    fences_are_closed_before_jobs_are_done(0, 0);
    fences_are_closed_before_jobs_are_done(5, 20);
    a_fence_that_does_not_close_is_reported_and_bounds_the_close();
    idle_lanes_close_their_fences(0);
    idle_lanes_close_their_fences(1);
    groups_close_with_fences_in_every_state();
    wait_for_peers();
}

int main(void)
{
    run_all();
    tls = make_tls_pair();
    run_all();
    free_tls_pair(tls);
    return 0;
}
