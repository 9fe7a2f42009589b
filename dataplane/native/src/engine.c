/* Locks: timer_lock, then a group's lock, then a job's; done_lock is taken last.
 * Groups call in here without holding their own lock. */
#define _GNU_SOURCE
#include "engine.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "lane.h"
#include "stream.h"

struct mkv_engine {
    int event_fd;
    pthread_mutex_t done_lock;
    struct mkv_job *done_first, *done_last;

    pthread_t timer;
    pthread_mutex_t timer_lock; /* of what follows */
    pthread_cond_t timer_changed;
    uint64_t next_ns; /* when the timer looks at the queues; UINT64_MAX: never */
    int is_stopping, is_abandoned;
    struct mkv_group *groups; /* linked by mkv_group_next */
};

int mkv_start_thread(pthread_t *thread, void *(*run)(void *), void *argument)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(thread, NULL, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

static void *run_timer(void *argument)
{
    struct mkv_engine *engine = argument;
    pthread_setname_np(pthread_self(), "memkv-timer");
    pthread_mutex_lock(&engine->timer_lock);
    while (!engine->is_stopping) {
        uint64_t now = mkv_monotonic_ns();
        if (engine->next_ns == UINT64_MAX) {
            pthread_cond_wait(&engine->timer_changed, &engine->timer_lock);
        } else if (now < engine->next_ns) {
            struct timespec until = {(time_t)(engine->next_ns / 1000000000u),
                                     (long)(engine->next_ns % 1000000000u)};
            pthread_cond_timedwait(&engine->timer_changed, &engine->timer_lock, &until);
        } else {
            engine->next_ns = UINT64_MAX;
            for (struct mkv_group *group = engine->groups; group; group = *mkv_group_next(group)) {
                uint64_t earliest = mkv_group_expire(group, now);
                if (earliest < engine->next_ns)
                    engine->next_ns = earliest;
            }
        }
    }
    pthread_mutex_unlock(&engine->timer_lock);
    return NULL;
}

struct mkv_engine *mkv_engine_new(void)
{
    pthread_condattr_t monotonic;
    struct mkv_engine *engine = calloc(1, sizeof *engine);
    if (!engine)
        return NULL;
    engine->next_ns = UINT64_MAX;
    engine->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (engine->event_fd < 0) {
        free(engine);
        return NULL;
    }
    pthread_mutex_init(&engine->done_lock, NULL);
    pthread_mutex_init(&engine->timer_lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&engine->timer_changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    int error = mkv_start_thread(&engine->timer, run_timer, engine);
    if (error) {
        close(engine->event_fd);
        free(engine);
        errno = error;
        return NULL;
    }
    return engine;
}

void mkv_engine_abandon(struct mkv_engine *engine)
{
    /* Locks that a thread of the parent held when it forked would stay locked for ever. */
    pthread_mutex_init(&engine->done_lock, NULL);
    pthread_mutex_init(&engine->timer_lock, NULL);
    engine->is_abandoned = 1;
    engine->done_first = engine->done_last = NULL;
    for (struct mkv_group *group = engine->groups; group; group = *mkv_group_next(group))
        mkv_group_abandon(group);
    /* The number stays, but what it counts is this process's own from now on. */
    int own = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (own >= 0) {
        dup3(own, engine->event_fd, O_CLOEXEC);
        close(own);
    }
}

void mkv_engine_free(struct mkv_engine *engine)
{
    if (!engine->is_abandoned) {
        pthread_mutex_lock(&engine->timer_lock);
        engine->is_stopping = 1;
        pthread_cond_signal(&engine->timer_changed);
        pthread_mutex_unlock(&engine->timer_lock);
        pthread_join(engine->timer, NULL);
    }
    while (engine->done_first) {
        struct mkv_job *job = engine->done_first;
        engine->done_first = job->next;
        mkv_job_release(job);
    }
    if (!engine->is_abandoned) /* glibc waits for the waiters it remembers, and they are gone */
        pthread_cond_destroy(&engine->timer_changed);
    pthread_mutex_destroy(&engine->timer_lock);
    pthread_mutex_destroy(&engine->done_lock);
    close(engine->event_fd);
    free(engine);
}

int mkv_engine_event_fd(const struct mkv_engine *engine)
{
    return engine->event_fd;
}

void mkv_engine_notify(struct mkv_engine *engine)
{
    uint64_t one = 1;
    ssize_t done = write(engine->event_fd, &one, sizeof one);
    (void)done; /* fails only when the counter is full, and then it is readable */
}

void mkv_engine_report(struct mkv_engine *engine, struct mkv_job *job, enum mkv_report report)
{
    pthread_mutex_lock(&engine->done_lock);
    int is_listed = job->report != MKV_REPORT_NONE;
    job->report = report;
    if (!is_listed) {
        job->next = NULL;
        if (engine->done_first)
            engine->done_last->next = job;
        else
            engine->done_first = job;
        engine->done_last = job;
    }
    /* A job of a wave counts once, when it is done or late. What comes again wakes by itself. */
    int is_counted = job->is_counted;
    job->is_counted = 1;
    if (!job->wave || is_counted || --job->wave->pending == 0)
        mkv_engine_notify(engine);
    pthread_mutex_unlock(&engine->done_lock);
    if (is_listed)
        mkv_job_release(job); /* the list has its own reference */
}

uint32_t mkv_engine_take(struct mkv_engine *engine, struct mkv_completion *completions,
                         uint32_t limit)
{
    uint32_t count = 0;
    uint64_t counter;
    pthread_mutex_lock(&engine->done_lock);
    while (count < limit && engine->done_first) {
        struct mkv_job *job = engine->done_first;
        completions[count].job = job;
        completions[count++].is_done = job->report == MKV_REPORT_DONE;
        job->report = MKV_REPORT_NONE;
        engine->done_first = job->next;
    }
    if (!engine->done_first) {
        ssize_t done = read(engine->event_fd, &counter, sizeof counter);
        (void)done; /* -EAGAIN when nothing was written */
    }
    pthread_mutex_unlock(&engine->done_lock);
    return count;
}

void mkv_engine_add_group(struct mkv_engine *engine, struct mkv_group *group)
{
    pthread_mutex_lock(&engine->timer_lock);
    *mkv_group_next(group) = engine->groups;
    engine->groups = group;
    pthread_mutex_unlock(&engine->timer_lock);
}

void mkv_engine_remove_group(struct mkv_engine *engine, struct mkv_group *group)
{
    struct mkv_group **at = &engine->groups;
    pthread_mutex_lock(&engine->timer_lock);
    while (*at != group)
        at = mkv_group_next(*at);
    *at = *mkv_group_next(group);
    pthread_mutex_unlock(&engine->timer_lock);
}

void mkv_engine_watch_deadline(struct mkv_engine *engine, uint64_t deadline_ns)
{
    pthread_mutex_lock(&engine->timer_lock);
    if (deadline_ns < engine->next_ns) {
        engine->next_ns = deadline_ns;
        pthread_cond_signal(&engine->timer_changed);
    }
    pthread_mutex_unlock(&engine->timer_lock);
}
