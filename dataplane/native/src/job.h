/* A job: one request to one worker, its buffers and its results.
 *
 * Life: new -> (scatter lists added) -> given to a lane group once -> done. The maker holds one
 * reference, whoever queues or runs it another. Until it is done only the executing lane writes
 * results and buffers; afterwards nobody does. So "done" means: the buffers are free.
 *
 * The answer of a LOCAL_GET says that the node has written into the buffers itself. Only the node
 * can end that, so such a job is done when the node has answered or is gone, however late; results
 * that come after the deadline are TIMEOUT.
 *
 * The answer of an RDMA_GET says the same, but there this side can end the writing: the fence of
 * the stream does, and such a job ends by its deadline like any other. */
#pragma once
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "frame.h"

struct mkv_engine;
struct mkv_lane;

enum mkv_job_kind {
    MKV_JOB_EXCHANGE,
    MKV_JOB_GET,
    MKV_JOB_GET_RANGES,
    MKV_JOB_PUT,
    MKV_JOB_LOCAL_GET,
    MKV_JOB_LOCAL_PUT,
    MKV_JOB_RDMA_GET,
    MKV_JOB_RDMA_PUT,
};

/* Of a job in the engine's list of completions. */
enum mkv_report { MKV_REPORT_NONE, MKV_REPORT_OVERDUE, MKV_REPORT_DONE };

#define MKV_UNANSWERED INT64_MIN

/* Jobs whose completions are of use only together: the last one to end makes the engine's eventfd
 * readable. `pending` is under the engine's lock of completions, `references` is atomic. */
struct mkv_wave {
    uint32_t pending;
    int references;
};

struct mkv_item {
    uint8_t block_id[MKV_BLOCK_ID_BYTES];
    struct iovec *parts; /* where payload goes (GET) or comes from (PUT) */
    uint32_t part_count;
    uint32_t local_part_count;     /* LOCAL_*, RDMA_*: what the request says of `parts` */
    uint32_t range_count;          /* GET_RANGES */
    const uint8_t *ranges;         /* of the request body: {offset, length} pairs */
    const uint8_t *local_parts;    /* of the request body: struct mkv_local_part */
    uint64_t capacity, max_length; /* bytes of all parts; what the request says */
    int64_t status; /* bytes or 0 or 1, or a negative status; MKV_UNANSWERED before */
    uint64_t length; /* of the stored block, where the answer said it */
    uint32_t source; /* 0 DRAM, 1 flash */
};

struct mkv_job {
    enum mkv_job_kind kind;
    uint64_t deadline_ns;
    uint8_t tenant_tag[MKV_TENANT_TAG_BYTES];
    struct mkv_header header; /* template of the request; patched when sent */
    uint8_t *body; /* of the request; PUT: item_count times struct mkv_put_item; LOCAL_PUT and
                      RDMA_PUT: the parts of all items behind them */
    size_t body_bytes;
    size_t reply_bytes_max;
    struct mkv_item *items;
    uint32_t item_count;
    int is_unread; /* this process cannot read the items' memory: the node has checked the blocks */
    void *owner; /* the caller's; the engine gives it back with the completion */

    /* Results: written by the executing lane, read when done. */
    int32_t status; /* of the whole request: MKV_OK when every item was answered */
    uint8_t *reply; /* body of the response frame (EXCHANGE), or the text of a failure */
    size_t reply_bytes;
    uint8_t *hints; /* hint records back to back */
    size_t hints_bytes;
    uint64_t bytes_received, bytes_sent; /* payload */

    /* Private to job.c, engine.c and lane.c. */
    struct mkv_engine *engine;
    struct mkv_wave *wave; /* or NULL; set before the job is given to a group */
    struct mkv_lane *lane; /* that runs it; under the group's lock */
    struct mkv_job *next;  /* in a queue or a list of completions */
    enum mkv_report report; /* under the engine's lock: what the list says of it */
    int is_counted;         /* likewise: its wave was told */
    uint32_t local_parts_set; /* LOCAL_PUT, RDMA_PUT: parts that were given their memory */
    int references;        /* atomic */
    int is_given, is_queued;
    pthread_mutex_t lock;  /* of what follows */
    pthread_cond_t done_changed;
    int is_done, wants_notify;
    int is_overdue; /* whoever waits was told that it takes longer */
};

/* Make a job from a request frame: header and body (PUT: a header and the put items without sums,
 * which the lane computes). The frame is copied. Returns NULL and the reason in `error`. */
struct mkv_job *mkv_job_new(enum mkv_job_kind kind, const uint8_t *frame, size_t frame_bytes,
                            uint64_t deadline_ns, const char **error);

/* Set the memory of one item (`parts` is copied). Returns NULL, or why not. Every item of a GET,
 * GET_RANGES or PUT needs it once. */
const char *mkv_job_scatter(struct mkv_job *job, uint32_t index, const struct iovec *parts,
                            uint32_t count);

/* A wave of `count` jobs, or NULL. The maker holds a reference, each job of it another. */
struct mkv_wave *mkv_wave_new(uint32_t count);
void mkv_wave_release(struct mkv_wave *wave);
void mkv_job_join(struct mkv_job *job, struct mkv_wave *wave);

void mkv_job_reference(struct mkv_job *job);
void mkv_job_release(struct mkv_job *job);

/* Keep hint records that came with an answer; 0, or -1 when memory is short. */
int mkv_job_keep_hints(struct mkv_job *job, const uint8_t *records, size_t len);

/* Give every unanswered item `status`, the job too when any was, or when it has no items. */
void mkv_job_fail(struct mkv_job *job, int32_t status);

/* Mark done, wake waiters, tell the engine when asked to, and drop the executor's reference. */
void mkv_job_complete(struct mkv_job *job);

/* Wait until done or `deadline_ns`. Returns whether it is done. With `hand_over`, a job that is not
 * done in time is reported by the engine's completions when it is. */
int mkv_job_wait(struct mkv_job *job, uint64_t deadline_ns, int hand_over);

int mkv_job_is_done(struct mkv_job *job);

/* Whether the answers of a get say that the node has written into the job's memory itself. */
static inline int mkv_job_is_placed(const struct mkv_job *job)
{
    return job->kind == MKV_JOB_LOCAL_GET || job->kind == MKV_JOB_RDMA_GET;
}

/* Whether a job names the memory that the node takes payload from or places it in. */
static inline int mkv_job_names_memory(const struct mkv_job *job)
{
    return job->kind >= MKV_JOB_LOCAL_GET;
}

static inline int mkv_job_is_put(const struct mkv_job *job)
{
    return job->kind == MKV_JOB_PUT || job->kind == MKV_JOB_LOCAL_PUT ||
           job->kind == MKV_JOB_RDMA_PUT;
}

/* Whether only the node can free the job's buffers: closing the lane does not. */
static inline int mkv_job_awaits_node(const struct mkv_job *job)
{
    return job->kind == MKV_JOB_LOCAL_GET;
}

/* Have the engine report that the job is late, once, when it is not done and is to be notified. */
void mkv_job_report_overdue(struct mkv_job *job);

/* Whether mkv_job_report_overdue has something to do. */
int mkv_job_may_be_overdue(struct mkv_job *job);
