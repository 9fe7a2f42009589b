/* What all lane groups of one client share: the list of completions behind one eventfd, and the
 * timer that takes jobs off the queues when their deadline passes before a lane was free. */
#pragma once
#include <pthread.h>
#include <stdint.h>

#include "job.h"

struct mkv_engine;
struct mkv_group;

/* Returns NULL and sets errno. Starts the timer thread. */
struct mkv_engine *mkv_engine_new(void);

/* Stop the timer and free. Every group must be freed before. */
void mkv_engine_free(struct mkv_engine *engine);

/* In the child of a fork, before anything else of the engine: none of its threads came along, and
 * its sockets are the parent's. Closes this process's copies of them without a word to the peers,
 * and leaves the engine and its groups closed. Jobs of the moment are never completed here. */
void mkv_engine_abandon(struct mkv_engine *engine);

/* Readable while completions wait; owned by the engine. */
int mkv_engine_event_fd(const struct mkv_engine *engine);

/* Make the eventfd readable without a completion. */
void mkv_engine_notify(struct mkv_engine *engine);

/* Add a job to the completions, because it is done or because it is late; takes over one reference.
 * A job that gets done before anybody took note that it is late is reported once, as done. The
 * eventfd becomes readable, with jobs of a wave when each of them is there. */
void mkv_engine_report(struct mkv_engine *engine, struct mkv_job *job, enum mkv_report report);

struct mkv_completion {
    struct mkv_job *job; /* with a reference to release */
    int is_done;         /* else it is late and will be reported again */
};

/* Take up to `limit` completions in their order. The eventfd stays readable while more wait. */
uint32_t mkv_engine_take(struct mkv_engine *engine, struct mkv_completion *completions,
                         uint32_t limit);

/* Start a thread that no signal of the process is delivered to. Returns 0 or an errno. */
int mkv_start_thread(pthread_t *thread, void *(*run)(void *), void *argument);

/* Called by groups: be looked after by the timer; stop that; a job waits until `deadline_ns`. */
void mkv_engine_add_group(struct mkv_engine *engine, struct mkv_group *group);
void mkv_engine_remove_group(struct mkv_engine *engine, struct mkv_group *group);
void mkv_engine_watch_deadline(struct mkv_engine *engine, uint64_t deadline_ns);
