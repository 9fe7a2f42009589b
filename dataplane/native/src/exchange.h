/* One job over one stream: send the request, take and verify the answer. Blocking, no locks, no
 * threads of its own; whoever calls owns the stream until it returns. */
#pragma once
#include <stdint.h>

#include "job.h"
#include "stream.h"

enum {
    MKV_INBOX_BYTES = 16 * 1024, /* a 4 KiB answer comes in one receive; copying more costs */
    MKV_EXCHANGE_SPENT = 1,
};

/* Run `job` (deadline and memory as it says) and write its results.
 *
 * Returns MKV_OK when the stream is good for the next job, or MKV_EXCHANGE_SPENT when the job was
 * answered but the stream must be closed. A negative status also means that the stream must be
 * closed; the caller then gives it to the items that have no answer, in this order. Every byte
 * received is checked before it is believed: a violation is MKV_PROTOCOL.
 *
 * `round_trip_ns`, or NULL: the time of small gets of late, kept here. With it a small get waits
 * for its answer awake for a moment when answers came fast, since falling asleep and waking up take
 * as long as all the node's work. For callers who wait anyway, not for lane threads. */
int mkv_exchange(struct mkv_stream *stream, struct mkv_inbox *inbox, uint64_t request_id,
                 struct mkv_job *job, uint64_t *round_trip_ns);
