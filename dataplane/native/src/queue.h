/* A first-in first-out list of jobs, linked through them. No lock of its own. */
#pragma once
#include <stdint.h>

#include "job.h"

struct mkv_queue {
    struct mkv_job *first, *last;
    uint32_t count;
};

void mkv_queue_push_back(struct mkv_queue *queue, struct mkv_job *job);
void mkv_queue_push_front(struct mkv_queue *queue, struct mkv_job *job);

/* `job` is in the queue. */
void mkv_queue_remove(struct mkv_queue *queue, struct mkv_job *job);

/* Empty the queue; returns its jobs linked by `next`, for mkv_queue_complete. */
struct mkv_job *mkv_queue_take_all(struct mkv_queue *queue);

/* Move the jobs whose deadline is not after `now_ns` to `expired` (linked by `next`); returns the
 * earliest deadline left, UINT64_MAX without any. */
uint64_t mkv_queue_take_expired(struct mkv_queue *queue, uint64_t now_ns,
                                struct mkv_job **expired);

/* Give `status` to every item of jobs that were taken, and complete them. Called without locks. */
void mkv_queue_complete(struct mkv_job *taken, int32_t status);
