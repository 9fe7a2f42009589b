/* Lanes, queues and the engine under many threads at once, for the sanitizers: callers, lane
 * threads, a canceller, peers that die, and a close with jobs in flight; plain and under TLS. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <unistd.h>

#include "lane_peer.h"

enum { CALLERS = 3, ROUNDS = 60 };

static int add_lane(struct mkv_group *group, int requests_left, int is_silent)
{
    return add_fenced(group, requests_left, is_silent, (struct mkv_fence){0});
}

/* --- scenes --- */

struct scene {
    struct mkv_engine *engine;
    struct mkv_group *group;
    int is_cancelling;
};

static void *call(void *argument)
{
    struct scene *scene = argument;
    for (int round = 0; round < ROUNDS; round++) {
        struct work ran = make(round % 3 == 0, after_ms(20000));
        struct work queued = make(round % 4 == 0, after_ms(20000));
        mkv_group_submit(scene->group, queued.job, 0);
        mkv_group_run(scene->group, ran.job);
        if (scene->is_cancelling && round % 5 == 0)
            mkv_group_cancel(scene->group, queued.job);
        assert(mkv_job_wait(ran.job, after_ms(20000), 0));
        assert(mkv_job_wait(queued.job, after_ms(20000), 0));
        check_and_free(ran);
        check_and_free(queued);
    }
    return NULL;
}

static void callers_share_lanes_while_peers_die(int is_cancelling)
{
    struct scene scene = {mkv_engine_new(), NULL, is_cancelling};
    struct mkv_group_statistics statistics;
    pthread_t callers[CALLERS];
    scene.group = mkv_group_new(scene.engine, LANES, 1000, 0);
    for (int i = 0; i < LANES; i++)
        assert(add_lane(scene.group, i ? 5 : -1, 0) == 0);
    for (int i = 0; i < CALLERS; i++)
        assert(pthread_create(&callers[i], NULL, call, &scene) == 0);
    for (int i = 0; i < 40; i++) {
        mkv_group_reap(scene.group);
        int error = add_lane(scene.group, 3 + i % 7, 0);
        assert(error == 0 || error == -ENOSPC);
        if (error)
            poll(NULL, 0, 1);
    }
    for (int i = 0; i < CALLERS; i++)
        pthread_join(callers[i], NULL);
    mkv_group_get_statistics(scene.group, &statistics);
    assert(statistics.protocol_faults == 0 && statistics.items_corrupt == 0);
    assert(statistics.jobs_run > 0);
    mkv_group_close(scene.group);
    mkv_group_free(scene.group);
    mkv_engine_free(scene.engine);
}

static void completions_are_reported_once(void)
{
    enum { JOBS = 50 };
    struct mkv_engine *engine = mkv_engine_new();
    struct mkv_group *group = mkv_group_new(engine, 2, JOBS, 0);
    struct work works[JOBS];
    struct mkv_completion done[7];
    uint32_t seen = 0, count;
    assert(add_lane(group, -1, 0) == 0 && add_lane(group, -1, 0) == 0);
    for (int i = 0; i < JOBS; i++) {
        works[i] = make(i % 2, after_ms(20000));
        mkv_group_submit(group, works[i].job, 1);
    }
    while (seen < JOBS) {
        struct pollfd entry = {.fd = mkv_engine_event_fd(engine), .events = POLLIN};
        assert(poll(&entry, 1, 20000) == 1);
        while ((count = mkv_engine_take(engine, done, 7)) != 0) {
            seen += count;
            while (count)
                mkv_job_release(done[--count].job);
        }
    }
    for (int i = 0; i < JOBS; i++)
        check_and_free(works[i]);
    mkv_group_close(group);
    mkv_group_free(group);
    mkv_engine_free(engine);
}

static void silent_peers_cost_the_deadline(void)
{
    struct mkv_engine *engine = mkv_engine_new();
    struct mkv_group *group = mkv_group_new(engine, 1, 10, 0);
    struct work ran = make(0, after_ms(30)), queued = make(1, after_ms(20));
    assert(add_lane(group, -1, 1) == 0);
    mkv_group_submit(group, ran.job, 0);
    mkv_group_submit(group, queued.job, 0);
    assert(mkv_job_wait(ran.job, after_ms(20000), 0));
    assert(mkv_job_wait(queued.job, after_ms(20000), 0));
    assert(ran.job->status == MKV_TIMEOUT && queued.job->status == MKV_TIMEOUT);
    assert(mkv_group_lanes_open(group) == 0);
    check_and_free(ran);
    check_and_free(queued);
    mkv_group_close(group);
    mkv_group_free(group);
    mkv_engine_free(engine);
}

static void closing_ends_what_is_in_flight(void)
{
    enum { JOBS = 8 };
    for (int round = 0; round < 20; round++) {
        struct mkv_engine *engine = mkv_engine_new();
        struct mkv_group *group = mkv_group_new(engine, LANES, JOBS, 0);
        struct work works[JOBS];
        for (int i = 0; i < LANES; i++)
            assert(add_lane(group, -1, i == 0) == 0);
        for (int i = 0; i < JOBS; i++) {
            works[i] = make(i % 2, after_ms(20000));
            mkv_group_submit(group, works[i].job, i % 2);
        }
        mkv_group_close(group);
        for (int i = 0; i < JOBS; i++)
            check_and_free(works[i]);
        assert(add_lane(group, -1, 0) == -ESHUTDOWN);
        mkv_group_free(group);
        mkv_engine_free(engine); /* releases the completions that nobody took */
    }
}

static void run_all(void)
{
    callers_share_lanes_while_peers_die(0);
    callers_share_lanes_while_peers_die(1);
    completions_are_reported_once();
    silent_peers_cost_the_deadline();
    closing_ends_what_is_in_flight();
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
