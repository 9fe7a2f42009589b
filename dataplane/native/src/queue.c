#include "queue.h"

#include <stddef.h>

void mkv_queue_push_back(struct mkv_queue *queue, struct mkv_job *job)
{
    job->next = NULL;
    job->is_queued = 1;
    if (queue->first)
        queue->last->next = job;
    else
        queue->first = job;
    queue->last = job;
    queue->count++;
}

void mkv_queue_push_front(struct mkv_queue *queue, struct mkv_job *job)
{
    job->next = queue->first;
    job->is_queued = 1;
    if (!queue->first)
        queue->last = job;
    queue->first = job;
    queue->count++;
}

void mkv_queue_remove(struct mkv_queue *queue, struct mkv_job *job)
{
    struct mkv_job *before = NULL;
    for (struct mkv_job *at = queue->first; at != job; at = at->next)
        before = at;
    if (before)
        before->next = job->next;
    else
        queue->first = job->next;
    if (queue->last == job)
        queue->last = before;
    job->next = NULL;
    job->is_queued = 0;
    queue->count--;
}

struct mkv_job *mkv_queue_take_all(struct mkv_queue *queue)
{
    struct mkv_job *all = queue->first;
    for (struct mkv_job *job = all; job; job = job->next)
        job->is_queued = 0;
    queue->first = queue->last = NULL;
    queue->count = 0;
    return all;
}

uint64_t mkv_queue_take_expired(struct mkv_queue *queue, uint64_t now_ns, struct mkv_job **expired)
{
    uint64_t earliest_ns = UINT64_MAX;
    struct mkv_job *job = mkv_queue_take_all(queue);
    *expired = NULL;
    while (job) {
        struct mkv_job *next = job->next;
        if (job->deadline_ns <= now_ns) {
            job->next = *expired;
            *expired = job;
        } else {
            if (job->deadline_ns < earliest_ns)
                earliest_ns = job->deadline_ns;
            mkv_queue_push_back(queue, job);
        }
        job = next;
    }
    return earliest_ns;
}

void mkv_queue_complete(struct mkv_job *taken, int32_t status)
{
    while (taken) {
        struct mkv_job *next = taken->next;
        taken->next = NULL;
        mkv_job_fail(taken, status);
        mkv_job_complete(taken);
        taken = next;
    }
}
